"""The running episodes of the environments, and the contexts that they make."""
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F

from ..manager import KVCacheManager
from ..store import Context, ContextBatch, TokenStore
from .cached_model import CachedModel
from .environment_history import EnvironmentHistory, EpisodeStep
from .positions import history_positions
from .warn_once import WarnOnce


@dataclass
class RebuildStats:
    """
    Overview:
        What misses have cost.
    Arguments:
        - rebuilds (:obj:`int`): Contexts that were computed again.
        - tokens (:obj:`int`): Tokens that went through the transformer for them.
        - restored (:obj:`int`): Contexts that needed no computation, because all their tokens were still in the store.
    """
    rebuilds: int = 0
    tokens: int = 0
    restored: int = 0


@dataclass
class RootStats:
    """
    Overview:
        What root inferences have found of the episodes that they go on.
    Arguments:
        - first_steps (:obj:`int`): Roots at which an episode began.
        - continuing (:obj:`int`): All others.
        - cold_starts (:obj:`int`): Continuing roots whose episode was not known, so that it began with the last
            observation: a model that is put to use in the middle of an episode.
        - context_tokens (:obj:`int`): The contexts' lengths at continuing roots, added up.
    """
    first_steps: int = 0
    continuing: int = 0
    cold_starts: int = 0
    context_tokens: int = 0

    @property
    def mean_context_length(self) -> float:
        """
        Overview:
            Tokens of a continuing root's context, on average; 0.0 without any such root.
        """
        return self.context_tokens / self.continuing if self.continuing else 0.0


