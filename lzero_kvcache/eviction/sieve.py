from typing import Optional

from .base import EvictionPolicy, Priority


class SIEVEEviction(EvictionPolicy):
    """
    Overview:
        SIEVE (Zhang et al. 2024, "SIEVE is simpler than LRU", NSDI): entries stay in the order in which they came; a
        hand goes from the oldest to the newest and around, spares what was used since it last came by, and evicts the
        first that was not. Every operation costs amortised O(1).
    """

    def __init__(self) -> None:
        self._newer: dict[Optional[int], Optional[int]] = {None: None}
        self._older: dict[Optional[int], Optional[int]] = {None: None}
        self._used: set[int] = set()
        # Where the hand goes on; None: at the oldest.
        self._hand: Optional[int] = None

    def insert(self, slot: int, priority: Priority = None) -> None:
        # None closes the ring: it is newer than the newest and older than the oldest.
        newest = self._older[None]
        self._link(newest, slot)
        self._link(slot, None)

    def remove(self, slot: int) -> None:
        if slot == self._hand:
            self._hand = self._newer[slot]
        self._link(self._older.pop(slot), self._newer.pop(slot))
        self._used.discard(slot)

    def victim(self) -> int:
        while self._hand is None or self._hand in self._used:
            self._used.discard(self._hand)
            self._hand = self._newer[self._hand]
        return self._hand

    def touch(self, slot: int) -> None:
        self._used.add(slot)

    def _link(self, older: Optional[int], newer: Optional[int]) -> None:
        self._newer[older] = newer
        self._older[newer] = older
