"""Cache operations of real runs: recorded, and replayed through other strategies and pool sizes."""
