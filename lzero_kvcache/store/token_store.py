import math
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Optional, Union

import numpy as np
import torch

from .context import Context, ContextBatch, TokenLinks

# Its keys and values are zero: what a batch reads where a row has no token.
PADDING = 0
NO_TOKENS = np.zeros(0, dtype=np.int64)
FEWEST_TOKENS = 1024


@dataclass(frozen=True)
class TokenShape:
    """
    Overview:
        The dimensions of one token's keys and values.
    Arguments:
        - num_layers (:obj:`int`): Transformer layers.
        - num_heads (:obj:`int`): Attention heads.
        - head_dim (:obj:`int`): Width of one head.
        - keep_embeddings (:obj:`bool`): Whether the raw token is kept beside its keys and values, so that it can be
            encoded again.
    """
    num_layers: int
    num_heads: int
    head_dim: int
    keep_embeddings: bool = False

    @property
    def numbers_per_token(self) -> int:
        """
        Overview:
            How many numbers the store keeps for one token.
        """
        width = self.num_heads * self.head_dim
        return 2 * self.num_layers * width + (width if self.keep_embeddings else 0)


class TokenStore:
    """
    Overview:
        Keeps each token's keys and values once, in one growing slab, and counts the contexts that consist of it: a
        child's context is its parent's and a few tokens of its own. ``place_offsets``, where set, are what a token's
        place in its row contributes to its keys and values, :math:`(places, num_layers, 2, num_heads, head_dim)`; the
        slab is without them, so that a token may move to another place. ``expected_tokens``, where set, are how many
        tokens there will be at most: the slab doubles no further.
    Arguments:
        - shape (:obj:`TokenShape`): The dimensions.
    """

    def __init__(self, shape: TokenShape) -> None:
        self.shape = shape
        self.place_offsets: Optional[torch.Tensor] = None
        self.expected_tokens: Optional[int] = None
        self._kv: Optional[torch.Tensor] = None
        self._embeddings: Optional[torch.Tensor] = None
        self._positions: Optional[np.ndarray] = None
        self._holders = np.zeros(0, dtype=np.int32)
        self._written_at = np.zeros(0, dtype=np.int64)
        self._writes = 0
        # By how many writes the slab was last given back.
        self._writes_before = 0
        self._free: list[int] = []

    def gather(self, contexts: Sequence[Optional[Context]], room: int, like: torch.Tensor) -> ContextBatch:
        """
        Overview:
            Bring contexts together, with room for more tokens. The batch holds them until its ``with`` block ends.
        Arguments:
            - contexts (:obj:`Sequence[Optional[Context]]`): Live contexts, one per row; None: no tokens yet.
            - room (:obj:`int`): The tokens that will be appended.
            - like (:obj:`torch.Tensor`): A tensor of the model's dtype and device.
        Returns:
            - batch (:obj:`ContextBatch`): The rows, a copy.
        """
        tables = [NO_TOKENS if context is None else context.table for context in contexts]
        return self._gather(tables, room, like, contexts)

    def gather_steps(
            self, beginnings: Sequence[Union[Context, int]], ends: Container[int], room: int, limit: int, kept: int,
            like: torch.Tensor
    ) -> ContextBatch:
        """
        Overview:
            Bring together what takes several steps of several tokens, one row per token, so that all of them are
            computed at once: a row begins with a context, or with the context of an earlier row and the token that is
            appended to it.
        Arguments:
            - beginnings (:obj:`Sequence[Union[Context, int]]`): A live context, or the number of the earlier row.
            - ends (:obj:`Container[int]`): The rows that end a step, after which a context is shortened.
            - room (:obj:`int`): The columns that will be appended.
            - limit, kept (:obj:`int`): As ``add`` will be given them.
            - like (:obj:`torch.Tensor`): A tensor of the model's dtype and device.
        Returns:
            - batch (:obj:`ContextBatch`): One row per token.
        """
        contexts = [beginning for beginning in beginnings if isinstance(beginning, Context)]
        tables: list[np.ndarray] = []
        for beginning in beginnings:
            if isinstance(beginning, Context):
                tables.append(beginning.table)
                continue
            # A token that is still to come goes by the row that it is appended to, counted downwards from -1.
            table = np.append(tables[beginning], -1 - beginning)
            tables.append(table[-kept:] if beginning in ends and len(table) >= limit else table)
        return self._gather(tables, room, like, contexts)

    def _gather(
            self, tables: Sequence[np.ndarray], room: int, like: torch.Tensor, held: Sequence[Optional[Context]]
    ) -> ContextBatch:
        if self._kv is None:
            self._grow(self._up_to_expected(FEWEST_TOKENS), like)
        lengths = [len(table) for table in tables]
        width = max(lengths, default=0)
        index = np.zeros((len(lengths), width + room), dtype=np.int64)
        for row, table in enumerate(tables):
            index[row, :lengths[row]] = table
        to_come = None
        if len(held) < len(tables):
            (to_come, ) = np.nonzero(index.reshape(-1) < 0)
            rows = -1 - index.reshape(-1)[to_come]
            index.reshape(-1)[to_come] = PADDING
        kv = self._kv.index_select(0, self._on_device(index.reshape(-1))).unflatten(0, index.shape)
        if self.place_offsets is not None and width:
            kv[:, :width].add_(self.place_offsets[:width])
        batch = ContextBatch(held, kv, index, lengths, width, self.release)
        if to_come is not None:
            moves = None
            if self.place_offsets is not None:
                places = to_come % index.shape[1]
                moves = self._offsets_at(places) - self._offsets_at(batch.lengths[rows])
            batch.links = TokenLinks(batch, to_come, rows, moves)
        for context in held:
            if context is not None:
                context.holders += 1
        return batch

    def add(
            self, batch: ContextBatch, limit: Optional[int] = None, kept: int = 0, rows: Optional[Sequence[int]] = None
    ) -> list[Context]:
        """
        Overview:
            Store what has been appended to a batch.
        Arguments:
            - batch (:obj:`ContextBatch`): The rows, within their ``with`` block.
            - limit (:obj:`Optional[int]`): Contexts that reach so many tokens are shortened; None: none is.
            - kept (:obj:`int`): To how many, the newest.
            - rows (:obj:`Optional[Sequence[int]]`): The rows whose contexts are wanted; None: all.
        Returns:
            - contexts (:obj:`List[Context]`): One per wanted row, its former context and what was appended, each held
                once, by the caller.
        """
        columns = batch.used - batch.width
        appended = batch.kv[:, batch.width:batch.used]
        places, belongs = batch.appended_places()
        if self.place_offsets is not None:
            offsets = self.place_offsets[batch.width:batch.used]
            if batch.is_ragged:
                offsets = self._offsets_at(places.reshape(-1)).unflatten(0, places.shape)
            appended = appended - offsets
        appended = appended.flatten(0, 1)
        chosen = None if belongs is None else np.flatnonzero(belongs)
        if chosen is not None:
            appended = appended[self._on_device(chosen)]
        new, where = self._reserve(len(appended))
        _write(self._kv, where, appended)
        if self.shape.keep_embeddings:
            self._add_embeddings(batch, new, where, chosen)

        if batch.links is not None:
            batch.links.resolve(new)
        tables = _tables(batch, new, belongs)
        if rows is not None:
            tables = [tables[row] for row in rows]
        if limit is not None:
            tables = [table if len(table) < limit else table[-kept:] for table in tables]
        # No token is twice in one context, so that no slow np.add.at is needed.
        for table in tables:
            self._holders[table] += 1
        if rows is not None or (limit is not None and kept < columns):
            self._free.extend(new[self._holders[new] == 0].tolist())
        return [Context(table, self._writes) for table in tables]

    def retain(self, context: Context) -> Context:
        """
        Overview:
            Hold a context once more.
        Arguments:
            - context (:obj:`Context`): A context that is whole.
        Returns:
            - context (:obj:`Context`): The same.
        """
        if context.holders == 0:
            self._holders[context.table] += 1
        context.holders += 1
        return context

    def is_whole(self, context: Context) -> bool:
        """
        Overview:
            Whether all tokens of a context are still in the store: it is held, or others hold what it consists of.
        Arguments:
            - context (:obj:`Context`): Any context that the store has made.
        """
        if context.holders:
            return True
        if context.made_at <= self._writes_before:
            return False
        table = context.table
        return bool(self._holders[table].all() and (self._written_at[table] <= context.made_at).all())

    def release(self, contexts: Iterable[Context]) -> None:
        """
        Overview:
            Hold contexts once less. With a context's last holder its tokens go, but for those that are others', too.
        Arguments:
            - contexts (:obj:`Iterable[Context]`): Live contexts.
        """
        leaving = []
        for context in contexts:
            context.holders -= 1
            if context.holders == 0:
                leaving.append(context.table)
                self._holders[context.table] -= 1
        if leaving:
            tokens = np.concatenate(leaving)
            unheld = tokens[self._holders[tokens] == 0]
            # Taken from the end, so that the lowest comes next.
            self._free.extend(np.unique(unheld)[::-1].tolist())

    def embeddings_of(self, contexts: Sequence[Context]) -> tuple[torch.Tensor, np.ndarray]:
        """
        Overview:
            The raw tokens of contexts of one length, where the shape keeps them.
        Arguments:
            - contexts (:obj:`Sequence[Context]`): Live contexts.
        Returns:
            - embeddings (:obj:`torch.Tensor`): :math:`(B, length, E)`.
            - positions (:obj:`np.ndarray`): Their rotary positions, :math:`(B, length)`.
        """
        index = np.stack([context.table for context in contexts])
        flat = self._embeddings.index_select(0, self._on_device(index.reshape(-1)))
        return flat.view(*index.shape, -1), self._positions[index]

    def kv_bytes(self, contexts: Iterable[Context]) -> int:
        """
        Overview:
            Bytes of the keys and values of contexts; a token that several of them share counts once.
        Arguments:
            - contexts (:obj:`Iterable[Context]`): Live contexts.
        """
        tables = [context.table for context in contexts]
        if not tables:
            return 0
        return len(np.unique(np.concatenate(tables))) * self._kv[0].numel() * self._kv.element_size()

    def fits(self, like: torch.Tensor) -> bool:
        """
        Overview:
            Whether the slab, if there is one, is of a tensor's dtype and device.
        Arguments:
            - like (:obj:`torch.Tensor`): The tensor.
        """
        return self._kv is None or (self._kv.dtype, self._kv.device) == (like.dtype, like.device)

    def drop_memory(self) -> None:
        """
        Overview:
            Give the slab's memory back, e.g. because the model has moved to another device. No context that was made
            before is whole any more.
        """
        self._writes_before = self._writes
        self._kv = self._embeddings = self._positions = self.place_offsets = None
        self._holders, self._written_at = np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.int64)
        self._free = []

    def __len__(self) -> int:
        """
        Overview:
            Tokens that some context consists of.
        """
        return max(0, len(self._holders) - 1 - len(self._free))

    def _reserve(self, count: int) -> tuple[np.ndarray, Union[slice, torch.Tensor]]:
        if len(self._free) < count:
            size = len(self._holders)
            self._grow(max(self._up_to_expected(2 * size), size + count), self._kv)
        taken = self._free[:-count - 1:-1] if count else []
        del self._free[len(self._free) - count:]
        new = np.asarray(taken, dtype=np.int64)
        self._writes += 1
        self._written_at[new] = self._writes
        # Tokens that became free together lie side by side, and a plain copy needs no index on the device.
        if taken and taken == list(range(taken[0], taken[0] + count)):
            return new, slice(taken[0], taken[0] + count)
        return new, self._on_device(new)

    def _up_to_expected(self, size: int) -> int:
        return size if self.expected_tokens is None else min(size, self.expected_tokens)

    def _grow(self, size: int, like: torch.Tensor) -> None:
        shape, former = self.shape, len(self._holders)
        kv = self._new_slab(like, size, shape.num_layers, 2, shape.num_heads, shape.head_dim)
        holders, written_at = np.zeros(size, dtype=np.int32), np.zeros(size, dtype=np.int64)
        if former:
            kv[:former] = self._kv
            holders[:former], written_at[:former] = self._holders, self._written_at
        if shape.keep_embeddings:
            embeddings = self._new_slab(like, size, shape.num_heads * shape.head_dim)
            positions = np.zeros(size, dtype=np.int64)
            if former:
                embeddings[:former], positions[:former] = self._embeddings, self._positions
            self._embeddings, self._positions = embeddings, positions
        self._kv, self._holders, self._written_at = kv, holders, written_at
        self._free.extend(range(size - 1, max(former, PADDING + 1) - 1, -1))

    def _new_slab(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
        try:
            return like.new_zeros(shape)
        # torch.OutOfMemoryError is one, too.
        except RuntimeError as error:
            megabytes = math.prod(shape) * like.element_size() / 2 ** 20
            raise type(error)(
                f'the KV cache cannot grow to {shape[0]} tokens ({megabytes:.0f} MiB on {like.device}), for there is '
                'no memory left: smaller pools need less, and '
                f'policy.model.world_model_cfg.kv_cache.memory_budget_mb bounds it ({error})'
            ) from error

    def _add_embeddings(
            self, batch: ContextBatch, new: np.ndarray, where: Union[slice, torch.Tensor], chosen: Optional[np.ndarray]
    ) -> None:
        rows = slice(None) if chosen is None else chosen
        embeddings = torch.cat(batch.embeddings, 1).flatten(0, 1)
        _write(self._embeddings, where, embeddings if chosen is None else embeddings[self._on_device(chosen)])
        if batch.positions:
            self._positions[new] = np.concatenate(batch.positions, 1).reshape(-1)[rows]

    def _offsets_at(self, places: np.ndarray) -> torch.Tensor:
        return self.place_offsets.index_select(0, self._on_device(places))

    def _on_device(self, index: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(index).to(self._kv.device, non_blocking=True)


def _write(slab: torch.Tensor, where: Union[slice, torch.Tensor], rows: torch.Tensor) -> None:
    if isinstance(where, slice):
        slab[where].copy_(rows)
    else:
        slab.index_copy_(0, where, rows)


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
