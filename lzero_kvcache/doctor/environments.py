"""Environments, each in a process of its own: a graphics library that fails may end the process."""
import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

from .finding import OK, WARNING, Finding

SECONDS_AT_MOST = 120
ROMS = (
    'pip download --no-deps --dest roms ale-py==0.10.1 && python -m zipfile -e roms/ale_py-0.10.1-*.whl roms '
    '&& ale-import-roms roms/ale_py/roms'
)
GRAPHICS_LIBRARIES = ('egl', 'osmesa', 'glfw')

STEP_PONG = '''
import gymnasium
env = gymnasium.make('PongNoFrameskip-v4')
env.reset(seed=0)
observation = env.step(env.action_space.sample())[0]
import ale_py, cv2
cv2.resize(observation, (64, 64))
print(f'Pong steps, ale-py {ale_py.__version__}, OpenCV {cv2.__version__}')
'''
STEP_CARTPOLE = '''
from importlib.metadata import version
from dm_control import suite
env = suite.load('cartpole', 'swingup')
env.reset()
env.step(env.action_spec().minimum)
print(f"cartpole-swingup steps, dm-control {version('dm-control')}, mujoco {version('mujoco')}")
'''
# As in a training: LightZero imports dm-control, by gymnasium's plugins, before anything is rendered.
RENDER = '''
import lzero.entry
from lzero_kvcache.envs.suite_env import SuiteEnv
env = SuiteEnv('cartpole', 'swingup', from_pixels=True, height=48, width=64)
assert env.reset().std() > 0, 'the cartpole gives an empty picture'
from dm_control import _render
print(f'SuiteEnv renders pixels by {_render.Renderer.__name__}')
'''


def atari() -> list[Finding]:
    """
    Overview:
        Does Pong take a step, with a real ROM, and is there OpenCV, which LightZero's wrappers resize frames with?
    """
    done, last_line = _run(STEP_PONG)
    if done:
        return [Finding('Atari', OK, last_line)]
    if 'ROM' in last_line:
        mend = 'make roms' if Path('Makefile').exists() and Path('lzero_kvcache').exists() else ROMS
    else:
        mend = "pip install 'lzero-kvcache[atari]'"
    return [Finding('Atari', WARNING, last_line, mend)]


def dm_control() -> list[Finding]:
    """
    Overview:
        Does a task of DeepMind's Control Suite take a step?
    """
    if find_spec('dm_control') is None:
        return []
    done, last_line = _run(STEP_CARTPOLE)
    if done:
        return [Finding('dm-control', OK, last_line)]
    return [Finding('dm-control', WARNING, last_line, "pip install 'lzero-kvcache[dmc]'")]


def rendering() -> list[Finding]:
    """
    Overview:
        Does the environment that training uses render pixels, as things are, or with another ``MUJOCO_GL``?
    """
    if find_spec('dm_control') is None:
        return []
    chosen = os.environ.get('MUJOCO_GL')
    setting = f'MUJOCO_GL={chosen}' if chosen else 'MUJOCO_GL not set'
    done, last_line = _run(RENDER)
    if done:
        return [Finding('rendering', OK, f'{last_line}, {setting}')]
    unset = 'unset MUJOCO_GL' if chosen else ''
    if unset and _run(RENDER, '')[0]:
        mend = unset
    else:
        working = (library for library in GRAPHICS_LIBRARIES if library != chosen and _run(RENDER, library)[0])
        library = next(working, None)
        installing = ' && '.join(filter(None, ('apt-get install libegl1', unset)))
        mend = f'export MUJOCO_GL={library}' if library else installing
    return [Finding('rendering', WARNING, f'{last_line}, {setting}', mend)]


def _run(code: str, graphics_library: Optional[str] = None) -> tuple[bool, str]:
    environment = dict(os.environ, **({} if graphics_library is None else {'MUJOCO_GL': graphics_library}))
    try:
        completed = subprocess.run(
            [sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, env=environment,
            timeout=SECONDS_AT_MOST,
        )
    except subprocess.TimeoutExpired:
        return False, f'no answer within {SECONDS_AT_MOST} s'
    if completed.returncode == 0:
        return True, completed.stdout.splitlines()[-1]
    if completed.returncode < 0:
        return False, f'the process was ended by {signal.Signals(-completed.returncode).name}'
    lines = completed.stderr.strip().splitlines()
    return False, lines[-1] if lines else f'ended with status {completed.returncode}'
