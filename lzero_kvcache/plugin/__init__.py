"""
Importing this module lets DI-engine resolve the managed cache from a config: it registers the two models and puts the
two policies in ``POLICY_REGISTRY`` under the names that LightZero's entries insist on.
"""
from importlib import import_module

from ..lightzero import installed

# Before anything of LightZero's is imported that another version may not have.
installed()

from .models import SampledUniZeroKVCacheModel, UniZeroKVCacheModel  # noqa: E402
from .policies import SampledUniZeroKVCachePolicy, UniZeroKVCachePolicy  # noqa: E402

for _name in installed().more_policies:
    import_module(_name)

__all__ = [
    'SampledUniZeroKVCacheModel',
    'SampledUniZeroKVCachePolicy',
    'UniZeroKVCacheModel',
    'UniZeroKVCachePolicy',
]
