"""'lzero-kvcache doctor' on this machine, and on one that is broken in ways that happen."""
import json
import os
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from rendering import needs_rendering

from lzero_kvcache.doctor import OK, PROBLEM, WARNING, Finding, examine
from lzero_kvcache.doctor import environments as doctor_environments
from lzero_kvcache.doctor.environments import atari, rendering
from lzero_kvcache.doctor.hardware import gpu
from lzero_kvcache.doctor.requirements import (
    how_to_install,
    optional_packages,
    pins_of_others,
    python_version,
    required_packages,
)
from lzero_kvcache.doctor.self_test import plugin, self_test

REQUIRED = {
    Requirement(text).name: str(Requirement(text).specifier)
    for text in metadata.requires('lzero-kvcache') if 'extra' not in text
}


def by_name(findings):
    return {finding.name: finding for finding in findings}


@pytest.fixture
def pretend(monkeypatch):
    """Let a distribution be of another version, or (None) not installed."""
    real = metadata.version

    def set_version(distribution, version):
        known = metadata.version

        def changed(name):
            if name.lower() != distribution.lower():
                return known(name)
            if version is None:
                raise metadata.PackageNotFoundError(name)
            return version

        monkeypatch.setattr(metadata, 'version', changed)

    yield set_version
    monkeypatch.setattr(metadata, 'version', real)


def test_every_requirement_is_looked_at_and_here_all_are_kept():
    findings = by_name(required_packages())
    assert set(findings) == set(REQUIRED)
    assert {finding.status for finding in findings.values()} == {OK}
    assert {finding.status for finding in pins_of_others()} == {OK}
    assert python_version()[0].status == OK


@pytest.mark.parametrize('distribution, version', [
    ('lightzero', '0.3.1'), ('numpy', '2.1.0'), ('setuptools', '80.0'), ('torch', None), ('DI-engine', None)
])
def test_a_version_that_does_not_fit_is_a_problem_with_its_command(pretend, distribution, version):
    pretend(distribution, version)
    findings = by_name(required_packages())
    assert [name for name, finding in findings.items() if finding.status == PROBLEM] == [distribution]
    finding = findings[distribution]
    assert finding.mend == f"pip install '{distribution}{REQUIRED[distribution]}'"
    assert (version or 'not installed') in finding.seen


def test_a_pin_of_di_engine_that_we_do_not_repeat(pretend):
    pretend('wandb', '0.20.1')
    problem, = [finding for finding in pins_of_others() if finding.status == PROBLEM]
    assert problem.name == 'wandb' and problem.mend == "pip install 'wandb<=0.19.0'"


def test_optional_packages(pretend):
    assert PROBLEM not in {finding.status for finding in optional_packages()}
    pretend('matplotlib', None)
    missing = by_name(optional_packages())['matplotlib [bench]']
    assert missing.status == OK and "pip install 'lzero-kvcache[bench]'" in missing.seen
    pretend('opencv-python-headless', '4.12.0')
    unfit = by_name(optional_packages())['opencv-python-headless [atari]']
    assert unfit.status == PROBLEM and unfit.mend.startswith("pip install 'opencv-python-headless")


def test_another_python(monkeypatch):
    monkeypatch.setattr('platform.python_version', lambda: '3.13.1')
    finding, = python_version()
    assert finding.status == PROBLEM and '3.13.1' in finding.seen and 'venv' in finding.mend


@pytest.mark.parametrize('module, command', [
    ('lzero', 'lightzero'), ('ding', 'DI-engine'), ('torch', 'torch'), ('wandb', 'wandb'), ('xxhash', 'xxhash'),
])
def test_how_to_install(module, command):
    assert how_to_install(module).startswith(f"pip install '{command}")


def test_what_nobody_asks_for():
    assert how_to_install('no_such_module') is None


def test_a_check_that_breaks_down_does_not_stop_the_others():
    def broken():
        raise RuntimeError('lightning')

    results = list(examine({'first': broken, 'second': lambda: [Finding('second', OK, 'fine')]}))
    assert results[1] == ('first', [Finding('first', PROBLEM, 'RuntimeError: lightning')])
    assert results[-1] == ('second', [Finding('second', OK, 'fine')])


def test_the_plugin_and_the_cache_itself():
    assert plugin()[0].status == OK
    finding, = self_test()
    assert finding.status == OK
    assert 'agree with the stock code' in finding.seen


