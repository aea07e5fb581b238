"""What of the machine the trials of an A/B run are given, and what is left of them when the run ends early."""
import pickle
import time
from types import SimpleNamespace

import pytest
from easydict import EasyDict
from hypothesis import given
from hypothesis import strategies as st
from processes import needs_proc, trial_processes

from lzero_kvcache.ab import machine_limits
from lzero_kvcache.ab.folder import RunFolder
from lzero_kvcache.ab.local import LocalBackend
from lzero_kvcache.ab.machine_limits import least_used, trials_that_fit, visible_gpus
from lzero_kvcache.ab.series import peak_gpu_memory_mb
from lzero_kvcache.cli.ab import _backend
from lzero_kvcache.threads import VARIABLES


class Sleep:
    """Reading it takes longer than any test: what reads it is there until it is stopped."""

    def __reduce__(self) -> tuple:
        return time.sleep, (600, )


# An experiment whose model may have several threads.
WIDE = SimpleNamespace(main_config=EasyDict(policy=dict(model=dict(world_model_cfg=dict(embed_dim=768)))))


def specs(count: int) -> list:
    return [
        SimpleNamespace(name=f'trial{number}', to_bytes=lambda: pickle.dumps(Sleep()), experiment=WIDE)
        for number in range(count)
    ]


@needs_proc
@pytest.mark.parametrize('gpus, seen', [(['3', 'GPU-5'], ['3', 'GPU-5', '3']), ([], [None, None, None])])
def test_gpus_take_turns_and_nothing_runs_on(gpus, seen, tmp_path, monkeypatch):
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    monkeypatch.setenv('MKL_NUM_THREADS', '2')
    events = LocalBackend(3, 1, gpus).run(specs(3), RunFolder(tmp_path / 'out'))
    for _ in range(3):
        assert not next(events).ended
    running = {}
    # A process that has just been started may still look like its parent.
    while len(running) < 3:
        running.update(trial_processes(tmp_path))
    events.close()
    assert all(trial[name] == '1' for trial in running.values() for name in VARIABLES)
    assert [running[f'trial{number}'].get('CUDA_VISIBLE_DEVICES') for number in range(3)] == seen
    assert trial_processes(tmp_path) == {}


@pytest.mark.parametrize('named, gpus', [
    ('', []), ('2', ['2']), ('0, 3', ['0', '3']), ('GPU-1,GPU-2', ['GPU-1', 'GPU-2'])
])
def test_gpus_that_are_chosen_already_are_respected(named, gpus, monkeypatch):
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', named)
    assert visible_gpus() == gpus


def test_all_gpus_are_seen_where_none_is_chosen(monkeypatch):
    import torch

    monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
    assert len(visible_gpus()) == torch.cuda.device_count()
    assert peak_gpu_memory_mb() is None or torch.cuda.is_initialized()


@given(st.lists(st.sampled_from('abc'), max_size=9))
def test_no_gpu_has_two_trials_more_than_another(in_use):
    """If that was so before."""
    running = []
    for _ in in_use:
        running.append(least_used('abc', running))
    counts = [running.count(gpu) for gpu in 'abc']
    assert max(counts) - min(counts) <= 1
    assert least_used([], in_use) is None


@pytest.mark.parametrize('kibibytes, trials', [(100, 1), (3 * 2 ** 20, 2), (24 * 2 ** 20, 16)])
def test_memory_bounds_the_trials_at_a_time_and_says_so(kibibytes, trials, tmp_path, monkeypatch, capsys):
    (tmp_path / 'meminfo').write_text(f'MemTotal: 99999999 kB\nMemAvailable:   {kibibytes} kB\n')
    monkeypatch.setattr(machine_limits, 'MEMORY_FILE', tmp_path / 'meminfo')
    monkeypatch.setattr(machine_limits, 'cores', lambda: 8)
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    assert trials_that_fit() == trials
    assert _backend('local', None, None, None, 0., specs(4)).describe().startswith(
        {1: 'one at a time, 2 threads', 2: '2 at a time, 2 threads', 16: '4 at a time, 2 threads'}[trials]
    )
    assert ('--jobs 4 runs them all the same' in capsys.readouterr().out) == (trials < 4)
    assert _backend('local', None, 4, None, 0., specs(4)).describe().startswith('4 at a time')
    assert capsys.readouterr().out == ''


def test_where_the_system_does_not_say_memory_is_no_bound(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_limits, 'MEMORY_FILE', tmp_path / 'nothing')
    assert trials_that_fit() is None
