"""The managed cache under LightZero's ``WorldModel``."""
from .contexts import RebuildStats
from .managed import ManagedInference, RootEnvironments
from .mixin import KVCacheWorldModel, KVCacheWorldModelMixin

__all__ = [
    'KVCacheWorldModel', 'KVCacheWorldModelMixin', 'ManagedInference', 'RebuildStats', 'RootEnvironments'
]
