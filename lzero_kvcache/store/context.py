from collections.abc import Sequence
from types import TracebackType
from typing import Callable, Optional

import numpy as np
import torch


class Context:
    """
    Overview:
        One cached context: which tokens of the store it consists of. Contexts share tokens, and several pools may hold
        the same context.
    Arguments:
        - table (:obj:`np.ndarray`): Indices of its tokens in the store, oldest first, :math:`(length, )`.
    """
    __slots__ = ('table', 'holders')

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.holders = 1

    def __len__(self) -> int:
        return len(self.table)


class ContextBatch:
    """
    Overview:
        Contexts of unequal lengths side by side, one per row, and the tokens that an inference appends to them. A row's
        context lies on the left of its columns; what is appended to the batch lies to the right of all contexts, in the
        same columns for all rows. The batch holds its contexts within a ``with`` block.
    Arguments:
        - contexts (:obj:`Sequence[Optional[Context]]`): One per row; None: no tokens yet.
        - kv (:obj:`torch.Tensor`): Keys (index 0) and values (index 1),
            :math:`(B, width + room, num_layers, 2, num_heads, head_dim)`, finite everywhere, since attention multiplies
            what it masks by 0 and 0 * nan is nan.
        - index (:obj:`np.ndarray`): Where in the store they come from, :math:`(B, width + room)`.
        - lengths (:obj:`Sequence[int]`): The contexts' lengths, :math:`(B, )`.
        - width (:obj:`int`): The columns of the contexts, as many as the longest has tokens.
        - release (:obj:`Callable`): Called with the contexts at the end of the ``with`` block.
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
        # By appended column: which rows it belongs to, the raw tokens and their rotary positions.
        self.appended: list[Optional[np.ndarray]] = []
        self.embeddings: list[torch.Tensor] = []
        self.positions: list[np.ndarray] = []
        self._filled = self.lengths
        self._release = release

    def __enter__(self) -> 'ContextBatch':
        return self

    def __exit__(
            self, kind: Optional[type], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        self._release([context for context in self.contexts if context is not None])

    def __len__(self) -> int:
        return len(self.lengths)

    def append(self, num_tokens: int, counts: Optional[np.ndarray]) -> tuple[np.ndarray, Optional[np.ndarray]]:
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
            - visible (:obj:`Optional[np.ndarray]`): What each token attends to: its own row's tokens up to itself,
                :math:`(B, T, used)`, or :math:`(1, T, used)` for all rows; None: every column.
        """
        before = self.used
        self.used += num_tokens
        if not self.is_ragged and counts is not None and (counts != num_tokens).any():
            self.is_ragged = True
            self._filled = np.full(len(self), before)
        if not self.is_ragged:
            self.appended += [None] * num_tokens
            places = np.arange(before, self.used)[None]
            if num_tokens == 1:
                return places, None
            return places, np.tri(num_tokens, self.used, before, dtype=bool)[None]
        places = self._filled[:, None] + np.arange(num_tokens)
        belongs = np.ones((len(self), num_tokens), dtype=bool)
        if counts is not None:
            shift = num_tokens - counts[:, None]
            belongs = np.arange(num_tokens) >= shift
            places = np.where(belongs, places - shift, 0)
        self.appended += list(belongs.T)
        self._filled = self._filled + belongs.sum(1)
        visible = np.empty((len(self), num_tokens, self.used), dtype=bool)
        visible[:] = self._belonging()[:, None]
        visible[:, :, before:] &= np.tri(num_tokens, dtype=bool)
        # A token that belongs to no row attends to itself, since a softmax over nothing is nan.
        visible[:, range(num_tokens), range(before, self.used)] = True
        return places, visible

    def _belonging(self) -> np.ndarray:
        belonging = np.ones((len(self), self.used), dtype=bool)
        belonging[:, :self.width] = np.arange(self.width) < self.lengths[:, None]
        for column, rows in enumerate(self.appended, start=self.width):
            if rows is not None:
                belonging[:, column] = rows
        return belonging

    def appended_places(self) -> tuple[np.ndarray, np.ndarray]:
        """
        Overview:
            Where the appended tokens are that belong to a row.
        Returns:
            - belongs (:obj:`np.ndarray`): Whether a column belongs to a row, :math:`(B, used - width)`.
            - places (:obj:`np.ndarray`): The tokens' places in their rows, :math:`(B, used - width)`.
        """
        belongs = self._belonging()[:, self.width:]
        return belongs, self.lengths[:, None] + belongs.cumsum(1) - 1

    def final_lengths(self) -> np.ndarray:
        """
        Overview:
            Tokens of each row, the appended ones included, :math:`(B, )`.
        """
        return self._filled if self.is_ragged else np.full(len(self), self.used)
