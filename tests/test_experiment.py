"""LightZero's config files as experiments: loaded unedited, and changed by options."""
import re
import subprocess
import sys
from pathlib import Path

import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero_kvcache.experiment import apply_options, apply_overrides, check_environment, load_experiment
from lzero_kvcache.experiment.assignments import nested, parse_assignment
from lzero_kvcache.experiment.counts import COUNTS
from lzero_kvcache.experiment.defaults import env_defaults, policy_defaults
from lzero_kvcache.experiment.run_folder import check_new_folder, newest_checkpoint

ZOO = Path(zoo.__path__[0])
CARTPOLE = ZOO / 'classic_control/cartpole/config/cartpole_unizero_config.py'
PENDULUM = ZOO / 'classic_control/pendulum/config/pendulum_cont_sampled_unizero_config.py'
ATARI = ZOO / 'atari/config/atari_unizero_config.py'
SEGMENT = ZOO / 'atari/config/atari_unizero_segment_config.py'
# How each file calls its entry: from module level, from a function, within a group of processes.
STOCK = {
    CARTPOLE: ('train_unizero', 200_000),
    PENDULUM: ('train_unizero', 500_000),
    ATARI: ('train_unizero', 500_000),
    SEGMENT: ('train_unizero_segment', 500_000),
    ZOO / 'atari/config/atari_unizero_ddp_config.py': ('train_unizero', 200_000),
    ZOO / 'atari/config/atari_unizero_segment_ddp_config.py': ('train_unizero_segment', 500_000),
    ZOO / 'memory/config/memory_unizero_config.py': ('train_unizero', 1_000_000),
    ZOO / 'box2d/lunarlander/config/lunarlander_disc_unizero_config.py': ('train_unizero', 500_000),
    ZOO / 'box2d/bipedalwalker/config/bipedalwalker_cont_sampled_unizero_config.py': ('train_unizero', 1_000_000),
}


@pytest.fixture
def cartpole():
    return load_experiment(CARTPOLE)


def kv_cache_of(experiment):
    return experiment.main_config.policy.model.world_model_cfg.get('kv_cache')


@pytest.mark.parametrize('path', STOCK, ids=lambda path: path.stem)
def test_stock_config_files_load_as_they_are(path):
    before = path.read_bytes()
    experiment = load_experiment(path)
    assert (experiment.entry, experiment.max_env_step, experiment.seed) == (*STOCK[path], 0)
    assert experiment.create_config.policy.type == ('sampled_unizero' if 'sampled' in path.name else 'unizero')
    assert kv_cache_of(experiment) is None
    apply_options(experiment)
    assert experiment.create_config.policy.import_names == ['lzero_kvcache.plugin']
    assert kv_cache_of(experiment) == {}
    assert path.read_bytes() == before


def test_a_config_for_several_processes_runs_in_one_and_says_so():
    experiment = load_experiment(ZOO / 'atari/config/atari_unizero_ddp_config.py')
    assert experiment.main_config.policy.multi_gpu is False
    assert 'several processes' in experiment.notes[0]


def test_arguments_of_the_config_file_itself():
    experiment = load_experiment(ATARI, ['--env', 'BreakoutNoFrameskip-v4', '--seed', '7'])
    assert experiment.main_config.env.env_id == 'BreakoutNoFrameskip-v4'
    assert experiment.main_config.policy.model.action_space_size == 4
    assert experiment.seed == 7


