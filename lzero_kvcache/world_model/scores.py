"""How the world model scores a node for strategies that evict by priority. Higher survives."""
from collections.abc import Sequence
from importlib import import_module
from typing import Callable, Optional

import numpy as np
import torch

from ..checks import choices
from ..config import KEY_PATH, KVCacheConfig
from ..eviction import build_eviction_policy

Score = Callable[[np.ndarray, torch.Tensor, torch.Tensor, torch.Tensor], Sequence[float]]


def search_depth(
        depth: np.ndarray, reward: torch.Tensor, policy: torch.Tensor, value: torch.Tensor
) -> Sequence[float]:
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
    """
    Overview:
        Nodes of a high predicted value survive. Arguments and result as ``search_depth``.
    """
    return mean_bin(value).tolist()


def predicted_reward(
        depth: np.ndarray, reward: torch.Tensor, policy: torch.Tensor, value: torch.Tensor
) -> Sequence[float]:
    """
    Overview:
        Nodes of a high predicted reward survive. Arguments and result as ``search_depth``.
    """
    return mean_bin(reward).tolist()


SCORES: dict[str, Score] = {
    'search_depth': search_depth,
    'predicted_value': predicted_value,
    'predicted_reward': predicted_reward,
}


def scores_of(config: KVCacheConfig) -> dict[str, Optional[Score]]:
    """
    Overview:
        The scores that the pools' strategies ask for.
    Arguments:
        - config (:obj:`KVCacheConfig`): The ``kv_cache`` entry.
    Returns:
        - scores (:obj:`dict[str, Optional[Callable]]`): By 'init_pool', 'recur_pool' and 'wm_pool'; None for a strategy
            without priorities.
    Raises:
        - ValueError: If there is no such score, with its full key path.
    """
    scores: dict[str, Optional[Score]] = {}
    for kind in ('init_pool', 'recur_pool', 'wm_pool'):
        pool = getattr(config, kind)
        key_path = f'{KEY_PATH}.strategy' if pool.strategy is None else f'{KEY_PATH}.{kind}.strategy'
        policy = build_eviction_policy(config.strategy_of(pool), key_path)
        scores[kind] = resolve_score(policy.score, f'{key_path}.score') if hasattr(policy, 'score') else None
    return scores


def resolve_score(name: str, key_path: str) -> Score:
    """
    Overview:
        Find a score by its name or its dotted path.
    Arguments:
        - name (:obj:`str`): A name in ``SCORES``, or e.g. 'my_package.my_module.my_score', a function with the
            arguments of ``search_depth``.
        - key_path (:obj:`str`): Where the name stands in the user's config, for the error message.
    Returns:
        - score (:obj:`Callable`): The function.
    Raises:
        - ValueError: If there is no such name or function.
    """
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


def mean_bin(logits: torch.Tensor) -> torch.Tensor:
    """
    Overview:
        The number of the bin that a model expects; -1 where it predicts nan.
    Arguments:
        - logits (:obj:`torch.Tensor`): :math:`(B, support_size)`.
    Returns:
        - bins (:obj:`torch.Tensor`): :math:`(B, )`.
    """
    bins = torch.arange(logits.shape[-1], dtype=logits.dtype, device=logits.device)
    return (logits.softmax(-1) @ bins).nan_to_num(nan=-1.)
