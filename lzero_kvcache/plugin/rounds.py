"""What LightZero's collectors and evaluator cannot run, which they look at only in the middle of a run."""
from collections.abc import Mapping
from functools import wraps
from typing import Any, Callable

from lzero.worker import MuZeroCollector, MuZeroEvaluator, MuZeroSegmentCollector

from ..lightzero import installed
from .recognition import has_managed_cache, is_of_plugin


def check_rounds_early() -> None:
    """
    Let LightZero's collectors and evaluator refuse, as soon as they are given a policy, what they would end in later
    on. For the rest of this process, and as far as their rounds go, for the stock policies, too.
    """
    for worker_class, check in (
            (MuZeroCollector, _check_collector), (MuZeroSegmentCollector, _check_segment_collector),
            (MuZeroEvaluator, _check_evaluator),
    ):
        if not hasattr(worker_class.reset, '__wrapped__'):
            worker_class.reset = _checking(worker_class.reset, check)


def check_episodes(policy_config: Mapping[str, Any], env_num: int, prefix: str = '') -> None:
    """
    A ValueError if a round of ``train_unizero`` has fewer episodes than environments; its key path follows ``prefix``,
    e.g. "arms['lru'].".
    """
    n_episode = policy_config.get('n_episode')
    if n_episode is not None and n_episode < env_num:
        raise ValueError(
            f'{prefix}policy.n_episode is {n_episode}, but env.collector_env_num is {env_num}, and each environment '
            f'runs at least one episode in a round of collecting: allowed are {env_num} and more'
        )


def check_segments(policy_config: Mapping[str, Any], env_num: int, prefix: str = '') -> None:
    """A ValueError if a round of ``train_unizero_segment`` has not as many game segments as environments."""
    num_segments = policy_config.get('num_segments')
    if num_segments is not None and num_segments != env_num:
        raise ValueError(
            f'{prefix}policy.num_segments is {num_segments}, but env.collector_env_num is {env_num}, and each '
            f'environment runs one game segment in a round of collecting: allowed is {env_num}'
        )


def check_room(policy_config: Mapping[str, Any], key: str, env_num: int, prefix: str = '') -> None:
    """A ValueError if there are more environments than those that the policy names, for which the cache has room."""
    if env_num > max(policy_config['collector_env_num'], policy_config['evaluator_env_num']):
        raise ValueError(
            f'{prefix}env.{key} is {env_num}, but policy.{key} is {policy_config[key]}, and the cache has room for the '
            'environments that policy names: set both to the same number'
        )


def _checking(reset: Callable, check: Callable) -> Callable:

    @wraps(reset)
    def reset_and_check(self: Any, *arguments: Any, **keywords: Any) -> None:
        reset(self, *arguments, **keywords)
        check(self._policy, self._env.env_num)

    return reset_and_check


def _check_collector(policy: Any, env_num: int) -> None:
    check_episodes(policy.get_attribute('cfg'), env_num)
    _check_collecting(policy, env_num)


def _check_segment_collector(policy: Any, env_num: int) -> None:
    check_segments(policy.get_attribute('cfg'), env_num)
    _check_collecting(policy, env_num)


def _check_collecting(policy: Any, env_num: int) -> None:
    if is_of_plugin(policy):
        # A policy that can learn is collected for, so as to learn; 'eval_muzero' makes one, too, but no collector.
        fields = {'collect', 'learn'}.intersection(policy.get_attribute('enable_field'))
        installed().check_settings(policy.get_attribute('cfg'), fields)
    if has_managed_cache(policy):
        check_room(policy.get_attribute('cfg'), 'collector_env_num', env_num)


def _check_evaluator(policy: Any, env_num: int) -> None:
    if has_managed_cache(policy):
        check_room(policy.get_attribute('cfg'), 'evaluator_env_num', env_num)
