"""A/B runs: configs that are refused, trials that are resumed, fail and are interrupted, and what they leave."""
import csv
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from processes import trial_processes
from training import read_scalars

from lzero_kvcache.ab import spec as spec_module
from lzero_kvcache.ab.backend import Backend, Event
from lzero_kvcache.ab.config import load_ab_config
from lzero_kvcache.ab.evaluations import Evaluation, return_last
from lzero_kvcache.ab.folder import RunFolder, prepare
from lzero_kvcache.ab.results import COLUMNS, result_row
from lzero_kvcache.ab.run import ABRun
from lzero_kvcache.ab.series import COLUMNS as SERIES_COLUMNS
from lzero_kvcache.ab.trial import load_spec, run_trial, write_outcome
from lzero_kvcache.cli import main
from lzero_kvcache.files import DiskFullError, write_atomically
from lzero_kvcache.plugin.statistics import step_listeners

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').glob('ab_*.py'))
# Two environments, five simulations, episodes of a few steps: a trial takes some seconds after its imports.
SMALL = '''
from copy import deepcopy

from configs.cartpole_unizero_config import create_config, main_config

main_config = deepcopy(main_config)
main_config.env.update(
    collector_env_num=2, evaluator_env_num=1, n_evaluator_episode=1, collect_max_episode_steps=16,
    eval_max_episode_steps=16
)
main_config.policy.update(
    collector_env_num=2, evaluator_env_num=1, n_episode=2, num_simulations=5, batch_size=8, update_per_collect=3,
    eval_freq=3
)
main_config.policy.model.world_model_cfg.env_num = 2
title = 'CartPole in small'
'''
TWO_ARMS = SMALL + '''
arms = dict(
    lru=dict(kv_cache=dict(strategy='lru', recur_pool=dict(size=3))),
    release=dict(kv_cache=None),
)
seeds = [0]
max_env_step = 40
'''


@pytest.fixture
def write_config(tmp_path):
    def write(text: str) -> Path:
        path = tmp_path / 'ab_small.py'
        path.write_text(text)
        return path

    return write


