"""
What torchrun starts in test_processes.py: the stock policy, the plugin, and both compared, each trained in all
processes. Leaves ``rank<number>.json`` in the folder that it is given.
"""
import hashlib
import json
import logging
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from easydict import EasyDict
from lzero.entry import train_unizero, train_unizero_segment
from training import Run, call_entry, check_statistics, small_configs

from lzero_kvcache.ddp import ddp_context
from lzero_kvcache.plugin.statistics import step_listeners

SIDES: dict[str, dict[str, Any]] = {
    'stock': dict(kv_cache=None, stock=True),
    'managed': dict(kv_cache=dict(strategy='lru')),
    'managed, by episodes': dict(kv_cache=dict(strategy='lru')),
    'validate': dict(kv_cache=dict(mode='validate')),
}
ENTRIES = {side: train_unizero if 'episodes' in side else train_unizero_segment for side in SIDES}
SEGMENTS = dict(
    multi_gpu=True, num_segments=2, game_segment_length=10, train_start_after_envsteps=0, buffer_reanalyze_freq=1,
    reanalyze_batch_size=4, reanalyze_partition=0.75, update_per_collect=None, replay_ratio=0.2,
)
MAX_ENV_STEP = 60


def checksum(tensors: Iterable[torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().numpy().tobytes())
    return digest.hexdigest()


def train(side: str, folder: Path, rank: int) -> dict[str, Any]:
    counted = dict(collect=0, eval=0, learn=0)

    def count(phase: str, env_num: int, inference: Any) -> None:
        counted[phase] += env_num or 1

    configs = small_configs('cartpole_unizero_config', **SIDES[side], **SEGMENTS)
    main_config = configs[0]
    main_config.exp_name = side
    # More than there are environments, by LightZero's evaluator as the plugin mends it.
    main_config.env.n_evaluator_episode = 2
    if rank:
        # It has no TensorBoard writer to be closed.
        del main_config.policy.learn.learner.hook['close_writer']
    step_listeners.append(count)
    policy = call_entry(
        ENTRIES[side], folder, configs, stock=side == 'stock', seed=rank * 100, max_env_step=MAX_ENV_STEP
    )
    step_listeners.remove(count)
    run = Run(policy, folder / side)
    result = dict(
        counted=counted, type=type(policy).__name__,
        parameters=checksum(policy._learn_model.parameters()), buffers=checksum(policy._learn_model.buffers()),
        optimizer=checksum(
            entry for state in policy._optimizer_world_model.state.values() for entry in state.values()
        ),
        without_gradient=sum(parameter.grad is None for parameter in policy._learn_model.parameters()),
    )
    if run.manager is not None:
        check_statistics(run.manager)
        result['pools'] = {kind: asdict(stats) for kind, stats in run.manager.total_stats().items()}
        roots = run.world_model.kv_cache_inference.root_stats
        result['roots'] = dict(
            continuing=roots.continuing, first_steps=roots.first_steps, cold_starts=roots.cold_starts
        )
    if side == 'validate':
        report = run.world_model.kv_cache_inference.report
        result['report'] = dict(agreed=report.agreed, differed=report.differed)
    return result


def learner_steps(rank: int) -> int:
    """After 10 transitions in the first process, and 15 in the second."""
    entry = sys.modules[train_unizero_segment.__module__]
    config = EasyDict(policy=dict(update_per_collect=None, replay_ratio=0.3, game_segment_length=10))
    segments = [[None] * 20, [None] * 5][:1 + rank]
    return entry.calculate_update_per_collect(config, [segments], dist.get_world_size())


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    logging.getLogger().setLevel(logging.INFO)
    with ddp_context():
        rank = dist.get_rank()
        results = dict(
            backend=dist.get_backend(), learner_steps=learner_steps(rank),
            runs={side: train(side, folder, rank) for side in SIDES},
        )
    (folder / f'rank{rank}.json').write_text(json.dumps(results))


if __name__ == '__main__':
    main(Path(sys.argv[1]))
