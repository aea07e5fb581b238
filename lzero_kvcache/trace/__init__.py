"""Cache operations of real runs: recorded, and replayed through other strategies and pool sizes."""
from .choices import BELADY, SCORES, Choice, chosen_strategies
from .reader import Search, TraceReader
from .replay import Replay

__all__ = [
    'BELADY',
    'Choice',
    'Replay',
    'SCORES',
    'Search',
    'TraceReader',
    'chosen_strategies',
]
