"""Settings of a config that LightZero 0.2.0 cannot run, which it finds out deep in a run."""
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any, Callable, Optional

from .checks import is_integer, is_number
from .config import WORLD_MODEL_PATH as WORLD_MODEL
from .config import runs_stock_code

FIELDS = ('learn', 'collect', 'eval')


class _Missing:

    def __repr__(self) -> str:
        return 'missing'

    def __bool__(self) -> bool:
        return False


MISSING = _Missing()


@dataclass(frozen=True)
class BrokenSetting:
    """
    Overview:
        Values that the release cannot run.
    Arguments:
        - key_paths (:obj:`Tuple[str, ...]`): The entries whose values decide, each below 'policy'.
        - breaks (:obj:`Callable[..., bool]`): Whether these values, in the same order, break.
        - case (:obj:`str`): The values in words, for the docs.
        - reason (:obj:`str`): What the release lacks.
        - remedy (:obj:`str`): What to do instead.
        - fields (:obj:`Tuple[str, ...]`): What of a policy breaks: 'learn', 'collect', 'eval'.
        - entry (:obj:`Optional[str]`): The entry that breaks; None: every one.
    """
    key_paths: tuple[str, ...]
    breaks: Callable[..., bool]
    case: str
    reason: str
    remedy: str
    fields: tuple[str, ...] = FIELDS
    entry: Optional[str] = None

    def refusal(self, policy: Mapping[str, Any], fields: Collection[str], entry: Optional[str]) -> Optional[str]:
        """
        Overview:
            Why a config is refused, in a sentence; None where it is not.
        Arguments:
            - policy (:obj:`Mapping[str, Any]`): The policy's config, defaults included.
            - fields (:obj:`Collection[str]`): Those of the policy that will be used.
            - entry (:obj:`Optional[str]`): The entry that will run, if it is known.
        """
        if self.entry not in (None, entry) or not set(fields).intersection(self.fields):
            return None
        values = [_value_at(policy, path) for path in self.key_paths]
        if not self.breaks(*values):
            return None
        given = ' and '.join(
            f'{path} is {value!r}' for path, value in zip(self.key_paths, values) if not isinstance(value, Mapping)
        )
        return f'{given}, which LightZero 0.2.0 cannot run: {self.reason}. Remedy: {self.remedy}'


def check_settings(
        policy: Mapping[str, Any], fields: Collection[str] = FIELDS, entry: Optional[str] = None
) -> None:
    """Refuse what the release would die of, as ``lightzero.LightZero.check_settings``."""
    for setting in BROKEN_SETTINGS:
        refusal = setting.refusal(policy, fields, entry)
        if refusal is not None:
            raise ValueError(refusal)


def _value_at(policy: Mapping[str, Any], key_path: str) -> Any:
    return reduce(
        lambda inner, key: inner.get(key, MISSING) if isinstance(inner, Mapping) else MISSING,
        key_path.split('.')[1:], policy
    )


def _exceeds(value: Any, other: Any) -> bool:
    return is_number(value) and is_number(other) and value > other


def _is_positive(value: Any) -> bool:
    return _exceeds(value, 0)


MODEL = 'policy.model'
SEGMENT_ENTRY = 'train_unizero_segment'
# At most one round in a million reanalyses then, and no run has so many.
NO_REANALYSIS = 1e-6

