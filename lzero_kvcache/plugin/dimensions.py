"""Dimensions of a policy's config that do not fit together, and would let the release die once training begins."""
from typing import Any

from ..config import KVCacheConfig
from ..world_model.dimensions import PATH, check_dimensions


def check_policy_dimensions(cfg: Any) -> None:
    """
    Overview:
        Find what is wrong with the dimensions of a policy that has a cache, before its model is built.
    Arguments:
        - cfg (:obj:`EasyDict`): The policy's config.
    Raises:
        - ValueError: At the first that cannot work, in a sentence.
    """
    config = KVCacheConfig.from_world_model_config(cfg.model.world_model_cfg)
    if config is None or config.mode == 'legacy':
        return
    check_dimensions(cfg.model.world_model_cfg)
    world_model, blocks = cfg.model.world_model_cfg, cfg.num_unroll_steps
    if blocks > world_model.max_blocks:
        raise ValueError(
            f'policy.num_unroll_steps is {blocks}, but {PATH}.max_blocks is {world_model.max_blocks}, the most steps '
            f'that training can unroll: allowed are max_blocks from {blocks} (and twice as many max_tokens), or fewer '
            'num_unroll_steps'
        )
    if cfg.model.action_space_size != world_model.action_space_size:
        raise ValueError(
            f'{PATH}.action_space_size is {world_model.action_space_size}, but policy.model.action_space_size is '
            f'{cfg.model.action_space_size}: both have to be the number of actions of the environment'
        )
    support_size = 2 * cfg.model.support_scale + 1
    if cfg.model.categorical_distribution and support_size != world_model.support_size:
        raise ValueError(
            f'{PATH}.support_size is {world_model.support_size}, but policy.model.support_scale is '
            f'{cfg.model.support_scale}: allowed is {support_size}, twice the scale and one'
        )
