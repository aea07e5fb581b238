"""Several processes: one training in two of them (DDP), environments in their own, two trials at once."""
import json
import os
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Optional

import pytest
import torch
from click.testing import CliRunner
from ddp_worker import MAX_ENV_STEP, SIDES
from ding.policy import Policy
from ding.utils import allreduce_data
from easydict import EasyDict
from episodes import Episodes
from lzero.entry import train_unizero, train_unizero_segment
from models import build_model, kv_cache
from test_cli_run import CARTPOLE as CARTPOLE_FILE
from test_cli_run import SMALL
from training import ENV_NUM, Run, call_entry, check_training, read_scalars, small_configs

from lzero_kvcache import CacheStats, KVCacheManager
from lzero_kvcache.cli import main
from lzero_kvcache.ddp import ddp_context
from lzero_kvcache.experiment.run_folder import check_new_folder

ROOT = Path(__file__).parents[1]
TESTS = ROOT / 'tests'
CARTPOLE = 'cartpole_unizero_config'
RANKS = (0, 1)
every_side = pytest.mark.parametrize('side', SIDES)
every_plugin_side = pytest.mark.parametrize('side', [side for side in SIDES if side != 'stock'])


def own_environment(**variables: str) -> dict[str, str]:
    return dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=os.pathsep.join([str(ROOT), str(TESTS)]), **variables)


def torchrun(*arguments: str, cwd: Optional[Path] = None) -> None:
    completed = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2', *arguments], cwd=cwd,
        env=own_environment(CUDA_VISIBLE_DEVICES=''), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert completed.returncode == 0, completed.stdout[-5000:]


@pytest.fixture(scope='module')
def ddp_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('ddp')
    torchrun(str(TESTS / 'ddp_worker.py'), str(folder))
    return folder


@pytest.fixture(scope='module')
def ddp_results(ddp_folder) -> list[dict[str, Any]]:
    return [json.loads((ddp_folder / f'rank{rank}.json').read_text()) for rank in RANKS]


@pytest.fixture
def ddp_runs(ddp_results, side) -> list[dict[str, Any]]:
    """What each process says of one side's run."""
    return [result['runs'][side] for result in ddp_results]


@pytest.mark.slow
@every_side
def test_all_processes_end_with_the_same_weights(ddp_runs, ddp_results, ddp_folder, side):
    assert [result['backend'] for result in ddp_results] == ['gloo', 'gloo']
    policy = 'UniZeroPolicy' if side == 'stock' else 'UniZeroKVCachePolicy'
    assert {run['type'] for run in ddp_runs} == {policy}
    first, second = ddp_runs
    assert first['parameters'] == second['parameters']
    assert first['optimizer'] == second['optimizer']
    # The running means of the encoder's norms, which are not averaged: the processes have learned from other episodes.
    assert first['buffers'] != second['buffers']
    steps = [torch.load(path, map_location='cpu') for path in sorted(ddp_folder.glob(f'{side}/ckpt/iteration_*'))]
    assert len(steps) == 2
    assert any(not steps[0]['model'][name].equal(weights) for name, weights in steps[1]['model'].items())


@pytest.mark.slow
@every_side
def test_what_has_no_gradient_is_left_alone(ddp_runs, side):
    # The decoder of a model of vector observations; LightZero fails on it.
    assert {run['without_gradient'] for run in ddp_runs} == {6}


@pytest.mark.slow
def test_all_processes_take_the_same_number_of_learner_steps(ddp_results):
    assert [result['learner_steps'] for result in ddp_results] == [int(25 * 0.3)] * 2


@pytest.mark.slow
@every_plugin_side
def test_the_caches_of_all_processes_work(ddp_runs, side):
    assert ddp_runs[0]['counted']['learn'] == ddp_runs[1]['counted']['learn'] > 0
    # LightZero evaluates in the first process alone, and a short run by segments not at all.
    assert ddp_runs[0]['counted']['eval'] > 0 or 'episodes' not in side
    assert ddp_runs[1]['counted']['eval'] == 0
    for run in ddp_runs:
        assert run['pools']['init_pools']['hits'] > 0
        assert run['pools']['recur_pool']['hits'] > 0
        assert run['pools']['recur_pool']['misses'] == 0
        assert run['roots']['cold_starts'] == 0
        assert run['roots']['continuing'] > 0
        steps = run['counted']['collect'] + run['counted']['eval']
        assert run['roots']['continuing'] + run['roots']['first_steps'] == steps


