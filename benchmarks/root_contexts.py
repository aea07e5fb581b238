"""How much of its episode does a search's root see? The release's code and the cache on CartPole and on Pong."""
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib import import_module
from os.path import relpath
from pathlib import Path
from typing import Any, Callable, ClassVar

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console

from lzero_kvcache.output import loading
from lzero_kvcache.wide_table import WideTable

with loading('LightZero'):
    from ding.utils import POLICY_REGISTRY
    from lzero import entry

    from lzero_kvcache.bench.machine import machine
    from lzero_kvcache.plugin.policies import UniZeroKVCachePolicy
    from lzero_kvcache.progress import run_progress
    from lzero_kvcache.world_model import KVCacheWorldModelMixin

# Mode 'legacy' is the release's own code.
ARMS = {'release': 'legacy', 'plugin': 'managed'}
RUNS = {
    'cartpole': ('configs.cartpole_unizero_config', 'train_unizero'),
    'pong': ('configs.atari_unizero_segment_config', 'train_unizero_segment'),
}


@dataclass
class Roots:
    """
    What the root inferences of one run have seen. Continuing roots are those of running episodes: ``without_history``
    those of them that were planned as if an episode began, ``last_observation_only`` those whose context was lost and
    begun anew with the last observation; ``context_tokens`` are the lengths of all their contexts, added up.
    """
    first_steps: int = 0
    continuing: int = 0
    without_history: int = 0
    last_observation_only: int = 0
    context_tokens: int = 0

    def count(self, steps: np.ndarray, lengths: np.ndarray, shortest: int) -> None:
        running = steps > 0
        self.first_steps += int((~running).sum())
        self.continuing += int(running.sum())
        self.without_history += int((lengths[running] == 0).sum())
        # After an episode's first step, one observation is all that there is.
        self.last_observation_only += int((lengths[steps > 1] == shortest).sum())
        self.context_tokens += int(lengths[running].sum())

    def summary(self) -> dict:
        return dict(
            asdict(self), share_without_history=self.without_history / self.continuing,
            share_last_observation_only=self.last_observation_only / self.continuing,
            mean_context_length=self.context_tokens / self.continuing,
        )


class WatchedPolicy(UniZeroKVCachePolicy):
    """The plugin's policy, which counts what each root of its searches finds."""
    roots: ClassVar[Roots]

    def _init_learn(self) -> None:
        super()._init_learn()
        # Steps of the running episode, by phase and environment.
        self._steps: Counter = Counter()

    def _search_in_phase(self, phase: str, search: Callable, data: torch.Tensor, ready_env_id: Any) -> dict:
        env_ids = list(ready_env_id)
        world_model = self._collect_model.world_model if phase == 'collect' else self._eval_model.world_model
        self._steps_of_rows = np.asarray([self._steps[phase, env_id] for env_id in env_ids])
        self._shortest = world_model.num_observations_tokens
        with watched_root_inference(self._count):
            output = super()._search_in_phase(phase, search, data, ready_env_id)
        self._steps.update((phase, env_id) for env_id in env_ids)
        return output

    def _count(self, lengths: np.ndarray) -> None:
        self.roots.count(self._steps_of_rows, lengths, self._shortest)

    def _reset_in_phase(
            self, phase: str, stock_reset: Callable, env_id: Any, current_steps: Any, reset_init_data: bool
    ) -> None:
        super()._reset_in_phase(phase, stock_reset, env_id, current_steps, reset_init_data)
        # The stock search resets, too, where no episode has ended; then no environment is named.
        for ended in (env_id or []) if reset_init_data else []:
            self._steps.pop((phase, ended), None)


