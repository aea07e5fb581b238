from copy import deepcopy

from ding.utils import deep_merge_dicts
from gym.error import Error as GymError
from gymnasium.error import Error as GymnasiumError

from .config_file import Experiment
from .defaults import env_defaults, environment_class


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
    config = deep_merge_dicts(env_defaults(experiment), deepcopy(experiment.main_config.env))
    try:
        episode = environment(environment.create_collector_env_cfg(config)[0])
        episode.reset()
        episode.close()
    except (ImportError, GymError, GymnasiumError) as error:
        raise ValueError(f'the environment {experiment.create_config.env.type!r} cannot begin: {error}') from error
