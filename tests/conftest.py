import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
import torch
from hypothesis import settings
from lzero.model.unizero_world_models.kv_caching import KeysValues

# No deadline: a busy machine must not fail a test. The same examples in every run, so that a failure repeats.
settings.register_profile('tests', deadline=None, database=None, derandomize=True, max_examples=200)
settings.load_profile('tests')

# The models are small: a second thread costs more than it brings, and much more on a busy machine.
torch.set_num_threads(1)

# A shell starts what runs in the background deaf to Ctrl-C, and so would be the commands that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    # Models are initialised, and tasks begin, by the global generators: a failure must repeat, also of one test alone.
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def keys_values() -> Callable[[float], KeysValues]:
    """LightZero's own cache of one context, all of whose keys and values are the given number."""

    def make(number: float, tokens: int = 1) -> KeysValues:
        kv = KeysValues(1, 2, 4, 8, 2, torch.device('cpu'))
        for layer in range(len(kv)):
            kv[layer].update(torch.full((1, 2, tokens, 4), number), torch.full((1, 2, tokens, 4), number))
        return kv

    return make


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB, where one may be mounted."""
    folder = tmp_path / 'tiny'
    folder.mkdir()
    command = ['mount', '-t', 'tmpfs', '-o', 'size=64k', 'tmpfs', str(folder)]
    if sys.platform != 'linux' or subprocess.run(command, capture_output=True).returncode:
        pytest.skip('mounting a file system needs Linux and its permission')
    yield folder
    subprocess.run(['umount', '-l', str(folder)], check=True)
