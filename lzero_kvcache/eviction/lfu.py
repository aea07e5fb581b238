from collections import OrderedDict

from .base import EvictionPolicy, Priority


class LFUEviction(EvictionPolicy):
    """
    Overview:
        The least frequently used entry goes first and, among equals, the one that has been used so often for longest.
        An entry that comes back is counted from 1 again. Every operation costs O(1), unless uses differ by thousands.
    """

    def __init__(self) -> None:
        self._uses: dict[int, int] = {}
        self._slots_by_uses: dict[int, OrderedDict[int, None]] = {}

    def insert(self, slot: int, priority: Priority = None) -> None:
        self._count(slot, 1)

    def remove(self, slot: int) -> None:
        uses = self._uses.pop(slot)
        slots = self._slots_by_uses[uses]
        del slots[slot]
        if not slots:
            del self._slots_by_uses[uses]

    def victim(self) -> int:
        return next(iter(self._slots_by_uses[min(self._slots_by_uses)]))

    def touch(self, slot: int) -> None:
        uses = self._uses[slot]
        self.remove(slot)
        self._count(slot, uses + 1)

    def _count(self, slot: int, uses: int) -> None:
        self._uses[slot] = uses
        self._slots_by_uses.setdefault(uses, OrderedDict())[slot] = None
