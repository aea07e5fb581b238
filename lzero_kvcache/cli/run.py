import os
import traceback
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Optional

import click

from ..untrusted import printable

INTERRUPTED = 130


class RunFailed(click.ClickException):
    """
    Overview:
        A run, or an evaluation, that had begun has failed.
    """


@click.command()
@click.argument('config', type=click.Path(path_type=Path))
@click.argument('config_arguments', nargs=-1, type=click.UNPROCESSED)
@click.option('--strategy', help="Eviction strategy of all pools.  [default: the config's, or fifo]")
@click.option('--recur-pool-size', type=click.IntRange(1), help="Entries of the search nodes' pool.")
@click.option('--mode', type=click.Choice(('managed', 'legacy', 'validate')),
              help="This cache, the stock code, or both compared.  [default: the config's, or managed]")
@click.option('--set', 'assignments', multiple=True, metavar='KEY.PATH=VALUE',
              help='Change an entry of policy, env, kv_cache or create_config; once for each: '
                   '--set policy.num_simulations=25')
@click.option('--seed', type=int, help="Random seed.  [default: the config's]")
@click.option('--max-env-step', type=click.IntRange(1), help="Environment steps to collect.  [default: the config's]")
@click.option('--checkpoint', type=click.Path(path_type=Path, exists=True, dir_okay=False),
              help='A checkpoint whose weights the run begins with.')
@click.option('--exp-name', type=click.Path(path_type=Path),
              help="Folder of the run.  [default: the config's, and the time]")
@click.option('--threads', type=click.IntRange(1),
              help='Threads on the CPU.  [default: 1 for small models, else as PyTorch chooses]')
@click.option('--cpu', is_flag=True, help='Leave a GPU alone. Without one the CPU is used anyway.')
def run(
        config: Path, config_arguments: tuple[str, ...], assignments: tuple[str, ...], strategy: Optional[str],
        recur_pool_size: Optional[int], mode: Optional[str], seed: Optional[int], max_env_step: Optional[int],
        checkpoint: Optional[Path], exp_name: Optional[Path], threads: Optional[int], cpu: bool
) -> None:
    """
    Train by a LightZero config file, unedited, with the cache on.

    CONFIG is any config file for UniZero or Sampled UniZero: your own, or one of LightZero's, e.g.
    zoo/atari/config/atari_unizero_config.py. Arguments that the file itself takes come after "--", e.g.
    "-- --env BreakoutNoFrameskip-v4".
    """
    experiment = prepare(
        config, config_arguments, assignments, strategy, recur_pool_size, mode, seed, checkpoint, threads, cpu
    )
    if exp_name is None and not experiment.main_config.get('exp_name'):
        raise click.ClickException(f'{config} has no main_config.exp_name: give the folder of the run by --exp-name')
    experiment.max_env_step = max_env_step or experiment.max_env_step
    _train(experiment, exp_name or Path(f'{experiment.main_config.exp_name}_{datetime.now():%y%m%d_%H%M%S}'))


def prepare(
        config: Path, config_arguments: Sequence[str], assignments: Sequence[str], strategy: Optional[str],
        recur_pool_size: Optional[int], mode: Optional[str], seed: Optional[int], checkpoint: Optional[Path],
        threads: Optional[int], cpu: bool,
        fields: Sequence[str] = ('learn', 'collect', 'eval')
) -> Any:
    """
    Overview:
        Load a config file as the options say, look whether it can run here, and choose the number of threads.
    Arguments:
        - config, ... (:obj:`Any`): As the options of ``run``.
        - fields (:obj:`Sequence[str]`): Those of the policy that will be used.
    Returns:
        - experiment (:obj:`Experiment`): With the seed, and the checkpoint as its ``model_path``.
    Raises:
        - click.ClickException: If it cannot run.
    """
    processes = os.environ.get('WORLD_SIZE', '1')
    if processes != '1':
        raise click.ClickException(
            f'torchrun has started {processes} processes, but this command runs in one: let torchrun start the '
            'config file itself, as docs/reliability.md says under "Many processes"'
        )
    if cpu:
        # Before PyTorch looks for one: the stock entries ask PyTorch, not the config.
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    from ..output import loading

    refusal = None
    with loading(f'LightZero and {config}'):
        from ..experiment import (
            apply_options,
            check_checkpoint,
            check_environment,
            check_runnable,
            load_experiment,
        )
        from ..threads import choose_threads
        try:
            experiment = load_experiment(config, config_arguments)
            apply_options(experiment, assignments, strategy, recur_pool_size, mode)
            check_runnable(experiment, fields)
            check_environment(experiment)
            experiment.model_path = experiment.model_path if checkpoint is None else str(checkpoint)
            if experiment.model_path is not None:
                check_checkpoint(experiment.model_path)
            choice = choose_threads(experiment.main_config.policy.model.world_model_cfg, threads)
        except ValueError as error:
            refusal = error
    if refusal is not None:
        raise click.ClickException(str(refusal))
    experiment.seed = experiment.seed if seed is None else seed
    for note in filter(None, (*experiment.notes, choice)):
        click.echo(printable(note))
    return experiment


def _train(experiment: Any, folder: Path) -> None:
    from ..experiment.run_folder import check_new_folder, disk_is_full, log_file
    from ..progress import run_progress

    try:
        check_new_folder(folder)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo(printable(f'Training by {experiment.entry}, seed {experiment.seed}, in {folder}'))
    try:
        with run_progress(str(folder), experiment.max_env_step):
            try:
                experiment.run(str(folder))
            except Exception:
                traceback.print_exc()
                raise
    except KeyboardInterrupt:
        click.echo(_kept(folder))
        raise SystemExit(INTERRUPTED) from None
    except Exception as error:
        reason = f'{type(error).__name__}: {error}'
        if disk_is_full(folder):
            reason = f'the disk that holds {folder.resolve().parent} is full'
        raise RunFailed(
            f'the run has failed: {reason}\n{_kept(folder)}\nAll of its output: {log_file(folder)}'
        ) from error


def _kept(folder: Path) -> str:
    from ..experiment.run_folder import newest_checkpoint

    try:
        checkpoint = newest_checkpoint(folder)
    except FileNotFoundError as error:
        return f'Nothing is kept: {error}.'
    return (
        f'Kept: {checkpoint}; TensorBoard: tensorboard --logdir {folder}/log\n'
        f'"--checkpoint {checkpoint}" goes on with its weights, but with an empty replay buffer.'
    )
