"""The command-line options that all examples share."""
from datetime import datetime
from functools import wraps
from importlib import import_module
from os.path import relpath
from typing import Callable, Optional

import click
from easydict import EasyDict

from lzero_kvcache.config import MODES, ROPE_POSITIONS, KVCacheConfig
from lzero_kvcache.experiment import check_checkpoint
from lzero_kvcache.threads import choose_threads

# The folder of each scale's configs.
SCALES = dict(laptop='configs', research='configs.research')
RESEARCH_MAX_ENV_STEP = 500_000


def checked_checkpoint(context: click.Context, parameter: click.Parameter, path: str) -> str:
    """
    Overview:
        Called by click with the path of a checkpoint.
    Raises:
        - click.BadParameter: If the file holds anything but weights. Nothing of it is executed.
    """
    try:
        check_checkpoint(path)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error
    return path


checkpoint_argument = click.argument(
    'checkpoint', type=click.Path(exists=True, dir_okay=False), callback=checked_checkpoint
)
threads_option = click.option(
    '--threads', type=click.IntRange(1),
    help='Threads on the CPU.  [default: 1 for small models, else as PyTorch chooses]'
)


def choose_threads_of(main_config: EasyDict, threads: Optional[int]) -> None:
    """
    Overview:
        Choose how many threads an example computes with, and say so where the user has not.
    Arguments:
        - main_config (:obj:`EasyDict`): The config.
        - threads (:obj:`Optional[int]`): The option.
    Raises:
        - click.ClickException: If what the environment says is no number of threads.
    """
    try:
        choice = choose_threads(main_config.policy.model.world_model_cfg, threads)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if choice is not None:
        click.echo(choice)


def run_options(config: str, max_env_step: Optional[int] = None) -> Callable:
    """
    Overview:
        Decorate an example's main function with the common options. It is called with ``main_config``,
        ``create_config``, the run's folder ``exp_name``, ``seed``, its own options and, if it trains, ``max_env_step``.
    Arguments:
        - config (:obj:`str`): The config's module, which is in ``configs/`` and ``configs/research/``.
        - max_env_step (:obj:`Optional[int]`): The budget in environment steps at laptop scale, if none is given; None:
            the example has no budget.
    """

    def decorate(command: Callable) -> Callable:

        @wraps(command)
        def with_configs(
                scale: str, strategy: str, recur_pool_size: Optional[int], mode: str, rope_positions: Optional[str],
                exp_name: Optional[str], threads: Optional[int], **options
        ) -> None:
            module = import_module(f'{SCALES[scale]}.{config}')
            main_config = module.main_config
            apply_options(main_config, strategy, recur_pool_size, mode, rope_positions, exp_name)
            choose_threads_of(main_config, threads)
            if 'max_env_step' in options and options['max_env_step'] is None:
                options['max_env_step'] = max_env_step if scale == 'laptop' else RESEARCH_MAX_ENV_STEP
            command(main_config, module.create_config, main_config.exp_name, **options)

        options = [
            click.option('--max-env-step', type=click.IntRange(1),
                         help='Environment steps to collect.  '
                              f'[default: {max_env_step}; at research scale {RESEARCH_MAX_ENV_STEP}]'),
        ] if max_env_step else []
        options += [
            click.option('--scale', default='laptop', show_default=True, type=click.Choice(list(SCALES)),
                         help='Size of model, batches and searches. research: as in the zoo, for a GPU.'),
            click.option('--strategy', default='lru', show_default=True, help='Eviction strategy of all pools.'),
            click.option('--recur-pool-size', type=click.IntRange(1), help="Entries of the search nodes' pool."),
            click.option('--mode', default='managed', show_default=True, type=click.Choice(MODES),
                         help='This cache, the stock code, or both compared.'),
            click.option('--rope-positions', type=click.Choice(ROPE_POSITIONS),
                         help="Rotary positions of a search.  [default: the config's]"),
            click.option('--seed', default=0, show_default=True, help='Random seed.'),
            click.option('--exp-name', help="Folder of the run.  [default: the config's, and the time]"),
            threads_option,
        ]
        for option in reversed(options):
            with_configs = option(with_configs)
        return click.command(help=command.__doc__)(with_configs)

    return decorate


def apply_options(
        main_config: EasyDict, strategy: str, recur_pool_size: Optional[int], mode: str,
        rope_positions: Optional[str], exp_name: Optional[str]
) -> None:
    """
    Overview:
        Write the options into a config.
    Arguments:
        - main_config (:obj:`EasyDict`): The config, changed in place.
        - strategy, recur_pool_size, mode, rope_positions, exp_name: The options.
    Raises:
        - click.ClickException: If there is no such strategy.
    """
    kv_cache = main_config.policy.model.world_model_cfg.kv_cache
    kv_cache.update(strategy=strategy, mode=mode)
    if rope_positions is not None:
        kv_cache.rope_positions = rope_positions
    if recur_pool_size is not None:
        kv_cache.recur_pool = dict(size=recur_pool_size)
    try:
        KVCacheConfig.from_dict(kv_cache)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    # DI-engine puts './' before it, which would make an absolute path a relative one.
    main_config.exp_name = relpath(exp_name or f'{main_config.exp_name}_{datetime.now():%y%m%d_%H%M%S}')
