"""Policies whose world model has a managed cache hand down whose observations they are."""
import inspect
import logging
from collections.abc import Sequence
from numbers import Integral
from typing import Any, Callable, Optional

import numpy as np
import torch
from easydict import EasyDict
from lzero.model.unizero_world_models.world_model import WorldModel

from ..config import KEY_PATH
from ..ddp import mend_release
from ..lightzero import installed
from ..placement import check_placement
from ..world_model import ADOPTABLE, KVCacheWorldModel, KVCacheWorldModelMixin
from ..world_model.dimensions import check_dimensions
from ..world_model.positions import host_timesteps
from .evaluator import mend_evaluator
from .numbered_search import number_nodes
from .rounds import check_rounds_early
from .segment_timesteps import mend_segment_collector
from .statistics import StatisticsReporter, say_that_stock_code_runs, step_listeners, with_run_hooks

logger = logging.getLogger('lzero_kvcache')

LIGHTZERO = installed()


class KVCachePolicyMixin(LIGHTZERO.last_steps):
    """
    Overview:
        Over a UniZero policy: hands real environment ids down to the world model, lets each environment's episode go on
        from its own history, for collect and for eval, and reports the cache's statistics. Without a managed cache the
        stock policy runs as it is.
    """
    stock_policy: type
    # In ``MODEL_REGISTRY``.
    model_name: str

    @classmethod
    def default_config(cls) -> EasyDict:
        """
        Overview:
            The stock policy's default config and the hooks that report the cache's statistics.
        """
        return with_run_hooks(cls.stock_policy.default_config())

    def default_model(self) -> tuple[str, list[str]]:
        """
        Overview:
            The model's name in ``MODEL_REGISTRY`` and the modules that register it.
        """
        return self.model_name, ['lzero_kvcache.plugin']

    def _create_model(self, cfg: EasyDict, model: Optional[torch.nn.Module] = None) -> torch.nn.Module:
        check_placement(cfg, 'policy')
        # What breaks collecting or learning alone is looked at when that begins: this policy may be for neither.
        LIGHTZERO.check_settings(cfg, ['eval'])
        if LIGHTZERO.evaluates_one_episode_each:
            mend_evaluator()
        if LIGHTZERO.needs_timesteps_in_segments:
            mend_segment_collector()
        LIGHTZERO.mend_models()
        number_nodes()
        check_rounds_early()
        if cfg.multi_gpu:
            mend_release()
        config = LIGHTZERO.cache_config(cfg.model.world_model_cfg)
        if config is not None and config.mode != 'legacy':
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

    def _forward_collect(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> dict:
        """
        Overview:
            As the stock policy's. ``ready_env_id`` may be any collection of ids, in the order of the rows. Timesteps
            that are left out, negative or stand still are counted from the environments' own episodes; one that does
            not follow begins a new episode.
        """
        return self._forward_in_phase('collect', super()._forward_collect, data, args, kwargs)

    def _forward_eval(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> dict:
        """
        Overview:
            As ``_forward_collect``, for eval.
        """
        return self._forward_in_phase('eval', super()._forward_eval, data, args, kwargs)

    def _forward_in_phase(
            self, phase: str, stock_forward: Callable[..., dict], data: torch.Tensor, args: Sequence, kwargs: dict
    ) -> dict:
        call = inspect.signature(stock_forward).bind(data, *args, **kwargs)
        ready_env_id, timestep = call.arguments.get('ready_env_id'), call.arguments.pop('timestep', None)
        if self._kv_cache_world_model is not None:
            timestep = self._follow_timesteps(phase, data, _environment_ids(data, ready_env_id), timestep)
        if timestep is not None:
            call.arguments['timestep'] = timestep

        def search(env_ids: Sequence[int]) -> dict:
            call.arguments['ready_env_id'] = env_ids
            return stock_forward(*call.args, **call.kwargs)

        return self._search_in_phase(phase, search, data, ready_env_id)

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

    def _follow_timesteps(
            self, phase: str, data: torch.Tensor, env_ids: Sequence[int], timestep: Optional[Sequence]
    ) -> Sequence:
        """End the episodes that environments have left. Returns the timesteps to hand down."""
        if timestep is None:
            timestep = [np.array(-1)] * len(data)
        inference = self._kv_cache_world_model.kv_cache_inference
        inference.forget(phase, inference.histories.left(phase, env_ids, host_timesteps(timestep, len(data))))
        return timestep

    def _search_managed(
            self, phase: str, search: Callable[[Sequence[int]], dict], data: torch.Tensor, env_ids: Sequence[int]
    ) -> dict:
        histories = self._kv_cache_world_model.kv_cache_inference.histories
        self._hand_last_steps(*histories.last_steps(phase, env_ids, data))
        self._kv_cache_is_searching = True
        try:
            with self._kv_cache_world_model.kv_cache_roots(phase, env_ids):
                output = search(env_ids)
        finally:
            self._kv_cache_is_searching = False
            # The histories keep them, for every environment by itself.
            self._take_last_steps_back()
        histories.take(phase, env_ids, [output[env_id]['action'] for env_id in env_ids])
        self._kv_cache_statistics.count_search(phase, len(env_ids))
        return output

    def _reset_collect(self, *args: Any, **kwargs: Any) -> None:
        """
        Overview:
            As the stock policy's, but an episode's end is the end of that environment's episode alone.
        """
        self._reset_in_phase('collect', super()._reset_collect, args, kwargs)

    def _reset_eval(self, *args: Any, **kwargs: Any) -> None:
        """
        Overview:
            As ``_reset_collect``, for eval.
        """
        self._reset_in_phase('eval', super()._reset_eval, args, kwargs)

    def _reset_in_phase(self, phase: str, stock_reset: Callable, args: Sequence, kwargs: dict) -> None:
        call = inspect.signature(stock_reset).bind(*args, **kwargs)
        if self._kv_cache_world_model is None:
            stock_reset(*call.args, **call.kwargs)
            return
        if self._kv_cache_is_searching:
            # The stock search wipes every episode whenever some environments are not ready.
            return
        env_id = call.arguments.get('env_id')
        if call.arguments.get('reset_init_data', True):
            ended = env_id
            if env_id is not None:
                ended = [env_id] if isinstance(env_id, Integral) else [int(each) for each in env_id]
            inference = self._kv_cache_world_model.kv_cache_inference
            inference.forget(phase, ended)
            if phase == 'eval' and inference.histories.running(phase) == 0:
                # 'eval_muzero' calls no hook when it is done.
                self._kv_cache_statistics.flush()
        if call.arguments.get('current_steps') is not None:
            call.arguments['reset_init_data'] = False
            stock_reset(*call.args, **call.kwargs)


def _environment_ids(data: torch.Tensor, ready_env_id: Any) -> list[int]:
    return list(range(len(data))) if ready_env_id is None else [int(env_id) for env_id in ready_env_id]


def _managed_world_model(world_model: WorldModel, cfg: EasyDict) -> Optional[KVCacheWorldModelMixin]:
    if type(world_model) in ADOPTABLE:
        KVCacheWorldModel.adopt(world_model)
    if not isinstance(world_model, KVCacheWorldModelMixin):
        if LIGHTZERO.cache_config(world_model.config) is None:
            return None
        raise ValueError(
            f'{KEY_PATH} is set, but the world model is a {type(world_model).__name__}, which the cache does not know: '
            'let its class inherit from lzero_kvcache.world_model.KVCacheWorldModelMixin first, or remove the key'
        )
    world_model.configure_kv_cache(
        num_simulations=LIGHTZERO.num_simulations(cfg),
        env_num=max(cfg.collector_env_num, cfg.evaluator_env_num),
        game_segment_length=cfg.game_segment_length,
        discount_factor=cfg.discount_factor,
    )
    return None if world_model.kv_cache_inference.manager is None else world_model
