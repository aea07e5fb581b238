"""
A LightZero that has a cache manager of its own: this package's takes its place. Look-ups, misses, window and positions
are LightZero's code; strategy, sizes and statistics are those of ``kv_cache``.
"""
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Integral
from types import SimpleNamespace
from typing import Any, Callable, Optional, Union

import torch
from easydict import EasyDict

from ..config import KEY_PATH, WORLD_MODEL_PATH, entry_of
from ..placement import check_placement
from ..stats import RebuildStats
from ..world_model.histories import RootStats
from .hooked_manager import HookedKVCacheManager
from .hooks import has_manager_hook
from .pools_config import LEFT_TO_LIGHTZERO, pools_config
from .rounds import check_rounds_early
from .statistics import StatisticsReporter, say_that_stock_code_runs, step_listeners

logger = logging.getLogger('lzero_kvcache')

# The caches that LightZero does without where it has a manager.
CACHES_WITHOUT_MANAGER = (
    'past_kv_cache_recurrent_infer', 'pool_idx_to_key_map_recur_infer', 'past_kv_cache_init_infer_envs',
    'pool_idx_to_key_map_init_envs',
)


@dataclass
class HookedInference:
    """
    Overview:
        LightZero's own inference over this package's pools, as those see it who are told of searches.
    Arguments:
        - manager (:obj:`HookedKVCacheManager`): The pools.
        - rebuild_stats (:obj:`RebuildStats`): Stays at zero: LightZero rebuilds nothing.
    """
    manager: HookedKVCacheManager
    rebuild_stats: RebuildStats = field(default_factory=RebuildStats)

    @property
    def root_stats(self) -> RootStats:
        """
        Overview:
            What root inferences have found of the episodes that they go on.
        """
        return self.manager.root_stats


def adopt(
        world_model: Any, num_simulations: Optional[int] = None, env_num: Optional[int] = None,
        game_segment_length: Optional[int] = None
) -> Optional[HookedKVCacheManager]:
    """
    Overview:
        Put a manager into a world model, empty, as its ``config.kv_cache`` asks. What is not given is taken from the
        model's config.
    Arguments:
        - world_model (:obj:`WorldModel`): LightZero's model, changed in place.
        - num_simulations (:obj:`Optional[int]`): Simulations per search (default 50).
        - env_num (:obj:`Optional[int]`): Environments.
        - game_segment_length (:obj:`Optional[int]`): Steps per game segment.
    Returns:
        - manager (:obj:`Optional[HookedKVCacheManager]`): The manager; None where the model stays as LightZero made it,
            without ``kv_cache`` and in mode 'legacy'.
    Raises:
        - ValueError: If the config is not valid, asks for what LightZero's code does in another way, or the model is of
            a class that takes no manager.
    """
    check_placement(world_model.config, WORLD_MODEL_PATH)
    config = pools_config(world_model.config)
    if config is None or config.mode == 'legacy':
        return None
    if not has_manager_hook(type(world_model)):
        raise ValueError(
            f'{KEY_PATH} is set, but the world model is a {type(world_model).__name__}, which takes no KVCacheManager '
            'behind use_new_cache_manager: remove the key'
        )
    dimensions = {name: entry_of(world_model.config, name) for name in ('num_layers', 'embed_dim', 'context_length')}
    manager = HookedKVCacheManager(
        SimpleNamespace(
            kv_cache=config,
            num_simulations=num_simulations or entry_of(world_model.config, 'num_simulations') or 50,
            game_segment_length=game_segment_length or entry_of(world_model.config, 'game_segment_length'),
            **dimensions,
        ), env_num or world_model.env_num, world_model.num_observations_tokens
    )
    world_model.use_new_cache_manager = True
    world_model.kv_cache_manager = manager
    world_model.keys_values_wm_list = manager.keys_values_wm_list
    world_model.keys_values_wm_size_list = manager.keys_values_wm_size_list
    for name in CACHES_WITHOUT_MANAGER:
        vars(world_model).pop(name, None)
    return manager


class KVCachePolicyMixin:
    """
    Overview:
        Over a UniZero policy: puts the manager into its world model and reports the cache's statistics. Without a
        managed cache the stock policy runs as it is.
    """

    def _create_model(self, cfg: EasyDict, model: Optional[torch.nn.Module] = None) -> torch.nn.Module:
        check_placement(cfg, 'policy')
        check_rounds_early()
        model = super()._create_model(cfg, model)
        # Collect and eval searches may be of lengths of their own.
        lengths = [cfg.get(name) for name in ('num_simulations', 'collect_num_simulations', 'eval_num_simulations')]
        manager = adopt(
            model.world_model,
            num_simulations=max(filter(None, lengths), default=None),
            env_num=max(cfg.collector_env_num, cfg.evaluator_env_num),
            game_segment_length=cfg.game_segment_length,
        )
        self._kv_cache_inference = self._kv_cache_statistics = None
        self._kv_cache_evaluated: set[int] = set()
        if manager is not None:
            self._kv_cache_inference = HookedInference(manager)
            self._kv_cache_statistics = StatisticsReporter(
                self._kv_cache_inference, manager.config.log_interval, cfg.use_wandb
            )
            logger.info(manager.describe())
            logger.info(
                'kv_cache: this LightZero has a cache manager of its own, whose place the pools take. '
                f"LightZero's code does the rest: {LEFT_TO_LIGHTZERO}"
            )
        else:
            say_that_stock_code_runs(model.world_model.config)
        return model

    def _forward_collect(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> dict:
        """
        Overview:
            As the stock policy's.
        """
        forward = super()._forward_collect
        return self._search_in_phase('collect', lambda _: forward(data, *args, **kwargs), data, None)

    def _forward_eval(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> dict:
        """
        Overview:
            As the stock policy's.
        """
        forward = super()._forward_eval
        output = self._search_in_phase('eval', lambda _: forward(data, *args, **kwargs), data, None)
        self._kv_cache_evaluated.update(output)
        return output

    def _reset_eval(
            self, env_id: Union[int, Sequence[int], None] = None, current_steps: Optional[int] = None, *args: Any,
            **kwargs: Any
    ) -> None:
        """
        Overview:
            As the stock policy's.
        """
        super()._reset_eval(env_id, current_steps, *args, **kwargs)
        if current_steps is not None or self._kv_cache_statistics is None:
            return
        if env_id is None:
            self._kv_cache_evaluated.clear()
        else:
            self._kv_cache_evaluated.difference_update([env_id] if isinstance(env_id, Integral) else env_id)
        if not self._kv_cache_evaluated:
            # 'eval_muzero' calls no hook when it is done.
            self._kv_cache_statistics.flush()

    def _search_in_phase(self, phase: str, search: Callable[[Any], dict], data: torch.Tensor, env_ids: Any) -> dict:
        output = search(env_ids)
        if self._kv_cache_statistics is not None:
            self._kv_cache_statistics.count_search(phase, len(data))
        for listener in list(step_listeners):
            listener(phase, len(data), self._kv_cache_inference)
        return output
