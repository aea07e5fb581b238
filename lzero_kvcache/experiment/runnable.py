from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

from ding.utils import deep_merge_dicts

from ..broken_settings import FIELDS
from ..config import KVCacheConfig
from ..lightzero import installed
from ..manager import KVCacheManager
from ..plugin.rounds import check_segments
from ..world_model.dimensions import check_dimensions
from .config_file import Experiment
from .defaults import policy_defaults


def check_runnable(experiment: Experiment, fields: Collection[str] = FIELDS) -> None:
    """
    Overview:
        Refuse what LightZero would die of in the middle of a training or an evaluation, and pools of whose entries this
        machine could not even hold the index.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
        - fields (:obj:`Collection[str]`): Those of the policy that will be used.
    Raises:
        - ValueError: With key paths, values and the remedy.
    """
    main_config, created = experiment.main_config, experiment.create_config
    policy = deep_merge_dicts(deep_merge_dicts(policy_defaults(experiment), created.policy), main_config.policy)
    lightzero = installed()
    lightzero.check_settings(policy, fields, experiment.entry)
    config = lightzero.cache_config(policy.model.world_model_cfg)
    if config is not None and config.mode != 'legacy':
        check_dimensions(policy.model.world_model_cfg)
    if 'collect' in fields and experiment.entry == 'train_unizero_segment':
        check_segments(policy, main_config.env.get('collector_env_num', policy.collector_env_num))
    _check_pools(policy)


def _check_pools(policy: Mapping[str, Any]) -> None:
    kv_cache = policy['model']['world_model_cfg'].get('kv_cache')
    if kv_cache is not None:
        # What the model's dimensions decide is checked when the policy is made.
        config = replace(KVCacheConfig.from_dict(kv_cache), memory_budget_mb=None)
        sizes = dict(
            num_simulations=installed().num_simulations(policy), game_segment_length=policy['game_segment_length']
        )
        KVCacheManager(
            dict(sizes, kv_cache=config), max(policy['collector_env_num'], policy['evaluator_env_num'])
        )
