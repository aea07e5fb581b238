from collections.abc import Sequence
from copy import copy
from types import TracebackType
from typing import Any, Callable, Optional

import numpy as np
import torch


class Context:
    """
    Overview:
        One cached context: which tokens of the store it consists of. Contexts share tokens, and several pools may hold
        the same context.
    Arguments:
        - table (:obj:`np.ndarray`): Indices of its tokens in the store, oldest first, :math:`(length, )`.
        - made_at (:obj:`int`): The store's count of writes by then.
    """
    __slots__ = ('table', 'made_at', 'holders')

    def __init__(self, table: np.ndarray, made_at: int) -> None:
        self.table = table
        self.made_at = made_at
        self.holders = 1

    def __len__(self) -> int:
        return len(self.table)


class TokenLinks:
    """
    Overview:
        Which tokens of a batch's contexts are appended to other rows of the same batch, so that their keys and values
        are known layer by layer only, and their places in the store once the other rows are stored.
    Arguments:
        - batch (:obj:`ContextBatch`): The batch.
        - columns (:obj:`np.ndarray`): Where they belong, counted through the rows of the batch, :math:`(N, )`.
        - rows (:obj:`np.ndarray`): The rows that they are appended to, as their first, :math:`(N, )`.
        - moves (:obj:`Optional[torch.Tensor]`): What their other place in the row adds to keys and values,
            :math:`(N, num_layers, 2, num_heads, head_dim)`.
    """

    def __init__(
            self, batch: 'ContextBatch', columns: np.ndarray, rows: np.ndarray, moves: Optional[torch.Tensor]
    ) -> None:
        self._index = batch.index.reshape(-1)
        self._kv = batch.kv.flatten(0, 1)
        self._columns = columns
        self._rows = rows
        self._to = torch.from_numpy(columns).to(batch.kv.device, non_blocking=True)
        sources = rows * batch.index.shape[1] + batch.width
        self._from = torch.from_numpy(sources).to(batch.kv.device, non_blocking=True)
        self._moves = moves

    def follow(self, layer: int) -> None:
        """
        Overview:
            Bring the keys and values of one layer, as far as they have been computed, to where they belong.
        Arguments:
            - layer (:obj:`int`): The layer.
        """
        of_layer = self._kv[:, layer]
        states = of_layer.index_select(0, self._from)
        if self._moves is not None:
            states += self._moves[:, layer]
        of_layer.index_copy_(0, self._to, states)

    def resolve(self, stored: np.ndarray) -> None:
        """
        Overview:
            Let the rows know where in the store these tokens are.
        Arguments:
            - stored (:obj:`np.ndarray`): The place of each row's appended token.
        """
        self._index[self._columns] = stored[self._rows]


class PrecedingSteps:
    """
    Overview:
        Tokens that the first rows of a batch append, one each, so that the other rows can go on from them.
    Arguments:
        - tokens (:obj:`torch.Tensor`): Token embeddings, :math:`(R, 1, E)`.
        - positions (:obj:`Optional[np.ndarray]`): Their rotary positions, :math:`(R, 1)`; None with learned ones.
        - ends (:obj:`Sequence[int]`): The rows that a step ends with, whose contexts are wanted.
        - owners (:obj:`Sequence[Any]`): Whom they are for.
    """

    def __init__(
            self, tokens: torch.Tensor, positions: Optional[np.ndarray], ends: Sequence[int], owners: Sequence[Any]
    ) -> None:
        self.tokens = tokens
        self.positions = positions
        self.ends = ends
        self.owners = owners
        # The rows, once they are complete.
        self.batch: Optional[ContextBatch] = None

    def __len__(self) -> int:
        return len(self.tokens)


