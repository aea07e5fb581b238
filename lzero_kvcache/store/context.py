from collections.abc import Sequence
from copy import copy
from typing import Any, Callable, Optional

import numpy as np


class Context:
    """One cached context: which tokens of the store it consists of. Contexts share tokens, and several pools may hold
    the same context.

    Attributes:
        table: Where its tokens lie in the store, oldest first, int64 [length].
        made_at: The store's count of writes by then.
        is_raw: Whether only its raw tokens are there, to be encoded when a step first goes on from it.
    """
    __slots__ = ('table', 'made_at', 'holders', 'is_raw')

    def __init__(self, table: np.ndarray, made_at: int, is_raw: bool = False) -> None:
        self.table = table
        self.made_at = made_at
        self.holders = 1
        self.is_raw = is_raw

    def __len__(self) -> int:
        return len(self.table)


class TokenLinks:
    """Tokens of a batch's contexts that other rows of the same batch append. Each layer computes their keys and values
    on the way; their places in the store are known once the other rows are stored.

    Attributes:
        columns: Where they belong, counted through the rows of the batch, [N].
        rows: The rows that append them, as their first, [N].
        follow: Brings a layer's keys and values to where they belong; None without tensors.
    """

    def __init__(self, index: np.ndarray, columns: np.ndarray, rows: np.ndarray) -> None:
        self._index = index
        self.columns = columns
        self.rows = rows
        self.follow: Optional[Callable[[int], None]] = None

    def resolve(self, stored: np.ndarray) -> None:
        """Let all rows know where in the store these tokens are; ``stored``: each row's appended token."""
        self._index[self.columns] = stored[self.rows]


class ContextBatch:
    """Contexts of unequal lengths side by side, one per row, and the tokens that an inference appends to them. A row's
    context lies on the left of its columns; appended tokens lie to the right of all contexts, in the same columns for
    all rows. The batch holds its contexts within a ``with`` block.

    Attributes:
        index: Where in the store the tokens lie, [B, width + room].
        lengths: The contexts' lengths, [B], of which ``width`` is the largest.
        used: The columns so far.
        kv: Keys (0) and values (1), [B, width + room, num_layers, 2, num_heads, head_dim], where there are tensors;
            finite everywhere, since attention multiplies what it masks by 0 and 0 * nan is nan.
        embeddings, positions: By append, the raw tokens and their rotary positions.
        links: There where rows go on from others of the same batch.
    """

    def __init__(
            self, held: Sequence[Context], index: np.ndarray, lengths: np.ndarray, width: int,
            release: Callable[[Sequence[Context]], None]
    ) -> None:
        self.index = index
        self.lengths = lengths
        self.width = self.used = width
        self.is_ragged = bool(len(lengths)) and int(lengths.min()) != width
        self.kv: Any = None
        self.embeddings: list[Any] = []
        self.positions: list[np.ndarray] = []
        self.links: Optional[TokenLinks] = None
        # Brings an array to where the tensors are.
        self.to_device: Callable[[np.ndarray], Any] = lambda array: None
        self._held = held
        # Whether an appended column belongs to a row; None: all do.
        self._belongs: Optional[np.ndarray] = None
        self._filled = lengths
        self._mask: Any = None
        self._release = release

    def __enter__(self) -> 'ContextBatch':
        return self

    def __exit__(self, *error: Any) -> None:
        self._release(self._held)

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, num_tokens: int, counts: Optional[np.ndarray] = None) -> tuple[np.ndarray, Any]:
        """Take the next columns.

        Args:
            num_tokens: The columns T.
            counts: How many of them, on the right, belong to each row, [B]; None: all.

        Returns:
            The places of the tokens in their rows, [B, T] or, for all rows, [1, T], 0 at padding; and a mask on the
            device, [B or 1, 1, T, used]: each token attends to its own row's tokens up to itself. None: it attends to
            every column.
        """
        before = self.used
        self.used += num_tokens
        if counts is not None and (counts != num_tokens).any():
            return self._append_unequal(num_tokens, counts)
        if not self.is_ragged:
            places = np.arange(before, self.used)[None]
            if num_tokens == 1:
                return places, None
            return places, self.to_device(np.tri(num_tokens, self.used, before, dtype=bool)[None, None])
        places = self._filled[:, None] + np.arange(num_tokens)
        self._filled = self._filled + num_tokens
        if self._belongs is not None:
            self._belongs = np.pad(self._belongs, ((0, 0), (0, num_tokens)), constant_values=True)
        if num_tokens > 1 or self._belongs is not None:
            return places, self._triangular_mask(num_tokens)
        if self._mask is None and self.kv is not None:
            self._mask = self.to_device(self._visible(self.index.shape[1])[:, None, None])
        return places, None if self._mask is None else self._mask[..., :self.used]

    def split(self, rows: int) -> 'ContextBatch':
        """Take the first rows out, with the links of the batch. The contexts stay with the others."""
        first = copy(self)
        for batch, own in ((first, slice(rows)), (self, slice(rows, None))):
            batch.index, batch.lengths, batch._filled = self.index[own], self.lengths[own], self._filled[own]
            batch.kv, batch._belongs, batch._mask = (
                None if rows_of is None else rows_of[own] for rows_of in (self.kv, self._belongs, self._mask)
            )
            batch.embeddings = [tokens[own] for tokens in self.embeddings]
            batch.positions = [positions[own] for positions in self.positions]
        first._held = []
        self.links = None
        return first

    def _append_unequal(self, num_tokens: int, counts: np.ndarray) -> tuple[np.ndarray, Any]:
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

    def _triangular_mask(self, num_tokens: int) -> Any:
        if self.kv is None:
            return None
        before = self.used - num_tokens
        mask = np.empty((len(self), 1, num_tokens, self.used), dtype=bool)
        mask[:] = self._visible(self.used)[:, None, None]
        mask[..., before:] &= np.tri(num_tokens, dtype=bool)
        # Padding attends to itself, since a softmax over nothing is nan.
        mask[:, :, range(num_tokens), range(before, self.used)] = True
        return self.to_device(mask)

    def _visible(self, columns: int) -> np.ndarray:
        """Which of the first columns are a row's own, [B, columns]."""
        visible = np.ones((len(self), columns), dtype=bool)
        visible[:, :self.width] = np.arange(self.width) < self.lengths[:, None]
        if self._belongs is not None:
            visible[:, self.width:] = self._belongs
        return visible

    def appended_places(self) -> tuple[np.ndarray, Optional[np.ndarray]]:
        """Places of the appended tokens in their rows, [B, used - width] or, for all rows, [1, used - width], and which
        of these belong to a row, in the same shape; None: all do. The other places mean nothing.
        """
        if not self.is_ragged:
            return np.arange(self.width, self.used)[None], None
        if self._belongs is None:
            return self.lengths[:, None] + np.arange(self.used - self.width), None
        return (self.lengths[:, None] + self._belongs.cumsum(1) - 1).clip(0), self._belongs

    def final_lengths(self) -> np.ndarray:
        """Tokens of each row, the appended ones included, [B]."""
        return self._filled if self.is_ragged else np.full(len(self), self.used)
