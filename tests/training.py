"""Short runs of LightZero's own entries, on the project's configs cut down to a few seconds."""
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, Optional

import gymnasium
import pytest
import torch
from ding.utils import POLICY_REGISTRY, deep_merge_dicts
from ding.worker.learner.learner_hook import LearnerHook, register_learner_hook
from easydict import EasyDict
from lightzeros import simulations
from lzero.entry import train_unizero
from lzero.policy.sampled_unizero import SampledUniZeroPolicy
from lzero.policy.unizero import UniZeroPolicy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lzero_kvcache.manager import KVCacheManager

STOCK_POLICIES = {'unizero': UniZeroPolicy, 'sampled_unizero': SampledUniZeroPolicy}
# Pools that cannot hold one search of two environments.
TINY_POOLS = dict(init_pool=dict(size=1), recur_pool=dict(size=3), wm_pool=dict(size=1))
NUM_SIMULATIONS = 5
ENV_NUM = 2
MAX_ENV_STEP = 40
# CartPole's pole falls after some twenty steps.
MAX_EPISODE_STEPS = 16

SMALL = dict(
    env=dict(
        collector_env_num=ENV_NUM, evaluator_env_num=1, n_evaluator_episode=1,
        collect_max_episode_steps=MAX_EPISODE_STEPS, eval_max_episode_steps=MAX_EPISODE_STEPS,
    ),
    policy=dict(
        learn=dict(learner=dict(hook=dict(log_show_after_iter=1))),
        model=dict(world_model_cfg=dict(env_num=ENV_NUM)),
        collector_env_num=ENV_NUM, evaluator_env_num=1, n_episode=ENV_NUM, batch_size=8, update_per_collect=3,
        eval_freq=3, **simulations(NUM_SIMULATIONS),
    ),
)


class CloseWriter(LearnerHook):
    """The stock entries leave the run's TensorBoard writer open, and with it the last points unwritten."""

    def __init__(self, *args: Any, ext_args: EasyDict, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def __call__(self, learner: Any) -> None:
        learner.tb_logger.close()


register_learner_hook('close_writer', CloseWriter)


@dataclass
class Run:
    """A run that has ended."""
    policy: Any
    folder: Path

    @property
    def world_model(self) -> torch.nn.Module:
        return self.policy._learn_model.world_model

    @property
    def manager(self) -> Optional[KVCacheManager]:
        return getattr(self.world_model, 'kv_cache_manager', None)

    @property
    def reanalysis_manager(self) -> KVCacheManager:
        return self.policy._target_model.world_model.kv_cache_manager

    @property
    def checkpoint(self) -> str:
        """The last one."""
        checkpoints = self.folder.glob('ckpt/iteration_*.pth.tar')
        return str(max(checkpoints, key=lambda path: int(path.name[len('iteration_'):-len('.pth.tar')])))

    def scalars(self) -> dict[str, list[tuple[int, float]]]:
        """As ``read_scalars``."""
        return read_scalars(self.folder / 'log' / 'serial')


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The (step, value) points of every TensorBoard scalar."""
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in events.Tags()['scalars']}


def small_configs(
        config: str, kv_cache: Optional[Mapping[str, Any]], stock: bool = False, **policy: Any
) -> tuple[EasyDict, EasyDict]:
    """A module in configs/, cut down, with ``policy`` on top. No ``kv_cache``: the key is taken out."""
    module = import_module(f'configs.{config}')
    main_config, create_config = deepcopy(module.main_config), deepcopy(module.create_config)
    main_config = deep_merge_dicts(main_config, EasyDict(SMALL))
    main_config.policy = deep_merge_dicts(main_config.policy, EasyDict(policy))
    main_config.policy.learn.learner.hook.close_writer = dict(
        name='close_writer', type='close_writer', position='after_run', priority=100, ext_args={}
    )
    main_config.exp_name = 'run'
    world_model_cfg = main_config.policy.model.world_model_cfg
    if kv_cache is None:
        del world_model_cfg['kv_cache']
    else:
        world_model_cfg.kv_cache = dict(kv_cache)
    if stock:
        create_config.policy.import_names = ['lzero.policy.unizero']
    return main_config, create_config


@contextmanager
def stock_policies() -> Iterator[None]:
    """The stock policies under their own names, which the plugin has taken over and the entries insist on."""
    registered = {name: POLICY_REGISTRY[name] for name in STOCK_POLICIES}
    POLICY_REGISTRY.update(STOCK_POLICIES)
    try:
        yield
    finally:
        POLICY_REGISTRY.update(registered)


def call_entry(
        entry: Callable, folder: Path, configs: tuple[EasyDict, EasyDict], stock: bool = False, seed: int = 0,
        **kwargs: Any
):
    """Call a stock entry with ``folder`` as the working directory. ``stock``: on the stock policies."""
    with pytest.MonkeyPatch.context() as patch:
        # Entries write below the working directory.
        patch.chdir(folder)
        # LightZero's environment has no key for it.
        patch.setattr(gymnasium.spec('Pendulum-v1'), 'max_episode_steps', MAX_EPISODE_STEPS)
        # DI-engine writes the config to a file; laying it out takes longer than the rest of a short run.
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda code: (code, False))
        with stock_policies() if stock else nullcontext():
            return entry(list(configs), seed=seed, **kwargs)


def train(
        config: str, folder: Path, kv_cache: Optional[Mapping[str, Any]] = None, *, entry: Callable = train_unizero,
        stock: bool = False, model_path: Optional[str] = None, max_env_step: int = MAX_ENV_STEP, seed: int = 0,
        **policy: Any
) -> Run:
    """Train by a stock entry on a cut-down config; ``policy`` are changes to the config's policy."""
    configs = small_configs(config, kv_cache, stock, **policy)
    trained = call_entry(entry, folder, configs, stock, seed, model_path=model_path, max_env_step=max_env_step)
    return Run(trained, folder / 'run')


def check_training(run: Run, max_env_step: int = MAX_ENV_STEP) -> None:
    """The run has gone on to its budget, learning, and its numbers make sense."""
    scalars = run.scalars()
    trained_at, losses = zip(*scalars['learner_step/weighted_total_loss_avg'])
    assert trained_at[-1] >= max_env_step
    assert all(math.isfinite(loss) for loss in losses)
    assert all(parameter.isfinite().all() for parameter in run.policy._learn_model.parameters())
    if run.manager is not None:
        check_statistics(run.manager)
        last_collect_step = scalars['kv_cache/collect_init_pools/entries'][-1][0]
        assert last_collect_step == trained_at[-1]


def check_statistics(manager: KVCacheManager) -> None:
    """Every pool has been asked, as far as its kind is asked at all, and has counted what it was asked."""
    for pools in manager.pools().values():
        for pool in pools:
            assert pool.stats.hits + pool.stats.misses == pool.stats.total_queries
            assert len(pool) <= pool.peak_entries <= pool.pool_size
    totals = manager.total_stats()
    assert totals['init_pools'].total_queries > 0
    assert totals['recur_pool'].total_queries > 0


def check_tiny_pools(run: Run) -> None:
    """Pools that are too small have evicted, been missed, and been rebuilt from."""
    totals = run.manager.total_stats()
    assert totals['init_pools'].evictions > 0
    assert totals['recur_pool'].evictions > 0
    assert totals['recur_pool'].misses > 0
    assert run.world_model.kv_cache_inference.rebuild_stats.rebuilds > 0
