"""One managed, configurable, exact and fast KV cache for UniZero's world model."""
from .config import KVCacheConfig
from .eviction import EVICTION_REGISTRY, EvictionPolicy, EvictionStrategy
from .manager import KVCacheManager
from .pool import KVCachePool
from .stats import CacheStats

__version__ = '0.1.0'

__all__ = [
    'EVICTION_REGISTRY',
    'CacheStats',
    'EvictionPolicy',
    'EvictionStrategy',
    'KVCacheConfig',
    'KVCacheManager',
    'KVCachePool',
]
