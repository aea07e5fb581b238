"""The running episodes of all environments."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch

from .environment_history import EnvironmentHistory, EpisodeStep
from .warn_once import WarnOnce


@dataclass
class RootStats:
    """What root inferences have found of the episodes that they go on.

    Attributes:
        first_steps: Roots at which an episode began.
        continuing: All others.
        cold_starts: Continuing roots of an unknown episode: the model came into use in the middle of it.
        context_tokens: The contexts' lengths at continuing roots, added up.
    """
    first_steps: int = 0
    continuing: int = 0
    cold_starts: int = 0
    context_tokens: int = 0

    @property
    def mean_context_length(self) -> float:
        """Tokens of a continuing root's context, on average; 0.0 without any such root."""
        return self.context_tokens / self.continuing if self.continuing else 0.0


class EnvironmentHistories:
    """One history per environment and phase. ``on_end`` is called with that of an episode that ends.
    ``last_begun_anew`` are the rows of the last root inference whose caller went on from another episode.
    """

    def __init__(
            self, num_observations: int, num_observations_tokens: int, on_end: Callable[[EnvironmentHistory], None]
    ) -> None:
        self._num_observations = num_observations
        self._num_observations_tokens = num_observations_tokens
        self._on_end = on_end
        self.root_stats = RootStats()
        self.last_begun_anew: frozenset[int] = frozenset()
        self._histories: dict[tuple[str, int], EnvironmentHistory] = {}
        self._warn_once = WarnOnce()

    def of(self, phase: str, env_id: int) -> EnvironmentHistory:
        """The history of one environment, empty at first."""
        if (phase, env_id) not in self._histories:
            self._histories[phase, env_id] = EnvironmentHistory(f'{phase}/{env_id}', self._num_observations)
        return self._histories[phase, env_id]

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """The episodes of some environments have ended; None: of all."""
        for (history_phase, env_id), history in self._histories.items():
            if history_phase == phase and (env_ids is None or env_id in env_ids):
                self._restart(history)

    def last_steps(
            self, phase: str, env_ids: Sequence[int], observations: torch.Tensor
    ) -> tuple[torch.Tensor, list[Any]]:
        """A policy's last observations, like the current ones, and actions; zeros and -1 where an episode begins."""
        beginning = torch.zeros_like(observations[0]), -1
        steps = [self.of(phase, env_id).last_step() or beginning for env_id in env_ids]
        return torch.stack([last.to(observations) for last, _ in steps]), [action for _, action in steps]

    def take(self, phase: str, env_ids: Sequence[int], actions: Sequence[Any]) -> None:
        """Environments take actions at their last steps."""
        for env_id, action in zip(env_ids, actions):
            self.of(phase, env_id).take(action)

    def left(self, phase: str, env_ids: Sequence[int], timesteps: Sequence[int]) -> list[int]:
        """The environments whose timesteps, as the caller gives them, belong to another episode."""
        left = []
        for env_id, timestep in zip(env_ids, timesteps):
            history = self.of(phase, env_id)
            if not history.reaches(int(timestep)):
                self._warn_of_new_episode(history, int(timestep))
                left.append(env_id)
        return left

    def running(self, phase: str) -> int:
        """The number of running episodes."""
        return sum(bool(history.steps) for (of_phase, _), history in self._histories.items() if of_phase == phase)

    def meet(
            self, histories: Sequence[EnvironmentHistory], last_observations: torch.Tensor, timesteps: np.ndarray,
            first_steps: Sequence[bool]
    ) -> tuple[np.ndarray, list[bool]]:
        """Begin the episodes that begin, and begin anew those that do not go on from a row's last observation.

        Returns:
            Timesteps, counted by the episode where the caller has none, and first steps, also at a fall back to
            timestep 0.
        """
        counted, begins = np.maximum(timesteps, 0), list(first_steps)
        begun_anew = []
        for row, history in enumerate(histories):
            if not begins[row]:
                last, timestep = last_observations[row], int(timesteps[row])
                if history.goes_on(last, timestep):
                    self.root_stats.continuing += 1
                    counted[row] = history.steps[-1].timestep + 1
                    continue
                begun_anew.append(row)
                if not history.ends_with(last):
                    self._warn_once(
                        '%s: the episode goes on from an observation that the cache has not seen, so its context '
                        'begins there. Has the tensor of the last observation been written to since?', history.scope
                    )
                else:
                    self._warn_of_new_episode(history, timestep)
                    begins[row] = timestep == 0
            self._restart(history)
            if begins[row]:
                self.root_stats.first_steps += 1
            else:
                self.root_stats.continuing += 1
                self.root_stats.cold_starts += 1
                counted[row] = max(1, counted[row])
                before = int(counted[row]) - 1
                history.append(EpisodeStep(last.clone(), None, before, self._num_observations_tokens, before))
        self.last_begun_anew = frozenset(begun_anew)
        return counted, begins

    def __iter__(self) -> Iterator[EnvironmentHistory]:
        return iter(self._histories.values())

    def _restart(self, history: EnvironmentHistory) -> None:
        self._on_end(history)
        history.restart()

    def _warn_of_new_episode(self, history: EnvironmentHistory, timestep: int) -> None:
        self._warn_once(
            '%s: timestep %d does not follow timestep %d, so a new episode begins there. Where an episode ends, call '
            "the policy's reset with the environment's id; let timesteps count one per action, or leave them out.",
            history.scope, timestep, history.steps[-1].timestep
        )
