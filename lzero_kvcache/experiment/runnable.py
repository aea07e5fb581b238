from collections.abc import Collection

from ding.utils import deep_merge_dicts

from ..broken_settings import FIELDS, check_settings
from ..plugin.hooks import is_release
from ..plugin.rounds import check_segments
from .config_file import Experiment
from .defaults import policy_defaults


def check_runnable(experiment: Experiment, fields: Collection[str] = FIELDS) -> None:
    """
    Overview:
        Refuse what LightZero would die of in the middle of a training or an evaluation.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
        - fields (:obj:`Collection[str]`): Those of the policy that will be used.
    Raises:
        - ValueError: With key paths, values and the remedy.
    """
    main_config, created = experiment.main_config, experiment.create_config
    policy = deep_merge_dicts(deep_merge_dicts(policy_defaults(experiment), created.policy), main_config.policy)
    if is_release():
        check_settings(policy, fields, experiment.entry)
    if 'collect' in fields and experiment.entry == 'train_unizero_segment':
        check_segments(policy, main_config.env.get('collector_env_num', policy.collector_env_num))
