"""
The released LightZero: root and recurrent inference of its world model are replaced, with histories, misses, window and
positions, and its policies hand down whose observations they are.
"""
import logging
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Callable, Optional, Union

import numpy as np
import torch
from easydict import EasyDict
from lzero.model.unizero_world_models.world_model import WorldModel

from ..broken_settings import check_settings
from ..config import KEY_PATH, KVCacheConfig, runs_stock_code
from ..ddp import mend_release
from ..placement import check_placement
from ..world_model import KVCacheWorldModel, KVCacheWorldModelMixin
from ..world_model.dimensions import check_dimensions
from ..world_model.positions import host_timesteps
from .evaluator import mend_evaluator
from .numbered_search import number_nodes
from .rounds import check_rounds_early
from .segment_timesteps import mend_segment_collector
from .statistics import StatisticsReporter, say_that_stock_code_runs, step_listeners

logger = logging.getLogger('lzero_kvcache')

adopt = KVCacheWorldModel.adopt


class KVCachePolicyMixin:
    """
    Overview:
        Over a UniZero policy: hands real environment ids down to the world model, lets each environment's episode go on
        from its own history, for collect and for eval, and reports the cache's statistics. Without a managed cache the
        stock policy runs as it is.
    """

    def _create_model(self, cfg: EasyDict, model: Optional[torch.nn.Module] = None) -> torch.nn.Module:
        check_placement(cfg, 'policy')
        # What breaks collecting or learning alone is looked at when that begins: this policy may be for neither.
        check_settings(cfg, ['eval'])
        mend_evaluator()
        mend_segment_collector()
        number_nodes()
        check_rounds_early()
        if cfg.multi_gpu:
            mend_release()
        if not runs_stock_code(cfg.model.world_model_cfg):
            # Before LightZero builds the model, which would die of some.
            check_dimensions(cfg.model.world_model_cfg)
        model = super()._create_model(cfg, model)
        self._kv_cache_world_model = _managed_world_model(model.world_model, cfg)
        self._kv_cache_statistics = None
        if self._kv_cache_world_model is None:
            say_that_stock_code_runs(model.world_model.config)
        else:
            logger.info(self._kv_cache_world_model.kv_cache_manager.describe())
            self._kv_cache_statistics = StatisticsReporter(
                self._kv_cache_world_model.kv_cache_inference,
                self._kv_cache_world_model.kv_cache_manager.config.log_interval,
                cfg.use_wandb,
            )
            self._kv_cache_is_searching = False
        return model

    def _forward_collect(
            self,
            data: torch.Tensor,
            action_mask: Optional[list] = None,
            temperature: float = 1,
            to_play: Sequence = (-1, ),
            epsilon: float = 0.25,
            ready_env_id: Any = None,
            timestep: Optional[Sequence] = None,
    ) -> dict:
        """
        Overview:
            As the stock policy's. ``ready_env_id`` may be any collection of ids, in the order of the rows. Timesteps
            that are left out, negative or stand still are counted from the environments' own episodes; one that does
            not follow begins a new episode.
        """
        forward = super()._forward_collect
        timestep = self._follow_timesteps('collect', data, ready_env_id, timestep)

        def search(env_ids: Sequence[int]) -> dict:
            return forward(data, action_mask, temperature, to_play, epsilon, ready_env_id=env_ids, timestep=timestep)

        return self._search_in_phase('collect', search, data, ready_env_id)

    def _forward_eval(
            self,
            data: torch.Tensor,
            action_mask: Optional[list] = None,
            to_play: Sequence = (-1, ),
            ready_env_id: Any = None,
            timestep: Optional[Sequence] = None,
    ) -> dict:
        """
        Overview:
            As the stock policy's. ``ready_env_id`` may be any collection of ids, in the order of the rows. Timesteps
            that are left out, negative or stand still are counted from the environments' own episodes; one that does
            not follow begins a new episode.
        """
        forward = super()._forward_eval
        timestep = self._follow_timesteps('eval', data, ready_env_id, timestep)

        def search(env_ids: Sequence[int]) -> dict:
            return forward(data, action_mask, to_play, ready_env_id=env_ids, timestep=timestep)

        return self._search_in_phase('eval', search, data, ready_env_id)

    def _follow_timesteps(
            self, phase: str, data: torch.Tensor, ready_env_id: Any, timestep: Optional[Sequence]
    ) -> Sequence:
        """End the episodes that environments have left. Returns the timesteps to hand down."""
        if self._kv_cache_world_model is None:
            return (0, ) if timestep is None else timestep
        if timestep is None:
            timestep = [np.array(-1)] * len(data)
        inference = self._kv_cache_world_model.kv_cache_inference
        inference.forget(phase, inference.histories.left(
            phase, _environment_ids(data, ready_env_id), host_timesteps(timestep, len(data))
        ))
        return timestep

    def _search_in_phase(
            self, phase: str, search: Callable[[Sequence[int]], dict], data: torch.Tensor, ready_env_id: Any
    ) -> dict:
        env_ids = _environment_ids(data, ready_env_id)
        inference = None
        if self._kv_cache_world_model is None:
            output = search(env_ids)
        else:
            output = self._search_managed(phase, search, data, env_ids)
            inference = self._kv_cache_world_model.kv_cache_inference
        for listener in list(step_listeners):
            listener(phase, len(env_ids), inference)
        return output

    def _search_managed(
            self, phase: str, search: Callable[[Sequence[int]], dict], data: torch.Tensor, env_ids: Sequence[int]
    ) -> dict:
        histories = self._kv_cache_world_model.kv_cache_inference.histories
        self.last_batch_obs, self.last_batch_action = histories.last_steps(phase, env_ids, data)
        self._kv_cache_is_searching = True
        try:
            with self._kv_cache_world_model.kv_cache_roots(phase, env_ids):
                output = search(env_ids)
        finally:
            self._kv_cache_is_searching = False
            # The histories keep them, for every environment by itself.
            self.last_batch_obs = self.last_batch_action = None
        histories.take(phase, env_ids, [output[env_id]['action'] for env_id in env_ids])
        self._kv_cache_statistics.count_search(phase, len(env_ids))
        return output

    def _reset_collect(
            self,
            env_id: Union[int, list[int], None] = None,
            current_steps: Optional[int] = None,
            reset_init_data: bool = True,
    ) -> None:
        """
        Overview:
            As the stock policy's, but an episode's end is the end of that environment's episode alone.
        Arguments:
            - env_id (:obj:`Union[int, List[int], None]`): Whose episode has ended; None: all.
            - current_steps (:obj:`Optional[int]`): Steps of the episode so far, where it goes on.
            - reset_init_data (:obj:`bool`): Whether an episode has ended.
        """
        self._reset_in_phase('collect', super()._reset_collect, env_id, current_steps, reset_init_data)

    def _reset_eval(
            self,
            env_id: Union[int, list[int], None] = None,
            current_steps: Optional[int] = None,
            reset_init_data: bool = True,
    ) -> None:
        """
        Overview:
            As ``_reset_collect``, for eval.
        """
        self._reset_in_phase('eval', super()._reset_eval, env_id, current_steps, reset_init_data)

    def _reset_in_phase(
            self, phase: str, stock_reset: Callable, env_id: Union[int, list[int], None], current_steps: Optional[int],
            reset_init_data: bool
    ) -> None:
        if self._kv_cache_world_model is None:
            stock_reset(env_id, current_steps, reset_init_data)
            return
        if self._kv_cache_is_searching:
            # The stock search wipes every episode whenever some environments are not ready.
            return
        if reset_init_data:
            ended = env_id
            if env_id is not None:
                ended = [env_id] if isinstance(env_id, Integral) else [int(each) for each in env_id]
            inference = self._kv_cache_world_model.kv_cache_inference
            inference.forget(phase, ended)
            if phase == 'eval' and inference.histories.running(phase) == 0:
                # 'eval_muzero' calls no hook when it is done.
                self._kv_cache_statistics.flush()
        if current_steps is not None:
            stock_reset(env_id, current_steps, reset_init_data=False)


def _environment_ids(data: torch.Tensor, ready_env_id: Any) -> list[int]:
    return list(range(len(data))) if ready_env_id is None else [int(env_id) for env_id in ready_env_id]


def _managed_world_model(world_model: WorldModel, cfg: EasyDict) -> Optional[KVCacheWorldModelMixin]:
    if type(world_model) is WorldModel:
        KVCacheWorldModel.adopt(world_model)
    if not isinstance(world_model, KVCacheWorldModelMixin):
        if KVCacheConfig.from_world_model_config(world_model.config) is None:
            return None
        raise ValueError(
            f'{KEY_PATH} is set, but the world model is a {type(world_model).__name__}, which the cache does not know: '
            'let its class inherit from lzero_kvcache.world_model.KVCacheWorldModelMixin first, or remove the key'
        )
    world_model.configure_kv_cache(
        num_simulations=cfg.num_simulations,
        env_num=max(cfg.collector_env_num, cfg.evaluator_env_num),
        game_segment_length=cfg.game_segment_length,
        discount_factor=cfg.discount_factor,
    )
    return None if world_model.kv_cache_manager is None else world_model