def test_a_plugin_that_others_have_overwritten(monkeypatch):
    from ding.utils import POLICY_REGISTRY
    from lzero.policy.unizero import UniZeroPolicy

    ours = POLICY_REGISTRY.get('unizero')
    POLICY_REGISTRY.register('unizero', UniZeroPolicy, force_overwrite=True)
    try:
        finding, = plugin()
    finally:
        POLICY_REGISTRY.register('unizero', ours, force_overwrite=True)
    assert finding.status == PROBLEM and 'unizero is' in finding.seen


def test_a_cache_that_predicts_something_else_fails_the_self_test(monkeypatch):
    from lzero_kvcache.world_model.managed import ManagedInference

    expand = ManagedInference._expand

    def with_a_defect(*args, **kwargs):
        outputs, children = expand(*args, **kwargs)
        outputs.value[0, 0, 7] += 0.25
        return outputs, children

    monkeypatch.setattr(ManagedInference, '_expand', with_a_defect)
    finding, = self_test()
    assert finding.status == PROBLEM and 'differs from the stock one' in finding.seen


def test_a_gpu_or_none():
    import torch

    finding, = gpu()
    assert finding.status in (OK, WARNING)
    assert torch.cuda.is_available() or 'CPU' in finding.seen


@pytest.mark.slow
def test_pong_takes_a_step_and_missing_roms_are_a_warning(monkeypatch):
    assert atari()[0].status == OK
    monkeypatch.setattr(doctor_environments, 'STEP_PONG', 'raise RuntimeError("no ROM of Pong")')
    finding, = atari()
    assert finding.status == WARNING and 'ROM' in finding.seen and 'roms' in finding.mend


@pytest.mark.slow
@needs_rendering
def test_rendering_is_judged_by_the_environment_itself(monkeypatch):
    monkeypatch.delenv('MUJOCO_GL', raising=False)
    monkeypatch.delenv('DISPLAY', raising=False)
    finding, = rendering()
    assert finding.status == OK and 'SuiteEnv renders pixels' in finding.seen, finding


@pytest.mark.slow
@needs_rendering
def test_a_graphics_library_that_does_not_work_is_a_warning(monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.setenv('MUJOCO_GL', 'glfw')
    finding, = rendering()
    assert finding.status == WARNING and 'MUJOCO_GL=glfw' in finding.seen, finding
    assert finding.mend == 'unset MUJOCO_GL'


def test_a_crash_is_named(monkeypatch):
    monkeypatch.setattr(doctor_environments, 'STEP_PONG', 'import os; os.kill(os.getpid(), 11)')
    finding, = atari()
    assert finding.status == WARNING and finding.seen == 'the process was ended by SIGSEGV'


def doctor(*blocked: str, arguments: tuple = ('doctor', )) -> subprocess.CompletedProcess:
    """The command in a process that cannot import some modules."""
    code = (
        'import sys\n'
        f'sys.modules.update(dict.fromkeys({blocked!r}))\n'
        'from lzero_kvcache.cli import main\n'
        f'main({list(arguments)!r}, prog_name="lzero-kvcache")'
    )
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=dict(os.environ, OMP_NUM_THREADS='1')
    )


@pytest.mark.slow
def test_all_is_well_here():
    completed = doctor(arguments=('doctor', '--json'))
    assert completed.returncode == 0, completed.stdout + completed.stderr
    report = json.loads(completed.stdout)
    assert report['lzero-kvcache'] == metadata.version('lzero-kvcache')
    findings = {check['name']: check for check in report['checks']}
    for name in ('Python', 'lightzero', 'setuptools', 'GPU', 'plugin', 'self-test', 'Atari'):
        assert findings[name]['status'] == 'ok', findings[name]


@pytest.mark.slow
@pytest.mark.parametrize('module', ['ding', 'torch', 'lzero', 'easydict'])
def test_a_package_that_cannot_be_imported(module):
    completed = doctor(module)
    assert completed.returncode == 1
    assert 'Traceback' not in completed.stdout + completed.stderr
    assert completed.stderr == ''
    assert f"pip install '{how_to_install(module).split(chr(39))[1]}'" in completed.stdout
    assert 'self-test' in completed.stdout


@pytest.mark.parametrize('module', ['ding', 'torch', 'lzero', 'rich'])
def test_other_commands_say_in_a_sentence_what_is_missing(module):
    path = 'zoo/classic_control/cartpole/config/cartpole_unizero_config.py'
    completed = doctor(module, arguments=('run', path))
    assert completed.returncode == 1
    assert f"'lzero-kvcache run' needs {module}, which is not installed: pip install" in completed.stderr
    assert 'lzero-kvcache doctor' in completed.stderr
