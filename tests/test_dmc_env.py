"""The environment on dm-control: against the suite itself, and against LightZero's own environment on dmc2gym."""
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import imageio.v3 as imageio
import numpy as np
import pytest
from ding.utils import ENV_REGISTRY
from dm_control import suite
from hypothesis import given, settings
from hypothesis import strategies as st
from rendering import CANNOT_RENDER, needs_rendering

from lzero_kvcache.envs.dm_control_lightzero_env import DMControlLightZeroEnv
from lzero_kvcache.envs.dmc_lightzero_env import DMCLightZeroEnv
from lzero_kvcache.envs.suite_env import SuiteEnv


def make_env(domain_name: str = 'cartpole', task_name: str = 'swingup', **cfg: Any) -> DMControlLightZeroEnv:
    cfg = dict(dict(from_pixels=False), **cfg)
    return DMControlLightZeroEnv(dict(domain_name=domain_name, task_name=task_name, **cfg))


def flat(time_step: Any) -> np.ndarray:
    return np.concatenate([np.ravel(part) for part in time_step.observation.values()]).astype(np.float32)


@pytest.fixture(scope='module')
def stock() -> ModuleType:
    """LightZero's own environment's module. All that it takes of dmc2gym at its import is that it is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, 'dmc2gym', ModuleType('dmc2gym'))
        return import_module('zoo.dmc2gym.envs.dmc2gym_lightzero_env')


@settings(max_examples=10)
@given(
    task=st.sampled_from([
        ('cartpole', 'swingup'), ('finger', 'turn_hard'), ('cheetah', 'run'), ('walker', 'walk'), ('humanoid', 'run')
    ]),
    seed=st.integers(0, 2 ** 31), frame_skip=st.integers(1, 5)
)
def test_steps_as_the_suite_itself(task, seed, frame_skip):
    env = make_env(*task, frame_skip=frame_skip)
    env.seed(seed, dynamic_seed=False)
    reference = suite.load(*task, task_kwargs=dict(random=seed))
    observation = env.reset()
    assert observation.pop('observation').tolist() == flat(reference.reset()).tolist()
    assert observation == dict(action_mask=None, to_play=-1, timestep=0)
    generator = np.random.RandomState(seed)
    for step in range(1, 31):
        action = generator.uniform(-1, 1, env.action_space.shape).astype(np.float32)
        rewards = []
        for _ in range(frame_skip):
            time_step = reference.step(action)
            rewards.append(time_step.reward)
        timestep = env.step(action)
        np.testing.assert_array_equal(timestep.obs['observation'], flat(time_step))
        assert timestep.obs['observation'].dtype == np.float32
        assert timestep.obs['timestep'] == step
        assert timestep.reward == np.float32(sum(rewards))
        assert not timestep.done


@pytest.mark.parametrize('frame_skip', [1, 3, 8])
def test_an_episode_ends_with_the_suites(frame_skip):
    env = make_env(frame_skip=frame_skip)
    env.seed(0)
    env.reset()
    rewards, done = [], False
    while not done:
        _, reward, done, info = env.step(env.random_action())
        rewards.append(float(reward))
        assert ('eval_episode_return' in info) == done
    assert len(rewards) == -(-1000 // frame_skip)
    assert info['eval_episode_return'] == pytest.approx(sum(rewards), rel=1e-5)


def test_a_task_without_an_end_is_cut_off():
    env = make_env('lqr', 'lqr_2_1', frame_skip=100)
    env.reset()
    assert [bool(env.step(env.random_action()).done) for _ in range(10)] == [False] * 9 + [True]


def test_limits_of_collector_and_evaluator_count_as_in_lightzero():
    cfg = make_env()._cfg
    cfg.update(collector_env_num=2, evaluator_env_num=3, collect_max_episode_steps=4, eval_max_episode_steps=6)
    collect = DMControlLightZeroEnv.create_collector_env_cfg(cfg)
    evaluate = DMControlLightZeroEnv.create_evaluator_env_cfg(cfg)
    assert (len(collect), len(evaluate)) == (2, 3)
    assert (collect[0].is_eval, evaluate[0].is_eval) == (False, True)
    for cfg, steps in ((collect[0], 5), (evaluate[0], 7)):
        env = DMControlLightZeroEnv(cfg)
        env.reset()
        assert [env.step(env.random_action()).done for _ in range(steps)] == [False] * (steps - 1) + [True]


def test_fixed_seeds_repeat_and_dynamic_ones_vary():
    env = make_env()
    env.seed(3, dynamic_seed=False)
    first, second = (env.reset()['observation'].tolist() for _ in range(2))
    assert first == second
    env.seed(3, dynamic_seed=True)
    first, second = (env.reset()['observation'].tolist() for _ in range(2))
    assert first != second
    env.seed(3, dynamic_seed=True)
    assert env.reset()['observation'].tolist() == first
    env.seed(4, dynamic_seed=False)
    assert env.reset()['observation'].tolist() != first


def test_actions_are_clipped_and_mapped_to_the_actuators_bounds():
    env = make_env('quadruped', 'walk', frame_skip=1)
    reference = suite.load('quadruped', 'walk', task_kwargs=dict(random=0))
    spec = reference.action_spec()
    assert (spec.maximum > 1).any()
    for action, control in ((-np.ones(12), spec.minimum), (np.full(12, 7.), spec.maximum)):
        env.seed(0, dynamic_seed=False)
        env.reset()
        reference.task.random.seed(0)
        reference.reset()
        np.testing.assert_allclose(env.step(action).obs['observation'], flat(reference.step(control)), rtol=1e-5)


@pytest.mark.slow
def test_every_task_of_the_stock_environment_has_its_spaces(stock):
    for domain, tasks in stock.dmc2gym_env_info.items():
        for task, spaces in tasks.items():
            for options in (dict(from_pixels=False), dict(from_pixels=True, height=64, width=72),
                            dict(from_pixels=True, height=64, width=72, channels_first=False)):
                env = make_env(domain, task, frame_skip=2, **options)
                expected = spaces['observation_space'](**options)
                assert type(env.observation_space) is type(expected)
                assert env.observation_space == expected, (domain, task)
                assert env.observation_space.dtype == expected.dtype
            assert env.action_space == spaces['action_space']
            assert env.reward_space == spaces['reward_space'](2)
            assert env.action_space.dtype == env.reward_space.dtype == np.float32


def test_every_key_of_the_stock_environment_is_known(stock):
    assert DMControlLightZeroEnv.config.keys() == stock.DMC2GymEnv.config.keys()
    assert DMControlLightZeroEnv.config == stock.DMC2GymEnv.config
    assert stock.DMC2GymEnv.default_config().keys() == DMControlLightZeroEnv.default_config().keys()


@pytest.mark.parametrize('task', suite.ALL_TASKS, ids='-'.join)
def test_every_task_of_the_suite_runs(task):
    if task == ('quadruped', 'escape') and CANNOT_RENDER:
        pytest.skip(CANNOT_RENDER)
    env = make_env(*task)
    observation = env.reset()['observation']
    assert env.observation_space.contains(observation)
    timestep = env.step(env.random_action())
    assert env.observation_space.contains(timestep.obs['observation'])
    env.close()


@needs_rendering
def test_images_are_the_suites():
    env = make_env(from_pixels=True, height=48, width=64, frame_skip=2)
    env.seed(5, dynamic_seed=False)
    reference = suite.load('cartpole', 'swingup', task_kwargs=dict(random=5))
    reference.reset()
    image = env.reset()['observation']
    for _ in range(3):
        expected = reference.physics.render(48, 64, camera_id=0)
        assert image.shape == (3, 48, 64)
        assert image.dtype == np.float32
        np.testing.assert_array_equal(image, expected.transpose(2, 0, 1))
        for _ in range(2):
            reference.step([1.])
        image = env.step(np.ones(1)).obs['observation']
    env.close()
    # A closed environment can begin again.
    assert env.reset()['observation'].max() > 0


@needs_rendering
@pytest.mark.parametrize('options, shape, upper', [
    (dict(scale=True), (3, 64, 64), 1),
    (dict(scale=True, frame_stack=2), (2, 3, 64, 64), 1),
    (dict(channels_first=False), (64, 64, 3), 255),
    (dict(channels_first=False, warp_frame=True, resize=32), (32, 32), 255),
], ids=str)
def test_wrapped_images(options, shape, upper):
    env = make_env(from_pixels=True, height=64, width=64, **options)
    for observation in (env.reset()['observation'], env.step(env.random_action()).obs['observation']):
        assert observation.shape == shape == env.observation_space.shape
        assert upper / 4 < observation.max() <= upper
    env.close()


def test_wrapped_rewards():
    env, twice, clipped = make_env(), make_env(action_repeat=2), make_env(clip_rewards=True)
    for other in (env, twice, clipped):
        other.seed(0, dynamic_seed=False)
        other.reset()
    action = np.ones(1)
    first = env.step(action)
    second = env.step(action)
    repeated = twice.step(action)
    assert repeated.reward == pytest.approx(first.reward + second.reward)
    np.testing.assert_array_equal(repeated.obs['observation'], second.obs['observation'])
    assert clipped.step(action).reward == 1


@needs_rendering
def test_replays_are_kept(tmp_path):
    env = make_env(frame_skip=250, save_replay_gif=True, replay_path_gif=str(tmp_path), height=32, width=32)
    env.seed(0)
    for _ in range(2):
        env.reset()
        for action in (1, -1, -1, 1):
            timestep = env.step(np.array([action], np.float32))
        assert timestep.done
    assert timestep.info['image_obs'].shape == (3, 32, 32)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ['cartpole_swingup_seed0_episode0.gif', 'cartpole_swingup_seed0_episode1.gif']
    assert milliseconds(tmp_path / files[0]) == [2500] * 4
    env.close()


@needs_rendering
@pytest.mark.parametrize('cfg, total', [(dict(frame_skip=125), 8 * 1250), (dict(action_repeat=125), 8 * 1250),
                                        (dict(frame_skip=1, max_episode_steps=9), 10 * 20)], ids=str)
def test_replays_last_as_long_as_the_episode_also_where_nothing_moves(tmp_path, monkeypatch, cfg, total):
    monkeypatch.setattr(SuiteEnv, 'render', lambda self: np.zeros((32, 32, 3), np.uint8))
    env = make_env(save_replay_gif=True, replay_path_gif=str(tmp_path), **cfg)
    env.seed(0)
    env.reset()
    while not env.step(np.zeros(1, np.float32)).done:
        pass
    assert milliseconds(tmp_path / 'cartpole_swingup_seed0_episode0.gif') == [total]


def milliseconds(gif: Path) -> list[float]:
    """For how long each of a film's images is shown."""
    return [imageio.immeta(gif, index=index)['duration'] for index in range(len(imageio.imread(gif)))]


