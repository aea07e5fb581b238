from collections import OrderedDict

from .base import EvictionPolicy, Priority


class LRUEviction(EvictionPolicy):
    """
    Overview:
        The least recently used entry goes first; reading and overwriting both count as use. Every operation
        costs O(1).
    """

    def __init__(self) -> None:
        self._slots: OrderedDict[int, None] = OrderedDict()

    def insert(self, slot: int, priority: Priority = None) -> None:
        self._slots[slot] = None

    def remove(self, slot: int) -> None:
        del self._slots[slot]

    def victim(self) -> int:
        return next(iter(self._slots))

    def touch(self, slot: int) -> None:
        self._slots.move_to_end(slot)
