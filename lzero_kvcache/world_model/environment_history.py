"""The running episode of one environment."""
from collections import deque
from copy import deepcopy
from typing import Any, NamedTuple, Optional

import torch

from ..search.episode import Episode


class EpisodeStep(NamedTuple):
    """One step of a running episode.

    Attributes:
        action: The action that led there; unused for the oldest observation.
        length: Tokens of the episode's context at this step.
        given: The timestep as the caller gave it, which may not count.
    """
    observation: torch.Tensor
    action: Any
    timestep: int
    length: int
    given: int


class EnvironmentHistory(Episode):
    """The running episode of one environment: one step more than takes part in a context. If ``key`` is None, the
    context has to be computed from the steps.
    """

    def __init__(self, scope: str, num_observations: int) -> None:
        super().__init__()
        self.scope = scope
        self.steps: deque[EpisodeStep] = deque(maxlen=num_observations + 1)
        # The step of the last action, and the action.
        self._taken: Optional[tuple[EpisodeStep, Any]] = None

    def restart(self) -> None:
        self.key = self._taken = None
        self.steps.clear()

    def append(self, step: EpisodeStep) -> None:
        """Add one step, whose context is not cached yet."""
        # First, because an interruption may come anywhere.
        self.key = None
        self.steps.append(step)

    def take(self, action: Any) -> None:
        self._taken = self.steps[-1], deepcopy(action)

    def follows(self, timestep: int) -> bool:
        """Whether a timestep may be the next step's. One that is negative, or stands still, tells nothing."""
        return timestep < 0 or timestep in (self.steps[-1].given, self.steps[-1].timestep + 1)

    def last_step(self) -> Optional[tuple[torch.Tensor, Any]]:
        """The last observation and the action since, for the next root inference; None where an episode begins. A step
        without an action is repeated, because the search from it has broken off.
        """
        if self._has_acted():
            return self.steps[-1].observation, self._taken[1]
        return (self.steps[-2].observation, self.steps[-1].action) if len(self.steps) > 1 else None

    def reaches(self, timestep: int) -> bool:
        """Whether the environment may still be in this episode, judged by its timestep as the caller gives it."""
        if not self.steps:
            return True
        return self.follows(timestep) if self._has_acted() else self._repeats(timestep)

    def goes_on(self, observation: torch.Tensor, timestep: int) -> bool:
        """Whether the episode goes on from a caller's last observation, with the caller's timestep of the next one. If
        the caller repeats the last step, because the search from it has broken off, takes that back.
        """
        goes_on = self.ends_with(observation) and self.follows(timestep)
        if len(self.steps) < 2 or not self._repeats(timestep):
            return goes_on
        before, last = self.steps[-2], self.steps[-1]
        # Successive observations may be equal: then timesteps decide, if they count.
        if goes_on and not before.given < last.given or not _is_same(before.observation, observation):
            return goes_on
        self.key = None
        self._taken = before, last.action
        self.steps.pop()
        return True

    def ends_with(self, observation: torch.Tensor) -> bool:
        """Whether a caller's last observation is the episode's."""
        return bool(self.steps) and _is_same(self.steps[-1].observation, observation)

    def _has_acted(self) -> bool:
        return self._taken is not None and bool(self.steps) and self._taken[0] is self.steps[-1]

    def _repeats(self, timestep: int) -> bool:
        return timestep < 0 or timestep == self.steps[-1].given


def _is_same(observation: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(observation.to(other), other)
