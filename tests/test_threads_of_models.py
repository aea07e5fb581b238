"""How many threads a model gets where the user does not say."""
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from easydict import EasyDict

from lzero_kvcache import threads
from lzero_kvcache.ab import machine_limits
from lzero_kvcache.cli import main
from lzero_kvcache.cli.ab import _backend
from lzero_kvcache.threads import VARIABLES, choose_threads
from zoo_examples.classic_control.cartpole_imagine import main as imagine
from zoo_examples.classic_control.cartpole_unizero import main as example

CONFIGS = Path(__file__).parents[1] / 'configs'

SMALL, WIDE = dict(embed_dim=64), dict(embed_dim=768)


@pytest.fixture(autouse=True)
def four_threads_by_default(monkeypatch):
    before = torch.get_num_threads()
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, 'BY_DEFAULT', 4)
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize('world_model_cfg, number', [(SMALL, 1), (WIDE, 4), ({}, 4), (dict(embed_dim=128), 1)])
def test_a_small_model_gets_one_thread_and_it_is_said(world_model_cfg, number):
    said = choose_threads(world_model_cfg)
    assert torch.get_num_threads() == number
    if number == 1:
        assert said == (
            f"One thread, because more of them slow down a model of width {world_model_cfg['embed_dim']}. "
            'OMP_NUM_THREADS or --threads chooses another number.'
        )
    else:
        assert said is None


@pytest.mark.parametrize('name', VARIABLES)
@pytest.mark.parametrize('given', ['4', '2,1'])
def test_the_environment_decides(name, given, monkeypatch):
    monkeypatch.setenv(name, given)
    assert choose_threads(SMALL) is None and torch.get_num_threads() == 4


@pytest.mark.parametrize('name', VARIABLES)
def test_an_empty_variable_decides_nothing(name, monkeypatch):
    monkeypatch.setenv(name, '')
    assert choose_threads(SMALL) is not None and torch.get_num_threads() == 1


@pytest.mark.parametrize('name', VARIABLES)
@pytest.mark.parametrize('given', ['two', '0', ',2'])
@pytest.mark.parametrize('command, arguments', [
    (main, ['run', str(CONFIGS / 'cartpole_unizero_config.py')]),
    (main, ['ab', str(CONFIGS / 'ab_cartpole_strategies.py')]),
    (example, []),
], ids=['run', 'ab', 'example'])
def test_what_is_no_number_is_a_sentence(command, arguments, given, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, given)
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 1
    assert f'Error: {name} is {given!r}: allowed is a number of threads of at least 1' in result.output


@pytest.mark.skipif(not torch.backends.mkl.is_available(), reason='this PyTorch does without MKL')
@pytest.mark.parametrize('script', [
    'import torch; print(torch.get_num_threads())',
    'from lzero_kvcache.threads import threads_of_environment; print(threads_of_environment())',
], ids=['PyTorch', 'this package'])
def test_the_same_variable_comes_first(script):
    variables = dict(MKL_NUM_THREADS='1', OMP_NUM_THREADS='2')
    completed = subprocess.run([sys.executable, '-c', script], env=dict(os.environ, **variables), capture_output=True,
                               text=True)
    assert completed.stdout == '1\n', completed.stderr


def test_the_config_file_decides():
    torch.set_num_threads(3)
    assert choose_threads(SMALL) is None and torch.get_num_threads() == 3


def test_the_option_decides():
    assert choose_threads(SMALL, 2) is None and torch.get_num_threads() == 2
    assert choose_threads(WIDE, 3) is None and torch.get_num_threads() == 3


def test_a_gpu_leaves_the_threads_alone(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    assert choose_threads(SMALL) is None and torch.get_num_threads() == 4


@pytest.mark.parametrize('command', [*(main.commands[name] for name in ('run', 'trace', 'eval')), example, imagine],
                         ids=['run', 'trace', 'eval', 'example', 'imagine'])
def test_commands_have_the_option(command):
    assert '--threads' in CliRunner().invoke(command, ['--help']).output


@pytest.mark.parametrize('name', VARIABLES)
@pytest.mark.parametrize('widths, given, number', [
    ([64, 64], '', 1), ([64, 768], '', 4), ([64, 64], '2', 2), ([768, 768], '2', 2), ([64, 64], '3,2', 3),
])
def test_so_does_each_trial(widths, given, number, name, monkeypatch):
    monkeypatch.setattr(machine_limits, 'cores', lambda: 8)
    monkeypatch.setattr(machine_limits, 'trials_that_fit', lambda: 2)
    monkeypatch.setenv(name, given)
    configs = [EasyDict(policy=dict(model=dict(world_model_cfg=dict(embed_dim=width)))) for width in widths]
    specs = [SimpleNamespace(experiment=SimpleNamespace(main_config=config)) for config in configs]
    backend = _backend('local', None, None, None, 0., specs)
    assert backend.describe().startswith(f"2 at a time, {number} thread{'s' if number > 1 else ''} each")
