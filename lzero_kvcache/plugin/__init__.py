"""
Importing this module lets DI-engine resolve the managed cache from a config: it registers the two models and puts the
two policies in ``POLICY_REGISTRY`` under the names that LightZero's entries insist on.
"""
from .lightzero_version import check_lightzero

check_lightzero()

from .models import SampledUniZeroKVCacheModel, UniZeroKVCacheModel  # noqa: E402
from .policies import SampledUniZeroKVCachePolicy, UniZeroKVCachePolicy  # noqa: E402

__all__ = [
    'SampledUniZeroKVCacheModel',
    'SampledUniZeroKVCachePolicy',
    'UniZeroKVCacheModel',
    'UniZeroKVCachePolicy',
]
