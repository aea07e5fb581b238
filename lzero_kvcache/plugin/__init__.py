from .models import SampledUniZeroKVCacheModel, UniZeroKVCacheModel

__all__ = ['SampledUniZeroKVCacheModel', 'UniZeroKVCacheModel']
