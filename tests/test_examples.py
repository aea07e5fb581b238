"""The scripts in zoo_examples/, run as a user runs them."""
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from training import read_scalars

from lzero_kvcache.ab.machine_limits import cores
from lzero_kvcache.threads import VARIABLES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TRAIN = 'zoo_examples.classic_control.cartpole_unizero'
EVAL = 'zoo_examples.classic_control.cartpole_unizero_eval'
IMAGINE = 'zoo_examples.classic_control.cartpole_imagine'
OTHER_SCRIPTS = [
    script
    for path in sorted((ROOT / 'zoo_examples').rglob('*.py'))
    for script in ['.'.join(path.relative_to(ROOT).with_suffix('').parts)]
    if '__main__' in path.read_text() and script not in (TRAIN, EVAL, IMAGINE)
]


def run_script(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, '-m', module, *arguments], cwd=ROOT, capture_output=True, text=True,
        # Wide enough for a table. How many threads there are is for the script to choose.
        env={name: value for name, value in dict(os.environ, COLUMNS='120').items() if name not in VARIABLES},
    )


def check_quiet(completed: subprocess.CompletedProcess) -> None:
    """Nothing comes before our own first line, nor beside the others."""
    assert completed.returncode == 0, completed.stdout + completed.stderr
    assert completed.stderr == ''
    if cores() > 1 and not torch.cuda.is_available():
        assert completed.stdout.startswith('One thread, because more of them slow down a model of width 64.')


def check_output(completed: subprocess.CompletedProcess, phase: str) -> None:
    check_quiet(completed)
    for pool in ('init_pools', 'recur_pool', 'wm_pool'):
        assert re.search(rf'^ *{pool} +\d', completed.stdout, re.MULTILINE)
    folder = re.search(r'tensorboard --logdir (\S+)', completed.stdout).group(1)
    assert f'kv_cache/{phase}_recur_pool/hit_rate' in read_scalars(ROOT / folder / 'serial')


BENCHMARKS = sorted(
    f'benchmarks.{path.stem}' for path in (ROOT / 'benchmarks').glob('*.py') if '__main__' in path.read_text()
)


@pytest.fixture(scope='module')
def helps() -> dict[str, subprocess.CompletedProcess]:
    # Importing LightZero takes most of a script's time.
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        scripts = [*OTHER_SCRIPTS, *BENCHMARKS]
        return dict(zip(scripts, executor.map(lambda script: run_script(script, '--help'), scripts)))


@pytest.mark.parametrize('script', OTHER_SCRIPTS)
def test_every_other_script_has_help(helps, script):
    completed = helps[script]
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == '' and completed.stdout.startswith('Usage: ')
    for option in ('--strategy', '--recur-pool-size', '--mode', '--rope-positions', '--seed', '--exp-name',
                   '--threads'):
        assert option in completed.stdout


@pytest.mark.parametrize('script', [EVAL, IMAGINE])
def test_what_is_no_checkpoint_is_a_sentence(script, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('junk').write_text('no checkpoint')
    result = CliRunner().invoke(import_module(script).main, ['junk'])
    assert result.exit_code == 2 and 'no checkpoint of weights alone' in ' '.join(result.output.split())
    assert [path.name for path in tmp_path.iterdir()] == ['junk']


@pytest.mark.parametrize('script', BENCHMARKS)
def test_every_benchmark_has_help(helps, script):
    completed = helps[script]
    assert completed.returncode == 0, completed.stderr
    assert completed.stderr == '' and completed.stdout.startswith('Usage: ')
    assert '--out' in completed.stdout


def test_training_evaluating_its_checkpoint_and_imagining(tmp_path):
    trained = run_script(
        TRAIN, '--max-env-step', '20', '--strategy', 'fifo', '--recur-pool-size', '50',
        '--exp-name', str(tmp_path / 'train'),
    )
    check_output(trained, 'collect')

    # As the last lines say.
    commands = dict(re.findall(r'-m (\S+) (\S+\.pth\.tar)$', trained.stdout, re.MULTILINE))
    assert list(commands) == [EVAL, IMAGINE]
    evaluated = run_script(EVAL, commands[EVAL], '--exp-name', str(tmp_path / 'eval'))
    check_output(evaluated, 'eval')
    assert float(re.search(r'mean return: (\S+)', evaluated.stdout).group(1)) > 0

    # CartPole's episodes end after 200 steps.
    imagined = run_script(
        IMAGINE, commands[IMAGINE], '--horizon', '201', '--episodes', '1', '--out', str(tmp_path / 'imagine.png')
    )
    check_quiet(imagined)
    steps = re.search(r'No episode had 201 steps: the horizon is (\d+)', imagined.stdout).group(1)
    for positions in ('release', 'aligned'):
        assert re.search(rf"rope_positions='{positions}': 1 rollout of {steps} steps,", imagined.stdout)
    assert (tmp_path / 'imagine.png').stat().st_size > 10_000
