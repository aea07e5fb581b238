"""The scripts in zoo_examples/, run as a user runs them."""
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from training import read_scalars

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
        # Wide enough for a table; a second thread costs a small model more than it brings.
        env=dict(os.environ, COLUMNS='120', OMP_NUM_THREADS='1'),
    )


def check_output(completed: subprocess.CompletedProcess, phase: str) -> None:
    assert completed.returncode == 0, completed.stdout + completed.stderr
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
    for option in ('--strategy', '--recur-pool-size', '--mode', '--rope-positions', '--seed', '--exp-name'):
        assert option in completed.stdout


@pytest.mark.parametrize('script', BENCHMARKS)
def test_every_benchmark_has_help(helps, script):
    assert helps[script].returncode == 0, helps[script].stderr
    assert '--out' in helps[script].stdout


def test_training_evaluating_its_checkpoint_and_imagining(tmp_path):
    trained = run_script(
        TRAIN, '--max-env-step', '20', '--strategy', 'fifo', '--recur-pool-size', '50',
        '--exp-name', str(tmp_path / 'train'),
    )
    check_output(trained, 'collect')

    checkpoint = tmp_path / 'train' / 'ckpt' / 'ckpt_best.pth.tar'
    evaluated = run_script(EVAL, str(checkpoint), '--exp-name', str(tmp_path / 'eval'))
    check_output(evaluated, 'eval')
    assert float(re.search(r'mean return: (\S+)', evaluated.stdout).group(1)) > 0

    imagined = run_script(
        IMAGINE, str(checkpoint), '--horizon', '3', '--episodes', '1', '--out', str(tmp_path / 'imagine.png')
    )
    assert imagined.returncode == 0, imagined.stdout + imagined.stderr
    for positions in ('release', 'aligned'):
        assert re.search(rf"rope_positions='{positions}': \d+ rollouts of 3 steps", imagined.stdout)
    assert (tmp_path / 'imagine.png').stat().st_size > 10_000
