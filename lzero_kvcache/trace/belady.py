from bisect import bisect_right
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any

from ..eviction import EvictionPolicy, Priority
from ..pool import KVCachePool


@dataclass
class Future:
    """When each key of a pool will be asked for: rising times, of which its owner counts ``now`` on."""
    uses: Mapping[Hashable, Sequence[int]] = field(default_factory=dict)
    now: int = 0

    def next_use(self, key: Hashable) -> float:
        """The first time after ``now`` at which a key is asked for; infinity: never."""
        uses = self.uses.get(key, ())
        place = bisect_right(uses, self.now)
        return uses[place] if place < len(uses) else float('inf')


class BeladyEviction(EvictionPolicy):
    """
    The entry that is asked for farthest in the future goes first.

    Belady 1966, "A study of replacement algorithms for a virtual-storage computer"; optimal by Mattson et al. 1970. No
    strategy has more hits, but it has to know the future: a bound, not a strategy of a run. Every operation costs
    amortised O(log n).
    """

    def __init__(self, future: Future) -> None:
        self._future = future
        self._coming_key: Hashable = None
        self._keys: dict[int, Hashable] = {}
        self._next_uses: dict[int, float] = {}
        self._heap: list[tuple[float, int]] = []

    def before_insert(self, cache_key: Hashable) -> None:
        self._coming_key = cache_key

    def insert(self, slot: int, priority: Priority = None) -> None:
        self._keys[slot] = self._coming_key
        self.touch(slot)

    def remove(self, slot: int) -> None:
        del self._keys[slot], self._next_uses[slot]

    def touch(self, slot: int) -> None:
        self._next_uses[slot] = self._future.next_use(self._keys[slot])
        heappush(self._heap, (-self._next_uses[slot], slot))

    def victim(self) -> int:
        while True:
            negative, slot = self._heap[0]
            if self._next_uses.get(slot) == -negative:
                return slot
            heappop(self._heap)


class BeladyPool(KVCachePool):
    """A pool that knows its future, which no config can ask for; the options are those of ``KVCachePool``."""

    def __init__(self, pool_size: int, future: Future, **options: Any) -> None:
        super().__init__(pool_size, **options)
        self._new_eviction_policy = lambda: BeladyEviction(future)
        self.clear()
