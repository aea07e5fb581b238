"""The running episodes of the environments, and the contexts that they make."""
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

from ..manager import KVCacheManager
from ..store import ContextBatch, ContextStore
from .cached_transformer import embed_actions, extend
from .contexts import RebuildStats, like_parameters
from .positions import history_positions


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
        self.observations: deque[torch.Tensor] = deque(maxlen=num_observations)
        self.actions: deque[Any] = deque(maxlen=num_observations)
        self.timesteps: deque[int] = deque(maxlen=num_observations)
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
            - observation (:obj:`torch.Tensor`): What the environment shows now, copied.
            - action (:obj:`Any`): The action that led there; not looked at for the oldest observation.
            - timestep (:obj:`int`): The step of the episode.
        """
        self.observations.append(observation.clone())
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

    def actions_between(self) -> list[Any]:
        """
        Overview:
            The actions between the kept observations, one fewer than there are observations.
        """
        return list(self.actions)[1:]


class EnvironmentHistories:
    """
    Overview:
        One history per environment and phase. With ``lossless`` each holds on to its last context, whatever the pools
        evict, and encodes its observations again when the weights have changed; without, a miss starts over from the
        last observation alone, as in the release.
    Arguments:
        - manager (:obj:`KVCacheManager`): The pools.
        - store (:obj:`ContextStore`): Where the contexts lie.
        - num_observations (:obj:`int`): How many observations fit into a context.
        - lossless (:obj:`bool`): See above.
        - rope_positions (:obj:`str`): See ``KVCacheConfig``.
        - rebuild_stats (:obj:`RebuildStats`): Counts what misses cost.

    ``root_stats`` counts what the roots have found.
    """

    def __init__(
            self, manager: KVCacheManager, store: ContextStore, num_observations: int, lossless: bool,
            rope_positions: str, rebuild_stats: RebuildStats
    ) -> None:
        self._manager = manager
        self._store = store
        self._num_observations = num_observations
        self._lossless = lossless
        self._rope_positions = rope_positions
        self._rebuild_stats = rebuild_stats
        self.root_stats = RootStats()
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

    def forget_all(self) -> None:
        """
        Overview:
            Forget every episode.
        """
        for history in self:
            self._restart(history)

    def hold(self, history: EnvironmentHistory, context: Optional[int]) -> None:
        """
        Overview:
            Let a history hold on to a context in place of its former one.
        Arguments:
            - history (:obj:`EnvironmentHistory`): The history.
            - context (:obj:`Optional[int]`): The context's handle, or None for no context.
        """
        if history.context is not None:
            self._store.release(history.context)
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
            if not history.continues_from(last_observations[row]):
                self.root_stats.cold_starts += 1
                self._restart(history)
                history.append(last_observations[row], None, int(timesteps[row]) - 1)

    def resume(
            self, world_model: Any, histories: Sequence[EnvironmentHistory], env_ids: Sequence[int]
    ) -> ContextBatch:
        """
        Overview:
            The contexts of the episodes so far.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
            - histories (:obj:`Sequence[EnvironmentHistory]`): One per row; without observations, the context is empty.
            - env_ids (:obj:`Sequence[int]`): Their environments.
        Returns:
            - contexts (:obj:`ContextBatch`): A copy, free to be changed.
        """
        contexts = self._store.empty(len(histories), like_parameters(world_model))
        cached_rows, handles, missing = [], [], []
        for row, (history, env_id) in enumerate(zip(histories, env_ids)):
            if not history.observations:
                continue
            handle = None if history.key is None else self._look_up(world_model, history, env_id)
            if handle is None:
                missing.append(row)
            else:
                cached_rows.append(row)
                handles.append(handle)
        if cached_rows:
            contexts.assign(cached_rows, self._store.gather(handles))
        if missing:
            contexts.assign(missing, self._encode(world_model, [histories[row] for row in missing]))
        self.root_stats.context_tokens += int(contexts.lengths.sum())
        return contexts

    def __iter__(self) -> Iterator[EnvironmentHistory]:
        return iter(self._histories.values())

    def _restart(self, history: EnvironmentHistory) -> None:
        self.hold(history, None)
        history.restart()

    def _look_up(self, world_model: Any, history: EnvironmentHistory, env_id: int) -> Optional[int]:
        handle = self._manager.get_init_cache(env_id, history.key)
        world_model.root_total_query_cnt += 1
        world_model.root_hit_cnt += handle is not None
        if handle is None and history.context is not None:
            self._rebuild_stats.rebuilds += 1
            return history.context
        return handle

    def _encode(self, world_model: Any, histories: Sequence[EnvironmentHistory]) -> ContextBatch:
        kept = self._num_observations if self._lossless else 1
        observations = [list(history.observations)[-kept:] for history in histories]
        latents = world_model.tokenizer.encode_to_obs_embeddings(
            torch.stack([observation for episode in observations for observation in episode])
        ).split([len(episode) for episode in observations])
        sequences, positions = [], []
        for history, episode in zip(histories, latents):
            blocks = [episode[0]]
            if len(episode) > 1:
                actions = embed_actions(world_model, stack_actions(history.actions_between(), episode.device))
                for action, latent in zip(actions, episode[1:]):
                    blocks += [action, latent]
            sequences.append(torch.cat(blocks))
            timesteps = list(history.timesteps)[-len(episode):]
            if not self._lossless and self._rope_positions == 'release':
                # Where the release starts over, it takes the last observation for the current one.
                timesteps = [step + 1 for step in timesteps]
            positions.append(history_positions(timesteps, world_model.num_observations_tokens))
        counts = np.asarray([len(sequence) for sequence in sequences])
        tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        contexts = self._store.empty(len(histories), tokens)
        padded = np.stack([np.pad(row, (0, counts.max() - len(row))) for row in positions])
        extend(world_model, contexts, tokens, padded if world_model.config.rotary_emb else None, counts)
        self._rebuild_stats.rebuilds += len(histories)
        self._rebuild_stats.tokens += int(counts.sum())
        return contexts


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
