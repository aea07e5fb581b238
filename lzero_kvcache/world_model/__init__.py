"""The managed cache under LightZero's ``WorldModel``."""
from ..stats import RebuildStats
from .imagination import Imagination
from .managed import ManagedInference
from .mixin import ADOPTABLE, KVCacheWorldModel, KVCacheWorldModelMixin, adoptable
from .roots import RootEnvironments

__all__ = [
    'ADOPTABLE', 'Imagination', 'KVCacheWorldModel', 'KVCacheWorldModelMixin', 'ManagedInference', 'RebuildStats',
    'RootEnvironments', 'adoptable'
]