class ContextBatch:
    """
    Overview:
        Contexts of unequal lengths side by side, one per row, and the tokens that an inference appends to them. A row's
        context lies on the left of its columns; what is appended to the batch lies to the right of all contexts, in the
        same columns for all rows. The batch holds its contexts within a ``with`` block.
    Arguments:
        - contexts (:obj:`Sequence[Optional[Context]]`): What the rows consist of; None: no tokens yet.
        - kv (:obj:`torch.Tensor`): Keys (index 0) and values (index 1),
            :math:`(B, width + room, num_layers, 2, num_heads, head_dim)`, finite everywhere, since attention multiplies
            what it masks by 0 and 0 * nan is nan.
        - index (:obj:`np.ndarray`): Where in the store they come from, :math:`(B, width + room)`.
        - lengths (:obj:`Sequence[int]`): The contexts' lengths, :math:`(B, )`.
        - width (:obj:`int`): The columns of the contexts, as many as the longest has tokens.
        - release (:obj:`Callable`): Called with the contexts at the end of the ``with`` block.

    ``links`` are there where rows go on from others of the same batch, ``preceding`` where the first rows are nothing
    but steps on the way to the others.
    """

    def __init__(
            self, contexts: Sequence[Optional[Context]], kv: torch.Tensor, index: np.ndarray, lengths: Sequence[int],
            width: int, release: Callable[[Sequence[Context]], None]
    ) -> None:
        self.contexts = contexts
        self.kv = kv
        self.index = index
        self.lengths = np.asarray(lengths)
        self.width = width
        self.used = width
        self.is_ragged = min(lengths, default=width) != width
        self.links: Optional[TokenLinks] = None
        self.preceding: Optional[PrecedingSteps] = None
        # By append: the raw tokens and their rotary positions.
        self.embeddings: list[torch.Tensor] = []
        self.positions: list[np.ndarray] = []
        # Which appended columns belong to which rows; None: each to all.
        self._belongs: Optional[np.ndarray] = None
        self._filled = self.lengths
        self._mask: Optional[torch.Tensor] = None
        self._release = release

    def __enter__(self) -> 'ContextBatch':
        return self

    def __exit__(
            self, kind: Optional[type], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        self._release([context for context in self.contexts if context is not None])

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, num_tokens: int, counts: Optional[np.ndarray]) -> tuple[np.ndarray, Optional[torch.Tensor]]:
        """
        Overview:
            Take the next columns.
        Arguments:
            - num_tokens (:obj:`int`): The columns T.
            - counts (:obj:`Optional[np.ndarray]`): How many of them, on the right, belong to each row, :math:`(B, )`;
                None: all.
        Returns:
            - places (:obj:`np.ndarray`): The place of each token in its row, counted from 0, :math:`(B, T)`, or
                :math:`(1, T)` for all rows; 0 where a column does not belong to a row.
            - mask (:obj:`Optional[torch.Tensor]`): What each token attends to: its own row's tokens up to itself,
                :math:`(B, 1, T, used)`, or :math:`(1, 1, T, used)` for all rows; None: every column.
        """
        before = self.used
        self.used += num_tokens
        if counts is not None and (counts != num_tokens).any():
            return self._append_unequal(num_tokens, counts)
        if not self.is_ragged:
            places = np.arange(before, self.used)[None]
            if num_tokens == 1:
                return places, None
            return places, self._on_device(np.tri(num_tokens, self.used, before, dtype=bool)[None, None])
        places = self._filled[:, None] + np.arange(num_tokens)
        self._filled = self._filled + num_tokens
        if self._belongs is not None:
            self._belongs = np.pad(self._belongs, ((0, 0), (0, num_tokens)), constant_values=True)
        if num_tokens > 1 or self._belongs is not None:
            return places, self._triangular_mask(num_tokens)
        if self._mask is None:
            self._mask = self._on_device(self._visible(self.kv.shape[1])[:, None, None])
        return places, self._mask[..., :self.used]

    def split(self, rows: int) -> 'ContextBatch':
        """
        Overview:
            Take the first rows out. The contexts stay with the others.
        Arguments:
            - rows (:obj:`int`): How many.
        Returns:
            - first (:obj:`ContextBatch`): These rows, and the links of the batch.
        """
        first = copy(self)
        for batch, own in ((first, slice(rows)), (self, slice(rows, None))):
            batch.kv, batch.index, batch.lengths = self.kv[own], self.index[own], self.lengths[own]
            batch.embeddings = [tokens[own] for tokens in self.embeddings]
            batch.positions = [positions[own] for positions in self.positions]
            batch._filled = self._filled[own]
            batch._belongs = None if self._belongs is None else self._belongs[own]
            batch._mask = None if self._mask is None else self._mask[own]
        first.contexts = []
        self.links = None
        return first

    def _append_unequal(self, num_tokens: int, counts: np.ndarray) -> tuple[np.ndarray, torch.Tensor]:
        before = self.used - num_tokens
        shift = num_tokens - counts[:, None]
        belongs = np.arange(num_tokens) >= shift
        if not self.is_ragged:
            self.is_ragged = True
            self._filled = np.full(len(self), before)
        if self._belongs is None:
            self._belongs = np.ones((len(self), before - self.width), dtype=bool)
        self._belongs = np.concatenate([self._belongs, belongs], axis=1)
        places = np.where(belongs, self._filled[:, None] + np.arange(num_tokens) - shift, 0)
        self._filled = self._filled + counts
        return places, self._triangular_mask(num_tokens)

    def _triangular_mask(self, num_tokens: int) -> torch.Tensor:
        before = self.used - num_tokens
        mask = np.empty((len(self), 1, num_tokens, self.used), dtype=bool)
        mask[:] = self._visible(self.used)[:, None, None]
        mask[..., before:] &= np.tri(num_tokens, dtype=bool)
        # A token that belongs to no row attends to itself, since a softmax over nothing is nan.
        mask[:, :, range(num_tokens), range(before, self.used)] = True
        return self._on_device(mask)

    def _visible(self, columns: int) -> np.ndarray:
        """Which of the first columns are a row's own, :math:`(B, columns)`."""
        visible = np.ones((len(self), columns), dtype=bool)
        visible[:, :self.width] = np.arange(self.width) < self.lengths[:, None]
        if self._belongs is not None:
            visible[:, self.width:] = self._belongs
        return visible

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.kv.device, non_blocking=True)

    def appended_places(self) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """
        Overview:
            Where the appended tokens are.
        Returns:
            - places (:obj:`np.ndarray`): The tokens' places in their rows, :math:`(B, used - width)`, or
                :math:`(1, used - width)` for all rows; anywhere where a column does not belong to a row.
            - belongs (:obj:`Optional[np.ndarray]`): Whether a column belongs to a row, :math:`(B, used - width)`; None:
                all do.
        """
        if not self.is_ragged:
            return np.arange(self.width, self.used)[None], None
        if self._belongs is None:
            return self.lengths[:, None] + np.arange(self.used - self.width), None
        return (self.lengths[:, None] + self._belongs.cumsum(1) - 1).clip(0), self._belongs

    def final_lengths(self) -> np.ndarray:
        """
        Overview:
            Tokens of each row, the appended ones included, :math:`(B, )`.
        """
        return self._filled if self.is_ragged else np.full(len(self), self.used)
