"""The running episodes of the environments, and the contexts that they make."""
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F

from ..manager import KVCacheManager
from ..store import Context, ContextBatch, TokenStore
from .cached_model import CachedModel
from .positions import history_positions


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


class EpisodeStep(NamedTuple):
    """
    Overview:
        One step of a running episode.
    Arguments:
        - observation (:obj:`torch.Tensor`): What the environment shows then.
        - action (:obj:`Any`): The action that led there; not looked at for the oldest observation.
        - timestep (:obj:`int`): The step of the episode.
        - length (:obj:`int`): Tokens of the context that the episode makes then.
    """
    observation: torch.Tensor
    action: Any
    timestep: int
    length: int


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
        self.key: Optional[str] = None
        self.context: Optional[Context] = None

    def restart(self) -> None:
        """
        Overview:
            Forget the episode. The count of roots goes on, so that no key comes twice.
        """
        self.key = None
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

    def continues_from(self, observation: torch.Tensor) -> bool:
        """
        Overview:
            Whether the episode's last observation is the one that a caller goes on from.
        Arguments:
            - observation (:obj:`torch.Tensor`): The caller's last observation.
        """
        return bool(self.steps) and _is_same(self.steps[-1].observation, observation)

    def takes_back(self, observation: torch.Tensor, timestep: int) -> bool:
        """
        Overview:
            Whether the caller takes the last step once more, because the search from it has broken off. It is taken
            back then. Timesteps that do not count up tell nothing.
        Arguments:
            - observation (:obj:`torch.Tensor`): The caller's last observation.
            - timestep (:obj:`int`): The timestep of the one that follows.
        """
        if len(self.steps) < 2 or not self.steps[-2].timestep < self.steps[-1].timestep == timestep:
            return False
        if not _is_same(self.steps[-2].observation, observation):
            return False
        self.key = None
        self.steps.pop()
        return True


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

    ``root_stats`` counts what the roots have found, ``rebuild_stats`` what misses have cost.
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
        self._histories: dict[tuple[str, int], EnvironmentHistory] = {}

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

    def meet(
            self, histories: Sequence[EnvironmentHistory], last_observations: torch.Tensor, timesteps: np.ndarray,
            first_steps: Sequence[bool]
    ) -> None:
        """
        Overview:
            Begin the episodes that begin, and begin anew those that do not go on from where they were left.
        Arguments:
            - histories (:obj:`Sequence[EnvironmentHistory]`): One per row.
            - last_observations (:obj:`torch.Tensor`): What the caller goes on from, :math:`(B, ...)`.
            - timesteps (:obj:`np.ndarray`): Timesteps of the observations that follow, :math:`(B, )`.
            - first_steps (:obj:`Sequence[bool]`): Whether an episode begins.
        """
        for row, history in enumerate(histories):
            if first_steps[row]:
                self._restart(history)
                self.root_stats.first_steps += 1
                continue
            self.root_stats.continuing += 1
            last, timestep = last_observations[row], int(timesteps[row])
            # In this order: two observations in turn may be the same.
            if not history.takes_back(last, timestep) and not history.continues_from(last):
                self.root_stats.cold_starts += 1
                self._restart(history)
                history.append(EpisodeStep(last.clone(), None, timestep - 1, self._num_observations_tokens))

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

    def _look_up(self, model: CachedModel, history: EnvironmentHistory, env_id: int) -> Optional[Context]:
        context = self._manager.get_init_cache(env_id, history.key)
        model.world_model.root_total_query_cnt += 1
        model.world_model.root_hit_cnt += context is not None
        if context is None and history.context is not None:
            self.rebuild_stats.restored += 1
            return history.context
        return context


def _is_same(observation: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(observation.to(other.device), other)


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