BROKEN_SETTINGS = (
    BrokenSetting(
        ('policy.mcts_ctree', ), lambda ctree: not ctree, '`policy.mcts_ctree=False`',
        'UniZero has its search tree in C++ alone', 'policy.mcts_ctree=True',
    ),
    BrokenSetting(
        ('policy.random_collect_episode_num', ), _is_positive,
        '`policy.random_collect_episode_num` above 0', "LightZero's random policy does not know UniZero",
        'policy.random_collect_episode_num=0; policy.eps.eps_greedy_exploration_in_collect=True begins at random, too',
        ('learn', ),
    ),
    BrokenSetting(
        ('policy.use_priority', ), bool, '`policy.use_priority=True`',
        "LightZero's replay buffer cannot take the priorities of UniZero", 'policy.use_priority=False', ('learn', ),
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.analysis_dormant_ratio', ), bool, f'`{WORLD_MODEL}.analysis_dormant_ratio=True`',
        'the analysis looks for the encoder by a name that it does not have',
        f'{WORLD_MODEL}.analysis_dormant_ratio=False', ('learn', ),
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.obs_type', ), lambda obs_type: obs_type == 'image_memory',
        f"`{WORLD_MODEL}.obs_type='image_memory'`",
        'the model counts the parameters of a perceptual loss that it does not have',
        f"{WORLD_MODEL}.obs_type='image' with images of 64 x 64 pixels, or 'vector' with flat observations",
    ),
    BrokenSetting(
        (f'{MODEL}.observation_shape', ), lambda shape: isinstance(shape, (list, tuple)) and len(shape) == 1,
        f'`{MODEL}.observation_shape` a list of one number', 'it takes the shape of a vector for a number',
        f'{MODEL}.observation_shape=4 for vectors of 4 numbers',
    ),
    BrokenSetting(
        (f'{MODEL}.model_type', f'{MODEL}.observation_shape'),
        lambda model_type, shape: model_type == 'conv' and isinstance(shape, int),
        f"`{MODEL}.model_type='conv'` with vectors as observations", "'conv' is for images",
        f"{MODEL}.model_type='mlp'",
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.obs_type', f'{MODEL}.observation_shape'),
        lambda obs_type, shape: obs_type == 'image' and isinstance(shape, int),
        f"`{WORLD_MODEL}.obs_type='image'` with vectors as observations", "'image' is for images",
        f"{WORLD_MODEL}.obs_type='vector'",
    ),
    BrokenSetting(
        ('policy.use_augmentation', f'{MODEL}.observation_shape'),
        lambda augmentation, shape: bool(augmentation) and isinstance(shape, int),
        '`policy.use_augmentation=True` with vectors as observations', 'it augments images alone',
        'policy.use_augmentation=False', ('learn', ),
    ),
    BrokenSetting(
        ('policy.transform2string', f'{MODEL}.observation_shape'),
        lambda compresses, shape: bool(compresses) and isinstance(shape, int),
        '`policy.transform2string=True` with vectors as observations', 'it compresses images alone',
        'policy.transform2string=False',
    ),
    BrokenSetting(
        ('policy.gumbel_algo', ), bool, '`policy.gumbel_algo=True`', "UniZero's search has no Gumbel variant",
        'policy.gumbel_algo=False', ('learn', 'collect'),
    ),
    BrokenSetting(
        ('policy.sampled_algo', 'policy.type'),
        lambda sampled, policy_type: bool(sampled) != (policy_type == 'sampled_unizero'),
        "`policy.sampled_algo` other than the policy's: True in Sampled UniZero, False in UniZero",
        'the collector asks for actions that were not sampled, or leaves out those that were',
        'policy.sampled_algo=True for sampled_unizero, False for unizero',
    ),
    BrokenSetting(
        ('policy.piecewise_decay_lr_scheduler', 'policy.cos_lr_scheduler'),
        lambda piecewise, cosine: bool(piecewise) and not cosine, '`policy.piecewise_decay_lr_scheduler=True`',
        'UniZero makes no such scheduler, and steps it all the same',
        'policy.piecewise_decay_lr_scheduler=False, or policy.cos_lr_scheduler=True in its place', ('learn', ),
    ),
    BrokenSetting(
        ('policy.analysis_sim_norm', f'{WORLD_MODEL}.analysis_sim_norm', f'{WORLD_MODEL}.obs_type'),
        lambda learns, hooks, obs_type: bool(learns) and not (hooks and obs_type == 'image'),
        f'`policy.analysis_sim_norm=True` without `{WORLD_MODEL}.analysis_sim_norm=True`, or without images',
        'only a model of images records what is analysed, and only where world_model_cfg says so',
        'policy.analysis_sim_norm=False, or both True with images', ('learn', ),
    ),
    BrokenSetting(
        (f'{MODEL}.self_supervised_learning_loss', ), lambda loss: not loss,
        f'`{MODEL}.self_supervised_learning_loss=False`',
        'a learner step needs the next observations, which this leaves out',
        f'{MODEL}.self_supervised_learning_loss=True', ('learn', ),
    ),
    BrokenSetting(
        ('policy.reanalyze_ratio', 'policy.type'),
        lambda ratio, policy_type: policy_type == 'sampled_unizero' and _is_positive(ratio),
        '`policy.reanalyze_ratio` above 0 in Sampled UniZero', 'its reanalysis passes no timesteps to the model',
        'policy.reanalyze_ratio=0', ('learn', ),
    ),
    BrokenSetting(
        ('policy.batch_size', ), lambda batch_size: batch_size == 1, '`policy.batch_size=1`',
        "a sample that is an episode's last step has nothing to predict, and the loss divides by zero",
        'policy.batch_size of 32 or more', ('learn', ),
    ),
    BrokenSetting(
        ('policy.num_unroll_steps', ), lambda steps: _exceeds(4, steps), '`policy.num_unroll_steps` below 4',
        'the losses are reported by first, middle and last step, and there are too few',
        'policy.num_unroll_steps of 4 or more', ('learn', ),
    ),
    BrokenSetting(
        ('policy.num_unroll_steps', f'{WORLD_MODEL}.max_blocks'), _exceeds,
        f'`policy.num_unroll_steps` above `{WORLD_MODEL}.max_blocks`', 'the transformer has no places for more steps',
        f'{WORLD_MODEL}.max_blocks as large as policy.num_unroll_steps, and max_tokens twice as large', ('learn', ),
    ),
    BrokenSetting(
        ('policy.num_unroll_steps', f'{WORLD_MODEL}.num_unroll_steps', 'policy.type'),
        lambda steps, of_world_model, policy_type: policy_type == 'sampled_unizero' and steps != of_world_model,
        f'`policy.num_unroll_steps` other than `{WORLD_MODEL}.num_unroll_steps` in Sampled UniZero',
        'its policy loss takes the number from the world model', 'the same number in both', ('learn', ),
    ),
    BrokenSetting(
        (f'{MODEL}.support_scale', f'{WORLD_MODEL}.support_size'),
        lambda scale, size: is_number(scale) and size != 2 * scale + 1,
        f'`{WORLD_MODEL}.support_size` other than 2 * `{MODEL}.support_scale` + 1',
        'rewards and values are distributions over -support_scale, ..., support_scale',
        f'{WORLD_MODEL}.support_size = 2 * {MODEL}.support_scale + 1',
    ),
    BrokenSetting(
        (f'{MODEL}.action_space_size', f'{WORLD_MODEL}.action_space_size'),
        lambda of_model, of_world_model: of_model != of_world_model,
        f'`{MODEL}.action_space_size` other than `{WORLD_MODEL}.action_space_size`',
        'both are the number of actions', 'the same number in both', ('learn', 'collect'),
    ),
    BrokenSetting(
        (f'{MODEL}.continuous_action_space', f'{WORLD_MODEL}.continuous_action_space'),
        lambda of_model, of_world_model: bool(of_model) != bool(of_world_model),
        f'`{MODEL}.continuous_action_space` other than `{WORLD_MODEL}.continuous_action_space`',
        'one part takes actions for numbers, the other for vectors', 'the same in both', ('learn', 'collect'),
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.tokens_per_block', ), lambda tokens: tokens != 2,
        f'`{WORLD_MODEL}.tokens_per_block` other than 2',
        'its encoder makes one token of an observation, and an action is another', f'{WORLD_MODEL}.tokens_per_block=2',
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.predict_latent_loss_type', ), lambda loss: loss not in ('group_kl', 'mse'),
        f'`{WORLD_MODEL}.predict_latent_loss_type` other than `group_kl` and `mse`', 'it knows these two',
        f"{WORLD_MODEL}.predict_latent_loss_type='group_kl'", ('learn', ),
    ),
    BrokenSetting(
        ('policy.learning_rate', 'policy.cos_lr_scheduler'), lambda rate, cosine: is_integer(rate) and not cosine,
        '`policy.learning_rate` an integer', 'the log takes floats alone', 'policy.learning_rate=0.0 in place of 0',
        ('learn', ),
    ),
    BrokenSetting(
        ('policy.fixed_temperature_value', 'policy.manual_temperature_decay'),
        lambda temperature, decays: is_integer(temperature) and not decays,
        '`policy.fixed_temperature_value` an integer', 'the log takes floats alone',
        'policy.fixed_temperature_value=1.0 in place of 1', ('learn', ),
    ),
    BrokenSetting(
        ('policy.fixed_temperature_value', 'policy.manual_temperature_decay'),
        lambda temperature, decays: not decays and temperature == 0,
        '`policy.fixed_temperature_value` of 0', 'the collector divides by it',
        'a small policy.fixed_temperature_value, such as 0.1', ('collect', ),
    ),
    BrokenSetting(
        ('policy.root_dirichlet_alpha', ), lambda alpha: not _is_positive(alpha), '`policy.root_dirichlet_alpha` of 0',
        'the noise needs a number above 0', 'policy.root_noise_weight=0 for a search without noise', ('collect', ),
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.env_num', 'policy.collector_env_num', WORLD_MODEL),
        lambda room, envs, world_model_cfg: _exceeds(envs, room) and runs_stock_code(world_model_cfg),
        f'`{WORLD_MODEL}.env_num` below `policy.collector_env_num`, without a managed cache',
        "LightZero's own caches have room for env_num environments",
        f'{WORLD_MODEL}.env_num as large as policy.collector_env_num', ('learn', 'collect'),
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.env_num', 'policy.evaluator_env_num', WORLD_MODEL),
        lambda room, envs, world_model_cfg: _exceeds(envs, room) and runs_stock_code(world_model_cfg),
        f'`{WORLD_MODEL}.env_num` below `policy.evaluator_env_num`, without a managed cache',
        "LightZero's own caches have room for env_num environments",
        f'{WORLD_MODEL}.env_num as large as policy.evaluator_env_num',
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.context_length', WORLD_MODEL),
        lambda length, world_model_cfg: (
            is_integer(length) and (length % 2 == 1 or length < 4) and runs_stock_code(world_model_cfg)
        ),
        f'`{WORLD_MODEL}.context_length` odd or below 4, without a managed cache',
        'of a full window it drops the newest token, and takes the next action for an observation',
        f'an even {WORLD_MODEL}.context_length of 4 or more',
    ),
    BrokenSetting(
        (f'{WORLD_MODEL}.context_length', f'{WORLD_MODEL}.max_tokens', WORLD_MODEL),
        lambda length, tokens, world_model_cfg: _exceeds(length, tokens) and runs_stock_code(world_model_cfg),
        f'`{WORLD_MODEL}.context_length` above `{WORLD_MODEL}.max_tokens`, without a managed cache',
        'its attention sees max_tokens tokens',
        f'{WORLD_MODEL}.context_length of at most max_tokens',
    ),
    *(
        BrokenSetting(
            (f'policy.{key}', ), lambda value: value is MISSING, f'`policy.{key}` missing', f'{SEGMENT_ENTRY} reads it',
            f'policy.{key}={usual}, as in zoo/atari/config/atari_unizero_segment_config.py', ('learn', ), SEGMENT_ENTRY,
        ) for key, usual in (
            ('buffer_reanalyze_freq', 0.02), ('reanalyze_batch_size', 160)
        )
    ),
    BrokenSetting(
        ('policy.reanalyze_partition', 'policy.buffer_reanalyze_freq'),
        lambda partition, freq: partition is MISSING and _exceeds(freq, NO_REANALYSIS),
        '`policy.reanalyze_partition` missing', f'{SEGMENT_ENTRY} reads it',
        'policy.reanalyze_partition=0.75, as in zoo/atari/config/atari_unizero_segment_config.py', ('learn', ),
        SEGMENT_ENTRY,
    ),
    BrokenSetting(
        ('policy.buffer_reanalyze_freq', ), lambda freq: freq == 0, '`policy.buffer_reanalyze_freq=0`',
        f'{SEGMENT_ENTRY} divides by it', 'policy.buffer_reanalyze_freq=1e-9 for a run without reanalysis', ('learn', ),
        SEGMENT_ENTRY,
    ),
    BrokenSetting(
        ('policy.buffer_reanalyze_freq', 'policy.type'),
        lambda freq, policy_type: policy_type == 'sampled_unizero' and _exceeds(freq, NO_REANALYSIS),
        '`policy.buffer_reanalyze_freq` above 0 in Sampled UniZero', 'its reanalysis passes no timesteps to the model',
        'policy.buffer_reanalyze_freq=1e-9 for a run without reanalysis', ('learn', ), SEGMENT_ENTRY,
    ),
)