class EnvironmentHistories:
    """
    Overview:
        One history per environment and phase. With ``lossless`` each holds on to its last context, whatever the pools
        evict, and encodes its observations again when the weights have changed; without, a miss starts over from the
        last observation alone, as in the release.
    Arguments:
        - manager (:obj:`KVCacheManager`): The pools.
        - store (:obj:`TokenStore`): Where the contexts lie.
        - num_observations (:obj:`int`): How many observations may take part in a context.
        - num_observations_tokens (:obj:`int`): Tokens per observation.
        - lossless (:obj:`bool`): See above.
        - rope_positions (:obj:`str`): See ``KVCacheConfig``.

    ``root_stats`` counts what the roots have found, ``rebuild_stats`` what misses have cost; ``last_missing`` and
    ``last_begun_anew`` are rows of the last root inference: whose contexts were missing, whose episodes were not those
    that the caller went on from.
    """

    def __init__(
            self, manager: KVCacheManager, store: TokenStore, num_observations: int, num_observations_tokens: int,
            lossless: bool, rope_positions: str
    ) -> None:
        self._manager = manager
        self._store = store
        self._num_observations = num_observations
        self._num_observations_tokens = num_observations_tokens
        self._lossless = lossless
        self._rope_positions = rope_positions
        self.rebuild_stats = RebuildStats()
        self.root_stats = RootStats()
        self.last_missing: frozenset[int] = frozenset()
        self.last_begun_anew: frozenset[int] = frozenset()
        self._histories: dict[tuple[str, int], EnvironmentHistory] = {}
        self._warn_once = WarnOnce()

    def of(self, phase: str, env_id: int) -> EnvironmentHistory:
        """
        Overview:
            The history of one environment, empty at first.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_id (:obj:`int`): The environment.
        """
        if (phase, env_id) not in self._histories:
            self._histories[phase, env_id] = EnvironmentHistory(f'{phase}/{env_id}', self._num_observations)
        return self._histories[phase, env_id]

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """
        Overview:
            Episodes have ended.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_ids (:obj:`Optional[Sequence[int]]`): Whose; None: all.
        """
        for (history_phase, env_id), history in self._histories.items():
            if history_phase == phase and (env_ids is None or env_id in env_ids):
                self._restart(history)

    def hold(self, history: EnvironmentHistory, context: Optional[Context]) -> None:
        """
        Overview:
            Let a history hold on to a context in place of its former one.
        Arguments:
            - history (:obj:`EnvironmentHistory`): The history.
            - context (:obj:`Optional[Context]`): The context, or None for none.
        """
        if history.context is not None:
            self._store.release([history.context])
        history.context = self._store.retain(context) if self._lossless and context is not None else None

    def last_steps(
            self, phase: str, env_ids: Sequence[int], observations: torch.Tensor
    ) -> tuple[torch.Tensor, list[Any]]:
        """
        Overview:
            What a policy hands its model beside the current observations.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_ids (:obj:`Sequence[int]`): The environment of each row.
            - observations (:obj:`torch.Tensor`): The current observations, :math:`(B, ...)`.
        Returns:
            - last_observations, last_actions (:obj:`Tuple`): :math:`(B, ...)` and B actions; zeros and -1 where an
                episode begins.
        """
        beginning = torch.zeros_like(observations[0]), -1
        steps = [self.of(phase, env_id).last_step() or beginning for env_id in env_ids]
        return torch.stack([last.to(observations) for last, _ in steps]), [action for _, action in steps]

    def take(self, phase: str, env_ids: Sequence[int], actions: Sequence[Any]) -> None:
        """
        Overview:
            Environments take actions at their last steps.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_ids (:obj:`Sequence[int]`): The environments.
            - actions (:obj:`Sequence[Any]`): One each.
        """
        for env_id, action in zip(env_ids, actions):
            self.of(phase, env_id).take(action)

    def left(self, phase: str, env_ids: Sequence[int], timesteps: Sequence[int]) -> list[int]:
        """
        Overview:
            The environments whose timesteps do not follow, so that they are in another episode than they were.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_ids (:obj:`Sequence[int]`): The environments.
            - timesteps (:obj:`Sequence[int]`): One each, as the caller gives them.
        """
        left = []
        for env_id, timestep in zip(env_ids, timesteps):
            history = self.of(phase, env_id)
            if not history.reaches(int(timestep)):
                self._warn_of_new_episode(history, int(timestep))
                left.append(env_id)
        return left

    def running(self, phase: str) -> int:
        """
        Overview:
            The number of running episodes.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
        """
        return sum(bool(history.steps) for (of_phase, _), history in self._histories.items() if of_phase == phase)

    def meet(
            self, histories: Sequence[EnvironmentHistory], last_observations: torch.Tensor, timesteps: np.ndarray,
            first_steps: Sequence[bool]
    ) -> tuple[np.ndarray, list[bool]]:
        """
        Overview:
            Begin the episodes that begin, and begin anew those that do not go on from where they were left.
        Arguments:
            - histories (:obj:`Sequence[EnvironmentHistory]`): One per row.
            - last_observations (:obj:`torch.Tensor`): What the caller goes on from, :math:`(B, ...)`.
            - timesteps (:obj:`np.ndarray`): Timesteps of the observations that follow, as the caller gives them,
                :math:`(B, )`.
            - first_steps (:obj:`Sequence[bool]`): Whether the caller begins an episode.
        Returns:
            - timesteps, first_steps (:obj:`Tuple`): The same, timesteps that the caller does not have counted from the
                episode's own, a timestep that falls back to 0 taken for a first step.
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
                    self._warn_of_cold_start(history)
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

    def resume(
            self, model: CachedModel, histories: Sequence[EnvironmentHistory], env_ids: Sequence[int]
    ) -> ContextBatch:
        """
        Overview:
            The contexts of the episodes so far, with room for one step.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - histories (:obj:`Sequence[EnvironmentHistory]`): One per row; without observations, the context is empty.
            - env_ids (:obj:`Sequence[int]`): Their environments.
        Returns:
            - batch (:obj:`ContextBatch`): The rows.
        """
        contexts: list[Optional[Context]] = []
        missing = []
        for row, (history, env_id) in enumerate(zip(histories, env_ids)):
            contexts.append(None if history.key is None else self._look_up(model, history, env_id))
            if contexts[row] is None and history.steps:
                missing.append(row)
        self.last_missing = frozenset(missing)
        encoded = self.encode(model, [histories[row] for row in missing]) if missing else []
        self.rebuild_stats.rebuilds += len(missing)
        for row, context in zip(missing, encoded):
            contexts[row] = context
        batch = self._store.gather(contexts, 1 + model.num_observations_tokens, model.like)
        self._store.release(encoded)
        self.root_stats.context_tokens += int(batch.lengths.sum())
        return batch

    def encode(self, model: CachedModel, histories: Sequence[EnvironmentHistory]) -> list[Context]:
        """
        Overview:
            Compute contexts from observations and actions.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - histories (:obj:`Sequence[EnvironmentHistory]`): One per row, none of them empty.
        Returns:
            - contexts (:obj:`List[Context]`): One per row, held once, by the caller.
        """
        kept = self._num_observations if self._lossless else 1
        episodes = [list(history.steps)[-kept:] for history in histories]
        latents = model.embed_observations(
            torch.stack([step.observation.to(model.like.device) for episode in episodes for step in episode])
        ).split([len(episode) for episode in episodes])
        sequences, positions = [], []
        for episode, observed in zip(episodes, latents):
            blocks = [observed[0]]
            if len(episode) > 1:
                actions = model.embed_actions(stack_actions([step.action for step in episode[1:]], observed.device))
                for action, latent in zip(actions, observed[1:]):
                    blocks += [action, latent]
            length = episode[-1].length if self._lossless else len(observed[0])
            sequences.append(torch.cat(blocks)[-length:])
            timesteps = [step.timestep for step in episode]
            if not self._lossless and self._rope_positions == 'release':
                # Where the release starts over, it takes the last observation for the current one.
                timesteps = [step + 1 for step in timesteps]
            positions.append(history_positions(timesteps, model.num_observations_tokens)[-length:])
        counts = np.asarray([len(sequence) for sequence in sequences])
        padding = counts.max() - counts
        tokens = torch.stack([F.pad(sequence, (0, 0, short, 0)) for sequence, short in zip(sequences, padding)])
        padded = np.stack([np.pad(row, (short, 0)) for row, short in zip(positions, padding)])
        self.rebuild_stats.tokens += int(counts.sum())
        with self._store.gather([None] * len(histories), tokens.shape[1], tokens) as batch:
            model.append(batch, tokens, padded, counts)
            return self._store.add(batch)

    def __iter__(self) -> Iterator[EnvironmentHistory]:
        return iter(self._histories.values())

    def _restart(self, history: EnvironmentHistory) -> None:
        self.hold(history, None)
        history.restart()

    def _warn_of_new_episode(self, history: EnvironmentHistory, timestep: int) -> None:
        self._warn_once(
            '%s: timestep %d does not follow timestep %d, so a new episode begins there. Where an episode ends, call '
            "the policy's reset with the environment's id; let timesteps count one per action, or leave them out.",
            history.scope, timestep, history.steps[-1].timestep
        )

    def _warn_of_cold_start(self, history: EnvironmentHistory) -> None:
        self._warn_once(
            '%s: the episode goes on from an observation that the cache has not seen, so its context begins there. Has '
            'the tensor of the last observation been written to since?', history.scope
        )

    def _look_up(self, model: CachedModel, history: EnvironmentHistory, env_id: int) -> Optional[Context]:
        context = self._manager.get_init_cache(env_id, history.key)
        model.world_model.root_total_query_cnt += 1
        model.world_model.root_hit_cnt += context is not None
        if context is None and history.context is not None:
            self.rebuild_stats.restored += 1
            return history.context
        return context


def stack_actions(actions: Sequence[Any], device: torch.device) -> torch.Tensor:
    """
    Overview:
        Actions as a policy hands them down, as one tensor.
    Arguments:
        - actions (:obj:`Sequence[Any]`): Ints, or arrays of the action space's size.
        - device (:obj:`torch.device`): Where the tensor is to lie.
    Returns:
        - actions (:obj:`torch.Tensor`): :math:`(N, )` or :math:`(N, action_space_size)`.
    """
    return torch.as_tensor(np.stack([np.asarray(action) for action in actions]), device=device)
