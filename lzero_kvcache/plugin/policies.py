from ding.utils import POLICY_REGISTRY
from easydict import EasyDict
from lzero.policy.sampled_unizero import SampledUniZeroPolicy
from lzero.policy.unizero import UniZeroPolicy

from .policy_hook import KVCachePolicyMixin
from .statistics import with_run_hooks


@POLICY_REGISTRY.register('unizero', force_overwrite=True)
class UniZeroKVCachePolicy(KVCachePolicyMixin, UniZeroPolicy):
    """
    Overview:
        LightZero's ``UniZeroPolicy`` with the managed cache, under the name that the stock entries insist on.
    """

    @classmethod
    def default_config(cls) -> EasyDict:
        """
        Overview:
            The stock policy's default config and the hooks that report the cache's statistics.
        """
        return with_run_hooks(UniZeroPolicy.default_config())

    def default_model(self) -> tuple[str, list[str]]:
        """
        Overview:
            The model's name in ``MODEL_REGISTRY`` and the modules that register it.
        """
        return 'UniZeroKVCacheModel', ['lzero_kvcache.plugin']


@POLICY_REGISTRY.register('sampled_unizero', force_overwrite=True)
class SampledUniZeroKVCachePolicy(KVCachePolicyMixin, SampledUniZeroPolicy):
    """
    Overview:
        LightZero's ``SampledUniZeroPolicy`` with the managed cache, under the name that the stock entries insist on.
    """

    @classmethod
    def default_config(cls) -> EasyDict:
        """
        Overview:
            The stock policy's default config and the hooks that report the cache's statistics.
        """
        return with_run_hooks(SampledUniZeroPolicy.default_config())

    def default_model(self) -> tuple[str, list[str]]:
        """
        Overview:
            The model's name in ``MODEL_REGISTRY`` and the modules that register it.
        """
        return 'SampledUniZeroKVCacheModel', ['lzero_kvcache.plugin']