@pytest.mark.parametrize('cfg, sentence', [
    (dict(domain_name='walkr'), r"env.domain_name is 'walkr': allowed are acrobot, .*; did you mean 'walker'\?"),
    (dict(domain_name=None), r'env.domain_name is None: allowed are acrobot, '),
    (dict(domain_name='walker', task_name='stnd'),
     r"env.task_name is 'stnd', in domain 'walker': allowed are run, stand, walk; did you mean 'stand'\?"),
    (dict(frame_skip=0), r'env.frame_skip is 0: allowed is an integer of at least 1 \(control steps\)'),
    (dict(frame_stack=0), r'env.frame_stack is 0: allowed is an integer of at least 1 \(observations\)'),
    (dict(from_pixels=True, warp_frame=True), r'env.warp_frame is True with .*channels_first=True: allowed are'),
], ids=str)
def test_errors_are_sentences(cfg, sentence):
    with pytest.raises(ValueError, match=sentence):
        make_env(**cfg)


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {name: value for name, value in os.environ.items() if name != 'MUJOCO_GL'}
    return subprocess.run(
        [sys.executable, '-c', code], capture_output=True, text=True, env=dict(environment, **variables)
    )


def test_a_missing_dm_control_is_said_with_the_command_that_brings_it():
    code = (
        "import sys; sys.modules['dm_control'] = None\n"
        'from lzero_kvcache.envs.suite_env import SuiteEnv\n'
        "try: SuiteEnv('cartpole', 'swingup')\n"
        'except ImportError as error: print(error)'
    )
    assert "pip install 'lzero-kvcache[dmc]'" in run_python(code).stdout


