from collections import OrderedDict
from collections.abc import Hashable

from .base import EvictionPolicy, Priority

# Of the pool's capacity.
SMALL_SHARE = 0.1
GHOST_SHARE = 0.9
USES_TO_MOVE = 2
MOST_USES_COUNTED = 3


class S3FIFOEviction(EvictionPolicy):
    """
    Overview:
        S3-FIFO (Yang et al. 2023, "FIFO queues are all you need for cache eviction", SOSP): new entries wait in a small
        queue, a tenth of the pool, from which those used twice move on to the main queue and the others go; their keys
        are remembered for a while, and what comes back goes to the main queue at once, as does what the small queue has
        no room for before the pool is first full. There an entry that was used goes around once more per use, up to
        three. Every operation costs amortised O(1).
    """

    def __init__(self) -> None:
        self._small: OrderedDict[int, None] = OrderedDict()
        self._main: OrderedDict[int, None] = OrderedDict()
        self._uses: dict[int, int] = {}
        self._keys: dict[int, Hashable] = {}
        self._evicted_keys: OrderedDict[Hashable, None] = OrderedDict()
        self._coming_key: Hashable = None
        self._comes_back = False
        self._has_evicted = False
        self.resize(1)

    def resize(self, capacity: int) -> None:
        self._small_size = max(1, int(SMALL_SHARE * capacity))
        self._main_size = capacity - self._small_size
        self._ghost_size = int(GHOST_SHARE * capacity)

    def before_insert(self, cache_key: Hashable) -> None:
        self._coming_key = cache_key
        self._comes_back = cache_key in self._evicted_keys
        self._evicted_keys.pop(cache_key, None)

    def insert(self, slot: int, priority: Priority = None) -> None:
        fills_up = not self._has_evicted and len(self._small) >= self._small_size
        queue = self._main if self._comes_back or fills_up else self._small
        queue[slot] = None
        self._uses[slot] = 0
        self._keys[slot] = self._coming_key

    def remove(self, slot: int) -> None:
        self._has_evicted = True
        key = self._keys.pop(slot)
        del self._uses[slot]
        if slot in self._main:
            del self._main[slot]
            return
        del self._small[slot]
        self._evicted_keys[key] = None
        while len(self._evicted_keys) > self._ghost_size:
            self._evicted_keys.popitem(last=False)

    def victim(self) -> int:
        if len(self._main) <= self._main_size:
            while self._small:
                slot = next(iter(self._small))
                if self._uses[slot] < USES_TO_MOVE:
                    return slot
                del self._small[slot]
                self._main[slot] = None
                self._uses[slot] = 0
        while True:
            slot = next(iter(self._main))
            if self._uses[slot] == 0:
                return slot
            self._uses[slot] = min(self._uses[slot], MOST_USES_COUNTED) - 1
            self._main.move_to_end(slot)

    def touch(self, slot: int) -> None:
        self._uses[slot] += 1
