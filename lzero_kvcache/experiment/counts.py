"""Numbers of things in a config that the stock entries use unchecked, deep in a run."""
from ..checks import check_count
from ..plugin.rounds import check_room
from .config_file import Experiment
from .defaults import policy_defaults

COUNTS = {
    'policy.num_simulations': 'simulations of a search',
    'policy.batch_size': 'samples',
    'policy.collector_env_num': 'environments',
    'policy.evaluator_env_num': 'environments',
    'policy.n_episode': 'episodes of a round of collecting',
    'policy.num_segments': 'game segments of a round of collecting',
    'policy.game_segment_length': 'environment steps',
    'policy.num_unroll_steps': 'environment steps',
    'policy.td_steps': 'environment steps',
    'policy.update_per_collect': 'learner steps after a round of collecting',
    'policy.eval_freq': 'learner steps between two evaluations',
    'policy.replay_buffer_size': 'environment steps',
    'env.collector_env_num': 'environments',
    'env.evaluator_env_num': 'environments',
    'env.n_evaluator_episode': 'episodes of an evaluation',
}
# Where None has a meaning: the entries take replay_ratio instead.
MAY_BE_NONE = ('policy.update_per_collect', )


def check_counts(experiment: Experiment, prefix: str = '') -> None:
    """
    Overview:
        Check the numbers of ``main_config``. Without it a run with 0 simulations fails after its first round, and one
        with 'x' has made a folder by then.
    Arguments:
        - experiment (:obj:`Experiment`): The experiment.
        - prefix (:obj:`str`): Stands before the key paths in error messages, e.g. "arms['lru'].".
    Raises:
        - ValueError: If one is no integer of at least 1, or there are more environments than the policy knows of.
    """
    for key_path, unit in COUNTS.items():
        room, key = key_path.split('.')
        config = experiment.main_config.get(room, {})
        if key not in config or (config[key] is None and key_path in MAY_BE_NONE):
            continue
        check_count(config[key], f'{prefix}{key_path}', unit)
    policy = {**policy_defaults(experiment), **experiment.main_config.policy}
    env = experiment.main_config.get('env', {})
    for key in ('collector_env_num', 'evaluator_env_num'):
        check_room(policy, key, env.get(key, 0), prefix)
