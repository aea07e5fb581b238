"""The managed cache under LightZero's ``WorldModel``."""
from ..stats import RebuildStats
from .imagination import Imagination
from .managed import ManagedInference
from .mixin import KVCacheWorldModel, KVCacheWorldModelMixin
from .roots import RootEnvironments

__all__ = [
    'Imagination', 'KVCacheWorldModel', 'KVCacheWorldModelMixin', 'ManagedInference', 'RebuildStats', 'RootEnvironments'
]
