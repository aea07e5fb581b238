"""The running episode of one environment."""
from collections import deque
from copy import deepcopy
from typing import Any, NamedTuple, Optional

import torch

from ..store import Context


class EpisodeStep(NamedTuple):
    """
    Overview:
        One step of a running episode.
    Arguments:
        - observation (:obj:`torch.Tensor`): What the environment shows then.
        - action (:obj:`Any`): The action that led there; not looked at for the oldest observation.
        - timestep (:obj:`int`): The step of the episode.
        - length (:obj:`int`): Tokens of the context that the episode makes then.
        - given (:obj:`int`): The timestep as the caller gave it, which may not count.
    """
    observation: torch.Tensor
    action: Any
    timestep: int
    length: int
    given: int


class EnvironmentHistory:
    """
    Overview:
        The running episode of one environment: its last ``steps``, as many as take part in a context and one more, and
        where the context that they make is cached; without a ``key``, it is to be computed from the steps.
    Arguments:
        - scope (:obj:`str`): Names phase and environment in the keys of its contexts.
        - num_observations (:obj:`int`): How many observations may take part in a context.
    """

    def __init__(self, scope: str, num_observations: int) -> None:
        self.scope = scope
        self.steps: deque[EpisodeStep] = deque(maxlen=num_observations + 1)
        self.roots = 0
        # The step that the last action was taken at, and the action.
        self._taken: Optional[tuple[EpisodeStep, Any]] = None
        self.key: Optional[str] = None
        self.context: Optional[Context] = None

    def restart(self) -> None:
        """
        Overview:
            Forget the episode. The count of roots goes on, so that no key comes twice.
        """
        self.key = self._taken = None
        self.steps.clear()

    def append(self, step: EpisodeStep) -> None:
        """
        Overview:
            Add one step. Where its context is remains to be said.
        Arguments:
            - step (:obj:`EpisodeStep`): The step.
        """
        # First, because an inference may break off anywhere.
        self.key = None
        self.steps.append(step)

    def take(self, action: Any) -> None:
        """
        Overview:
            The environment takes an action at the last step.
        Arguments:
            - action (:obj:`Any`): The action.
        """
        self._taken = self.steps[-1], deepcopy(action)

    def follows(self, timestep: int) -> bool:
        """
        Overview:
            Whether a timestep may be that of the next step. One that is negative, or stands still, tells nothing.
        Arguments:
            - timestep (:obj:`int`): As the caller gives it.
        """
        return timestep < 0 or timestep in (self.steps[-1].given, self.steps[-1].timestep + 1)

    def last_step(self) -> Optional[tuple[torch.Tensor, Any]]:
        """
        Overview:
            The last observation and the action since, which the next root inference goes on from; None where an episode
            begins. A step without an action is to be taken once more, because the search from it has broken off.
        """
        if self._has_acted():
            return self.steps[-1].observation, self._taken[1]
        return (self.steps[-2].observation, self.steps[-1].action) if len(self.steps) > 1 else None

    def reaches(self, timestep: int) -> bool:
        """
        Overview:
            Whether the environment is still in this episode, as far as its timestep tells.
        Arguments:
            - timestep (:obj:`int`): As the caller gives it.
        """
        if not self.steps:
            return True
        return self.follows(timestep) if self._has_acted() else self._repeats(timestep)

    def goes_on(self, observation: torch.Tensor, timestep: int) -> bool:
        """
        Overview:
            Whether the episode goes on from a caller's last observation. The caller may take the last step once more,
            because the search from it has broken off; it is taken back then.
        Arguments:
            - observation (:obj:`torch.Tensor`): The caller's last observation.
            - timestep (:obj:`int`): The timestep of the one that follows, as the caller gives it.
        """
        goes_on = self.ends_with(observation) and self.follows(timestep)
        if len(self.steps) < 2 or not self._repeats(timestep):
            return goes_on
        before, last = self.steps[-2], self.steps[-1]
        # Two observations in turn may be the same: then timesteps tell, if they count.
        if goes_on and not before.given < last.given or not _is_same(before.observation, observation):
            return goes_on
        self.key = None
        self._taken = before, last.action
        self.steps.pop()
        return True

    def ends_with(self, observation: torch.Tensor) -> bool:
        """
        Overview:
            Whether the episode's last observation is the one that a caller goes on from.
        Arguments:
            - observation (:obj:`torch.Tensor`): The caller's last observation.
        """
        return bool(self.steps) and _is_same(self.steps[-1].observation, observation)

    def _has_acted(self) -> bool:
        return self._taken is not None and bool(self.steps) and self._taken[0] is self.steps[-1]

    def _repeats(self, timestep: int) -> bool:
        return timestep < 0 or timestep == self.steps[-1].given


def _is_same(observation: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(observation.to(other), other)
