"""The options that choose a task of the DeepMind Control Suite."""
from typing import Callable

import click
from easydict import EasyDict

from lzero_kvcache.envs.suite_env import SuiteEnv


def task_options(command: Callable) -> Callable:
    """
    Overview:
        Decorate an example's main function with ``--domain-name`` and ``--task-name``.
    """
    command = click.option('--domain-name', default='cartpole', show_default=True, help='Domain of the suite.')(command)
    return click.option('--task-name', default='swingup', show_default=True, help="The domain's task.")(command)


def choose_task(main_config: EasyDict, domain_name: str, task_name: str) -> None:
    """
    Overview:
        Write a task, and the sizes of its states and actions, into a config.
    Arguments:
        - main_config (:obj:`EasyDict`): The config, changed in place.
        - domain_name, task_name (:obj:`str`): The task.
    Raises:
        - click.ClickException: If there is no such task, or dm-control is not installed.
    """
    try:
        env = SuiteEnv(domain_name, task_name)
    except (ImportError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    main_config.env.update(domain_name=domain_name, task_name=task_name)
    model = main_config.policy.model
    model.action_space_size = model.world_model_cfg.action_space_size = env.action_space.shape[0]
    if not main_config.env.from_pixels:
        model.observation_shape = env.observation_space.shape[0]
