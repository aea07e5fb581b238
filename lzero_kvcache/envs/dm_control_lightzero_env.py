"""LightZero's environment of the DeepMind Control Suite, on dm-control alone."""
import logging
from copy import deepcopy
from pathlib import Path
from typing import Any, Optional

import gym
import imageio.v3 as imageio
import numpy as np
from ding.envs import (
    ActionRepeatWrapper,
    BaseEnv,
    BaseEnvTimestep,
    ClipRewardWrapper,
    FrameStackWrapper,
    ScaledFloatFrameWrapper,
    WarpFrameWrapper,
)
from ding.utils import ENV_REGISTRY
from easydict import EasyDict
from gym.spaces import Box

from ..checks import check_count
from .suite_env import SuiteEnv

logger = logging.getLogger('lzero_kvcache')

# In milliseconds. Browsers show what is shorter for a tenth of a second.
SHORTEST_FRAME = 20


@ENV_REGISTRY.register('dm_control_lightzero')
class DMControlLightZeroEnv(BaseEnv):
    """
    Overview:
        A task of dm_control's suite with the config keys, spaces and observations of LightZero's ``dmc2gym_lightzero``,
        for which dmc2gym need not be installed. Two things differ: seeds reach the task's initial states (dmc2gym gives
        every environment the same ones), and every task of the suite is known.
    Interfaces:
        ``__init__``, ``seed``, ``reset``, ``step``, ``close``, ``random_action``, ``enable_save_replay``,
        ``create_collector_env_cfg``, ``create_evaluator_env_cfg``
    """

    config = dict(
        # (str) A task of the suite, e.g. 'cartpole' and 'swingup'.
        domain_name=None,
        task_name=None,
        # (int) Control steps for which an action is held. An episode has 1000 of them.
        frame_skip=4,
        # (bool) Whether images are made grey and of resize x resize pixels; needs channels_first=False.
        warp_frame=False,
        resize=84,
        # (bool) Whether images are scaled to [0, 1].
        scale=False,
        # (bool) Whether of a reward only the sign counts.
        clip_rewards=False,
        # (int) Steps of frame_skip control steps for which an action is repeated.
        action_repeat=1,
        # (int) Observations that are stacked into one.
        frame_stack=1,
        # (bool) Whether observations are images of height x width pixels, or the task's states.
        from_pixels=True,
        height=84,
        width=84,
        # (bool) Whether images are (3, H, W), or (H, W, 3).
        channels_first=True,
        # (bool) Whether images show the reward by colours.
        visualize_reward=False,
        # (bool) Whether info['image_obs'] has an image where observations are states.
        render_image=False,
        # (str or None) The folder in which each episode is kept as a GIF.
        replay_path=None,
        # (bool) The same, in replay_path_gif.
        save_replay_gif=False,
        replay_path_gif=None,
        # (int) Steps after which an episode is cut off.
        collect_max_episode_steps=1000,
        eval_max_episode_steps=1000,
    )

    @classmethod
    def default_config(cls) -> EasyDict:
        """
        Overview:
            The defaults of all keys.
        """
        return EasyDict(deepcopy(cls.config), cfg_type=f'{cls.__name__}Dict')

    def __init__(self, cfg: Optional[dict] = None) -> None:
        """
        Overview:
            Load the task and make its spaces.
        Arguments:
            - cfg (:obj:`Optional[dict]`): What differs from ``default_config()``.
        Raises:
            - ValueError: If there is no such task, or a number is below 1.
            - ImportError: If dm-control is not installed.
        """
        self._cfg = self.default_config()
        self._cfg.update(cfg or {})
        self._max_episode_steps = self._cfg.get('max_episode_steps', self._cfg.collect_max_episode_steps)
        self._replay_folder = self._cfg.replay_path
        if self._cfg.save_replay_gif:
            self._replay_folder = self._cfg.replay_path_gif or self._replay_folder or 'replay_gif'
        self._replay_count = 0
        self._seed: Optional[int] = None
        self._dynamic_seed = False
        self._suite_env = SuiteEnv(
            self._cfg.domain_name, self._cfg.task_name, self._cfg.frame_skip, self._cfg.from_pixels, self._cfg.height,
            self._cfg.width, self._cfg.channels_first, self._cfg.visualize_reward
        )
        self._env = self._wrap(self._suite_env)
        self._reward_space = Box(0, self._cfg.frame_skip, (1, ), np.float32)

    def _wrap(self, env: gym.Env) -> gym.Env:
        cfg = self._cfg
        if cfg.warp_frame:
            if not cfg.from_pixels or cfg.channels_first:
                raise ValueError(
                    f'env.warp_frame is True with env.from_pixels={cfg.from_pixels} and '
                    f'env.channels_first={cfg.channels_first}: allowed are True and False'
                )
            env = WarpFrameWrapper(env, check_count(cfg.resize, 'env.resize', 'pixels'))
        if cfg.scale:
            env = ScaledFloatFrameWrapper(env)
        if cfg.clip_rewards:
            env = ClipRewardWrapper(env)
        if check_count(cfg.action_repeat, 'env.action_repeat', 'steps') > 1:
            env = ActionRepeatWrapper(env, cfg.action_repeat)
        if check_count(cfg.frame_stack, 'env.frame_stack', 'observations') > 1:
            env = FrameStackWrapper(env, cfg.frame_stack)
        return env

    def seed(self, seed: int, dynamic_seed: bool = True) -> None:
        """
        Overview:
            Seed the episodes to come, and what ``random_action`` draws.
        Arguments:
            - seed (:obj:`int`): The seed.
            - dynamic_seed (:obj:`bool`): Whether each episode adds a random number to it, or all begin alike.
        """
        self._seed, self._dynamic_seed = seed, dynamic_seed
        # LightZero's environments draw from NumPy's global generator.
        np.random.seed(seed)
        self.action_space.seed(seed)

    def reset(self) -> dict[str, Any]:
        """
        Overview:
            Begin an episode.
        Returns:
            - observation (:obj:`dict[str, Any]`): ``observation`` (float32), ``action_mask`` (None: actions are
                continuous), ``to_play`` (-1) and ``timestep`` (0).
        """
        if self._seed is not None:
            offset = 100 * np.random.randint(1, 1000) if self._dynamic_seed else 0
            self._suite_env.seed(self._seed + offset)
        self._timestep = 0
        self._eval_episode_return = 0.
        self._frames = []
        return self._observation(self._env.reset())

    def step(self, action: np.ndarray) -> BaseEnvTimestep:
        """
        Overview:
            Take one action.
        Arguments:
            - action (:obj:`np.ndarray`): Shape :math:`(A, )`; what is beyond :math:`[-1, 1]` is clipped.
        Returns:
            - timestep (:obj:`BaseEnvTimestep`): The observation as in ``reset``, the reward (float32, shape
                :math:`()`), whether the episode has ended, and info, at its end with ``eval_episode_return``.
        """
        action = np.clip(np.asarray(action, np.float32), -1, 1)
        observation, reward, done, info = self._env.step(action)
        self._timestep += 1
        self._eval_episode_return += reward
        if self._cfg.render_image or self._replay_folder:
            image = self._suite_env.render()
            info['image_obs'] = image.transpose(2, 0, 1) if self._cfg.channels_first else image
            if self._replay_folder:
                self._frames.append(image)
        # One step more than the limit, as in LightZero's own.
        done = bool(done or self._timestep > self._max_episode_steps)
        if done:
            info['eval_episode_return'] = self._eval_episode_return
            self._save_replay()
        return BaseEnvTimestep(self._observation(observation), np.asarray(reward, np.float32), done, info)

    def _observation(self, observation: np.ndarray) -> dict[str, Any]:
        return {
            'observation': observation.astype(np.float32), 'action_mask': None, 'to_play': -1,
            'timestep': self._timestep,
        }

    def _save_replay(self) -> None:
        if not self._frames:
            return
        folder = Path(self._replay_folder)
        folder.mkdir(parents=True, exist_ok=True)
        name = f'{self._cfg.domain_name}_{self._cfg.task_name}_seed{self._seed}_episode{self._replay_count}.gif'
        milliseconds = 1000 * self._suite_env.step_seconds * self._cfg.action_repeat
        # Frames that are alike become one, which stays for as long as all of them only where a duration is given.
        imageio.imwrite(folder / name, self._frames, loop=0, duration=max(milliseconds, SHORTEST_FRAME))
        logger.info('an episode is kept in %s', folder / name)
        self._replay_count += 1
        self._frames = []

    def close(self) -> None:
        """
        Overview:
            Free what renders; ``reset`` may follow.
        """
        self._suite_env.close()

    def enable_save_replay(self, replay_path: Optional[str] = None) -> None:
        """
        Overview:
            Keep the episodes to come as GIFs.
        Arguments:
            - replay_path (:obj:`Optional[str]`): The folder; None: ``./video``.
        """
        self._replay_folder = replay_path or './video'

    def random_action(self) -> np.ndarray:
        """
        Overview:
            An action drawn from the action space.
        Returns:
            - action (:obj:`np.ndarray`): float32, shape :math:`(A, )`.
        """
        return self.action_space.sample()

    @property
    def observation_space(self) -> gym.Space:
        """Of the wrapped task; what ``reset`` and ``step`` return is float32, even where images are uint8 here."""
        return self._env.observation_space

    @property
    def action_space(self) -> gym.Space:
        """:math:`[-1, 1]` in each dimension."""
        return self._env.action_space

    @property
    def reward_space(self) -> gym.Space:
        """:math:`[0, frame\\_skip]`."""
        return self._reward_space

    def __repr__(self) -> str:
        return f'LightZero dm_control Env({self._cfg.domain_name}:{self._cfg.task_name})'

    @staticmethod
    def create_collector_env_cfg(cfg: dict) -> list[dict]:
        """
        Overview:
            The configs of the collector's environments.
        """
        return _env_configs(cfg, cfg.pop('collector_env_num'), cfg.collect_max_episode_steps, is_eval=False)

    @staticmethod
    def create_evaluator_env_cfg(cfg: dict) -> list[dict]:
        """
        Overview:
            The configs of the evaluator's environments.
        """
        return _env_configs(cfg, cfg.pop('evaluator_env_num'), cfg.eval_max_episode_steps, is_eval=True)


def _env_configs(cfg: dict, env_num: int, max_episode_steps: int, is_eval: bool) -> list[dict]:
    cfg = deepcopy(cfg)
    cfg.update(max_episode_steps=max_episode_steps, is_eval=is_eval)
    return [cfg for _ in range(env_num)]
