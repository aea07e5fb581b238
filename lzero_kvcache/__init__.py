"""One managed, configurable, exact and fast KV cache for UniZero's world model."""
from importlib import import_module
from os import environ
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# Imported when they are asked for: the command line starts at once, and can say what is missing where they cannot be.
_MODULES = {
    'EVICTION_REGISTRY': 'eviction',
    'CacheStats': 'stats',
    'EvictionPolicy': 'eviction',
    'EvictionStrategy': 'eviction',
    'KVCacheConfig': 'config',
    'KVCacheManager': 'manager',
    'KVCachePool': 'pool',
}

if environ.get('MUJOCO_GL') == 'egl':
    # LightZero, which is imported after this, loads dm-control and with it Mesa.
    import_module('.envs.rendering', __name__).import_triton()


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{_MODULES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_MODULES])
