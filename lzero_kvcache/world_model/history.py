from collections import deque
from typing import Any, Deque, List, Optional

import torch


class EnvironmentHistory:
    """
    Overview:
        The running episode of one environment: its last observations and actions, as many as fit into the window, and
        where the context that they make is cached.
    Arguments:
        - scope (:obj:`str`): Names phase and environment in the keys of its contexts.
        - num_observations (:obj:`int`): How many observations fit into a context.
    """

    def __init__(self, scope: str, num_observations: int) -> None:
        self.scope = scope
        self.observations: Deque[torch.Tensor] = deque(maxlen=num_observations)
        self.actions: Deque[Any] = deque(maxlen=num_observations)
        self.timesteps: Deque[int] = deque(maxlen=num_observations)
        self.roots = 0
        self.key: Optional[str] = None
        self.context: Optional[int] = None

    def restart(self) -> None:
        """
        Overview:
            Forget the episode. The count of roots goes on, so that no key comes twice.
        """
        self.observations.clear()
        self.actions.clear()
        self.timesteps.clear()
        self.key = None

    def append(self, observation: torch.Tensor, action: Any, timestep: int) -> None:
        """
        Overview:
            Add one step.
        Arguments:
            - observation (:obj:`torch.Tensor`): What the environment shows now.
            - action (:obj:`Any`): The action that led there; not looked at for the oldest observation.
            - timestep (:obj:`int`): The step of the episode.
        """
        self.observations.append(observation)
        self.actions.append(action)
        self.timesteps.append(timestep)

    def continues_from(self, observation: torch.Tensor) -> bool:
        """
        Overview:
            Whether the episode's last observation is the one that a caller goes on from.
        Arguments:
            - observation (:obj:`torch.Tensor`): The caller's last observation.
        """
        return bool(self.observations) and torch.equal(self.observations[-1], observation)

    def actions_between(self) -> List[Any]:
        """
        Overview:
            The actions between the kept observations, one fewer than there are observations.
        """
        return list(self.actions)[1:]
