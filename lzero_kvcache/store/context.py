from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
import torch


@dataclass(frozen=True)
class ContextShape:
    """
    Overview:
        The dimensions of one context.
    Arguments:
        - num_layers (:obj:`int`): Transformer layers.
        - num_heads (:obj:`int`): Attention heads.
        - capacity (:obj:`int`): Tokens that fit.
        - head_dim (:obj:`int`): Width of one head.
        - keep_tokens (:obj:`bool`): Whether the raw tokens are kept beside their keys and values, so that they can be
            encoded again.
    """
    num_layers: int
    num_heads: int
    capacity: int
    head_dim: int
    keep_tokens: bool = False

    @property
    def embed_dim(self) -> int:
        return self.num_heads * self.head_dim


@dataclass
class ContextBatch:
    """
    Overview:
        Contexts of unequal lengths, one per row, aligned on the left. What lies beyond a row's length is finite but
        means nothing.
    Arguments:
        - kv (:obj:`torch.Tensor`): Keys (index 0) and values (index 1),
            :math:`(B, num_layers, 2, num_heads, capacity, head_dim)`.
        - lengths (:obj:`np.ndarray`): Tokens per row, :math:`(B, )`, on the host: which rows overflow is decided there.
        - tokens (:obj:`Optional[torch.Tensor]`): Token embeddings before any position is added,
            :math:`(B, capacity, embed_dim)`, where the shape keeps them.
        - positions (:obj:`Optional[torch.Tensor]`): Their rotary positions, :math:`(B, capacity)`.
    """
    kv: torch.Tensor
    lengths: np.ndarray
    tokens: Optional[torch.Tensor] = None
    positions: Optional[torch.Tensor] = None

    @classmethod
    def empty(cls, batch_size: int, shape: ContextShape, like: torch.Tensor) -> 'ContextBatch':
        """
        Overview:
            Rows without any token.
        Arguments:
            - batch_size (:obj:`int`): The number of rows.
            - shape (:obj:`ContextShape`): The dimensions.
            - like (:obj:`torch.Tensor`): A tensor of the wanted dtype and device.
        Returns:
            - batch (:obj:`ContextBatch`): Zeros, since attention multiplies what it masks by 0 and 0 * nan is nan.
        """
        kv = like.new_zeros(batch_size, shape.num_layers, 2, shape.num_heads, shape.capacity, shape.head_dim)
        batch = cls(kv, np.zeros(batch_size, dtype=np.int64))
        if shape.keep_tokens:
            batch.tokens = like.new_zeros(batch_size, shape.capacity, shape.embed_dim)
            batch.positions = torch.zeros(batch_size, shape.capacity, dtype=torch.long, device=like.device)
        return batch

    def emptied(self) -> 'ContextBatch':
        """
        Overview:
            As many rows of the same shape without any token.
        """
        return ContextBatch(
            torch.zeros_like(self.kv), np.zeros_like(self.lengths),
            None if self.tokens is None else torch.zeros_like(self.tokens),
            None if self.positions is None else torch.zeros_like(self.positions),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def select(self, rows: Sequence[int]) -> 'ContextBatch':
        """
        Overview:
            A copy of some rows.
        Arguments:
            - rows (:obj:`Sequence[int]`): Their indices.
        Returns:
            - batch (:obj:`ContextBatch`): The rows in the order of ``rows``.
        """
        index = torch.as_tensor(rows, dtype=torch.long, device=self.kv.device)
        return ContextBatch(
            self.kv[index], self.lengths[np.asarray(rows, dtype=np.int64)],
            None if self.tokens is None else self.tokens[index],
            None if self.positions is None else self.positions[index],
        )

    def assign(self, rows: Sequence[int], source: 'ContextBatch') -> None:
        """
        Overview:
            Overwrite some rows.
        Arguments:
            - rows (:obj:`Sequence[int]`): Their indices, each at most once.
            - source (:obj:`ContextBatch`): As many rows of the same shape.
        """
        index = torch.as_tensor(rows, dtype=torch.long, device=self.kv.device)
        self.kv[index] = source.kv
        self.lengths[np.asarray(rows, dtype=np.int64)] = source.lengths
        if self.tokens is not None:
            self.tokens[index] = source.tokens
            self.positions[index] = source.positions
