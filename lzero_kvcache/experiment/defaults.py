"""What a config leaves out, as DI-engine fills it in."""
from importlib import import_module
from typing import Any

from ding.config.config import env_config_template
from ding.utils import ENV_REGISTRY, POLICY_REGISTRY, deep_merge_dicts
from ding.worker import BaseLearner
from easydict import EasyDict

from ..checks import choices
from .config_file import Experiment
from .imports import PLUGIN, import_modules


def environment_class(experiment: Experiment) -> Any:
    """
    Overview:
        Import an experiment's environment, as DI-engine will.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    Returns:
        - environment (:obj:`type`): Its class.
    Raises:
        - ValueError: If it needs a package that is not installed, or no environment has that name.
    """
    import_modules(experiment.create_config, 'env')
    name = experiment.create_config.get('env', {}).get('type')
    if name not in ENV_REGISTRY:
        raise ValueError(
            f'create_config.env.type is {name!r}, which no imported module registers: {choices(name, ENV_REGISTRY)}'
        )
    return ENV_REGISTRY.get(name)


def env_defaults(experiment: Experiment) -> EasyDict:
    """
    Overview:
        The defaults of ``env``. An environment need not have any of its own.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    Raises:
        - ValueError: As ``environment_class``.
    """
    environment = environment_class(experiment)
    own = environment.default_config() if hasattr(environment, 'default_config') else {}
    return EasyDict(deep_merge_dicts(env_config_template, own))


def policy_defaults(experiment: Experiment) -> EasyDict:
    """
    Overview:
        The defaults of ``policy``, those of DI-engine's learner included, e.g. how often a checkpoint is saved.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    """
    import_module(PLUGIN)
    policy = POLICY_REGISTRY.get(experiment.create_config.policy.type).default_config()
    return deep_merge_dicts(EasyDict(learn=dict(learner=BaseLearner.default_config())), policy)
