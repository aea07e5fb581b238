"""The timesteps that LightZero's segment collector hands down."""
import logging
from collections.abc import Mapping
from functools import cache, wraps
from typing import Any, Callable, Optional

from ding.envs import BaseEnvManager, BaseEnvTimestep
from ding.torch_utils import to_ndarray
from lzero.worker import MuZeroSegmentCollector

from .recognition import has_managed_cache

logger = logging.getLogger('lzero_kvcache')


@cache
def mend_segment_collector() -> None:
    """
    Let LightZero's ``MuZeroSegmentCollector`` collect where observations have no timestep, for the rest of this process
    and for the stock policies, too: by itself it ends in a ``KeyError``. A policy with a managed cache is handed the
    timestep of each step. By itself the collector hands down those that it has begun to collect with, for all steps
    until it has its segments.
    """
    MuZeroSegmentCollector.reset_env = _with_timesteps(MuZeroSegmentCollector.reset_env)


def _with_timesteps(reset_env: Callable) -> Callable:

    @wraps(reset_env)
    def reset_counting_env(self: MuZeroSegmentCollector, _env: Optional[BaseEnvManager] = None) -> None:
        reset_env(self, None if _env is None else StepCountingEnvManager(_env, self))

    return reset_counting_env


class StepCountingEnvManager:
    """
    An environment manager whose observations have a ``timestep``: their own, or else the number of steps since the
    environment was reset. Whatever else is asked for is the manager's. The collector's timesteps follow those of the
    observations that are ready.
    """

    def __init__(self, manager: BaseEnvManager, collector: MuZeroSegmentCollector) -> None:
        self._manager = manager
        self._collector = collector
        self._steps: dict[int, int] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._manager, name)

    @property
    def ready_obs(self) -> dict[int, Any]:
        """As the manager's."""
        observations = {env_id: self._with_timestep(env_id, obs) for env_id, obs in self._manager.ready_obs.items()}
        if has_managed_cache(self._collector._policy):
            self._collector.timestep_dict.update(
                {env_id: to_ndarray(obs['timestep']) for env_id, obs in observations.items()}
            )
        return observations

    def launch(self, reset_param: Optional[dict] = None) -> None:
        """As the manager's."""
        self._steps.clear()
        self._manager.launch(reset_param)

    def reset(self, reset_param: Optional[dict] = None) -> None:
        """As the manager's."""
        for env_id in list(self._steps) if reset_param is None else reset_param:
            self._steps.pop(env_id, None)
        self._manager.reset(reset_param)

    def step(self, actions: dict[int, Any]) -> dict[int, BaseEnvTimestep]:
        """As the manager's. An environment whose episode is done has been reset by it."""
        timesteps = self._manager.step(actions)
        counted = {}
        for env_id, timestep in timesteps.items():
            counted[env_id] = timestep
            if timestep.info.get('abnormal', False):
                # It has no observation, and the collector resets the environment.
                continue
            self._steps[env_id] = self._steps.get(env_id, 0) + 1
            counted[env_id] = timestep._replace(obs=self._with_timestep(env_id, timestep.obs))
            if timestep.done:
                del self._steps[env_id]
        return counted

    def _with_timestep(self, env_id: int, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        if 'timestep' in observation:
            return observation
        _say_that_timesteps_are_counted()
        return {**observation, 'timestep': self._steps.get(env_id, 0)}


@cache
def _say_that_timesteps_are_counted() -> None:
    logger.info("The environment's observations have no timestep: it is counted from each reset. Said once.")
