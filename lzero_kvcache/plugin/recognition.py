"""Which policies are the plugin's, as LightZero's collectors and evaluators see them."""
from typing import Any


def is_of_plugin(policy: Any) -> bool:
    """
    Overview:
        Whether a policy is one of the plugin's, whatever its mode.
    Arguments:
        - policy (:obj:`Policy.collect_function`): A mode of the policy, as its workers have it.
    """
    try:
        policy.get_attribute('kv_cache_statistics')
    except NotImplementedError:
        return False
    return True


def has_managed_cache(policy: Any) -> bool:
    """
    Overview:
        Whether a policy is one of the plugin's, with the cache on.
    Arguments:
        - policy (:obj:`Policy.collect_function`): A mode of the policy, as its workers have it.
    """
    return is_of_plugin(policy) and policy.get_attribute('kv_cache_statistics') is not None
