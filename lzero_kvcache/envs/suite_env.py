"""A task of dm_control's suite with gym's interface, so that DI-engine's wrappers go around it."""
import math
from collections.abc import Mapping
from contextlib import nullcontext
from types import ModuleType
from typing import Any, Optional

import gym
import numpy as np
from gym.spaces import Box

from ..checks import check_count, choices
from .rendering import import_triton, rendering

# In control steps. The suite's tasks end by themselves then, but for a few that never do.
EPISODE_LENGTH = 1000
# dmc2gym's choice, which LightZero leaves as it is.
CAMERA_ID = 0


def import_suite() -> ModuleType:
    """
    Overview:
        Import ``dm_control.suite``.
    Raises:
        - ImportError: If dm-control is not installed.
    """
    import_triton()
    try:
        from dm_control import suite
    except ModuleNotFoundError as error:
        raise ImportError(f"DMC needs dm-control ({error}): pip install 'lzero-kvcache[dmc]'") from error
    return suite


def check_task(suite: ModuleType, domain_name: Any, task_name: Any) -> None:
    """
    Overview:
        Check a task's name.
    Arguments:
        - suite (:obj:`ModuleType`): ``dm_control.suite``.
        - domain_name, task_name (:obj:`Any`): As in the user's config.
    Raises:
        - ValueError: If the suite has no such domain, or the domain no such task.
    """
    domains = {domain for domain, _ in suite.ALL_TASKS}
    if domain_name not in domains:
        raise ValueError(f'env.domain_name is {domain_name!r}: {choices(domain_name, domains)}')
    tasks = {task for domain, task in suite.ALL_TASKS if domain == domain_name}
    if task_name not in tasks:
        raise ValueError(f'env.task_name is {task_name!r}, in domain {domain_name!r}: {choices(task_name, tasks)}')


class SuiteEnv(gym.Env):
    """
    Overview:
        A task of the suite: ``reset()`` returns an observation, ``step(action)`` observation, reward, end and info.
        Observations are float32 vectors, the task's own one after the other, or uint8 images. Actions are of
        :math:`[-1, 1]`, mapped to the bounds of the task's actuators; what has no bounds takes them as they are.
        Rewards are the sum over ``frame_skip`` control steps.
    Interfaces:
        ``__init__``, ``seed``, ``reset``, ``step``, ``step_seconds``, ``render``, ``close``
    """

    def __init__(
            self, domain_name: str, task_name: str, frame_skip: int = 1, from_pixels: bool = False, height: int = 84,
            width: int = 84, channels_first: bool = True, visualize_reward: bool = False
    ) -> None:
        """
        Overview:
            Load the task.
        Arguments:
            - domain_name, task_name (:obj:`str`): E.g. ``'cartpole'``, ``'swingup'``.
            - frame_skip (:obj:`int`): Control steps for which an action is held.
            - from_pixels (:obj:`bool`): Whether observations are images.
            - height, width (:obj:`int`): Of an image, in pixels.
            - channels_first (:obj:`bool`): Whether images are :math:`(3, H, W)`, or :math:`(H, W, 3)`.
            - visualize_reward (:obj:`bool`): Whether images show the reward by colours.
        Raises:
            - ValueError: If there is no such task, or a number is below 1.
            - ImportError: If dm-control is not installed.
        """
        suite = import_suite()
        check_task(suite, domain_name, task_name)
        self._frame_skip = check_count(frame_skip, 'env.frame_skip', 'control steps')
        self._height = check_count(height, 'env.height', 'pixels')
        self._width = check_count(width, 'env.width', 'pixels')
        self._from_pixels = from_pixels
        self._channels_first = channels_first
        self._max_episode_steps = math.ceil(EPISODE_LENGTH / self._frame_skip)
        self._steps = 0
        # This task prepares the rendering, whatever is observed.
        self._renders_at_reset = (domain_name, task_name) == ('quadruped', 'escape')
        self._env = suite.load(domain_name, task_name, visualize_reward=visualize_reward)

        self._action_center, self._action_scale = _action_map(self._env.action_spec())
        self.action_space = Box(-1, 1, self._action_center.shape, np.float32)
        self.reward_range = (0, self._frame_skip)
        if from_pixels:
            shape = (3, self._height, self._width) if channels_first else (self._height, self._width, 3)
            self.observation_space = Box(0, 255, shape, np.uint8)
        else:
            dim = sum(math.prod(spec.shape) for spec in self._env.observation_spec().values())
            self.observation_space = Box(-np.inf, np.inf, (dim, ), np.float32)

    def seed(self, seed: Optional[int] = None) -> None:
        """
        Overview:
            Begin the task's random numbers anew, as ``suite.load(..., task_kwargs=dict(random=seed))`` does.
        """
        self._env.task.random.seed(seed)

    def reset(self) -> np.ndarray:
        """
        Overview:
            Begin an episode.
        Returns:
            - observation (:obj:`np.ndarray`): The first one.
        """
        self._steps = 0
        with rendering() if self._renders_at_reset else nullcontext():
            time_step = self._env.reset()
        return self._observation(time_step.observation)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, dict[str, Any]]:
        """
        Overview:
            Hold an action for ``frame_skip`` control steps, or until the episode ends.
        Arguments:
            - action (:obj:`np.ndarray`): Of :math:`[-1, 1]`, shape :math:`(A, )`.
        Returns:
            - observation, reward, done, info: ``info['discount']`` is the task's, 0 where the episode ends in failure.
        """
        control = self._action_center + self._action_scale * np.asarray(action, np.float64)
        reward = 0.
        for _ in range(self._frame_skip):
            time_step = self._env.step(control)
            reward += time_step.reward or 0.
            if time_step.last():
                break
        self._steps += 1
        done = time_step.last() or self._steps >= self._max_episode_steps
        return self._observation(time_step.observation), reward, done, {'discount': time_step.discount}

    @property
    def step_seconds(self) -> float:
        """
        Overview:
            How long an action is held, in seconds of the simulation.
        """
        return self._frame_skip * self._env.control_timestep()

    def render(self, mode: str = 'rgb_array') -> np.ndarray:
        """
        Overview:
            An image of the present state.
        Returns:
            - image (:obj:`np.ndarray`): uint8, :math:`(H, W, 3)`.
        Raises:
            - RuntimeError: If this machine has nothing to render with.
        """
        with rendering():
            return self._env.physics.render(self._height, self._width, camera_id=CAMERA_ID)

    def close(self) -> None:
        """
        Overview:
            Free what renders.
        """
        self._env.close()

    def _observation(self, observation: Mapping[str, np.ndarray]) -> np.ndarray:
        if not self._from_pixels:
            return np.concatenate([np.ravel(part) for part in observation.values()]).astype(np.float32)
        image = self.render()
        return np.ascontiguousarray(image.transpose(2, 0, 1)) if self._channels_first else image


def _action_map(spec: Any) -> tuple[np.ndarray, np.ndarray]:
    """Center and scale that take :math:`[-1, 1]` to an action's bounds, one each where it has none."""
    import mujoco

    low, high = np.broadcast_to(spec.minimum, spec.shape), np.broadcast_to(spec.maximum, spec.shape)
    # MuJoCo's word for no bounds.
    bounded = (low > -mujoco.mjMAXVAL) & (high < mujoco.mjMAXVAL)
    return np.where(bounded, (high + low) / 2, 0.), np.where(bounded, (high - low) / 2, 1.)