@pytest.mark.slow
def test_predictions_agree_with_the_stock_code_in_all_processes(ddp_results):
    for result in ddp_results:
        report = result['runs']['validate']['report']
        assert report['differed'] == 0
        assert report['agreed'] > 0


@pytest.mark.slow
@every_side
def test_the_first_process_writes_for_all(ddp_runs, ddp_folder, side):
    assert {path.name for path in ddp_folder.iterdir()} == {*SIDES, 'rank0.json', 'rank1.json'}
    assert len(list(ddp_folder.glob(f'{side}/**/events.out.tfevents.*'))) == 1
    scalars = read_scalars(ddp_folder / side / 'log' / 'serial')
    env_steps = scalars['learner_step/weighted_total_loss_avg'][-1][0]
    assert env_steps >= MAX_ENV_STEP
    if side == 'stock':
        assert not [tag for tag in scalars if tag.startswith('kv_cache/')]
    else:
        assert env_steps == sum(run['counted']['collect'] for run in ddp_runs)
        assert scalars['kv_cache/collect_recur_pool/hit_rate'][-1] == (env_steps, 1.)
        assert all(run['counted']['collect'] < env_steps for run in ddp_runs)


@pytest.mark.slow
def test_the_example_trains_in_two_processes(tmp_path):
    torchrun(
        '-m', 'zoo_examples.atari.atari_unizero_segment_ddp', '--max-env-step', '40', '--exp-name',
        str(tmp_path / 'run'), cwd=ROOT
    )
    assert {path.name for path in tmp_path.iterdir()} == {'run', 'run.log', 'run_rank1.log'}
    scalars = read_scalars(tmp_path / 'run' / 'log' / 'serial')
    assert scalars['kv_cache/collect_recur_pool/hit_rate'][-1][1] == 1.


@pytest.mark.skipif(torch.cuda.is_available(), reason='with a GPU the release adds numbers up there')
def test_what_is_mended_fails_in_the_release():
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'data'"):
        Policy.sync_gradients(SimpleNamespace(_bp_update_sync=True), torch.nn.Linear(1, 1))
    with pytest.raises((AssertionError, RuntimeError), match='CUDA|NVIDIA'):
        allreduce_data(1, 'sum')


def test_without_torchrun_there_is_no_process_group(monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(ValueError, match='torchrun --standalone --nproc_per_node 2'):
        with ddp_context():
            pass


def test_processes_that_would_share_a_gpu_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 1)
    for name, value in dict(RANK='0', WORLD_SIZE='2', LOCAL_WORLD_SIZE='2').items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r'2 processes on a machine with 1 GPU\(s\).*--nproc_per_node 1'):
        with ddp_context():
            pass


