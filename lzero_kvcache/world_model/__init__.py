"""The managed cache under LightZero's ``WorldModel``."""
from .managed import ManagedInference, RebuildStats, RootEnvironments
from .mixin import KVCacheWorldModel, KVCacheWorldModelMixin

__all__ = [
    'KVCacheWorldModel', 'KVCacheWorldModelMixin', 'ManagedInference', 'RebuildStats', 'RootEnvironments'
]
