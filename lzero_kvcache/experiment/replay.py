"""Episodes as GIFs, of any environment whose gym environment can draw itself."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import imageio.v3 as imageio
import numpy as np
from gym.error import Error as GymError
from gymnasium.error import Error as GymnasiumError

MILLISECONDS_PER_STEP = 50


class RecordedEnvironment:
    """
    Overview:
        An environment of LightZero that keeps each of its episodes as a GIF, and is otherwise as ever.
    Arguments:
        - environment (:obj:`Callable`): Its class.
        - folder (:obj:`Path`): Where the GIFs go.
        - cfg (:obj:`dict`): Its config.
    """

    def __init__(self, environment: Callable, folder: Path, cfg: dict) -> None:
        self._environment = environment(cfg=cfg)
        self._folder = folder
        self._seed = 0
        self._frames: list[np.ndarray] = []

    def __getattr__(self, name: str) -> Any:
        # Also asked for before '__init__', when a process of its own unpickles the object.
        if name == '_environment':
            raise AttributeError(name)
        return getattr(self._environment, name)

    def seed(self, seed: int, dynamic_seed: bool = True) -> None:
        """
        Overview:
            As the environment's.
        """
        self._seed = seed
        self._environment.seed(seed, dynamic_seed)

    def reset(self, *args: Any, **kwargs: Any) -> Any:
        """
        Overview:
            As the environment's.
        """
        observation = self._environment.reset(*args, **kwargs)
        self._frames = [image_of(self._environment)]
        return observation

    def step(self, action: Any) -> Any:
        """
        Overview:
            As the environment's.
        """
        timestep = self._environment.step(action)
        self._frames.append(image_of(self._environment))
        if timestep.done:
            self._folder.mkdir(parents=True, exist_ok=True)
            # Frames that are alike become one, which stays for as long as all of them only where a duration is given.
            imageio.imwrite(
                replay_file(self._folder, self._seed), self._frames, loop=0, duration=MILLISECONDS_PER_STEP
            )
        return timestep


def replay_file(folder: Path, seed: int) -> Path:
    """
    Overview:
        The GIF of an episode.
    Arguments:
        - folder (:obj:`Path`): Where the GIFs go.
        - seed (:obj:`int`): The episode's.
    """
    return folder / f'seed{seed}.gif'


def image_of(environment: Any) -> np.ndarray:
    """
    Overview:
        What an environment looks like.
    Arguments:
        - environment (:obj:`Any`): One whose episode has begun.
    Returns:
        - image (:obj:`np.ndarray`): uint8, :math:`(H, W, 3)`.
    Raises:
        - ValueError: If it cannot draw itself.
    """
    # LightZero's environments keep the one of gym or gymnasium under this name, and DI-engine looks for it there, too.
    inner = getattr(environment, '_env', environment)
    if not hasattr(inner, 'render'):
        raise ValueError('it has no render()')
    try:
        image = inner.render()
    except (ImportError, RuntimeError, GymError, GymnasiumError) as error:
        raise ValueError(error) from error
    if not isinstance(image, np.ndarray) or image.ndim != 3 or image.dtype != np.uint8:
        raise ValueError(f'its render() returns no image, but {type(image).__name__}')
    return image


def check_replay(environment: Callable, cfg: dict, folder: Path, seeds: Sequence[int]) -> None:
    """
    Overview:
        Look whether the GIFs would have a place, begin an episode and draw it.
    Arguments:
        - environment (:obj:`Callable`): Its class.
        - cfg (:obj:`dict`): Its config.
        - folder (:obj:`Path`): Where the GIFs shall go.
        - seeds (:obj:`Sequence[int]`): Those of the episodes.
    Raises:
        - ValueError: If a GIF is there already, or the environment cannot be drawn on this machine.
    """
    for path in (replay_file(folder, seed) for seed in seeds):
        if path.exists():
            raise ValueError(f'{path} is there already: choose another folder, or another seed')
    episode = environment(cfg=cfg)
    episode.reset()
    try:
        image_of(episode)
    except ValueError as error:
        raise ValueError(f'the environment {environment.__name__} cannot be kept as a GIF: {error}') from error
    finally:
        episode.close()
