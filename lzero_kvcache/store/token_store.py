from collections.abc import Iterable, Sequence
from typing import Any, Optional, Union

import numpy as np

from .context import Context, ContextBatch, TokenLinks

# A batch reads it where a row has no token: its keys and values are zero.
PADDING = 0
FEWEST_TOKENS = 1024
# Of the counts' own type, for which NumPy's ufunc.at is fast.
ONE = np.int32(1)


class TokenStore:
    """Counts how many contexts consist of each token: a child's context is its parent's and a few tokens of its own.
    Their keys and values lie in ``slab``. ``expected_tokens``, if set, bounds the doubling of the store.

    Args:
        limit: A context that reaches so many tokens is shortened.
        kept: To how many, the newest.
        encodes_again: Whether a shortened context is encoded anew from its raw tokens. Until then ``is_raw`` says so.
    """

    def __init__(self, slab: Any, limit: int, kept: int, encodes_again: bool = False) -> None:
        self.slab = slab
        self.limit = limit
        self.kept = kept
        self.encodes_again = encodes_again
        self.expected_tokens: Optional[int] = None
        self._writes = 0
        self._forget_tokens()

    def _forget_tokens(self) -> None:
        # The count of writes when all tokens were last forgotten.
        self._writes_before = self._writes
        self._holders = np.zeros(0, dtype=np.int32)
        self._written_at = np.zeros(0, dtype=np.int64)
        self._free: list[int] = []

    @property
    def size(self) -> int:
        """How many tokens fit, the padding included."""
        return len(self._holders)

    def __len__(self) -> int:
        """Tokens that some context consists of."""
        return max(0, self.size - 1 - len(self._free))

    def gather(
            self, beginnings: Sequence[Union[Context, int, None]], room: int, model: Any, ends: Sequence[int] = ()
    ) -> ContextBatch:
        """Bring contexts together, with room for more tokens.

        Args:
            beginnings: By row, a live context, None for no tokens yet, or the number of an earlier row, whose context
                and appended token it takes: so one forward computes several steps, one row per token.
            ends: The rows that end a step, after which a context is shortened.
        """
        ends = set(ends)
        lengths: list[int] = []
        for beginning in beginnings:
            if beginning is None:
                lengths.append(0)
            elif isinstance(beginning, Context):
                lengths.append(len(beginning))
            else:
                length = lengths[beginning] + 1
                lengths.append(self.kept if beginning in ends and length >= self.limit else length)
        width = max(lengths, default=0)
        index = np.full((len(lengths), width + room), PADDING, dtype=np.int64)
        for row, beginning, length in zip(index, beginnings, lengths):
            if isinstance(beginning, Context):
                row[:length] = beginning.table
            elif beginning is not None:
                end = lengths[beginning]
                row[:length - 1] = index[beginning, end - length + 1:end]
                # A token still to come is named by the row that appends it, counted downwards from -1.
                row[length - 1] = -1 - beginning
        held = [beginning for beginning in beginnings if isinstance(beginning, Context)]
        batch = ContextBatch(held, index, np.array(lengths, dtype=np.int64), width, self.release)
        if len(held) < len(lengths):
            flat = index.reshape(-1)
            (to_come, ) = np.nonzero(flat < 0)
            if len(to_come):
                batch.links = TokenLinks(flat, to_come, -1 - flat[to_come])
                flat[to_come] = PADDING
        if not self.size:
            self._grow(self._up_to_expected(FEWEST_TOKENS))
        self.slab.gather(batch, self.size, model)
        for context in held:
            context.holders += 1
        return batch

    def index_of(self, contexts: Sequence[Context], new: np.ndarray) -> tuple[np.ndarray, list[int]]:
        """Index of a step, [B, W + T]: on the left the tables of contexts, padded by ``PADDING``, on the right the
        reserved places of ``new`` tokens, [B, T]. Also returns the contexts' lengths.
        """
        tables = [context.table for context in contexts]
        lengths = [len(table) for table in tables]
        width = max(lengths)
        if min(lengths) == width:
            return np.concatenate([part for row in zip(tables, new) for part in row]).reshape(len(new), -1), lengths
        index = np.full((len(new), width + new.shape[1]), PADDING, dtype=np.int64)
        for row, length, table in zip(index, lengths, tables):
            row[:length] = table
        index[:, width:] = new
        return index, lengths

    def add(
            self, batch: ContextBatch, model: Any, rows: Optional[Sequence[int]] = None, shortens: bool = True
    ) -> list[Context]:
        """Store what has been appended to a batch, within its ``with`` block. Returns the contexts of the wanted rows
        (None: all), each held once, by the caller. ``shortens`` those at the limit.
        """
        _, belongs = batch.appended_places()
        chosen = None if belongs is None else np.flatnonzero(belongs)
        new = self.reserve(len(batch) * (batch.used - batch.width) if chosen is None else len(chosen))
        self.slab.write(batch, new, chosen, self.size, model)
        if batch.links is not None:
            batch.links.resolve(new)
        tables = _tables(batch, new, belongs)
        # A view would keep the whole batch's index alive.
        wanted = [tables[row].copy() for row in (range(len(tables)) if rows is None else rows)]
        contexts = self._new_contexts(wanted, shortens)
        if rows is not None or self.kept < batch.used - batch.width:
            self._let_unheld_go(new)
        return contexts

    def extend(self, index: np.ndarray, lengths: Sequence[int], count: int) -> list[Context]:
        """Contexts after a step of ``count`` tokens, with ``index_of``'s result; each held once, by the caller."""
        width = index.shape[1] - count
        if min(lengths) == width:
            is_full = index.shape[1] >= self.limit
            tables = index[:, -self.kept:] if is_full else index
            np.add.at(self._holders, tables.reshape(-1), ONE)
            writes, is_raw = self._writes, is_full and self.encodes_again
            contexts = [Context(table, writes, is_raw) for table in tables]
        else:
            tables = [np.concatenate((row[:length], row[width:])) for row, length in zip(index, lengths)]
            contexts = self._new_contexts(tables, shortens=True)
        if self.kept < count:
            self._let_unheld_go(index[:, width:])
        return contexts

    def _new_contexts(self, tables: Sequence[np.ndarray], shortens: bool) -> list[Context]:
        are_full = [shortens and len(table) >= self.limit for table in tables]
        tables = [table[-self.kept:] if is_full else table for table, is_full in zip(tables, are_full)]
        np.add.at(self._holders, np.concatenate(tables), ONE)
        writes, encodes_again = self._writes, self.encodes_again
        return [Context(table, writes, is_full and encodes_again) for table, is_full in zip(tables, are_full)]

    def _let_unheld_go(self, new: np.ndarray) -> None:
        """Free tokens that were stored only on the way to others."""
        self._free.extend(new[self._holders[new] == 0].tolist())

    def replace(self, context: Context, encoded: np.ndarray) -> None:
        """Let whoever holds a raw context hold these tokens, which are its own, encoded."""
        self._holders[encoded] += 1
        self._let_go([context.table])
        context.table, context.made_at, context.is_raw = encoded, self._writes, False

    def retain(self, context: Context) -> Context:
        """Hold a context that is whole once more."""
        if context.holders == 0:
            self._holders[context.table] += 1
        context.holders += 1
        return context

    def is_whole(self, context: Context) -> bool:
        """Whether all tokens of a context are still there, because it is held or others hold them."""
        if context.holders:
            return True
        if context.made_at <= self._writes_before:
            return False
        table = context.table
        return bool(self._holders[table].all() and (self._written_at[table] <= context.made_at).all())

    def release(self, contexts: Iterable[Context]) -> None:
        """Hold contexts once less. A context's last holder frees its tokens, except those that other contexts share."""
        leaving = []
        for context in contexts:
            context.holders -= 1
            if context.holders == 0:
                leaving.append(context.table)
        if leaving:
            self._let_go(leaving)

    def _let_go(self, tables: Sequence[np.ndarray]) -> None:
        tokens = np.concatenate(tables)
        np.subtract.at(self._holders, tokens, ONE)
        unheld = tokens[self._holders[tokens] == 0]
        if len(unheld):
            # ``reserve`` takes from the end, so the lowest comes next.
            self._free.extend(sorted(set(unheld.tolist()), reverse=True))

    def kv_bytes(self, contexts: Iterable[Context]) -> int:
        """Bytes of the keys and values of contexts; a token that several of them share counts once."""
        tables = [context.table for context in contexts]
        return len(np.unique(np.concatenate(tables))) * self.slab.token_bytes if tables else 0

    def drop_memory(self) -> None:
        """Give the slab's memory back, e.g. after a move of the model. No former context is whole any more."""
        self._forget_tokens()
        self.slab.drop()

    def reserve(self, count: int) -> np.ndarray:
        """Places for new tokens, int64 [count]. Nobody holds them yet."""
        if len(self._free) < count:
            self._grow(max(self._up_to_expected(2 * self.size), self.size + count))
        taken = self._free[:-count - 1:-1] if count else []
        del self._free[len(self._free) - count:]
        new = np.array(taken, dtype=np.int64)
        self._writes += 1
        self._written_at[new] = self._writes
        return new

    def _up_to_expected(self, size: int) -> int:
        return size if self.expected_tokens is None else min(size, self.expected_tokens)

    def _grow(self, size: int) -> None:
        former = self.size
        self._holders = np.pad(self._holders, (0, size - former))
        self._written_at = np.pad(self._written_at, (0, size - former))
        self._free.extend(range(size - 1, max(former, PADDING + 1) - 1, -1))


def _tables(batch: ContextBatch, new: np.ndarray, belongs: Optional[np.ndarray]) -> Sequence[np.ndarray]:
    if belongs is None:
        new = new.reshape(len(batch), -1)
        if not batch.is_ragged:
            batch.index[:, batch.width:batch.used] = new
            return list(batch.index[:, :batch.used])
        ends = batch.lengths[:, None] + np.arange(new.shape[1])
        batch.index[np.arange(len(batch))[:, None], ends] = new
        return [row[:length] for row, length in zip(batch.index, batch.final_lengths().tolist())]
    parts = np.split(new, belongs.sum(1).cumsum()[:-1])
    return [
        np.concatenate((row[:length], part)) for row, length, part in zip(batch.index, batch.lengths, parts)
    ]
