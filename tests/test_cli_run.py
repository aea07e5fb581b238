"""'lzero-kvcache run' as a user runs it: a stock config file, unedited, small by options."""
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from training import read_scalars

from lzero_kvcache.cli import main

CARTPOLE = 'zoo/classic_control/cartpole/config/cartpole_unizero_config.py'
SMALL = [
    option for change in (
        'policy.num_simulations=3', 'policy.batch_size=8', 'policy.update_per_collect=2', 'policy.n_episode=2',
        'policy.collector_env_num=2', 'env.collector_env_num=2', 'policy.evaluator_env_num=1',
        'env.evaluator_env_num=1', 'env.n_evaluator_episode=1',
    ) for option in ('--set', change)
]


def command(*arguments: str) -> list[str]:
    return [sys.executable, '-c', 'from lzero_kvcache.cli import main; main()', 'run', *arguments]


@pytest.fixture
def environment(monkeypatch):
    # A second thread costs a small model more than it brings. The log is wrapped at the terminal's width.
    return dict(os.environ, OMP_NUM_THREADS='1', WANDB_MODE='offline', COLUMNS='200')


def run(folder: Path, environment: dict, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_a_stock_config_trains_with_the_cache_and_goes_on_from_its_checkpoint(tmp_path, environment):
    first = run(tmp_path, environment, CARTPOLE, '--strategy', 'lru', '--recur-pool-size', '11', '--max-env-step', '20',
                '--seed', '3', '--exp-name', 'runs/first', *SMALL)
    assert first.returncode == 0, first.stdout + first.stderr
    assert 'Training by train_unizero, seed 3, in runs/first' in first.stdout
    assert re.search(r'^recur_pool +11 ', first.stdout, re.MULTILINE)
    assert first.stderr == ''
    assert 'kv_cache/collect_recur_pool/hit_rate' in read_scalars(tmp_path / 'runs/first/log/serial')
    assert 'strategy' in (tmp_path / 'runs/first/total_config.py').read_text()

    second = run(tmp_path, environment, CARTPOLE, '--max-env-step', '20', '--exp-name', 'second', '--mode', 'legacy',
                 '--checkpoint', 'runs/first/ckpt/ckpt_best.pth.tar', '--set', 'create_config.env_manager.type=base',
                 *SMALL)
    assert second.returncode == 0, second.stdout + second.stderr
    assert 'recur_pool' not in second.stdout
    assert 'Pretrained model loaded successfully' in (tmp_path / 'second.log').read_text()


@pytest.mark.slow
@pytest.mark.parametrize('number, status', [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_says_what_is_kept(tmp_path, environment, number, status):
    process = subprocess.Popen(
        command(CARTPOLE, '--exp-name', 'run', '--set', 'kv_cache.log_interval=5', *SMALL), cwd=tmp_path,
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    seen = ''
    for line in process.stdout:
        seen += line
        if re.search(r'[1-9]\d* environment steps, ', line):
            break
    # As a terminal and 'timeout' do: to the environments' processes, too.
    os.killpg(process.pid, number)
    seen += process.stdout.read()
    assert process.wait() == status, seen
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert re.search(r'Interrupted after \d+ environment steps, \d+ searches and \d+ learner steps', seen)
    checkpoint = tmp_path / re.search(r'Kept: (\S+); TensorBoard', seen).group(1)
    assert 'model' in torch.load(checkpoint, map_location='cpu')
    assert f'--checkpoint {checkpoint.relative_to(tmp_path)}' in seen
    assert 'Traceback' not in seen
    assert 'kv_cache/recur_pool/hit_rate' in read_scalars(tmp_path / 'run/log/serial')


@pytest.mark.slow
def test_a_failure_in_training_shows_its_traceback(tmp_path, environment):
    """By an environment that breaks down after some steps."""
    (tmp_path / 'brittle.py').write_text(
        'from ding.utils import ENV_REGISTRY\n'
        'from zoo.classic_control.cartpole.envs.cartpole_lightzero_env import CartPoleEnv\n'
        "@ENV_REGISTRY.register('brittle')\n"
        'class Brittle(CartPoleEnv):\n'
        '    def step(self, action):\n'
        '        raise RuntimeError("the pole is broken")\n'
    )
    (tmp_path / 'my_config.py').write_text(
        'from copy import deepcopy\n'
        'from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config\n'
        "create_config.env = dict(type='brittle', import_names=['brittle'])\n"
        "create_config.env_manager.type = 'base'\n"
        'main_config.env.manager.retry_type = "reset"\n'
        'main_config.env.manager.max_retry = 1\n'
    )
    completed = run(tmp_path, environment, 'my_config.py', '--exp-name', 'run', *SMALL)
    assert completed.returncode == 1
    assert re.search('RuntimeError: .* the pole is broken', completed.stdout)
    assert 'Traceback' in (tmp_path / 'run.log').read_text()
    assert completed.stderr.startswith('Error: the run has failed: ')
    assert 'run/ckpt' in completed.stderr and 'run.log' in completed.stderr


@pytest.mark.parametrize('arguments, status, message', [
    (['nowhere/atari_unizero_config.py'], 1, 'did you mean .*atari_unizero_config.py'),
    ([CARTPOLE.replace('unizero', 'muzero')], 1, 'calls train_muzero'),
    ([CARTPOLE, '--strategy', 'lur'], 1, "did you mean 'lru'"),
    ([CARTPOLE, '--set', 'policy.batchsize=3'], 1, "did you mean 'batch_size'"),
    ([CARTPOLE, '--set', 'policy.num_simulations=0'], 1, 'policy.num_simulations is 0'),
    ([str(Path(__file__).parents[1] / 'README.md')], 1, 'README.md is no Python file'),
    ([CARTPOLE, '--mode', 'manage'], 2, 'managed'),
    ([CARTPOLE, '--recur-pool-size', '0'], 2, 'recur-pool-size'),
    ([CARTPOLE, '--checkpoint', 'nothing.pth.tar'], 2, 'nothing.pth.tar'),
    ([CARTPOLE, '--exp-name', '/proc/run'], 1, '/proc/run cannot be written'),
    ([], 2, 'CONFIG'),
])
def test_mistakes_are_sentences(tmp_path, monkeypatch, arguments, status, message):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ['run', *arguments])
    assert result.exit_code == status, result.output
    assert re.search(message, result.output, re.DOTALL)
    assert 'Traceback' not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name != 'posix' or os.geteuid() != 0, reason='only root can mount a small disk')
@pytest.mark.slow
def test_a_full_disk_is_a_sentence(tmp_path, environment):
    disk = tmp_path / 'disk'
    disk.mkdir()
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=3m', 'tmpfs', str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip('a small disk cannot be mounted here')
    try:
        completed = run(tmp_path, environment, CARTPOLE, '--exp-name', 'disk/run', *SMALL)
    finally:
        subprocess.run(['umount', str(disk)], check=True)
    assert completed.returncode == 1
    assert f'the disk that holds {disk} is full' in completed.stderr
    assert 'Nothing is kept' in completed.stderr
