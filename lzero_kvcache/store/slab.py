import math
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch

from .context import ContextBatch, TokenLinks


@dataclass(frozen=True)
class TokenShape:
    """The dimensions of one token's keys and values. ``keep_embeddings`` keeps the raw token, to encode it again."""
    num_layers: int
    num_heads: int
    head_dim: int
    keep_embeddings: bool = False

    @property
    def numbers_per_token(self) -> int:
        """How many numbers the slab keeps for one token."""
        return (2 * self.num_layers + self.keep_embeddings) * self.num_heads * self.head_dim


class TokenSlab:
    """Each token's keys and values once, in one growing tensor, [tokens, num_layers, 2, num_heads, head_dim]. It leaves
    out the model's ``place_offsets``, what a token's place contributes, so that tokens can move.
    """

    def __init__(self, shape: TokenShape) -> None:
        self.shape = shape
        self._kv: Optional[torch.Tensor] = None
        self._raw: Optional[torch.Tensor] = None
        self._positions: Optional[np.ndarray] = None

    def tensor(self, size: int, like: torch.Tensor) -> torch.Tensor:
        """Keys and values of at least ``size`` tokens. A new slab has the dtype and device of ``like``."""
        if self._kv is None or len(self._kv) < size:
            self._grow(size, like if self._kv is None else self._kv)
        return self._kv

    def gather(self, batch: ContextBatch, size: int, model: Any) -> None:
        """Give a batch the keys and values of its contexts."""
        kv = self.tensor(size, model.like)
        batch.to_device = self._on_device
        batch.kv = kv.index_select(0, self._on_device(batch.index.reshape(-1))).unflatten(0, batch.index.shape)
        offsets, width = model.place_offsets, batch.width
        if offsets is not None and width:
            batch.kv[:, :width].add_(offsets[:width])
        if batch.links is not None:
            batch.links.follow = _follow(batch, batch.links, offsets)

    def write(self, batch: ContextBatch, new: np.ndarray, chosen: Optional[np.ndarray], size: int, model: Any) -> None:
        """Write the tokens that were appended to a batch to places [N]. ``chosen`` names the columns, counted through
        the rows, that are tokens; None: all are.
        """
        where = self._on_device(new)
        rows = None if chosen is None else self._on_device(chosen)
        appended = batch.kv[:, batch.width:batch.used]
        offsets = model.place_offsets
        if offsets is not None:
            places, _ = batch.appended_places()
            appended = appended - offsets.index_select(0, self._on_device(places.reshape(-1))).unflatten(
                0, places.shape
            )
        self.tensor(size, model.like).index_copy_(0, where, _rows(appended, rows))
        if self.shape.keep_embeddings:
            positions = np.concatenate(batch.positions, 1).reshape(-1) if batch.positions else None
            if positions is not None and chosen is not None:
                positions = positions[chosen]
            self.write_raw(new, _rows(torch.cat(batch.embeddings, 1), rows), positions)

    def write_raw(self, new: np.ndarray, tokens: torch.Tensor, positions: Optional[np.ndarray]) -> None:
        """Keep raw tokens, [N, E], and their rotary positions, [N]; needs ``keep_embeddings``."""
        self._raw.index_copy_(0, self._on_device(new), tokens)
        if positions is not None:
            self._positions[new] = positions

    def raw(self, index: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Raw tokens, [*index.shape, E], and their rotary positions; needs ``keep_embeddings``."""
        return self._raw[self._on_device(index)], self._positions[index]

    @property
    def token_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return self._kv[0].numel() * self._kv.element_size()

    def fits(self, like: torch.Tensor) -> bool:
        """Whether the slab, if there is one, has a tensor's dtype and device."""
        return self._kv is None or (self._kv.dtype, self._kv.device) == (like.dtype, like.device)

    def drop(self) -> None:
        self._kv = self._raw = self._positions = None

    def _grow(self, size: int, like: torch.Tensor) -> None:
        shape, former = self.shape, 0 if self._kv is None else len(self._kv)
        kv = self._zeros(like, size, shape.num_layers, 2, shape.num_heads, shape.head_dim)
        if former:
            kv[:former] = self._kv
        if shape.keep_embeddings:
            raw, positions = self._zeros(like, size, shape.num_heads * shape.head_dim), np.zeros(size, dtype=np.int64)
            if former:
                raw[:former], positions[:former] = self._raw, self._positions
            self._raw, self._positions = raw, positions
        self._kv = kv

    def _zeros(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
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

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self._kv.device, non_blocking=True)


def _follow(batch: ContextBatch, links: TokenLinks, offsets: Optional[torch.Tensor]) -> Callable[[int], None]:
    """A function that copies a layer's keys and values, once computed, to where later rows need them."""
    kv, columns, move = batch.kv.flatten(0, 1), batch.index.shape[1], None
    to, origin = batch.to_device(links.columns), batch.to_device(links.rows * columns + batch.width)
    if offsets is not None:
        # What their other place in the row adds.
        former = batch.to_device(batch.lengths[links.rows])
        move = offsets[batch.to_device(links.columns % columns)] - offsets[former]

    def follow(layer: int) -> None:
        of_layer = kv[:, layer]
        states = of_layer.index_select(0, origin)
        if move is not None:
            states += move[:, layer]
        of_layer.index_copy_(0, to, states)

    return follow


def _rows(columns: torch.Tensor, chosen: Optional[torch.Tensor]) -> torch.Tensor:
    flat = columns.flatten(0, 1)
    return flat if chosen is None else flat.index_select(0, chosen)
