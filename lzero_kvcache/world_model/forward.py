"""What the bookkeeping of a search lets a world model compute."""
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F

from ..search.rebuild import Preceding
from ..search.search import Search
from ..store import ContextBatch, TokenStore
from ..store.slab import TokenSlab
from .blocks import UnknownBlock
from .cached_model import CachedModel, RawContexts, StepOutputs
from .compiled import Step
from .environment_history import EnvironmentHistory
from .given_context import GivenContext, append_given
from .positions import SearchPositions, history_positions


class SearchTensors:
    """Latent states of a search's nodes, [N, num_observations_tokens, E], the actions that led to them, [N, ...], and
    the rotary positions of both, [N, 1 + num_observations_tokens]. They stay in the pieces in which they come until a
    context has to be computed again. ``generation`` is the ``CurrentModel``'s whose weights predict them.
    """

    def __init__(self, latents: torch.Tensor, capacity: int, generation: int) -> None:
        self.generation = generation
        self._capacity = capacity
        self._joined: list[Optional[torch.Tensor]] = [None, None, None]
        self._pieces: list[tuple[int, torch.Tensor, Optional[torch.Tensor], Optional[np.ndarray]]] = []
        self.add(0, latents)

    def add(
            self, first: int, latents: torch.Tensor, actions: Optional[torch.Tensor] = None,
            positions: Optional[np.ndarray] = None
    ) -> None:
        """Take over what belongs to nodes from number ``first`` on. Strays have only latent states."""
        self._pieces.append((first, latents, actions, positions))

    @property
    def latents(self) -> torch.Tensor:
        """By number, of N nodes or more."""
        return self._join()[0]

    @property
    def actions(self) -> torch.Tensor:
        """By number, of N nodes or more."""
        return self._join()[1]

    @property
    def positions(self) -> np.ndarray:
        """By number, of N nodes or more."""
        return self._join()[2].numpy()

    @torch.inference_mode()
    def _join(self) -> list[torch.Tensor]:
        pieces, self._pieces = self._pieces, []
        for first, latents, actions, positions in pieces:
            parts = (latents, actions, None if positions is None else torch.from_numpy(positions))
            self._joined = [
                joined if part is None else self._with_part(joined, first, part)
                for joined, part in zip(self._joined, parts)
            ]
        return self._joined

    def _with_part(self, joined: Optional[torch.Tensor], first: int, part: torch.Tensor) -> torch.Tensor:
        end = first + len(part)
        if joined is None:
            joined = part.new_zeros((max(end, self._capacity), *part.shape[1:]))
        elif end > len(joined):
            joined = torch.cat([joined, part.new_zeros((max(end, 2 * len(joined)) - len(joined), *part.shape[1:]))])
        joined[first:end] = part
        return joined