def test_a_machine_that_cannot_render_is_said_with_the_command_that_mends_it():
    code = (
        'from lzero_kvcache.envs.suite_env import SuiteEnv\n'
        "env = SuiteEnv('cartpole', 'swingup', from_pixels=True)\n"
        'try: env.reset()\n'
        'except RuntimeError as error: print(error)\n'
        "print(SuiteEnv('cartpole', 'swingup').reset().shape)"
    )
    output = run_python(code, MUJOCO_GL='disable').stdout
    assert 'dm-control cannot render on this machine (MUJOCO_GL is disable): No OpenGL' in output
    assert "'apt-get install libegl1'" in output
    assert '(5,)' in output


@needs_rendering
def test_mujoco_gl_of_the_user_does_not_crash_what_compiles_later():
    """Mesa, which EGL brings on a machine without a GPU, must not be loaded before triton."""
    code = (
        'from lzero_kvcache.envs.suite_env import SuiteEnv\n'
        "env = SuiteEnv('cartpole', 'swingup', from_pixels=True)\n"
        'try: print(env.reset().shape)\n'
        'except RuntimeError as error: print(error)\n'
    )
    completed = run_python(code, MUJOCO_GL='egl')
    assert completed.returncode == 0, completed.stderr
    assert '(3, 84, 84)' in completed.stdout or 'cannot render' in completed.stdout


