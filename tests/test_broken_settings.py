"""Settings that the release cannot run: it dies of each, and each is refused in a sentence before a run begins."""
from pathlib import Path

import pytest
from click.testing import CliRunner
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lzero.entry import eval_muzero, train_unizero, train_unizero_segment
from training import call_entry, small_configs

from lzero_kvcache.ab.config import load_ab_config
from lzero_kvcache.broken_settings import BROKEN_SETTINGS
from lzero_kvcache.cli import main
from lzero_kvcache.experiment import Experiment, check_runnable
from lzero_kvcache.experiment.assignments import nested
from lzero_kvcache.plugin import UniZeroKVCachePolicy

CARTPOLE, PENDULUM = 'cartpole_unizero_config', 'pendulum_sampled_unizero_config'
ENTRIES = {'train_unizero': train_unizero, 'train_unizero_segment': train_unizero_segment}
MODEL, WORLD_MODEL = 'policy.model', 'policy.model.world_model_cfg'
SEGMENT = {
    'policy.num_segments': 2, 'policy.buffer_reanalyze_freq': 0.5, 'policy.reanalyze_batch_size': 4,
    'policy.reanalyze_partition': 0.75,
}
LEGACY = {f'{WORLD_MODEL}.kv_cache': {'mode': 'legacy'}}
# Of the table's rows, in their order, the changes to a config that runs; then the entry.
EXAMPLES = [
    (CARTPOLE, {'policy.mcts_ctree': False}),
    (CARTPOLE, {'policy.random_collect_episode_num': 2}),
    (CARTPOLE, {'policy.use_priority': True}),
    (CARTPOLE, {f'{WORLD_MODEL}.analysis_dormant_ratio': True}),
    (CARTPOLE, {f'{WORLD_MODEL}.obs_type': 'image_memory'}),
    (CARTPOLE, {f'{MODEL}.observation_shape': [4]}),
    (CARTPOLE, {f'{MODEL}.model_type': 'conv'}),
    (CARTPOLE, {f'{WORLD_MODEL}.obs_type': 'image'}),
    (CARTPOLE, {'policy.use_augmentation': True}),
    (CARTPOLE, {'policy.transform2string': True}),
    (CARTPOLE, {'policy.gumbel_algo': True}),
    (CARTPOLE, {'policy.sampled_algo': True}),
    (PENDULUM, {'policy.sampled_algo': False}),
    (CARTPOLE, {'policy.piecewise_decay_lr_scheduler': True}),
    (CARTPOLE, {'policy.analysis_sim_norm': True}),
    (CARTPOLE, {f'{MODEL}.self_supervised_learning_loss': False}),
    (PENDULUM, {'policy.reanalyze_ratio': 0.25}),
    (CARTPOLE, {'policy.batch_size': 1, 'policy.update_per_collect': 100}),
    (CARTPOLE, {'policy.num_unroll_steps': 3}),
    (CARTPOLE, {'policy.num_unroll_steps': 11}),
    (PENDULUM, {'policy.num_unroll_steps': 4}),
    (CARTPOLE, {f'{MODEL}.support_scale': 10}),
    (CARTPOLE, {f'{MODEL}.action_space_size': 3}),
    (CARTPOLE, {f'{MODEL}.continuous_action_space': True}),
    (CARTPOLE, {f'{WORLD_MODEL}.tokens_per_block': 3}),
    (CARTPOLE, {f'{WORLD_MODEL}.predict_latent_loss_type': 'l2'}),
    (CARTPOLE, {'policy.learning_rate': 0}),
    (CARTPOLE, {'policy.fixed_temperature_value': 1}),
    (CARTPOLE, {'policy.fixed_temperature_value': 0.0}),
    (CARTPOLE, {'policy.root_dirichlet_alpha': 0}),
    (CARTPOLE, {f'{WORLD_MODEL}.env_num': 1, **LEGACY}),
    (CARTPOLE, {f'{WORLD_MODEL}.env_num': 2, 'policy.evaluator_env_num': 3, 'env.evaluator_env_num': 3,
                'env.n_evaluator_episode': 3, **LEGACY}),
    (CARTPOLE, {f'{WORLD_MODEL}.context_length': 7, **LEGACY}),
    (CARTPOLE, {f'{WORLD_MODEL}.context_length': 9, f'{WORLD_MODEL}.rotary_emb': True, **LEGACY}),
    (CARTPOLE, {f'{WORLD_MODEL}.context_length': 2, **LEGACY}),
    (CARTPOLE, {f'{WORLD_MODEL}.context_length': 24, f'{WORLD_MODEL}.rotary_emb': False, **LEGACY}),
    (CARTPOLE, {f'{WORLD_MODEL}.context_length': 24, f'{WORLD_MODEL}.rotary_emb': True, **LEGACY}),
    (CARTPOLE, {**SEGMENT, 'policy.buffer_reanalyze_freq': 0}, 'train_unizero_segment'),
    (PENDULUM, SEGMENT, 'train_unizero_segment'),
    *((CARTPOLE, {key: value for key, value in SEGMENT.items() if key != left_out}, 'train_unizero_segment')
      for left_out in list(SEGMENT)[1:]),
]
# What the release runs, though it is not far from what it cannot run; the entry, and the fields that are used.
NEIGHBOURS = [
    (CARTPOLE, {'policy.learning_rate': 0, 'policy.cos_lr_scheduler': True}),
    (CARTPOLE, {'policy.fixed_temperature_value': 1, 'policy.manual_temperature_decay': True}),
    (CARTPOLE, {f'{WORLD_MODEL}.context_length': 12, **LEGACY}),
    (CARTPOLE, {'policy.num_segments': 2, 'policy.buffer_reanalyze_freq': 1e-9, 'policy.reanalyze_batch_size': 4},
     'train_unizero_segment'),
]
every_example = pytest.mark.parametrize(
    'example', EXAMPLES,
    ids=lambda example: ','.join(f'{key.split(".")[-1]}={value}' for key, value in example[1].items())
)


