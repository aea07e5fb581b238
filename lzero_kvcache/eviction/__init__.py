"""Eviction strategies: one file per strategy, each by the name that a config uses in ``registered.py``."""
from typing import TYPE_CHECKING, Any

from .base import EvictionPolicy, EvictionStrategyError, Priority
from .fifo import FIFOEviction
from .lfu import LFUEviction
from .lru import LRUEviction
from .priority import PriorityEviction
from .random import RandomEviction
from .s3fifo import S3FIFOEviction
from .search_nodes import SearchNodes
from .search_tree import SearchTree, SearchTreeNode
from .sieve import SIEVEEviction
from .slru import SLRUEviction
from .strategy import EvictionStrategy, build_eviction_policy, eviction_policy_factory, parse_strategy
from .tree import TreeEviction

if TYPE_CHECKING:
    from .registry import EVICTION_REGISTRY

__all__ = [
    'EVICTION_REGISTRY',
    'EvictionPolicy',
    'EvictionStrategy',
    'EvictionStrategyError',
    'FIFOEviction',
    'LFUEviction',
    'LRUEviction',
    'Priority',
    'PriorityEviction',
    'RandomEviction',
    'S3FIFOEviction',
    'SIEVEEviction',
    'SLRUEviction',
    'SearchNodes',
    'SearchTree',
    'SearchTreeNode',
    'TreeEviction',
    'build_eviction_policy',
    'eviction_policy_factory',
    'parse_strategy',
]


def __getattr__(name: str) -> Any:
    if name != 'EVICTION_REGISTRY':
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    # Imported when it is asked for, because it needs DI-engine.
    from .registry import EVICTION_REGISTRY

    return EVICTION_REGISTRY
