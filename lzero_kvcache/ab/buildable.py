from ding.utils import POLICY_REGISTRY, deep_merge_dicts
from easydict import EasyDict

from ..experiment import Experiment


def check_buildable(experiment: Experiment, key_path: str) -> None:
    """
    Overview:
        Build an experiment's model and its cache, which is the only way to find sizes that do not fit.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
        - key_path (:obj:`str`): Where its changes stand, for error messages.
    Raises:
        - ValueError: If they cannot be built.
    """
    policy_class = POLICY_REGISTRY.get(experiment.create_config.policy.type)
    config = EasyDict(deep_merge_dicts(policy_class.default_config(), experiment.main_config.policy))
    config.device = config.model.world_model_cfg.device = 'cpu'
    try:
        policy_class(config, enable_field=['collect'])
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(
            f'{key_path}: its model cannot be built: {type(error).__name__}: {error or "no reason given"}'
        ) from error