def experiment_of(example, stock=False):
    config, changes, *entry = example
    main_config, create_config = small_configs(config, None if stock else {}, stock)
    create_config.env_manager.type = 'base'
    return Experiment(
        deep_merge_dicts(main_config, EasyDict(nested(changes.items()))), create_config, *(entry or ['train_unizero'])
    )


@pytest.mark.slow
@every_example
def test_the_release_dies_of_it(example, tmp_path):
    if f'{WORLD_MODEL}.tokens_per_block' in example[1]:
        pytest.skip('the tree of the release reads what is not there, which ends the process')
    experiment = experiment_of(example, stock=True)
    with pytest.raises(Exception) as caught:
        call_entry(
            ENTRIES[experiment.entry], tmp_path, (experiment.main_config, experiment.create_config), stock=True,
            max_env_step=120
        )
    assert 'lzero_kvcache' not in str(caught.traceback[-1].path)


@pytest.mark.slow
@pytest.mark.parametrize('example', NEIGHBOURS, ids=str)
def test_the_release_lives_with_its_neighbours(example, tmp_path):
    check_runnable(experiment_of(example))
    experiment = experiment_of(example, stock=True)
    call_entry(
        ENTRIES[experiment.entry], tmp_path, (experiment.main_config, experiment.create_config), stock=True,
        max_env_step=60
    )


@pytest.mark.parametrize('change', [
    {'policy.use_priority': True}, {'policy.random_collect_episode_num': 2}, {'policy.learning_rate': 0},
    {'policy.gumbel_algo': True}, {'policy.batch_size': 1}, {f'{MODEL}.action_space_size': 3},
], ids=str)
def test_what_breaks_training_alone_is_evaluated(change, tmp_path):
    """By LightZero's entry, which makes a policy for training, too."""
    experiment = experiment_of((CARTPOLE, change))
    call_entry(eval_muzero, tmp_path, (experiment.main_config, experiment.create_config), num_episodes_each_seed=1)


@every_example
def test_it_is_refused_before_a_run(example):
    with pytest.raises(ValueError, match='which LightZero 0.2.0 cannot run: .* Remedy: ') as caught:
        check_runnable(experiment_of(example))
    changed = [key for key in example[1] if f'{key} is {example[1][key]!r}' in str(caught.value)]
    assert changed or str(caught.value).split(' is missing')[0] in SEGMENT


def test_every_row_has_an_example():
    refused = []
    for example in EXAMPLES:
        with pytest.raises(ValueError) as caught:
            check_runnable(experiment_of(example))
        refused.append(str(caught.value).split('cannot run: ')[1])
    assert set(refused) == {f'{setting.reason}. Remedy: {setting.remedy}' for setting in BROKEN_SETTINGS}


@pytest.mark.parametrize(
    'change', [{'policy.use_priority': True}, {f'{WORLD_MODEL}.obs_type': 'image_memory'}], ids=str
)
def test_a_stock_entry_refuses_it_before_it_trains(change, tmp_path):
    experiment = experiment_of((CARTPOLE, change))
    with pytest.raises(ValueError, match=f'{next(iter(change))} is .*, which LightZero 0.2.0 cannot run'):
        call_entry(train_unizero, tmp_path, (experiment.main_config, experiment.create_config))


def test_what_breaks_learning_alone_keeps_nobody_from_a_loop_of_their_own():
    main_config, _ = small_configs(CARTPOLE, {}, use_priority=True, device='cpu')
    policy = deep_merge_dicts(UniZeroKVCachePolicy.default_config(), main_config.policy)
    for fields in (['eval'], ['learn', 'collect', 'eval']):
        UniZeroKVCachePolicy(policy, enable_field=fields)
    check_runnable(experiment_of((CARTPOLE, {'policy.use_priority': True})), ['eval'])


@pytest.mark.parametrize('command', ['run', 'trace'])
def test_the_commands_refuse_it(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ['--out', 'my.trace'] if command == 'trace' else []
    result = CliRunner().invoke(main, [
        command, 'zoo/classic_control/cartpole/config/cartpole_unizero_config.py', '--set', 'policy.mcts_ctree=False',
        *options
    ])
    assert result.exit_code == 1
    assert 'Error: policy.mcts_ctree is False, which LightZero 0.2.0 cannot run' in result.output
    assert not list(tmp_path.glob('data_*'))


def test_an_arm_with_it_is_refused(tmp_path):
    config = tmp_path / 'my_ab.py'
    config.write_text(
        'from configs.cartpole_unizero_config import create_config, main_config\n'
        'arms, seeds, max_env_step = dict(tree=dict(policy=dict(mcts_ctree=False))), [0], 10\n'
    )
    with pytest.raises(ValueError, match=r"^arms\['tree'\]: policy.mcts_ctree is False, which LightZero 0.2.0 cannot"):
        load_ab_config(config)


def test_the_documentation_has_every_row():
    text = (Path(__file__).parents[1] / 'docs' / 'troubleshooting.md').read_text()
    table = text.split('## Settings that the release cannot run\n')[1].split('\n\n')[1]
    assert table.splitlines()[2:] == [
        f'| {setting.case} | {setting.reason} | {setting.remedy} |' for setting in BROKEN_SETTINGS
    ]
