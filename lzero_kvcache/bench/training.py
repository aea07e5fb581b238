import json
import subprocess
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Optional

import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from rich.table import Table

from ..child_process import ChildProcess
from ..doctor.environments import atari
from ..experiment import Experiment, load_experiment, switch_cache_on
from .clock import Clock
from .figures import as_text, error_bars, figure_of
from .section import Section, table_of
from .settings import TRAININGS, Settings
from .timing import paired_ratios

# The 'kv_cache' entry, None for LightZero's own config and policy.
ARMS: dict[str, Optional[dict]] = {'release': None, 'plugin': {}}
PARTS = ('collect', 'learn', 'evaluate', 'rest')
COLUMNS = {
    'env_steps': ('steps', '{:.0f}'), 'seconds': ('seconds', '{:.1f}'), **{part: (part, '{:.1f}') for part in PARTS},
    'ms_per_step': ('ms / step', '{:.1f}'), 'collect_ms_per_step': ('collecting', '{:.1f}'),
}
RATIO = 'plugin / release'


class TrainingFailed(RuntimeError):
    """A training has not come to its end."""


class Training(Section):
    """What a user waits for: LightZero's ``train_unizero`` from the first import to the end, and what it is spent on.

    Each run is a process of its own, release and plugin in turn with the same seeds.
    """
    name = 'training'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        pairs = [(name, seed) for name in _trainings_here(settings, clock) for seed in range(settings.pairs)]
        measured: dict[str, list[dict]] = {}
        for name, seed in clock.each(pairs, lambda pair: f'training: {pair[0]}, seed {pair[1]}'):
            experiment = _experiment(name)
            # Whoever comes first finds the files less warm.
            arms = list(ARMS) if seed % 2 == 0 else list(ARMS)[::-1]
            measured.setdefault(name, []).append({arm: _run(experiment, arm, seed, clock) for arm in arms})
        return [row for name, of_pairs in measured.items() for row in _rows(name, of_pairs)]

    def table(self, rows: list[dict]) -> Table:
        title = ('Trainings by train_unizero, from the first import to the end: seconds, and ms per environment step, '
                 'of which so many for collecting')
        table = table_of(title, 'environment', 'arm', *(heading for heading, _ in COLUMNS.values()), names=2)
        for row in rows:
            is_ratio = row['arm'] == RATIO
            table.add_row(row['environment'], row['arm'], *(
                as_text(row, name, '{:.2f}' if is_ratio else text) for name, (_, text) in COLUMNS.items()
            ))
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        panel = figure.subplots()
        bars = [row for row in rows if row['arm'] != RATIO]
        labels = [f"{row['environment']}\n{row['arm']}" for row in bars]
        # Runs end with their last episodes, and are not equally long.
        ends = [0.] * len(bars)
        for part, color in zip(PARTS, ('tab:blue', 'tab:orange', 'tab:green', 'silver')):
            times = [1000 * row[part] / row['env_steps'] for row in bars]
            panel.bar(labels, times, 0.6, ends, color=color, label=part)
            ends = [end + time for end, time in zip(ends, times)]
        panel.errorbar(labels, [row['ms_per_step'] for row in bars], error_bars(bars, 'ms_per_step'), fmt='none',
                       color='black')
        for number, row in enumerate(bars):
            panel.annotate(f"{row['ms_per_step']:.0f} ms", (number, row['ms_per_step']), xytext=(6, 4),
                           textcoords='offset points')
        panel.set(title='a training by train_unizero, from the first import to the end', ylabel='ms / environment step')
        panel.margins(y=0.12)
        panel.legend(frameon=False, loc='center left', bbox_to_anchor=(1, 0.5), reverse=True)


def _trainings_here(settings: Settings, clock: Clock) -> list[str]:
    names = list(settings.trainings)
    if 'Pong' in names:
        (finding, ) = atari()
        if finding.mend is not None:
            names.remove('Pong')
            clock.notes.append(f'Pong is left out, because Atari does not work here: {finding.seen} ({finding.mend}).')
    return names


def _experiment(name: str) -> Experiment:
    training = TRAININGS[name]
    experiment = load_experiment(Path(training['config']))
    changes = EasyDict({room: training[room] for room in ('env', 'policy')})
    experiment.main_config = deep_merge_dicts(experiment.main_config, changes)
    experiment.main_config.exp_name = 'run'
    experiment.create_config.env_manager.type = 'base'
    experiment.max_env_step = training['max_env_step']
    return experiment


def _run(experiment: Experiment, arm: str, seed: int, clock: Clock) -> dict[str, Any]:
    experiment = deepcopy(experiment)
    if ARMS[arm] is not None:
        switch_cache_on(experiment, ARMS[arm])
    job = repr((experiment.main_config, experiment.create_config, seed, experiment.max_env_step))
    with TemporaryDirectory() as folder:
        began = perf_counter()
        child = ChildProcess(['-m', 'lzero_kvcache.bench.training_process'], torch.get_num_threads(), {}, cwd=folder,
                             stdout=subprocess.PIPE, text=True)
        try:
            answer, _ = child.process.communicate(job)
        finally:
            child.stop()
        seconds = perf_counter() - began
    if child.how_it_ended is not None:
        raise TrainingFailed(f'the training with {arm}, seed {seed}, has failed: {child.how_it_ended}')
    result = json.loads(answer)
    clock.add(seconds, min(seconds, result['cpu_seconds']))
    result.update(seconds=seconds, rest=seconds - result['collect'] - result['learn'] - result['evaluate'])
    result.update(ms_per_step=1000 * seconds / result['env_steps'],
                  collect_ms_per_step=1000 * result['collect'] / result['env_steps'])
    return result


def _rows(name: str, pairs: list[dict[str, Mapping[str, Any]]]) -> list[dict]:
    rows = []
    for arm in ARMS:
        row = dict(environment=name, arm=arm, device=pairs[0][arm]['device'], policy=pairs[0][arm]['policy'])
        for column in COLUMNS:
            row.update(figure_of(column, [pair[arm][column] for pair in pairs]))
        rows.append(row)
    ratios = dict(environment=name, arm=RATIO)
    for column in COLUMNS:
        times = [[pair[arm][column] for pair in pairs] for arm in ('plugin', 'release')]
        ratios.update(figure_of(column, paired_ratios(*times)))
    return [*rows, ratios]