def test_zoo_paths_need_no_site_packages(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(Path('zoo/classic_control/cartpole/config/cartpole_unizero_config.py'))
    assert experiment.main_config == load_experiment(CARTPOLE).main_config


def test_changes_reach_no_other_experiment():
    first = load_experiment(CARTPOLE)
    apply_options(first, ['policy.batch_size=3', 'env.collector_env_num=2'])
    second = load_experiment(CARTPOLE)
    assert second.main_config.policy.batch_size == 256
    assert second.main_config.env.collector_env_num == 8


@pytest.mark.parametrize('text, message', [
    ('x = (', 'SyntaxError'),
    ('raise KeyError("lost")', "KeyError: 'lost'"),
    ('raise SystemExit(2)', 'ended by itself, with status 2'),
    ('main_config = {}', 'no create_config'),
    ('main_config = 3; create_config = {}', 'main_config is 3: allowed is a dict'),
    ('main_config = {}; create_config = dict(policy=dict(type="dqn"))', "create_config.policy.type is 'dqn'"),
    ('main_config = {}; create_config = dict(policy=dict(type="unizero"))', 'world_model_cfg is missing'),
])
def test_a_broken_config_file_is_a_sentence(tmp_path, text, message):
    path = tmp_path / 'my_config.py'
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as caught:
        load_experiment(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize('path, message', [
    (ATARI.with_name('atari_unizer_config.py'), f'no file: .* did you mean {ATARI}'),
    (ATARI.parent, 'is a folder'),
    (Path(__file__).parents[1] / 'README.md', 'README.md is no Python file: needed is a config file'),
    (CARTPOLE.with_name('cartpole_muzero_config.py'), 'calls train_muzero: .* beside it .* cartpole_unizero_config.py'),
    (ATARI.with_name('atari_unizero_stack4_config.py'), 'cannot be executed: ImportError'),
])
def test_what_is_no_unizero_config_is_refused_with_the_nearest_one(path, message):
    with pytest.raises(ValueError, match=message):
        load_experiment(path)


def test_options(cartpole):
    apply_options(
        cartpole, ['policy.num_simulations=7', 'kv_cache.recur_pool.strategy=fifo', 'kv_cache.window=rebuild',
                   'create_config.env_manager.type=base'],
        strategy='lru', recur_pool_size=9, mode='validate',
    )
    assert cartpole.main_config.policy.num_simulations == 7
    assert cartpole.create_config.env_manager.type == 'base'
    assert kv_cache_of(cartpole) == dict(
        strategy='lru', mode='validate', window='rebuild', recur_pool=dict(size=9, strategy='fifo')
    )


def test_what_a_config_says_of_the_cache_stays_where_no_option_says_otherwise(cartpole):
    cartpole.main_config.policy.model.world_model_cfg.kv_cache = dict(strategy='priority', log_interval=5)
    apply_options(cartpole, mode='managed')
    assert kv_cache_of(cartpole) == dict(strategy='priority', log_interval=5, mode='managed')


@pytest.mark.parametrize('assignment, message', [
    ('policy.num_simulatons=3', "^policy.num_simulatons is 3, .* did you mean 'num_simulations'"),
    ('policyy.batch_size=3', "^policyy is .* did you mean 'policy'"),
    ('env.collect_max_episode_step=3', "^env.collect_max_episode_step is 3, .* 'collect_max_episode_steps'"),
    ('kv_cache.strategy=lur', "kv_cache.strategy is 'lur', .* did you mean 'lru'"),
    ('kv_cache.recur_pool.sze=3', "kv_cache.recur_pool.sze is 3, .* did you mean 'size'"),
    ('policy.use_wandb=true', 'did you mean True'),
    ('policy.batch_size', 'is no assignment'),
    ('policy.batch-size=3', 'is no assignment'),
    ('policy.batch_size=', 'policy.batch_size is nothing'),
    ('policy.batch_size=[3', r'policy.batch_size is \[3'),
    ('policy=3', 'policy is 3: allowed is a dict'),
    ('policy.num_simulations=0', '^policy.num_simulations is 0: allowed is an integer of at least 1'),
    ('policy.num_simulations=x', "^policy.num_simulations is 'x': allowed is an integer"),
    ('policy.batch_size=2.5', '^policy.batch_size is 2.5: allowed is an integer'),
    ('policy.game_segment_length=None', '^policy.game_segment_length is None: allowed is an integer'),
    ('env.collector_env_num=-1', '^env.collector_env_num is -1: allowed is an integer'),
])
def test_wrong_assignments_are_refused_by_their_key_path(assignment, message):
    with pytest.raises(ValueError, match=message):
        apply_options(load_experiment(ATARI), [assignment])


def test_of_a_hundred_keys_the_nearest_are_named():
    with pytest.raises(ValueError) as caught:
        apply_options(load_experiment(ATARI), ['policy.batchsize=3'])
    said = str(caught.value)
    assert re.search(r"such a key: did you mean 'batch_size'\? \d{2,} names are allowed, the nearest are batch_", said)
    assert said.count(',') < 10


def test_every_count_that_is_checked_is_a_key_of_some_stock_config():
    experiments = [load_experiment(path) for path in (CARTPOLE, SEGMENT)]
    for key_path in COUNTS:
        room, key = key_path.split('.')
        defaults = policy_defaults if room == 'policy' else env_defaults
        assert any(key in {**defaults(each), **each.main_config[room]} for each in experiments), key_path


def test_keys_that_only_the_environment_knows():
    experiment = load_experiment(ATARI)
    apply_options(experiment, ['env.collect_max_episode_steps=20'])
    assert experiment.main_config.env.collect_max_episode_steps == 20


def test_an_environment_that_cannot_begin_is_named(cartpole):
    check_environment(cartpole)
    cartpole.create_config.env.import_names = ['zoo.no_such_room']
    with pytest.raises(ValueError, match=r"create_config.env.import_names has 'zoo.no_such_room'.*'zoo.no_such_room'"):
        check_environment(cartpole)
    cartpole.create_config.env = dict(type='cartpol_lightzero', import_names=[])
    with pytest.raises(ValueError, match="env.type is 'cartpol_lightzero', which .* did you mean 'cartpole_lightzero'"):
        check_environment(cartpole)
    atari = load_experiment(ATARI, ['--env', 'PongNoFrameskip-v4'])
    atari.main_config.env.env_id = 'PingNoFrameskip-v4'
    with pytest.raises(ValueError, match="'atari_lightzero' cannot begin: .*Ping"):
        check_environment(atari)


@pytest.mark.parametrize('key', ['collector_env_num', 'evaluator_env_num'])
def test_more_environments_than_the_policy_names_are_refused(cartpole, key):
    with pytest.raises(ValueError, match=rf'^env.{key} is 9, but policy.{key} is \d, and the cache has room'):
        apply_options(cartpole, [f'env.{key}=9'])
    apply_options(cartpole, [f'env.{key}=9', f'policy.{key}=9', 'policy.n_episode=9'])


def test_what_the_config_file_says_of_its_arguments_is_passed_on(capsys):
    with pytest.raises(ValueError, match='ended by itself, with status 2.*unrecognized arguments: --sed 3'):
        load_experiment(ATARI, ['--sed', '3'])
    assert 'unrecognized arguments' in capsys.readouterr().err


LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=5
)
KEYS = st.text('abc', min_size=1, max_size=2)
KEY_PATHS = st.lists(KEYS, min_size=1, max_size=3).map('.'.join)


@settings(max_examples=50)
@given(KEY_PATHS, LITERALS)
def test_every_python_literal_is_read_back(key_path, value):
    assert parse_assignment(f'{key_path}={value!r}') == (key_path, value)


@given(st.from_regex(r'[A-Za-z_][A-Za-z0-9_./-]*', fullmatch=True))
def test_a_plain_word_is_a_string(word):
    if word.lower() in ('true', 'false', 'none', 'null'):
        return
    assert parse_assignment(f'key={word}') == ('key', word)


def value_at(changes, key_path):
    for key in key_path.split('.'):
        changes = changes[key]
    return changes


def leaves(changes, path=()):
    for key, value in changes.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, key))
        else:
            yield '.'.join((*path, key)), value


