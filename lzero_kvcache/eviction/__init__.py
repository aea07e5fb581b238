"""Eviction strategies: one file per strategy, each registered under the name that a config uses."""
from .base import EVICTION_REGISTRY, EvictionPolicy, Priority
from .fifo import FIFOEviction
from .lfu import LFUEviction
from .lru import LRUEviction
from .priority import PriorityEviction
from .random import RandomEviction
from .s3fifo import S3FIFOEviction
from .search_tree import Expansion, SearchTree, SearchTreeNode
from .sieve import SIEVEEviction
from .slru import SLRUEviction
from .strategy import EvictionStrategy, build_eviction_policy, parse_strategy
from .tree import TreeEviction

__all__ = [
    'EVICTION_REGISTRY',
    'EvictionPolicy',
    'EvictionStrategy',
    'Expansion',
    'FIFOEviction',
    'LFUEviction',
    'LRUEviction',
    'Priority',
    'PriorityEviction',
    'RandomEviction',
    'S3FIFOEviction',
    'SIEVEEviction',
    'SLRUEviction',
    'SearchTree',
    'SearchTreeNode',
    'TreeEviction',
    'build_eviction_policy',
    'parse_strategy',
]