@needs_rendering
def test_mujoco_gl_of_the_user_does_not_crash_lightzero_after_this_package():
    completed = run_python("import lzero_kvcache, lzero.entry, triton; print('imported')", MUJOCO_GL='egl')
    assert completed.stdout.splitlines()[-1] == 'imported', completed.stderr


def test_without_dmc2gym_it_is_ours():
    assert issubclass(ENV_REGISTRY.get('dmc_lightzero'), DMControlLightZeroEnv)
    assert ENV_REGISTRY.get('dmc_lightzero') is DMCLightZeroEnv


@pytest.mark.slow
@pytest.mark.parametrize('make, environment', [
    ('lambda domain_name, task_name, render_image: None', 'DMC2GymEnv'),
    ('lambda domain_name, task_name: None', 'DMControlLightZeroEnv'),
], ids=["LightZero's fork", 'the original'])
def test_with_dmc2gym_it_is_lightzeros_if_that_can_work(make, environment):
    code = (
        'import logging, sys, types; logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n'
        "sys.modules['dmc2gym'] = types.ModuleType('dmc2gym')\n"
        f"sys.modules['dmc2gym'].make = {make}\n"
        'from lzero_kvcache.envs.dmc_lightzero_env import DMCLightZeroEnv\n'
        'from easydict import EasyDict\n'
        "cfg = EasyDict(domain_name='cartpole', task_name='swingup', save_replay_gif=False, replay_path_gif=None)\n"
        'DMCLightZeroEnv(cfg), DMCLightZeroEnv(cfg)\n'
        'print(DMCLightZeroEnv.__mro__[1].__name__)'
    )
    output = run_python(code).stdout
    assert output.splitlines()[-1] == environment
    assert output.count(f'DMC runs on {environment}: ') == 1


def test_suite_env_renders_nothing_that_is_not_asked_for():
    env = SuiteEnv('cartpole', 'swingup')
    env.reset()
    env.step(np.zeros(1))
    assert env._env.physics._contexts is None