class Forward:
    """Runs a world model's weights on contexts. Each method appends tokens to a batch, or takes a whole step.
    ``lossless``: an episode's context comes from all its observations, as far as they take part, not from the last
    alone.
    """

    def __init__(
            self, model: CachedModel, step: Step, slab: TokenSlab, positions: SearchPositions, lossless: bool,
            num_observations: int
    ) -> None:
        self.model = model
        self._step = step
        self._slab = slab
        self._positions = positions
        self._lossless = lossless
        self._num_observations = num_observations if lossless else 1

    def lengths_of(self, episodes: Sequence[EnvironmentHistory]) -> np.ndarray:
        """Tokens of the contexts of episodes, [B]."""
        if isinstance(episodes[0], GivenContext):
            return np.array([len(episode.tokens) for episode in episodes])
        if self._lossless:
            return np.array([episode.steps[-1].length for episode in episodes])
        return np.full(len(episodes), self.model.num_observations_tokens)

    def append_episodes(
            self, batch: ContextBatch, episodes: Sequence[EnvironmentHistory], counts: np.ndarray
    ) -> None:
        """Append the last ``counts`` tokens of episodes, [B]."""
        if isinstance(episodes[0], GivenContext):
            append_given(self.model, batch, episodes, counts)
            return
        model, steps_of = self.model, [list(episode.steps)[-self._num_observations:] for episode in episodes]
        latents = model.embed_observations(
            torch.stack([step.observation.to(model.like.device) for steps in steps_of for step in steps])
        ).split([len(steps) for steps in steps_of])
        rows, positions = [], []
        for steps, observed, count in zip(steps_of, latents, counts.tolist()):
            blocks = [observed[0]]
            if len(steps) > 1:
                actions = model.embed_actions(stack_actions([step.action for step in steps[1:]], observed.device))
                for action, latent in zip(actions, observed[1:]):
                    blocks += [action, latent]
            short = int(counts.max()) - count
            rows.append(F.pad(torch.cat(blocks)[-count:], (0, 0, short, 0)))
            timesteps = self._positions.of_encoded([step.timestep for step in steps], self._lossless)
            positions.append(np.pad(history_positions(timesteps, len(observed[0]))[-count:], (short, 0)))
        model.append(batch, torch.stack(rows), np.stack(positions), counts, wanted=0)

    def append_latents(self, batch: ContextBatch, search: Search, numbers: Sequence[int]) -> None:
        """Append the latent states of nodes."""
        positions = None
        if self.model.uses_rotary:
            nodes = search.nodes
            first = self._positions.of_reset_latent(search.timesteps_of(numbers), nodes.depths[numbers])
            positions = first[:, None] + np.arange(self.model.num_observations_tokens)
        self.model.append(batch, search.tensors.latents[self._on_device(numbers)], positions, wanted=0)

    def append_raw(self, batch: ContextBatch, tables: Sequence[np.ndarray]) -> None:
        """Append the raw tokens of contexts of one length."""
        self.model.append(batch, *self._slab.raw(np.stack(tables)), wanted=0)

    def append_steps(self, batch: ContextBatch, search: Search, numbers: Sequence[int]) -> None:
        """Append the steps to nodes, one token per row."""
        self.model.append(batch, *self._steps(search, numbers), wanted=0)

    def preceding_tokens(
            self, tables: Sequence[np.ndarray], search: Search, numbers: Sequence[int]
    ) -> tuple[torch.Tensor, Optional[np.ndarray]]:
        """Raw tokens of contexts, then the steps to nodes, one token per row, [R, 1, E], and their positions."""
        parts = []
        if tables:
            raw, positions = self._slab.raw(np.concatenate(tables))
            parts.append((raw[:, None], positions[:, None]))
        if numbers:
            parts.append(self._steps(search, numbers))
        tokens = torch.cat([tokens for tokens, _ in parts])
        return tokens, np.concatenate([of for _, of in parts]) if self.model.uses_rotary else None

    def _steps(self, search: Search, numbers: Sequence[int]) -> tuple[torch.Tensor, Optional[np.ndarray]]:
        where = self._on_device(numbers)
        actions = self.model.embed_actions(search.tensors.actions[where])
        tokens = torch.cat([actions, search.tensors.latents[where].to(actions)], 1).flatten(0, 1)[:, None]
        return tokens, search.tensors.positions[numbers].reshape(-1, 1) if self.model.uses_rotary else None

    def _on_device(self, numbers: Sequence[int]) -> torch.Tensor:
        # The device would wait for an index on the host.
        return self.model.on_device(np.asarray(numbers))

    def step(
            self, store: TokenStore, index: np.ndarray, lengths: Sequence[int], actions: torch.Tensor,
            positions: Optional[np.ndarray], raw_rows: Sequence[int] = (), encoded: Optional[np.ndarray] = None
    ) -> StepOutputs:
        """Take an action in every row.

        Args:
            index, lengths: As ``TokenStore.index_of`` returns them.
            actions: [B] or [B, action_space_size].
            positions: Rotary positions of the new tokens, [B, T].
            raw_rows: Rows with raw contexts, to encode in the same pass as the actions.
            encoded: Where the tokens of these contexts go, [R, kept].
        """
        model = self.model
        width = index.shape[1] - model.tokens_per_step
        mask = places = rotation = None
        if min(lengths) != width:
            ends = np.array(lengths)[:, None]
            mask = model.on_device((np.arange(width) < ends)[:, None, None])
            if not model.uses_rotary:
                places = model.on_device(ends + np.arange(model.tokens_per_step))
        if model.uses_rotary:
            rotation = model.rotation(positions)
        slab = self._slab.tensor(store.size, model.like)
        inputs = (slab, model.on_device(index), actions, mask, places, rotation)
        if len(raw_rows):
            outputs = model.step(*inputs, self._raw_contexts(index, raw_rows, encoded))
        else:
            outputs = self._step(*inputs)
        if self._slab.shape.keep_embeddings:
            tokens = torch.cat([model.embed_actions(actions), outputs.latents], 1).flatten(0, 1)
            new = index[:, width:].reshape(-1)
            self._slab.write_raw(new, tokens, None if positions is None else positions.reshape(-1))
        return outputs

    def _raw_contexts(self, index: np.ndarray, rows: Sequence[int], encoded: np.ndarray) -> RawContexts:
        model = self.model
        tokens, positions = self._slab.raw(index[rows, :encoded.shape[1]])
        # Later contexts need these raw tokens, too.
        self._slab.write_raw(encoded.reshape(-1), tokens.flatten(0, 1), positions.reshape(-1))
        return RawContexts(
            model.on_device(np.asarray(rows)), tokens, model.on_device(encoded),
            model.rotation(positions) if model.uses_rotary else None
        )

    @property
    def encodes_in_steps(self) -> bool:
        """Whether a step can encode raw contexts."""
        return not any(isinstance(block, UnknownBlock) for block in self.model.blocks)

    def predict(
            self, batch: ContextBatch, actions: torch.Tensor, positions: Optional[np.ndarray],
            preceding: Optional[Preceding] = None
    ) -> StepOutputs:
        """Append an action and the predicted latent state to every row; ``preceding`` rows leave the batch."""
        model = self.model
        tokens, of_actions = model.embed_actions(actions), None if positions is None else positions[:, :1]
        if preceding is not None:
            before, of_before = preceding.tokens
            tokens = torch.cat([before, tokens])
            of_actions = None if positions is None else np.concatenate([of_before, of_actions])
        hidden = model.append(batch, tokens, of_actions, wanted=len(actions))
        if preceding is not None:
            preceding.batch = batch.split(preceding.count)
        return model.predict_from_action(batch, hidden, positions)


def stack_actions(actions: Sequence[Any], device: torch.device) -> torch.Tensor:
    """Actions as a policy hands them down, ints or arrays, as one tensor, [N] or [N, action_space_size]."""
    return torch.as_tensor(np.stack([np.asarray(action) for action in actions]), device=device)
