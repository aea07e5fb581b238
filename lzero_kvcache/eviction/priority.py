import heapq

from .base import EvictionPolicy, Priority


class PriorityEviction(EvictionPolicy):
    """
    Overview:
        The entry of the lowest priority goes first and, among equals, the least recently used one. Entries that
        came without a priority have priority 0, so a pool used without any is LRU. Every operation costs
        amortised O(log n).
    Arguments:
        - score (:obj:`str`): How the world model computes a node's priority: 'search_depth' (shallow nodes survive),
            another name of ``lzero_kvcache.world_model.scores``, or the dotted path of a function. A pool used on
            its own takes the priority given to ``KVCachePool.set`` and ignores the score.
    """

    def __init__(self, score: str = 'search_depth') -> None:
        self.score = score
        self._clock = 0
        self._ranks: dict[int, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, int]] = []

    def insert(self, slot: int, priority: Priority = None) -> None:
        self._rank(slot, 0.0 if priority is None else priority)

    def remove(self, slot: int) -> None:
        del self._ranks[slot]

    def victim(self) -> int:
        while True:
            priority, used_at, slot = self._heap[0]
            if self._ranks.get(slot) == (priority, used_at):
                return slot
            heapq.heappop(self._heap)

    def touch(self, slot: int) -> None:
        self._rank(slot, self._ranks[slot][0])

    def update(self, slot: int, priority: Priority = None) -> None:
        self._rank(slot, self._ranks[slot][0] if priority is None else priority)

    def _rank(self, slot: int, priority: float) -> None:
        self._clock += 1
        self._ranks[slot] = (priority, self._clock)
        heapq.heappush(self._heap, (priority, self._clock, slot))
        # Every use leaves an outdated item behind; dropping them in bulk keeps the heap at O(n).
        if len(self._heap) > 2 * len(self._ranks) + 64:
            self._heap = [(rank, used_at, slot) for slot, (rank, used_at) in self._ranks.items()]
            heapq.heapify(self._heap)
