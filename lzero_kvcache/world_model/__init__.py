"""The managed cache under LightZero's ``WorldModel``."""
from .histories import RebuildStats
from .imagination import Imagination
from .managed import ManagedInference, RootEnvironments
from .mixin import KVCacheWorldModel, KVCacheWorldModelMixin

__all__ = [
    'Imagination', 'KVCacheWorldModel', 'KVCacheWorldModelMixin', 'ManagedInference', 'RebuildStats', 'RootEnvironments'
]