@contextmanager
def watched_root_inference(count: Callable[[np.ndarray], None]) -> Iterator[None]:
    """Call ``count`` with the contexts' lengths at every root inference within the ``with`` block."""
    infer = KVCacheWorldModelMixin.forward_initial_inference

    def watched(world_model: Any, obs_act_dict: dict, start_pos: Any = 0) -> tuple:
        outputs = infer(world_model, obs_act_dict, start_pos)
        if world_model.kv_cache_manager is not None:
            count(world_model.kv_cache_inference.context_lengths)
        elif max(obs_act_dict['action']) == -1:
            count(np.zeros(len(obs_act_dict['current_obs']), dtype=np.int64))
        else:
            count(np.asarray(world_model.keys_values_wm_size_list))
        return outputs

    KVCacheWorldModelMixin.forward_initial_inference = watched
    try:
        yield
    finally:
        KVCacheWorldModelMixin.forward_initial_inference = infer


def measure(run: str, arm: str, max_env_step: int, out: Path) -> dict:
    module, entry_name = RUNS[run]
    config = import_module(module)
    main_config, create_config = deepcopy(config.main_config), deepcopy(config.create_config)
    main_config.policy.model.world_model_cfg.kv_cache.mode = ARMS[arm]
    folder = out / f'{run}_{arm}'
    shutil.rmtree(folder, ignore_errors=True)
    main_config.exp_name = relpath(folder)
    WatchedPolicy.roots = roots = Roots()
    with run_progress(main_config.exp_name, max_env_step):
        POLICY_REGISTRY.register('unizero', WatchedPolicy, force_overwrite=True)
        getattr(entry, entry_name)([main_config, create_config], seed=0, max_env_step=max_env_step)
    window = main_config.policy.model.world_model_cfg.context_length
    return dict(run=run, arm=arm, context_length=window, **roots.summary())


def table(results: list) -> WideTable:
    view = WideTable(
        'contexts at the roots of running episodes', ['run', 'arm'],
        ['first steps', 'continuing', 'no history', 'last obs only', 'mean tokens', 'window'],
    )
    for row in results:
        view.add_row(
            row['run'], row['arm'], f"{row['first_steps']:,}", f"{row['continuing']:,}",
            f"{row['without_history']:,} ({row['share_without_history']:.1%})",
            f"{row['last_observation_only']:,} ({row['share_last_observation_only']:.1%})",
            f"{row['mean_context_length']:.2f}", str(row['context_length']),
        )
    return view


def plot(results: list, path: Path) -> None:
    figure = Figure(figsize=(9, 4), layout='constrained')
    shares, lengths = figure.subplots(1, 2)
    labels = [f"{row['run']}\n{row['arm']}" for row in results]
    colors = ['tab:orange' if row['arm'] == 'release' else 'tab:blue' for row in results]
    values = [100 * row['share_without_history'] for row in results]
    shares.bar_label(shares.bar(labels, values, color=colors), fmt='%.1f %%')
    shares.set(title='continuing roots planned without history', ylabel='% of the continuing roots', ylim=(0, 100))
    values = [row['mean_context_length'] for row in results]
    lengths.bar_label(lengths.bar(labels, values, color=colors), fmt='%.2f')
    lengths.set(title='mean context at a continuing root', ylabel='tokens')
    lengths.axhline(max(row['context_length'] for row in results), color='grey', linestyle='--')
    for panel in (shares, lengths):
        panel.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command(help=__doc__)
@click.option('--run', 'runs', multiple=True, default=tuple(RUNS), show_default=True, type=click.Choice(list(RUNS)))
@click.option('--max-env-step', default=2000, show_default=True, type=click.IntRange(1),
              help='Environment steps of each run.')
@click.option('--out', default='data_benchmarks/root_contexts', type=click.Path(path_type=Path), show_default=True,
              help='Folder of the runs and the results.')
def main(runs: tuple, max_env_step: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    results = [measure(run, arm, max_env_step, out) for run in runs for arm in ARMS]
    report = dict(machine=machine(), max_env_step=max_env_step, results=results)
    (out / 'root_contexts.json').write_text(json.dumps(report, indent=2))
    plot(results, out / 'root_contexts.png')
    Console().print(table(results), f'Written to {out}/root_contexts.json and .png', sep='\n')


if __name__ == '__main__':
    main()