@settings(max_examples=100)
@given(st.lists(st.tuples(KEY_PATHS, st.integers()), max_size=6))
def test_nested_holds_the_last_value_of_each_key_path_and_nothing_else(assignments):
    try:
        changes = nested(assignments)
    except ValueError as error:
        clashing = [path for path, _ in assignments]
        assert any(other.startswith(f'{path}.') for path in clashing for other in clashing), error
        return
    last = dict(assignments)
    for key_path, value in leaves(changes):
        assert last[key_path] == value
    for key_path, value in last.items():
        if not any(key_path.startswith(f'{path}.') or path.startswith(f'{key_path}.') for path in last):
            assert value_at(changes, key_path) == value


def flat(config):
    return {path: value for path, value in leaves(config)}


NUMBERS = ('batch_size', 'num_simulations', 'game_segment_length', 'learn.learner.hook.log_show_after_iter',
           'model.world_model_cfg.num_layers', 'model.world_model_cfg.env_num')


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from(NUMBERS), st.integers(1, 100)))
def test_a_merge_changes_what_it_names_and_nothing_else(changes):
    experiment = load_experiment(CARTPOLE)
    before = flat(experiment.main_config.policy)
    apply_overrides(experiment, dict(policy=nested(changes.items())), '')
    after = flat(experiment.main_config.policy)
    assert after == {**before, **changes}


def test_a_folder_that_is_there_is_refused(tmp_path):
    (tmp_path / 'run.log').touch()
    with pytest.raises(ValueError, match='run.log is there already'):
        check_new_folder(tmp_path / 'run')
    with pytest.raises(ValueError, match='cannot be written'):
        check_new_folder(tmp_path / 'run.log' / 'run')
    check_new_folder(tmp_path / 'a' / 'run')
    assert (tmp_path / 'a').is_dir()


def test_a_checkpoint_that_was_cut_off_is_none(tmp_path):
    import torch

    (tmp_path / 'ckpt').mkdir()
    torch.save({'weights': torch.zeros(1000)}, tmp_path / 'ckpt' / 'iteration_0.pth.tar')
    whole = (tmp_path / 'ckpt' / 'iteration_0.pth.tar').read_bytes()
    (tmp_path / 'ckpt' / 'ckpt_best.pth.tar').write_bytes(whole[:-100])
    assert newest_checkpoint(tmp_path).name == 'iteration_0.pth.tar'
    (tmp_path / 'ckpt' / 'iteration_0.pth.tar').unlink()
    with pytest.raises(FileNotFoundError, match='no complete checkpoint'):
        newest_checkpoint(tmp_path)


def test_a_config_anywhere_may_build_on_what_lies_in_the_working_directory(tmp_path):
    """By the installed command, whose sys.path begins beside the command."""
    config = tmp_path / 'my_config.py'
    config.write_text('from configs.cartpole_unizero_config import create_config, main_config\n')
    code = (
        'import sys; from pathlib import Path; sys.path = [entry for entry in sys.path if entry]; '
        f'from lzero_kvcache.experiment import load_experiment; print(load_experiment(Path({str(config)!r})).entry)'
    )
    completed = subprocess.run(
        [sys.executable, '-c', code], cwd=Path(__file__).parents[1], capture_output=True, text=True
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.splitlines()[-1] == 'train_unizero'
