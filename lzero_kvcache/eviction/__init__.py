"""Eviction strategies: one file per strategy, each registered under the name that a config uses."""
from .base import EVICTION_REGISTRY, EvictionPolicy
from .fifo import FIFOEviction
from .lru import LRUEviction
from .priority import PriorityEviction
from .strategy import EvictionStrategy, build_eviction_policy, parse_strategy

__all__ = [
    'EVICTION_REGISTRY',
    'EvictionPolicy',
    'EvictionStrategy',
    'FIFOEviction',
    'LRUEviction',
    'PriorityEviction',
    'build_eviction_policy',
    'parse_strategy',
]
