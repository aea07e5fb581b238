import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import click

BACKENDS = ('local', 'ray')


class CommaSeparated(click.ParamType):
    """
    Overview:
        A list such as 'lru,fifo' or '0,1,2'.
    Arguments:
        - kind (:obj:`type`): Of its entries, ``str`` or ``int``.
    """
    name = 'list'

    def __init__(self, kind: type) -> None:
        self._kind = kind

    def convert(self, value: Any, param: Any, ctx: Any) -> list:
        """
        Overview:
            Called by click.
        """
        if isinstance(value, list):
            return value
        entries = [entry.strip() for entry in value.split(',') if entry.strip()]
        if not entries:
            self.fail('the list is empty', param, ctx)
        if self._kind is int and not all(
            entry.isdecimal() and len(entry) <= 10 and int(entry) < 2 ** 32 for entry in entries
        ):
            self.fail(f'{value!r} is no list of integers of at least 0 and below 2 ** 32, such as 0,1,2', param, ctx)
        return list(dict.fromkeys(map(self._kind, entries)))


@click.command()
@click.argument('config_path', metavar='CONFIG', type=click.Path(path_type=Path))
@click.option('--arms', type=CommaSeparated(str), metavar='A,B', help="Some of the config's arms.  [default: all]")
@click.option('--seeds', type=CommaSeparated(int), metavar='0,1,2', help="Random seeds.  [default: the config's]")
@click.option('--max-env-step', type=click.IntRange(1),
              help="Environment steps of each trial.  [default: the config's]")
@click.option('--jobs', type=click.IntRange(1),
              help='Trials at a time on this machine.  [default: one per core, if 1.5 GiB of memory are free for each]')
@click.option('--threads', type=click.IntRange(1),
              help='Threads of each trial.  [default: 1 for small models and on a cluster, else cores / jobs]')
@click.option('--backend', default='local', show_default=True, type=click.Choice(BACKENDS),
              help='local: processes of this machine. ray: Ray Core, here or on the cluster of --address.')
@click.option('--address', help="With --backend ray: the cluster, e.g. auto or ray://HOST:10001.")
@click.option('--gpus-per-trial', default=0., type=click.FloatRange(0.),
              help='With --backend ray: GPUs, or parts of one, that each trial is given.')
@click.option('--redo', is_flag=True, help='Run trials again that are done with other settings: the old ones go.')
@click.option('--out', type=click.Path(path_type=Path, file_okay=False),
              help='Folder of the trials and the results.  [default: data_ab/<name of CONFIG>]')
def ab(
        config_path: Path, arms: Optional[list], seeds: Optional[list], max_env_step: Optional[int],
        jobs: Optional[int], threads: Optional[int], backend: str, address: Optional[str], gpus_per_trial: float,
        redo: bool, out: Optional[Path]
) -> None:
    """
    Compare the arms of an A/B config, each with the same seeds. A seed fixes the initial weights, but not the searches.

    CONFIG is a config file with 'arms' and 'seeds', such as configs/ab_cartpole_strategies.py. Each arm and seed is a
    trial, a training run in a process and a folder of its own; several GPUs (those of CUDA_VISIBLE_DEVICES, if it is
    set) take turns. The same command again goes on after an interruption: trials that are done are not repeated. Where
    some are done with other settings, it refuses to go on.
    """
    if backend != 'ray' and (address or gpus_per_trial):
        raise click.UsageError('--address and --gpus-per-trial are for --backend ray')
    if address and jobs:
        raise click.UsageError('--jobs is for this machine: on a cluster Ray runs as many trials as --threads allows')
    # Of a file '...py' the stem is '..'.
    out = out or Path('data_ab') / (config_path.stem.strip('.') or 'ab')
    config = _checked(config_path, max_env_step, arms)
    from ..ab.folder import RunFolder
    from ..ab.run import ABRun
    from ..files import DiskFullError
    from ..output import console_of
    from ..untrusted import printable

    console = console_of(sys.stdout)
    for note in map(printable, config.notes):
        console.print(note, markup=False, highlight=False, soft_wrap=True)
    folder = RunFolder(out)
    try:
        with folder.locked():
            ab_run = ABRun(config, folder, arms, seeds, console, redo)
            failed = ab_run.run(_backend(backend, address, jobs, threads, gpus_per_trial, ab_run.specs))
            ab_run.show_means()
            _show_paths(console, folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except DiskFullError as error:
        raise click.ClickException(
            f'{error}. The trials that are done are kept: free some, and the same command goes on from there'
        ) from error
    except KeyboardInterrupt:
        console.print(f'Interrupted. The trials that are done are kept in {out}; the same command goes on from there.',
                      markup=False, highlight=False, soft_wrap=True)
        raise SystemExit(130) from None
    if failed:
        raise click.ClickException(
            f"{len(failed)} of {len(ab_run.specs)} trials failed: {', '.join(spec.name for spec in failed)}. The "
            'others are kept; the same command runs the failed ones again'
        )


def _checked(config_path: Path, max_env_step: Optional[int], arms: Optional[list]) -> Any:
    import logging

    from ..output import loading

    config = refusal = None
    with loading(f'LightZero and {config_path}'):
        from ..ab.config import load_ab_config

        try:
            config = load_ab_config(config_path, max_env_step)
            config.specs(arms)
        except ValueError as error:
            refusal = error
    if refusal is not None:
        raise click.ClickException(str(refusal))
    # LightZero lets every logger speak, and nothing trains in this process.
    logging.getLogger().setLevel(logging.WARNING)
    return config


def _backend(
        name: str, address: Optional[str], jobs: Optional[int], threads: Optional[int], gpus: float,
        specs: Sequence[Any]
) -> Any:
    from ..ab.local import LocalBackend
    from ..ab.machine_limits import cores, trials_that_fit, visible_gpus
    from ..threads import is_small, threads_of_environment

    wanted = jobs or min(cores(), len(specs))
    if threads is None:
        try:
            given = threads_of_environment()
        except ValueError as error:
            raise click.ClickException(str(error)) from error
        small = all(is_small(spec.experiment.main_config.policy.model.world_model_cfg) for spec in specs)
        # Whatever memory is free: trials with different numbers of threads cannot be compared.
        threads = 1 if address or (small and not given) else max(1, min(cores() // wanted, given or cores()))
    if jobs is None:
        jobs = min(wanted, trials_that_fit() or wanted)
        if jobs < wanted and not address:
            click.echo(f'No more memory is free than for {jobs} of {wanted} trials at a time, at 1.5 GiB each: '
                       f'--jobs {wanted} runs them all the same.')
    if name == 'local':
        return LocalBackend(jobs, threads, visible_gpus())
    try:
        from ..ab.ray_backend import RayBackend
    except ModuleNotFoundError as error:
        raise click.ClickException(_not_installed(error, 'ray', '--backend ray')) from error
    return RayBackend(address, jobs, threads, gpus)


def _show_paths(console: Any, folder: Any) -> None:
    lines = [f'Results: {folder.results_path}', f'TensorBoard: tensorboard --logdir {folder.path}/trials']
    try:
        from ..report import write_report

        lines.append(f'Report: {write_report(folder.path)}')
    except ModuleNotFoundError as error:
        lines.append(f"No report: {_not_installed(error, 'report', 'it')}")
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _not_installed(error: ModuleNotFoundError, extra: str, what: str) -> str:
    if (error.name or '').startswith('lzero_kvcache'):
        raise error
    return f"{what} needs {error.name}, which is not installed: pip install 'lzero-kvcache[{extra}]'"
