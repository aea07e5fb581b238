"""The command-line options that all examples share."""
from datetime import datetime
from os.path import relpath
from typing import Any, Callable, Optional

import click
from easydict import EasyDict


def run_options(default_max_env_step: Optional[int] = None) -> Callable:
    """
    Overview:
        Decorate an example's main function with the common options.
    Arguments:
        - default_max_env_step (:obj:`Optional[int]`): The budget in environment steps if none is given; None: the
            example has no budget.
    """

    def decorate(command: Callable) -> Callable:
        options = [
            click.option('--max-env-step', default=default_max_env_step, show_default=True, type=click.IntRange(1),
                         help='Environment steps to collect.'),
        ] if default_max_env_step else []
        options += [
            click.option('--strategy', default='lru', show_default=True, help='Eviction strategy of all pools.'),
            click.option('--recur-pool-size', type=int, help="Entries of the search nodes' pool."),
            click.option('--mode', default='managed', show_default=True, help='managed, legacy or validate.'),
            click.option('--rope-positions',
                         help="Rotary positions of a search, release or aligned.  [default: the config's]"),
            click.option('--seed', default=0, show_default=True, help='Random seed.'),
            click.option('--exp-name', help="Folder of the run.  [default: the config's, and the time]"),
        ]
        for option in reversed(options):
            command = option(command)
        return click.command(help=command.__doc__)(command)

    return decorate


def apply_options(
        main_config: EasyDict, strategy: str, recur_pool_size: Optional[int], mode: str,
        rope_positions: Optional[str], exp_name: Optional[str], **_: Any
) -> str:
    """
    Overview:
        Write the options into a config.
    Arguments:
        - main_config (:obj:`EasyDict`): The config, changed in place.
        - strategy, recur_pool_size, mode, rope_positions, exp_name: The options.
    Returns:
        - exp_name (:obj:`str`): The folder of the run.
    """
    kv_cache = main_config.policy.model.world_model_cfg.kv_cache
    kv_cache.update(strategy=strategy, mode=mode)
    if rope_positions is not None:
        kv_cache.rope_positions = rope_positions
    if recur_pool_size is not None:
        kv_cache.recur_pool = dict(size=recur_pool_size)
    # DI-engine puts './' before it, which would make an absolute path a relative one.
    main_config.exp_name = relpath(exp_name or f'{main_config.exp_name}_{datetime.now():%y%m%d_%H%M%S}')
    return main_config.exp_name
