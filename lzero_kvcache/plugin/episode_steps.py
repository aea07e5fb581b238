from collections.abc import Sequence
from typing import Any, Optional

import torch


class EpisodeSteps:
    """
    Overview:
        The last observation and action of every environment's running episode, by environment id.
    """

    def __init__(self) -> None:
        self._steps: dict[int, tuple[torch.Tensor, Any]] = {}

    def batch(self, env_ids: Sequence[int], observations: torch.Tensor) -> tuple[torch.Tensor, list[Any]]:
        """
        Overview:
            What the model is given beside the current observations.
        Arguments:
            - env_ids (:obj:`Sequence[int]`): The environment of each row.
            - observations (:obj:`torch.Tensor`): The current observations, :math:`(B, ...)`.
        Returns:
            - last_observations, last_actions (:obj:`Tuple`): :math:`(B, ...)` and B actions; zeros and -1 where an
                episode begins.
        """
        beginning = torch.zeros_like(observations[0])
        steps = [self._steps.get(env_id, (beginning, -1)) for env_id in env_ids]
        return torch.stack([observation for observation, _ in steps]), [action for _, action in steps]

    def update(self, env_ids: Sequence[int], observations: torch.Tensor, actions: Sequence[Any]) -> None:
        """
        Overview:
            The environments have acted.
        Arguments:
            - env_ids (:obj:`Sequence[int]`): The environment of each row.
            - observations (:obj:`torch.Tensor`): What they acted on, :math:`(B, ...)`.
            - actions (:obj:`Sequence[Any]`): B actions.
        """
        for env_id, observation, action in zip(env_ids, observations, actions):
            self._steps[env_id] = (observation, action)

    def forget(self, env_ids: Optional[Sequence[int]] = None) -> None:
        """
        Overview:
            Episodes have ended.
        Arguments:
            - env_ids (:obj:`Optional[Sequence[int]]`): Whose; None: all.
        """
        for env_id in list(self._steps) if env_ids is None else env_ids:
            self._steps.pop(env_id, None)

    def __len__(self) -> int:
        """
        Overview:
            The number of running episodes.
        """
        return len(self._steps)
