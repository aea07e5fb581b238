"""Keys and values of a batch, to which tokens are added and which they attend to."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Callable, NamedTuple, Optional, Union

import torch
import torch.nn.functional as F

from ..store.context import TokenLinks

_for_a_compiler = ContextVar('for_a_compiler', default=False)


@contextmanager
def for_a_compiler() -> Iterator[None]:
    """Compute steps as a compiler wants them: nothing packed, and little written in place."""
    token = _for_a_compiler.set(True)
    try:
        yield
    finally:
        _for_a_compiler.reset(token)


is_for_a_compiler = _for_a_compiler.get


class LayerColumns(NamedTuple):
    """One layer's keys and values in one tensor.

    Attributes:
        new: Those of new tokens, [B, T, 2, num_heads, head_dim], a view of the last T columns of the next two.
        keys, values: [B, num_heads, columns, head_dim].
        pass_on: Called between writing ``new`` and attending to it, so that a row can go on from an earlier one.
        wanted: How many rows, the last ones, attend; None: all. The others only leave their keys and values.
    """
    new: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    pass_on: Optional[Callable[[], None]] = None
    wanted: Optional[int] = None

    def attend(self, states: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """Add tokens and let them attend to all columns.

        Args:
            states: Queries, keys and values, [B, T, 3, num_heads, head_dim].
            mask: Added to each token's attention, [B, 1, T, columns]; None: it attends to every column.

        Returns:
            Of the wanted rows, [B, T, num_heads, head_dim].
        """
        self.new.copy_(states[:, :, 1:])
        if self.pass_on is not None:
            self.pass_on()
        if self.wanted == 0:
            return states[:0, :, 0]
        queries, keys, values = states[:, :, 0].transpose(1, 2), self.keys, self.values
        if self.wanted is not None:
            first = len(queries) - self.wanted
            queries, keys, values = queries[first:], keys[first:], values[first:]
            mask = mask[first:] if mask is not None and len(mask) > 1 else mask
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).transpose(1, 2)


class Columns:
    """The layers of a batch's keys and values, [B, columns, num_layers, 2, num_heads, head_dim]."""

    def __init__(self, kv: torch.Tensor) -> None:
        self._kv = kv
        self._by_layer = kv.permute(2, 3, 0, 4, 1, 5).flatten(0, 1)

    def layers(
            self, start: int, end: int, links: Optional[TokenLinks] = None, wanted: Optional[int] = None
    ) -> list[LayerColumns]:
        """The first ``end`` columns, new from ``start`` on. In the last layer only ``wanted`` rows attend."""
        new = self._kv[:, start:end].unbind(2)
        keys_values = self._by_layer.narrow(3, 0, end).unbind(0)
        return [
            LayerColumns(
                new[layer], keys_values[2 * layer], keys_values[2 * layer + 1],
                None if links is None else partial(links.follow, layer), wanted if layer == len(new) - 1 else None
            ) for layer in range(len(new))
        ]


class StepColumns:
    """What the tokens of a step attend to, one after the other. Arguments as ``CachedModel.step``; ``offsets`` are what
    a token's place adds, [places, num_layers, 2, num_heads, head_dim], if the slab leaves it out.
    """

    def __init__(self, slab: torch.Tensor, index: torch.Tensor, width: int, offsets: Optional[torch.Tensor]) -> None:
        self._width = width
        self._kv = slab.index_select(0, index.view(-1)).view(*index.shape, *slab.shape[1:])
        if offsets is not None:
            self._kv[:, :width].add_(offsets[:width])
        self._columns = Columns(self._kv)

    def at(self, place: int) -> Sequence[Union[LayerColumns, 'SpelledOutColumns']]:
        """The layers, for the new token of this place."""
        start = self._width + place
        return self._columns.layers(start, start + 1)

    def appended(self) -> torch.Tensor:
        """The keys and values of the new tokens, [B, T, num_layers, 2, num_heads, head_dim]."""
        return self._kv[:, self._width:]

    def of_contexts(self, rows: torch.Tensor, count: int) -> torch.Tensor:
        """Those of some rows' first tokens, [R, count, num_layers, 2, num_heads, head_dim]."""
        return self._kv[rows, :count]


class EncodingColumns:
    """One layer's keys and values, where R rows have no context yet: first come the ``count`` tokens of each of these
    contexts, which lie on the left, then one token of each row. In the last layer contexts only leave their keys and
    values.
    """

    def __init__(self, columns: LayerColumns, rows: torch.Tensor, count: int, is_last: bool) -> None:
        self._columns = columns
        self._is_last = is_last
        self._rows = rows
        self._count = count
        # Its shape says how many tokens there are.
        self.new = columns.new[:1].expand(len(rows) * count + len(columns.new), -1, -1, -1, -1)

    def attend(self, states: torch.Tensor, mask: Optional[torch.Tensor]) -> torch.Tensor:
        """As ``LayerColumns``; the tokens of contexts attend to those before them."""
        first = len(self._rows) * self._count
        encoded = states[:first].view(len(self._rows), self._count, *states.shape[2:])
        queries, keys, values = encoded.transpose(1, 3).unbind(2)
        self._columns.keys[self._rows, :, :self._count] = keys
        self._columns.values[self._rows, :, :self._count] = values
        if self._is_last:
            return self._columns.attend(states[first:], mask)
        mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True).transpose(1, 2)
        return torch.cat([mixed.flatten(0, 1)[:, None], self._columns.attend(states[first:], mask)])


class SpelledOutColumns:
    """One layer's keys and values, new ones beside the context's, in operations that a compiler fuses."""

    def __init__(self, context: torch.Tensor) -> None:
        self._keys, self._values = context.transpose(1, 3).unbind(2)
        self.new = context[:, :1]
        self.added: list[torch.Tensor] = []

    def attend(self, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Of one token per row; otherwise as ``LayerColumns``."""
        queries = states[:, 0, 0]
        self.added.append(states[:, 0, 1:])
        scores = [(queries[:, :, None] * self._keys).sum(-1)]
        scores += [(queries * keys).sum(-1, keepdim=True) for keys in (each[:, 0] for each in self.added)]
        shares = torch.softmax(torch.cat(scores, 2) * queries.shape[-1] ** -0.5 + mask[:, :, 0], 2)[..., None]
        width = self._keys.shape[2]
        mixed = (shares[:, :, :width] * self._values).sum(2)
        for number, each in enumerate(self.added):
            mixed = mixed + shares[:, :, width + number] * each[:, 1]
        return mixed[:, None]


class SpelledOutStep(StepColumns):
    """As ``StepColumns``, for a compiler."""

    def __init__(self, slab: torch.Tensor, index: torch.Tensor, width: int, offsets: Optional[torch.Tensor]) -> None:
        context = slab.index_select(0, index[:, :width].reshape(-1)).view(len(index), width, *slab.shape[1:])
        if offsets is not None:
            context = context + offsets[:width]
        self._layers = [SpelledOutColumns(of_layer) for of_layer in context.unbind(2)]

    def at(self, place: int) -> Sequence[Union[LayerColumns, SpelledOutColumns]]:
        return self._layers

    def appended(self) -> torch.Tensor:
        return torch.stack([torch.stack(columns.added, 1) for columns in self._layers], 2)
