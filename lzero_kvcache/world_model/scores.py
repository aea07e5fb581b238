"""How the world model scores a node for strategies that evict by priority. Higher survives."""
from collections.abc import Sequence
from importlib import import_module
from typing import Callable, Optional

import numpy as np
import torch

from ..checks import choices, is_number
from ..config import KEY_PATH, KVCacheConfig
from ..eviction import build_eviction_policy
from ..eviction.search_nodes import SearchNodes
from .cached_model import expected_bins

Score = Callable[[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor], Sequence[float]]


def search_depth(depth: np.ndarray, reward: torch.Tensor, policy: torch.Tensor, value: torch.Tensor) -> Sequence[float]:
    """
    Overview:
        Shallow nodes survive.
    Arguments:
        - depth (:obj:`np.ndarray`): Actions since the root, :math:`(B, )`.
        - reward (:obj:`torch.Tensor`): Predicted reward logits, :math:`(B, support_size)`.
        - policy (:obj:`torch.Tensor`): Predicted policy logits, :math:`(B, action_space_size)`.
        - value (:obj:`torch.Tensor`): Predicted value logits, :math:`(B, support_size)`.
    Returns:
        - priorities (:obj:`Sequence[float]`): One number per node.
    """
    return (-depth).tolist()


def predicted_value(
        depth: np.ndarray, reward: torch.Tensor, policy: torch.Tensor, value: torch.Tensor
) -> Sequence[float]:
    """Nodes of a high predicted value survive. Arguments and result as ``search_depth``."""
    return _expected_bins(value)


def predicted_reward(
        depth: np.ndarray, reward: torch.Tensor, policy: torch.Tensor, value: torch.Tensor
) -> Sequence[float]:
    """Nodes of a high predicted reward survive. Arguments and result as ``search_depth``."""
    return _expected_bins(reward)


SCORES: dict[str, Score] = {
    'search_depth': search_depth,
    'predicted_value': predicted_value,
    'predicted_reward': predicted_reward,
}


class PoolScores:
    """The scores that the strategies of a ``kv_cache`` entry ask for. A ValueError names the key path of a bad one."""

    def __init__(self, config: KVCacheConfig) -> None:
        self._scores: dict[str, Optional[Score]] = {}
        for kind in ('init_pool', 'recur_pool', 'wm_pool'):
            pool = getattr(config, kind)
            key_path = f'{KEY_PATH}.strategy' if pool.strategy is None else f'{KEY_PATH}.{kind}.strategy'
            policy = build_eviction_policy(config.strategy_of(pool), key_path)
            has_score = hasattr(policy, 'score')
            self._scores[kind] = resolve_score(policy.score, f'{key_path}.score') if has_score else None

    def priorities(
            self, kind: str, nodes: SearchNodes, numbers: Sequence[int], reward: torch.Tensor, policy: torch.Tensor,
            value: torch.Tensor
    ) -> Sequence[Optional[float]]:
        """What B nodes are worth to a pool's strategy, by logits of shape [B, 1, size]; None each, if it uses no score.
        A ValueError if a score returns anything but numbers.
        """
        score = self._scores[kind]
        if score is None:
            return [None] * len(numbers)
        priorities = score(nodes.depths[numbers], reward.flatten(1), policy.flatten(1), value.flatten(1))
        for priority in priorities:
            # Checked before any is cached: a pool that refuses one has taken those before it.
            if not is_number(priority):
                raise ValueError(f'priority is {priority!r}, which a score has returned: allowed is a number')
        return priorities


def resolve_score(name: str, key_path: str) -> Score:
    """The score of a name in ``SCORES`` or a dotted path. A ValueError names ``key_path``, where it is configured."""
    if name in SCORES:
        return SCORES[name]
    allowed = f'{choices(name, SCORES)} (or the dotted path of a function)'
    module_name, _, function_name = str(name).rpartition('.')
    if not module_name:
        raise ValueError(f'{key_path} is {name!r}, which is no score: {allowed}')
    try:
        score = getattr(import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f'{key_path} is {name!r}, which cannot be imported ({error}): {allowed}') from error
    if not callable(score):
        raise ValueError(f'{key_path} is {name!r}, which is no function: {allowed}')
    return score


def _expected_bins(logits: torch.Tensor) -> list[float]:
    # A node where the model predicts nan is evicted first.
    return expected_bins(logits).nan_to_num(nan=-float(logits.shape[-1])).tolist()
