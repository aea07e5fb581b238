"""Which policies are the plugin's, as LightZero's collectors and evaluators see them."""
from typing import Any


def is_of_plugin(policy: Any) -> bool:
    """Whether a policy, as its workers have it, is one of the plugin's, whatever its mode."""
    try:
        policy.get_attribute('kv_cache_statistics')
    except NotImplementedError:
        return False
    return True


def has_managed_cache(policy: Any) -> bool:
    """Whether a policy, as its workers have it, is one of the plugin's, with the cache on."""
    return is_of_plugin(policy) and policy.get_attribute('kv_cache_statistics') is not None
