from copy import deepcopy
from importlib import import_module
from typing import Any

from ding.utils import ENV_REGISTRY, deep_merge_dicts
from gym.error import Error as GymError
from gymnasium.error import Error as GymnasiumError

from .config_file import Experiment


def environment_class(experiment: Experiment) -> Any:
    """
    Overview:
        Import an experiment's environment, as DI-engine will.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    Returns:
        - environment (:obj:`type`): Its class.
    Raises:
        - ValueError: If it needs a package that is not installed.
    """
    for name in experiment.create_config.env.get('import_names', []):
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f'create_config.env.import_names has {name!r}, which cannot be imported: {error}'
            ) from error
    return ENV_REGISTRY.get(experiment.create_config.env.type)


def check_environment(experiment: Experiment) -> None:
    """
    Overview:
        Begin an episode: some environments look for their packages and files no sooner.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    Raises:
        - ValueError: If a package or a file is missing, with what the environment says of it.
    """
    environment = environment_class(experiment)
    config = deep_merge_dicts(environment.default_config(), deepcopy(experiment.main_config.env))
    try:
        episode = environment(environment.create_collector_env_cfg(config)[0])
        episode.reset()
        episode.close()
    except (ImportError, GymError, GymnasiumError) as error:
        raise ValueError(f'the environment {experiment.create_config.env.type!r} cannot begin: {error}') from error
