"""Registers ``dmc_lightzero``: LightZero's own environment where dmc2gym is installed, else ours."""
import inspect
import logging
from functools import cache
from typing import Optional

from ding.envs import BaseEnv
from ding.utils import ENV_REGISTRY

from .dm_control_lightzero_env import DMControlLightZeroEnv

logger = logging.getLogger('lzero_kvcache')


def available_environment() -> tuple[type[BaseEnv], str]:
    """
    Overview:
        Choose the environment by what is installed.
    Returns:
        - environment (:obj:`type[BaseEnv]`): LightZero's ``DMC2GymEnv``, or ``DMControlLightZeroEnv``.
        - reason (:obj:`str`): Why this one.
    """
    try:
        import dmc2gym
    except ImportError as error:
        return DMControlLightZeroEnv, f'dmc2gym cannot be imported ({error})'
    # LightZero was written for a fork of dmc2gym, and fails on the original.
    if 'render_image' not in inspect.signature(dmc2gym.make).parameters:
        return DMControlLightZeroEnv, 'LightZero needs a dmc2gym whose make() takes render_image, this one does not'
    from zoo.dmc2gym.envs.dmc2gym_lightzero_env import DMC2GymEnv

    return DMC2GymEnv, 'dmc2gym is installed'


ENVIRONMENT, REASON = available_environment()


@cache
def log_once() -> None:
    """
    Overview:
        Say in the log which environment it is. Not when it is imported, when nobody listens yet.
    """
    logger.info('DMC runs on %s: %s', ENVIRONMENT.__name__, REASON)


@ENV_REGISTRY.register('dmc_lightzero')
class DMCLightZeroEnv(ENVIRONMENT):
    """
    Overview:
        LightZero's ``DMC2GymEnv`` where dmc2gym is installed, else ``DMControlLightZeroEnv``; the log says once which.
    """

    def __init__(self, cfg: Optional[dict] = None) -> None:
        log_once()
        super().__init__({} if cfg is None else cfg)
