from ding.utils import deep_merge_dicts

from ..broken_settings import check_settings
from ..plugin.hooks import is_release
from .config_file import Experiment
from .defaults import env_defaults, policy_defaults


def check_runnable(experiment: Experiment) -> None:
    """
    Overview:
        Refuse what the released LightZero would die of in the middle of a training.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
    Raises:
        - ValueError: With key paths, values and the remedy, or if a package of the environment is missing.
    """
    if not is_release():
        return
    created, main_config = experiment.create_config, experiment.main_config
    policy = deep_merge_dicts(deep_merge_dicts(policy_defaults(experiment), created.policy), main_config.policy)
    # Before the environment's packages are needed: whoever installs them shall not do so in vain.
    check_settings({'policy': policy}, entry=experiment.entry)
    env = deep_merge_dicts(env_defaults(experiment), main_config.env)
    check_settings({'policy': policy, 'env': env}, entry=experiment.entry)
