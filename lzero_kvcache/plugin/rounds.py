"""How much LightZero's collectors collect in a round, which they look at only after the first evaluation."""
from collections.abc import Mapping
from functools import wraps
from typing import Any, Callable

from lzero.worker import MuZeroCollector, MuZeroSegmentCollector


def check_rounds_early() -> None:
    """
    Overview:
        Let LightZero's collectors refuse, as soon as they are made, the numbers for which they end in an assertion
        later on. For the rest of this process, and for the stock policies, too.
    """
    for collector_class, check in ((MuZeroCollector, check_episodes), (MuZeroSegmentCollector, check_segments)):
        if not hasattr(collector_class.reset_policy, '__wrapped__'):
            collector_class.reset_policy = _checking(collector_class.reset_policy, check)


def check_episodes(policy_config: Mapping[str, Any], env_num: int, prefix: str = '') -> None:
    """
    Overview:
        Check a round of ``train_unizero``.
    Arguments:
        - policy_config (:obj:`Mapping`): The policy's.
        - env_num (:obj:`int`): Environments that collect.
        - prefix (:obj:`str`): Stands before the key path in error messages, e.g. "arms['lru'].".
    Raises:
        - ValueError: If there are fewer episodes than environments.
    """
    n_episode = policy_config.get('n_episode')
    if n_episode is not None and n_episode < env_num:
        raise ValueError(
            f'{prefix}policy.n_episode is {n_episode}, but env.collector_env_num is {env_num}, and each environment '
            f'runs at least one episode in a round of collecting: allowed are {env_num} and more'
        )


def check_segments(policy_config: Mapping[str, Any], env_num: int, prefix: str = '') -> None:
    """
    Overview:
        Check a round of ``train_unizero_segment``.
    Arguments:
        - policy_config, env_num, prefix: As those of ``check_episodes``.
    Raises:
        - ValueError: If there are not as many game segments as environments.
    """
    num_segments = policy_config.get('num_segments')
    if num_segments is not None and num_segments != env_num:
        raise ValueError(
            f'{prefix}policy.num_segments is {num_segments}, but env.collector_env_num is {env_num}, and each '
            f'environment runs one game segment in a round of collecting: allowed is {env_num}'
        )


def _checking(reset_policy: Callable, check: Callable) -> Callable:

    @wraps(reset_policy)
    def reset_and_check(self: Any, policy: Any = None) -> None:
        reset_policy(self, policy)
        if policy is not None:
            check(policy.get_attribute('cfg'), self._env_num)

    return reset_and_check
