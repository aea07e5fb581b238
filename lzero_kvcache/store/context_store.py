from collections.abc import Sequence
from typing import Optional

import torch

from .context import ContextBatch, ContextShape


class ContextStore:
    """
    Overview:
        Holds contexts in one growing slab and hands out handles. Several pools may hold the same handle: a context
        lives until its last holder releases it.
    Arguments:
        - shape (:obj:`ContextShape`): The dimensions of each context.
    """

    def __init__(self, shape: ContextShape) -> None:
        self.shape = shape
        self._slab: Optional[ContextBatch] = None
        self._holders: dict[int, int] = {}
        self._free: list[int] = []

    def reserve(self) -> int:
        """
        Overview:
            Make room for one context.
        Returns:
            - handle (:obj:`int`): Its handle, held once, by the caller.
        """
        handle = self._free.pop() if self._free else len(self._holders)
        self._holders[handle] = 1
        return handle

    def retain(self, handle: int) -> int:
        """
        Overview:
            Hold a context once more.
        Arguments:
            - handle (:obj:`int`): The handle of a live context.
        Returns:
            - handle (:obj:`int`): The same handle.
        """
        self._holders[handle] += 1
        return handle

    def release(self, handle: int) -> None:
        """
        Overview:
            Hold a context once less. The last release frees its memory for reuse.
        Arguments:
            - handle (:obj:`int`): The handle of a live context.
        """
        self._holders[handle] -= 1
        if self._holders[handle] == 0:
            del self._holders[handle]
            self._free.append(handle)

    def is_live(self, handle: int) -> bool:
        """
        Overview:
            Whether anyone holds a context under this handle.
        """
        return handle in self._holders

    def write(self, handles: Sequence[int], batch: ContextBatch) -> None:
        """
        Overview:
            Store rows.
        Arguments:
            - handles (:obj:`Sequence[int]`): One live handle per row, all different.
            - batch (:obj:`ContextBatch`): The rows, which are copied.
        """
        self._grow(1 + max(handles), batch)
        self._slab.assign(handles, batch)

    def gather(self, handles: Sequence[int]) -> ContextBatch:
        """
        Overview:
            Read rows.
        Arguments:
            - handles (:obj:`Sequence[int]`): One live handle per row.
        Returns:
            - batch (:obj:`ContextBatch`): A copy, free to be changed.
        """
        return self._slab.select(handles)

    def empty(self, batch_size: int, like: torch.Tensor) -> ContextBatch:
        """
        Overview:
            Rows of the store's shape without any token.
        Arguments:
            - batch_size (:obj:`int`): The number of rows.
            - like (:obj:`torch.Tensor`): A tensor of the wanted dtype and device.
        """
        return ContextBatch.empty(batch_size, self.shape, like)

    def drop_memory(self) -> None:
        """
        Overview:
            Give the slab's memory back, e.g. because the model has moved to another device. No context may be live.
        """
        assert not self._holders, 'contexts are still held'
        self._slab, self._free = None, []

    def __len__(self) -> int:
        return len(self._holders)

    def _grow(self, needed: int, like: ContextBatch) -> None:
        size = 0 if self._slab is None else len(self._slab)
        if needed <= size:
            return
        grown = ContextBatch.empty(max(needed, 2 * size), self.shape, like.kv)
        if size:
            grown.assign(range(size), self._slab)
        self._slab = grown
