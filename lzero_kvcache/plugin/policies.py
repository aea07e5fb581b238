from ding.utils import POLICY_REGISTRY
from lzero.policy.sampled_unizero import SampledUniZeroPolicy
from lzero.policy.unizero import UniZeroPolicy

from .policy_hook import KVCachePolicyMixin


@POLICY_REGISTRY.register('unizero', force_overwrite=True)
class UniZeroKVCachePolicy(KVCachePolicyMixin, UniZeroPolicy):
    """
    Overview:
        LightZero's ``UniZeroPolicy`` with the managed cache, under the name that the stock entries insist on.
    """
    stock_policy = UniZeroPolicy
    model_name = 'UniZeroKVCacheModel'


@POLICY_REGISTRY.register('sampled_unizero', force_overwrite=True)
class SampledUniZeroKVCachePolicy(KVCachePolicyMixin, SampledUniZeroPolicy):
    """
    Overview:
        LightZero's ``SampledUniZeroPolicy`` with the managed cache, under the name that the stock entries insist on.
    """
    stock_policy = SampledUniZeroPolicy
    model_name = 'SampledUniZeroKVCacheModel'