def call_ab(*arguments) -> Result:
    """The command in this process, which has imported LightZero already; its trials are processes of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return CliRunner().invoke(main, ['ab', *map(str, arguments)])


def read_csv(path: Path) -> list:
    with open(path, newline='') as file:
        return list(csv.DictReader(file))


class InstantBackend(Backend):
    """Ends each trial at once, with an outcome of the real kind, and remembers which it was asked for."""

    def __init__(self, failing=(), interrupted=(), steps=40):
        self.asked = []
        self.failing, self.interrupted, self.steps = failing, interrupted, steps

    def describe(self):
        return 'at once'

    def run(self, specs, folder):
        for spec in specs:
            self.asked.append(spec.name)
            prepare(folder.trial_folder(spec), spec.to_bytes())
            yield Event(spec)
            if spec.name in self.interrupted:
                raise KeyboardInterrupt
            if spec.name not in self.failing:
                series = [dict(env_step=self.steps, seconds=2., search_seconds=1., searches=20, rss_mb=100.)]
                write_outcome(spec, folder.trial_folder(spec), seconds=2.,
                              result=result_row(spec, series, [Evaluation(40, 9., 10., 8., 1.)]))
            yield Event(spec, ended=True, error='it was made to' if spec.name in self.failing else None)


@pytest.fixture
def run_ab(tmp_path, console):
    def run(config, backend, arms=None, seeds=None, redo=False):
        folder = RunFolder(tmp_path / 'out')
        with folder.locked():
            return ABRun(config, folder, arms, seeds, console, redo).run(backend)

    return run


@pytest.fixture
def console():
    from rich.console import Console

    return Console(file=io.StringIO())


# Configs.

@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_our_configs_are_sound(path):
    config = load_ab_config(path)
    assert len(config.experiments) >= 2
    differences = config.differences(list(config.experiments)).values()
    assert len({json.dumps(changed, sort_keys=True, default=str) for changed in differences}) == len(differences)


def test_some_config_changes_something_else_than_the_cache():
    changed = {
        key for path in CONFIGS for overrides in load_ab_config(path).overrides.values() for key in overrides
    }
    assert changed - {'kv_cache'}


ARMS = "arms = dict(fifo=dict(kv_cache=dict(strategy='fifo')), {})\nseeds = [0]\nmax_env_step = 40\n"


@pytest.mark.parametrize('text, words', [
    (ARMS.format("lru=dict(kv_cache=dict(strategy='lur'))"), ["arms['lru'].kv_cache.strategy is 'lur'", "'lru'?"]),
    (ARMS.format('lru=dict(kv_cache=dict(recur_pool=dict(sise=3)))'),
     ["arms['lru'].kv_cache.recur_pool.sise is 3", "'size'?"]),
    (ARMS.format('lru=dict(kv_cache=dict(memory_budget_mb=0.001))'),
     ["arms['lru'].kv_cache.memory_budget_mb is 0.001", 'smallest that works']),
    (ARMS.format("lru=dict(kv_cache=dict(strategy=dict(type='priority', score='depth')))"),
     ["arms['lru'].kv_cache.strategy.score", "'search_depth'"]),
    (ARMS.format('more=dict(policy=dict(num_simulation=3))'),
     ["arms['more'].policy.num_simulation is 3", "'num_simulations'?"]),
    (ARMS.format('none=dict(policy=dict(num_simulations=0))'),
     ["arms['none'].policy.num_simulations is 0", 'at least 1']),
    (ARMS.format('heads=dict(policy=dict(model=dict(world_model_cfg=dict(num_heads=5))))'),
     ["arms['heads']", 'embed_dim is 64', 'num_heads is 5', 'multiples of it']),
    (ARMS.format("drops=dict(policy=dict(model=dict(world_model_cfg=dict(embed_pdrop='0.1'))))"),
     ["arms['drops']", 'cannot be built', 'TypeError']),
    (ARMS.format("muzero=dict(create_config=dict(policy=dict(type='muzero')))"),
     ["arms['muzero']", "create_config.policy.type is 'muzero'", 'unizero']),
    (ARMS.format("maze=dict(create_config=dict(env=dict(import_names=['zoo.maze'])))"),
     ["arms['maze']", "'zoo.maze'", 'cannot be imported']),
    (ARMS.format("lru=dict(kvcache=dict(strategy='lru'))"), ["arms['lru'].kvcache", "'kv_cache'?"]),
    (ARMS.format("lru='lru'"), ["arms['lru'] is 'lru'", 'dict']),
    (ARMS.format("**{'l/ru': dict()}"), ["'l/ru'", 'folder']),
    (ARMS.format("**{'../lru': dict()}"), ["'../lru'", 'folder']),
    (ARMS.format('FIFO=dict()'), ["'fifo' and 'FIFO'", 'case']),
    (ARMS.format('odd=dict(env=dict(env_name=lambda: 3))'), ["arms['odd']", 'another process']),
    ("arms = ['fifo']\nseeds = [0]\nmax_env_step = 40\n", ["arms is ['fifo']", 'dict']),
    (ARMS.format('').replace('seeds', 'seed'), ['defines no seeds', "'seed'"]),
    (ARMS.format('').replace('[0]', '[]'), ['seeds is []']),
    (ARMS.format('').replace('[0]', '[0, -1]'), ['seeds[1] is -1']),
    (ARMS.format('').replace('[0]', '[3, 0, 3]'), ['seeds has 3 twice']),
    (ARMS.format('').replace('max_env_step = 40', ''), ['defines no max_env_step', '--max-env-step']),
    (ARMS.format('').replace('= 40', '= 0'), ['max_env_step is 0']),
    (ARMS.format('') + 'raise RuntimeError("no luck")\n', ['cannot be executed', 'RuntimeError: no luck']),
])
def test_what_is_wrong_with_a_config_is_said(write_config, text, words):
    with pytest.raises(ValueError) as refusal:
        load_ab_config(write_config(SMALL + text))
    for word in words:
        assert word in str(refusal.value)


def test_an_arm_leaves_the_others_as_they_are(write_config):
    config = load_ab_config(write_config(TWO_ARMS))
    lru, release = (experiment.main_config.policy.model.world_model_cfg.kv_cache
                    for experiment in config.experiments.values())
    assert lru.recur_pool.size == 3 and release == {'mode': 'legacy'}
    differences = config.differences(['lru', 'release'])
    key_path = 'policy.model.world_model_cfg.kv_cache'
    assert differences['release'] == {f'{key_path}.mode': 'legacy'}
    assert differences['lru'][f'{key_path}.recur_pool.size'] == 3


def test_an_unedited_stock_config_is_measured_by_the_plugin(write_config):
    config = load_ab_config(write_config(
        'from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config\n'
        + ARMS.format('stock=dict()')
    ))
    for arm, mode in (('fifo', 'managed'), ('stock', 'legacy')):
        experiment = config.experiments[arm]
        assert experiment.main_config.policy.model.world_model_cfg.kv_cache.mode == mode
        assert experiment.create_config.policy.import_names == ['lzero_kvcache.plugin']


def test_a_trial_reads_the_very_spec_that_was_written(write_config, tmp_path):
    for spec in load_ab_config(write_config(TWO_ARMS)).specs(seeds=[3, 4]):
        path = prepare(tmp_path / spec.name, spec.to_bytes())
        read = load_spec(path, hashlib.sha256(path.read_bytes()).hexdigest())
        assert read == spec and read.fingerprint() == spec.fingerprint()


def test_fingerprints_tell_trials_apart(write_config):
    config = load_ab_config(write_config(TWO_ARMS))
    longer = load_ab_config(write_config(TWO_ARMS), max_env_step=41)
    other = load_ab_config(write_config(TWO_ARMS.replace('size=3', 'size=4')))
    prints = [spec.fingerprint() for spec in [*config.specs(seeds=[0, 1]), *longer.specs(), other.specs(['lru'])[0]]]
    assert len(set(prints)) == len(prints)
    assert other.specs(['release'])[0].fingerprint() == config.specs(['release'])[0].fingerprint()


# Resuming.

def test_trials_that_are_done_are_not_run_again(write_config, run_ab):
    config = load_ab_config(write_config(TWO_ARMS))
    first = InstantBackend(failing=['release_seed1'])
    assert [spec.name for spec in run_ab(config, first, seeds=[0, 1])] == ['release_seed1']
    assert first.asked == ['lru_seed0', 'release_seed0', 'lru_seed1', 'release_seed1']
    second = InstantBackend()
    assert run_ab(config, second, seeds=[0, 1]) == []
    assert second.asked == ['release_seed1']


def test_an_interruption_loses_the_running_trial_only(write_config, run_ab, tmp_path):
    config = load_ab_config(write_config(TWO_ARMS))
    with pytest.raises(KeyboardInterrupt):
        run_ab(config, InstantBackend(interrupted=['release_seed0']), seeds=[0, 1])
    assert [row['arm'] for row in read_csv(tmp_path / 'out' / 'results.csv')] == ['lru']
    (tmp_path / 'out' / 'trials' / 'release_seed0' / 'run').mkdir()
    backend = InstantBackend()
    run_ab(config, backend, seeds=[0, 1])
    assert backend.asked == ['release_seed0', 'lru_seed1', 'release_seed1']
    # DI-engine would write beside it.
    assert not (tmp_path / 'out' / 'trials' / 'release_seed0' / 'run').exists()


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('text, steps, arms, words', [
    (TWO_ARMS, 30, None, ['  lru_seed0, release_seed0: max_env_step 40 -> 30']),
    (TWO_ARMS, 30, ['lru'], ['  lru_seed0: max_env_step 40 -> 30']),
    (TWO_ARMS.replace('size=3', 'size=4'), None, None,
     ['  lru_seed0: policy.model.world_model_cfg.kv_cache.recur_pool.size 3 -> 4']),
    (TWO_ARMS.replace(", recur_pool=dict(size=3)", ''), None, None,
     ['  lru_seed0: policy.model.world_model_cfg.kv_cache.recur_pool.size 3 -> not set']),
])
def test_trials_with_other_settings_are_not_removed_silently(write_config, run_ab, tmp_path, text, steps, arms, words):
    run_ab(load_ab_config(write_config(TWO_ARMS)), InstantBackend())
    former, backend = contents(tmp_path / 'out'), InstantBackend()
    with pytest.raises(ValueError) as refusal:
        run_ab(load_ab_config(write_config(text), steps), backend, arms=arms)
    for word in [*words, str(tmp_path / 'out'), 'another --out', '--redo']:
        assert word in str(refusal.value)
    assert not backend.asked and contents(tmp_path / 'out') == former


def test_other_versions_are_named(write_config, run_ab, monkeypatch):
    config = load_ab_config(write_config(TWO_ARMS))
    run_ab(config, InstantBackend())
    real = spec_module.version
    monkeypatch.setattr(spec_module, 'version', lambda name: '9.9' if name == 'torch' else real(name))
    with pytest.raises(ValueError, match=rf"lru_seed0, release_seed0: torch '{real('torch')}' -> '9\.9'"):
        run_ab(config, InstantBackend())


def test_a_trial_of_a_former_release_does_not_say_what_has_changed(write_config, run_ab, tmp_path):
    run_ab(load_ab_config(write_config(TWO_ARMS)), InstantBackend(), arms=['lru'])
    path = tmp_path / 'out' / 'trials' / 'lru_seed0' / 'trial.json'
    outcome = json.loads(path.read_text())
    del outcome['settings']
    path.write_text(json.dumps(outcome))
    with pytest.raises(ValueError, match='lru_seed0: max_env_step 40 -> 30'):
        run_ab(load_ab_config(write_config(TWO_ARMS), 30), InstantBackend())
    with pytest.raises(ValueError, match='lru_seed0: the config, or versions of packages'):
        run_ab(load_ab_config(write_config(TWO_ARMS.replace('size=3', 'size=4'))), InstantBackend())


def test_redo_runs_them_again_and_removes_each_when_its_new_trial_begins(write_config, run_ab, tmp_path):
    run_ab(load_ab_config(write_config(TWO_ARMS)), InstantBackend(), seeds=[0, 1])
    changed = load_ab_config(write_config(TWO_ARMS.replace('size=3', 'size=4')))
    with pytest.raises(KeyboardInterrupt):
        run_ab(changed, InstantBackend(interrupted=['lru_seed0']), seeds=[0, 1], redo=True)
    trials = tmp_path / 'out' / 'trials'
    assert not (trials / 'lru_seed0' / 'trial.json').exists() and (trials / 'lru_seed1' / 'trial.json').exists()
    backend = InstantBackend()
    run_ab(changed, backend, seeds=[0, 1], redo=True)
    assert backend.asked == ['lru_seed0', 'lru_seed1']
    assert len(read_csv(tmp_path / 'out' / 'results.csv')) == 4


def test_a_failed_trial_with_other_settings_is_run_again(write_config, run_ab):
    run_ab(load_ab_config(write_config(TWO_ARMS)), InstantBackend(failing=['lru_seed0']))
    backend = InstantBackend()
    run_ab(load_ab_config(write_config(TWO_ARMS.replace('size=3', 'size=4'))), backend)
    assert backend.asked == ['lru_seed0']


def test_the_results_are_all_that_fit_the_config(write_config, run_ab, tmp_path, console):
    config = load_ab_config(write_config(TWO_ARMS))
    run_ab(config, InstantBackend(), seeds=[0, 8])
    # Nothing but the trials themselves need be there.
    (tmp_path / 'out' / 'ab.json').unlink()
    run_ab(config, InstantBackend(), arms=['lru'], seeds=[3])
    names = [(row['arm'], row['seed']) for row in read_csv(tmp_path / 'out' / 'results.csv')]
    assert names == [('lru', '0'), ('lru', '3'), ('lru', '8'), ('release', '0'), ('release', '8')]
    # What does not fit is kept, and named.
    run_ab(load_ab_config(write_config(TWO_ARMS.replace('size=3', 'size=4'))), InstantBackend(), arms=['release'])
    names = [(row['arm'], row['seed']) for row in read_csv(tmp_path / 'out' / 'results.csv')]
    assert names == [('release', '0'), ('release', '8')]
    assert (tmp_path / 'out' / 'trials' / 'lru_seed3' / 'trial.json').exists()
    said = ' '.join(console.file.getvalue().split())
    assert 'Kept, but not among the results: lru_seed0, lru_seed3, lru_seed8: policy.model.' in said
    run_ab(load_ab_config(write_config(TWO_ARMS.replace('lru=', 'other='))), InstantBackend(), arms=['release'])
    assert 'lru_seed8: the config has no such arm' in ' '.join(console.file.getvalue().split())


@pytest.mark.parametrize('name, content', [
    ('ab.json', '{"x": 1}'), ('ab.json', '[]'), ('ab.json', '{"config": 1}'), ('ab.json', '{'),
    ('trials/lru_seed0/trial.json', '{}'), ('trials/lru_seed0/trial.json', '{"arm": "lru"'),
])
def test_what_is_broken_in_a_folder_ends_the_command_with_a_sentence(write_config, run_ab, tmp_path, name, content):
    config = write_config(TWO_ARMS)
    run_ab(load_ab_config(config), InstantBackend())
    (tmp_path / 'out' / name).write_text(content)
    completed = call_ab(config, '--out', tmp_path / 'out')
    assert completed.exit_code == 1 and isinstance(completed.exception, SystemExit), completed.output
    assert f"Error: {tmp_path / 'out' / name} is " in completed.output and 'another --out' in completed.output


def test_the_command_refuses_and_redoes(write_config, run_ab, tmp_path, monkeypatch):
    config = write_config(TWO_ARMS)
    run_ab(load_ab_config(config), InstantBackend())
    arguments = config, '--arms', 'lru', '--max-env-step', 30, '--out', tmp_path / 'out'
    completed = call_ab(*arguments)
    assert completed.exit_code == 1 and 'lru_seed0: max_env_step 40 -> 30' in completed.output
    backend = InstantBackend()
    monkeypatch.setattr(sys.modules['lzero_kvcache.cli.ab'], '_backend', lambda *_: backend)
    completed = call_ab(*arguments, '--redo')
    assert completed.exit_code == 0 and backend.asked == ['lru_seed0'], completed.output
    assert 'run again by --redo' in completed.output and 'results: release_seed0: max_env_step' in completed.output


def test_other_arms_and_seeds_are_added(write_config, run_ab, tmp_path):
    config = load_ab_config(write_config(TWO_ARMS))
    run_ab(config, InstantBackend(), arms=['release'], seeds=[7])
    run_ab(config, InstantBackend(), arms=['lru'], seeds=[0, 7])
    rows = read_csv(tmp_path / 'out' / 'results.csv')
    assert [(row['arm'], row['seed']) for row in rows] == [('lru', '0'), ('lru', '7'), ('release', '7')]
    record = json.loads((tmp_path / 'out' / 'ab.json').read_text())
    assert list(record['arms']) == ['lru', 'release'] and record['seeds'] == [0, 7]
    assert record['baseline'] == 'lru' and record['arms']['release'] == {'kv_cache': None}


def test_a_folder_is_one_configs_and_one_runs(write_config, run_ab, tmp_path):
    config = load_ab_config(write_config(TWO_ARMS))
    run_ab(config, InstantBackend())
    config.path = config.path.with_name('another.py')
    with pytest.raises(ValueError, match=r'ab_small\.py.*another\.py.*--out'):
        run_ab(config, InstantBackend())
    with RunFolder(tmp_path / 'out').locked(), pytest.raises(ValueError, match='another A/B run'):
        run_ab(config, InstantBackend())


@pytest.mark.parametrize('steps, said', [(42, False), (50, True)])
def test_totals_of_different_lengths_are_not_compared_in_silence(write_config, tmp_path, console, steps, said):
    config, folder = load_ab_config(write_config(TWO_ARMS)), RunFolder(tmp_path / 'out')
    with folder.locked():
        ABRun(config, folder, ['lru'], None, console).run(InstantBackend())
        ab_run = ABRun(config, folder, ['release'], None, console)
        ab_run.run(InstantBackend(steps=steps))
        ab_run.show_means()
    assert (f'The trials collected 40 to {steps} environment steps' in console.file.getvalue()) == said


# What a run comes to.

@given(steps=st.lists(st.integers(0, 3000), unique=True), env_steps=st.integers(1, 3000))
def test_the_last_return_is_that_of_the_last_third(steps, env_steps):
    evaluations = [Evaluation(step, float(step), 0., 0., 1.) for step in sorted(steps) if step <= env_steps]
    late = [step for step in steps if step <= env_steps and 3 * step >= 2 * env_steps]
    value = return_last(evaluations, env_steps)
    assert value is None if not late else value == pytest.approx(sum(late) / len(late))


def test_a_row_has_nothing_to_say_where_nothing_was_counted(write_config):
    spec = load_ab_config(write_config(TWO_ARMS)).specs(['release'])[0]
    row = result_row(spec, [dict(env_step=0, seconds=0., search_seconds=0., searches=0, rss_mb=5.)], [])
    assert set(row) == set(COLUMNS)
    assert [row[name] for name in ('return_last', 'return_best', 'env_steps_per_second', 'search_ms',
                                   'hit_rate_recur_pool', 'evictions', 'peak_cache_mb')] == [None] * 7


def test_a_run_that_was_never_asked_for_it_has_no_last_return():
    assert return_last([Evaluation(0, 9., 9., 9., 1.)], env_steps=3) is None


# How a trial ends.

SEGMENTS = dict(
    num_segments=2, game_segment_length=10, train_start_after_envsteps=0, buffer_reanalyze_freq=1 / 1000,
    reanalyze_batch_size=4, reanalyze_partition=0.75,
)
UNLIKELY_RETURN = 1000


@pytest.fixture
def trial(write_config, tmp_path):
    """The spec and the folder of a trial that would not be evaluated again after its first evaluation."""

    def make(stop_value: float = UNLIKELY_RETURN, **policy):
        spec = load_ab_config(write_config(TWO_ARMS)).specs(['lru'])[0]
        spec.experiment.main_config.policy.update(eval_freq=1000, **policy)
        spec.experiment.main_config.env.stop_value = stop_value
        spec.experiment.entry = 'train_unizero_segment' if 'num_segments' in policy else 'train_unizero'
        folder = tmp_path / 'trial'
        folder.mkdir()
        return spec, folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize('policy, others', [({}, 1), (SEGMENTS, 0)], ids=['train_unizero', 'train_unizero_segment'])
def test_a_trial_ends_with_an_evaluation_of_what_it_has_learned(trial, policy, others):
    spec, folder = trial(**policy)
    run_trial(spec, folder)
    *before, last = returns = read_csv(folder / 'returns.csv')
    row, series = json.loads((folder / 'trial.json').read_text())['result'], read_csv(folder / 'series.csv')
    assert len(before) == others and int(last['env_step']) == row['env_steps'] == int(series[-1]['env_step'])
    assert row['return_last'] == pytest.approx(float(last['return_mean']))
    assert row['evaluation_seconds'] == pytest.approx(sum(float(each['seconds']) for each in returns), rel=1e-3)
    # The steps per second are those of the training.
    assert row['seconds'] == float(series[-1]['seconds'])
    # With the weights of the last learner step, and seen by the cache's statistics.
    scalars = read_scalars(folder / 'run' / 'log' / 'serial')
    learner_step, _ = scalars['evaluator_iter/reward_mean'][-1]
    assert learner_step == int(series[-1]['learner_step']) > 0
    assert scalars['kv_cache/eval_recur_pool/hit_rate'][-1][0] == row['env_steps']


@pytest.mark.slow
def test_a_trial_that_has_just_been_evaluated_is_not_evaluated_again(trial):
    spec, folder = trial(stop_value=-UNLIKELY_RETURN)
    spec.experiment.main_config.policy.eval_freq = 3
    run_trial(spec, folder)
    assert len(read_csv(folder / 'returns.csv')) == 2


@pytest.mark.slow
def test_a_trial_that_fails_keeps_the_evaluations_that_it_has(trial):
    def fail(phase, env_num, inference):
        if phase == 'learn':
            raise RuntimeError('no luck')

    spec, folder = trial()
    step_listeners.append(fail)
    try:
        with pytest.raises(RuntimeError, match='no luck'):
            run_trial(spec, folder)
    finally:
        step_listeners.remove(fail)
    assert len(read_scalars(folder / 'run' / 'log' / 'serial')['evaluator_step/reward_mean']) == 1


# Disks that are full.

def test_a_full_disk_leaves_the_former_file(tiny_disk):
    path = tiny_disk / 'results.csv'
    write_atomically(path, 'former')
    with pytest.raises(DiskFullError, match=r'no room is left.*results\.csv'):
        write_atomically(path, 'x' * 2 ** 17)
    assert path.read_text() == 'former' and os.listdir(tiny_disk) == ['results.csv']


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_a_sentence(tiny_disk, write_config):
    completed = call_ab(write_config(TWO_ARMS), '--jobs', 1, '--out', tiny_disk / 'out')
    assert completed.exit_code == 1, completed.output
    assert 'Traceback' not in completed.output
    assert 'no room is left' in completed.output and 'the same command goes on' in completed.output


# The command.

@pytest.fixture(scope='module')
def real_run(tmp_path_factory):
    """Two arms that run and one that fails, interrupted once: the output of both calls, and the folder."""
    folder = tmp_path_factory.mktemp('ab')
    path = folder / 'ab_small.py'
    broken = "broken=dict(policy=dict(learning_rate='fast')),\n    release="
    path.write_text(TWO_ARMS.replace('= 40', '= 100').replace('release=', broken))
    arguments = path, '--jobs', 2, '--out', folder / 'out'
    command = [sys.executable, '-c', 'from lzero_kvcache.cli import main; main()', 'ab', *map(str, arguments)]
    first = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    started = folder / 'out' / 'trials' / 'release_seed0' / 'output.log'
    while first.poll() is None and not started.exists():
        time.sleep(0.1)
    # As a batch queue does; by Ctrl-C test_cli_run.py interrupts.
    first.send_signal(signal.SIGTERM)
    interrupted, _ = first.communicate()
    assert trial_processes(folder) == {}
    return folder / 'out', first.returncode, interrupted, call_ab(*arguments)


@pytest.mark.slow
def test_an_interrupted_run_says_how_it_goes_on(real_run):
    _, status, interrupted, resumed = real_run
    assert status == 143, interrupted
    assert 'KeyboardInterrupt' not in interrupted
    assert 'the same command goes on from there' in interrupted.splitlines()[-1]
    assert 'interrupted before, run from the start' in resumed.output
    assert 'done already' in resumed.output or 'failed before, run again' in resumed.output


@pytest.mark.slow
def test_a_trial_that_fails_is_shown_and_the_others_are_kept(real_run):
    folder, _, _, resumed = real_run
    assert resumed.exit_code == 1
    assert 'broken_seed0 has FAILED: TypeError' in resumed.output
    assert str(folder / 'trials' / 'broken_seed0' / 'output.log') in resumed.output
    assert '1 of 3 trials failed: broken_seed0' in resumed.output
    outcome = json.loads((folder / 'trials' / 'broken_seed0' / 'trial.json').read_text())
    assert outcome['status'] == 'failed' and outcome['error'].startswith('TypeError')


@pytest.mark.slow
def test_a_run_leaves_what_it_has_measured(real_run):
    folder, _, _, resumed = real_run
    lru, broken, release = read_csv(folder / 'results.csv')
    assert list(lru) == list(COLUMNS)
    assert [row['status'] for row in (lru, broken, release)] == ['done', 'failed', 'done']
    for row in (lru, release):
        assert int(row['env_steps']) >= 100 and float(row['search_ms']) > 0 and float(row['peak_memory_mb']) > 100
        returns = read_csv((folder / row['log']).with_name('returns.csv'))
        assert float(row['return_best']) == max(float(evaluation['return_mean']) for evaluation in returns)
        late = [float(evaluation['return_mean']) for evaluation in returns
                if int(evaluation['env_step']) >= int(row['env_steps']) * 2 / 3]
        last = sum(late) / len(late) if late else None
        assert row['return_last'] == ('' if last is None else str(round(last, 5)))
        assert float(row['env_steps_per_second']) == pytest.approx(
            int(row['env_steps']) / float(row['seconds']), rel=1e-3
        )
        assert (folder / row['log']).stat().st_size
    assert 0 < float(lru['hit_rate_recur_pool']) < 1 and int(lru['evictions']) > 0 and int(lru['rebuilds']) > 0
    assert release['hit_rate_recur_pool'] == release['evictions'] == ''
    assert (folder / 'report.html').exists() == ('Report: ' in resumed.output)


@pytest.mark.slow
def test_the_series_of_a_trial_grows(real_run):
    folder = real_run[0]
    for arm in ('lru', 'release'):
        rows = read_csv(folder / 'trials' / f'{arm}_seed0' / 'series.csv')
        assert list(rows[0]) == list(SERIES_COLUMNS) and len(rows) >= 20
        for column in ('env_step', 'seconds', 'learner_step', 'search_seconds', 'searches', 'rss_mb'):
            values = [float(row[column]) for row in rows]
            assert values == sorted(values) and values[-1] > 0
        assert float(rows[-1]['search_seconds']) < float(rows[-1]['seconds'])
        hits = [row['recur_pool_hits'] for row in rows]
        assert hits == sorted(hits, key=int) and int(hits[-1]) > 0 if arm == 'lru' else set(hits) == {''}


@pytest.mark.slow
def test_every_evaluation_is_there(real_run):
    folder = real_run[0]
    for arm in ('lru', 'release'):
        returns = read_csv(folder / 'trials' / f'{arm}_seed0' / 'returns.csv')
        log = (folder / 'trials' / f'{arm}_seed0' / 'run' / 'log' / 'evaluator' / 'evaluator_logger.txt').read_text()
        assert len(returns) == log.count('reward_mean') >= 2
        assert all(float(row['return_min']) <= float(row['return_mean']) <= float(row['return_max']) for row in returns)


@pytest.mark.slow
def test_what_is_done_is_not_run_again_by_the_command(real_run):
    folder = real_run[0]
    times = {path: path.stat().st_mtime_ns for path in folder.glob('trials/*/trial.json')}
    completed = call_ab(folder.parent / 'ab_small.py', '--arms', 'lru,release', '--out', folder)
    assert completed.exit_code == 0, completed.output
    assert 'lru_seed0, release_seed0: done already, not run again' in completed.output
    assert {path: path.stat().st_mtime_ns for path in folder.glob('trials/*/trial.json')} == times


def test_wrong_arms_and_paths_end_the_command_with_a_sentence(write_config, tmp_path):
    completed = call_ab(write_config(TWO_ARMS), '--arms', 'lru,relaese', '--out', tmp_path / 'out')
    assert completed.exit_code == 1 and not (tmp_path / 'out').exists()
    assert "Error: --arms names 'relaese'" in completed.output and "'release'?" in completed.output
    completed = call_ab(tmp_path / 'ab_smal.py', '--out', tmp_path / 'out')
    assert completed.exit_code == 1
    assert 'did you mean' in completed.output and 'ab_small.py' in completed.output


# Ray.

def has_ray() -> bool:
    return find_spec('ray') is not None


@pytest.mark.slow
@pytest.mark.skipif(not has_ray(), reason="Ray is not installed: pip install 'lzero-kvcache[ray]'")
@pytest.mark.parametrize('shared', [True, False], ids=['shared disk', 'own disk'])
def test_ray_runs_trials_and_brings_them_home(write_config, tmp_path, console, monkeypatch, shared):
    from lzero_kvcache.ab import ray_backend

    class NeverThere(type(Path())):
        """A worker that does not see the marker takes its disk for another one."""

        def touch(self, *args, **kwargs):
            pass

    if not shared:
        monkeypatch.setattr(ray_backend, 'marker_in', lambda folder: NeverThere(tmp_path / 'marker'))
    folder = RunFolder(tmp_path / 'out')
    config = load_ab_config(write_config(TWO_ARMS))
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with folder.locked():
        failed = ABRun(config, folder, ['lru'], None, console).run(ray_backend.RayBackend(None, 1, 1, 0.))
    assert failed == []
    assert signal.getsignal(signal.SIGTERM) == on_sigterm
    row, = read_csv(folder.results_path)
    assert row['status'] == 'done' and int(row['env_steps']) >= 40
    trial = folder.path / 'trials' / 'lru_seed0'
    assert {'output.log', 'returns.csv', 'series.csv', 'trial.json'} <= {path.name for path in trial.iterdir()}
    assert list(trial.glob('run/log/serial/events.out.tfevents.*')) and list(trial.glob('run/ckpt/*'))
    assert not list(folder.path.glob('.marker*'))
