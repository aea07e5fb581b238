from collections import OrderedDict

from .base import EvictionPolicy, Priority


class FIFOEviction(EvictionPolicy):
    """
    Overview:
        First in, first out: the entry that has been in the pool longest goes first, however often it was read.
        Every operation costs O(1).
    """

    def __init__(self) -> None:
        # A plain dict would walk over the gaps that removed slots leave at its front: O(n) per eviction.
        self._slots: OrderedDict[int, None] = OrderedDict()

    def insert(self, slot: int, priority: Priority = None) -> None:
        self._slots[slot] = None

    def remove(self, slot: int) -> None:
        del self._slots[slot]

    def victim(self) -> int:
        return next(iter(self._slots))
