"""A/B runs: the arms of an experiment, each with the same seeds, as trials of their own that can be resumed."""
