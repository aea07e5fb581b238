"""Does CartPole learn as well with the cache as with the release's code? Both arms, the same seeds and steps."""
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import mean, stdev

import click
import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lzero_kvcache.bench.machine import machine

# The options of the example; mode 'legacy' is the release's own code.
ARMS = {
    'release': ['--mode', 'legacy'],
    'plugin': ['--mode', 'managed', '--rope-positions', 'release'],
    'plugin_aligned': ['--mode', 'managed', '--rope-positions', 'aligned'],
}
COLORS = {'release': 'tab:orange', 'plugin': 'tab:blue', 'plugin_aligned': 'tab:green'}
RETURN = 'evaluator_step/reward_mean'


class Trial:
    """One training run of one arm, in a process and a folder of its own."""

    def __init__(self, arm: str, seed: int, max_env_step: int, out: Path) -> None:
        self.arm, self.seed, self.max_env_step = arm, seed, max_env_step
        self.folder = out / f'{arm}_seed{seed}_{max_env_step}'
        self.result_path = out / f'{self.folder.name}.json'

    def run(self, log_path: Path) -> None:
        """Train, unless an earlier call has; a trial that fails raises with the place of its log."""
        if self.result_path.exists():
            return
        # DI-engine would write beside a folder that is there.
        shutil.rmtree(self.folder, ignore_errors=True)
        command = [
            sys.executable, '-m', 'zoo_examples.classic_control.cartpole_unizero', *ARMS[self.arm],
            '--seed', str(self.seed), '--max-env-step', str(self.max_env_step), '--exp-name', str(self.folder),
        ]
        with open(log_path, 'w') as log:
            status = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if status:
            raise RuntimeError(f'{self.folder.name} has failed with status {status}: see {log_path}')
        events = EventAccumulator(str(self.folder / 'log' / 'serial'))
        events.Reload()
        points = events.Scalars(RETURN)
        self.result_path.write_text(json.dumps(dict(
            arm=self.arm, seed=self.seed, env_steps=[point.step for point in points],
            returns=[point.value for point in points],
        )))

    def result(self) -> dict:
        """Returns of the evaluations, the environment steps that they came at, and their means."""
        result = json.loads(self.result_path.read_text())
        steps, returns = np.asarray(result['env_steps']), np.asarray(result['returns'])
        late = steps >= steps[-1] * 2 / 3
        return dict(result, mean_return=float(returns.mean()), late_return=float(returns[late].mean()),
                    best_return=float(returns.max()))


def run_trials(trials: Sequence[Trial], jobs: int, console: Console) -> None:
    with ThreadPoolExecutor(jobs) as executor, Progress(console=console) as progress:
        task = progress.add_task('trials', total=len(trials))
        running = {executor.submit(trial.run, trial.folder.with_suffix('.screen')): trial for trial in trials}
        for future in as_completed(running):
            error = future.exception()
            message = f'{running[future].folder.name} is done' if error is None else f'{error!r}'
            progress.console.print(message, soft_wrap=True)
            progress.advance(task)
    failed = [trial.folder.name for trial in trials if not trial.result_path.exists()]
    if failed:
        raise click.ClickException(f"failed: {', '.join(failed)}; what is done is kept, run the same command again")


def table(results: Sequence[dict]) -> Table:
    view = Table('seed', 'arm', 'mean of all', 'mean of the last third', 'best', box=None,
                 title='return of the evaluations')
    for result in sorted(results, key=lambda result: (result['seed'], result['arm'])):
        view.add_row(str(result['seed']), result['arm'], f"{result['mean_return']:.1f}",
                     f"{result['late_return']:.1f}", f"{result['best_return']:.1f}")
    view.add_section()
    for arm in ARMS:
        cells = []
        for name in ('mean_return', 'late_return', 'best_return'):
            values = [result[name] for result in results if result['arm'] == arm]
            cells.append(f'{mean(values):.1f}' + (f' +- {stdev(values):.1f}' if len(values) > 1 else ''))
        view.add_row('all', arm, *cells)
    return view


def differences(results: Sequence[dict]) -> list[str]:
    """Each other arm minus the release, seed by seed."""
    late = {(result['arm'], result['seed']): result['late_return'] for result in results}
    seeds = sorted({result['seed'] for result in results})
    lines = []
    for arm in list(ARMS)[1:]:
        by_seed = [late[arm, seed] - late['release', seed] for seed in seeds]
        spread = f', standard deviation {stdev(by_seed):.1f}' if len(by_seed) > 1 else ''
        lines.append(f'{arm} minus release, last third, by seed: {", ".join(f"{value:+.1f}" for value in by_seed)} '
                     f'(mean {mean(by_seed):+.1f}{spread})')
    return lines


def plot(results: Sequence[dict], max_env_step: int, path: Path) -> None:
    figure = Figure(figsize=(8, 4.5), layout='constrained')
    panel = figure.subplots()
    grid = np.linspace(0, max_env_step, 101)
    for arm, color in COLORS.items():
        of_arm = [result for result in results if result['arm'] == arm]
        curves = np.stack([np.interp(grid, result['env_steps'], result['returns']) for result in of_arm])
        style = '--' if arm == 'release' else '-'
        panel.plot(grid, curves.mean(0), style, color=color, label=f'{arm}, mean of {len(curves)} seeds')
        panel.fill_between(grid, curves.min(0), curves.max(0), color=color, alpha=0.15, label=f'{arm}, all seeds')
    panel.set(xlabel='environment steps', ylabel='return of an evaluation (3 episodes)', xlim=(0, max_env_step),
              ylim=(0, None), title='CartPole, UniZero: release and plugin')
    panel.legend(frameon=False, loc='lower right', fontsize='small')
    panel.grid(alpha=0.3)
    panel.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command(help=__doc__)
@click.option('--seed', 'seeds', multiple=True, default=(0, 1, 2), show_default=True, help='Once for each seed.')
@click.option('--max-env-step', default=20_000, show_default=True, type=click.IntRange(1),
              help='Environment steps of each run.')
@click.option('--jobs', default=2, show_default=True, type=click.IntRange(1), help='Runs at a time.')
@click.option('--out', default='data_benchmarks/learning_cartpole', type=click.Path(path_type=Path), show_default=True,
              help='Folder of the runs and the results. Runs that are done are not repeated.')
def main(seeds: tuple, max_env_step: int, jobs: int, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    trials = [Trial(arm, seed, max_env_step, out) for seed in seeds for arm in ARMS]
    run_trials(trials, jobs, console)
    results = [trial.result() for trial in trials]
    summary = differences(results)
    report = dict(machine=machine(), max_env_step=max_env_step, summary=summary, results=results)
    (out / 'learning_cartpole.json').write_text(json.dumps(report, indent=2))
    plot(results, max_env_step, out / 'learning_cartpole.png')
    console.print(table(results), *summary, f'Written to {out}/learning_cartpole.json and .png', sep='\n')


if __name__ == '__main__':
    main()