def test_run_is_for_one_process(monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', '2')
    result = CliRunner().invoke(main, ['run', str(ROOT / 'configs' / f'{CARTPOLE}.py')])
    assert result.exit_code == 1
    assert 'torchrun has started 2 processes' in result.output


def train_with(env_manager: str, folder: Path, entry: Any, mode: str) -> Run:
    segments = {} if entry is train_unizero else dict(
        num_segments=ENV_NUM, game_segment_length=10, train_start_after_envsteps=0, buffer_reanalyze_freq=1,
        reanalyze_batch_size=4, reanalyze_partition=0.75
    )
    configs = small_configs(CARTPOLE, dict(mode=mode), **segments)
    configs[1].env_manager.type = env_manager
    return Run(call_entry(entry, folder, configs, max_env_step=40), folder / 'run')


@pytest.mark.parametrize('entry', [train_unizero, train_unizero_segment], ids=lambda entry: entry.__name__)
@pytest.mark.parametrize('env_manager', ['base', 'subprocess', 'async_subprocess'])
def test_environments_in_processes_of_their_own(tmp_path, env_manager, entry):
    """Which environments are ready, and in which order, is a matter of time there."""
    run = train_with(env_manager, tmp_path, entry, 'validate')
    check_training(run)
    assert run.world_model.kv_cache_inference.report.differed == 0
    assert run.world_model.kv_cache_inference.report.agreed > 0
    roots = run.world_model.kv_cache_inference.root_stats
    assert roots.continuing > 0
    assert roots.cold_starts == 0
    scalars = run.scalars()
    collected = scalars['kv_cache/collect_init_pools/entries'][-1][0]
    evaluations = scalars.get('evaluator_step/envstep_count', [])
    evaluated = sum(steps for _, steps in evaluations)
    assert roots.continuing + roots.first_steps == collected + evaluated
    if entry is train_unizero:
        # Each round begins with new episodes.
        rounds = len(scalars['Buffer/num_of_transitions'])
        assert roots.first_steps == ENV_NUM * rounds + len(evaluations)
    totals = run.manager.total_stats()
    assert totals['init_pools'].hits > 0
    assert totals['recur_pool'].hits > 0
    assert totals['recur_pool'].misses == 0


@pytest.mark.slow
def test_two_runs_at_once_do_not_disturb_each_other(tmp_path):
    """In one working directory, of one config file, with one seed."""
    folder, temporary = tmp_path / 'runs', tmp_path / 'tmp'
    folder.mkdir()
    temporary.mkdir()
    sizes = {'first': 11, 'second': 13}
    processes = {
        name: subprocess.Popen(
            [sys.executable, '-c', 'from lzero_kvcache.cli import main; main()', 'run', CARTPOLE_FILE,
             '--exp-name', name, '--recur-pool-size', str(size), '--seed', '0', '--max-env-step', '20', *SMALL],
            cwd=folder, env=own_environment(TMPDIR=str(temporary)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True
        ) for name, size in sizes.items()
    }
    said = {name: process.communicate()[0] for name, process in processes.items()}
    for name, size in sizes.items():
        assert processes[name].returncode == 0, said[name]
        assert re.search(rf'^recur_pool +{size} ', said[name], re.MULTILINE)
        assert len(list(folder.glob(f'{name}/log/serial/events.out.tfevents.*'))) == 1
        scalars = read_scalars(folder / name / 'log' / 'serial')
        assert scalars['kv_cache/collect_recur_pool/hit_rate'][-1][0] >= 20
        assert f"'size': {size}" in (folder / name / 'total_config.py').read_text()
    # Nothing else is written, so that there is nothing to share.
    assert {path.name for path in folder.iterdir()} == {'first', 'first.log', 'second', 'second.log'}
    assert [path for path in temporary.rglob('*') if path.is_file()] == []


def test_of_two_runs_that_begin_at_once_in_one_folder_one_is_refused(tmp_path):
    together = threading.Barrier(4)

    def begin(folder: Path) -> Optional[str]:
        together.wait()
        try:
            check_new_folder(folder)
        except ValueError as error:
            return str(error)

    with ThreadPoolExecutor(4) as executor:
        for number in range(50):
            folder = tmp_path / str(number) / 'run'
            refusals = [refusal for refusal in executor.map(begin, [folder] * 4) if refusal is not None]
            assert refusals == [f'{folder}.log is there already, perhaps from a former run: choose another folder'] * 3


@pytest.mark.parametrize('strategy', ['lru', dict(type='random', seed=0), 'tree'], ids=str)
def test_two_models_in_one_process_share_nothing(strategy):
    """Each prediction of both equals a forward of its own model, while they take turns."""
    cache = kv_cache(strategy=strategy, init_pool=dict(size=1), recur_pool=dict(size=3), wm_pool=dict(size=1))
    models = [build_model(seed=seed, kv_cache=cache) for seed in (0, 7)]
    first, second = (Episodes(model, seed=3) for model in models)
    first.step([0, 1], num_simulations=6)
    managers = [model.world_model.kv_cache_manager for model in models]
    assert managers[0].total_stats()['init_pools'].total_queries > 0
    assert all(stats == CacheStats() for stats in managers[1].total_stats().values())
    assert not any(len(pool) for pools in managers[1].pools().values() for pool in pools)
    second.step([0, 1], num_simulations=6)
    first.step([1, 0], num_simulations=6)
    second.learn()
    first.step([0, 1, 2], num_simulations=6)
    second.step([1], num_simulations=6)
    first.end(1)
    second.step([1, 0], num_simulations=6)
    first.step([1, 2], num_simulations=6)
    models[0].world_model.clear_caches()
    second.step([0, 1], num_simulations=6)
    assert first.compared > 100 and second.compared > 100


def test_two_managers_of_one_config_share_nothing():
    config = EasyDict(kv_cache=dict(strategy=dict(type='random', seed=0), recur_pool=dict(size=2)), num_simulations=5)
    before = deepcopy(config)
    first, second = (KVCacheManager(config, env_num=2) for _ in range(2))
    for key in range(4):
        first.set_recur_cache(key, key)
        first.set_init_cache(0, key, key)
        first.get_wm_cache(key)
    assert not any(len(pool) for pools in second.pools().values() for pool in pools)
    assert all(stats == CacheStats() for stats in second.total_stats().values())
    # The same seed draws the same victims, whatever the other has drawn.
    for key in range(4):
        second.set_recur_cache(key, key)
    assert list(first.recur_pool.keys()) == list(second.recur_pool.keys())
    assert config == before
