"""Eviction strategies: one file per strategy, each registered under the name that a config uses."""
from .base import EVICTION_REGISTRY, EvictionPolicy, Priority
from .fifo import FIFOEviction
from .lru import LRUEviction
from .priority import PriorityEviction
from .search_tree import Expansion, SearchTree, SearchTreeNode
from .strategy import EvictionStrategy, build_eviction_policy, parse_strategy
from .tree import TreeEviction

__all__ = [
    'EVICTION_REGISTRY',
    'EvictionPolicy',
    'EvictionStrategy',
    'Expansion',
    'FIFOEviction',
    'LRUEviction',
    'Priority',
    'PriorityEviction',
    'SearchTree',
    'SearchTreeNode',
    'TreeEviction',
    'build_eviction_policy',
    'parse_strategy',
]
