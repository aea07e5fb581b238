from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Optional

import numpy as np

from .base import EVICTION_REGISTRY, EvictionPolicy, Priority
from .search_tree import SearchTree, SearchTreeNode


@EVICTION_REGISTRY.register('tree')
class TreeEviction(EvictionPolicy):
    """
    Overview:
        Made for search trees: the node that will be expanded again last goes first, by the search's own selection rule
        on the values, rewards and priors that the model has predicted (see ``SearchTree``); a node all of whose actions
        have been tried goes before any other. Entries that have no place in the running search, such
        as roots of former steps, go before all of these, the least recently used one first. A simulation's evictions
        cost O(n) together.
    """
    follows_search = True

    def __init__(self) -> None:
        self._others: OrderedDict[int, None] = OrderedDict()
        self._search: Optional[SearchTree] = None
        self._numbers: dict[int, int] = {}
        # As of the search's last expansion that was looked at.
        self._num_nodes = 0
        self._waits = np.zeros(0)
        self._heap: list[tuple[float, int]] = []

    def insert(self, slot: int, priority: Priority = None) -> None:
        if not isinstance(priority, SearchTreeNode):
            self._others[slot] = None
            return
        if priority.tree is not self._search:
            self._begin(priority.tree)
        self._numbers[slot] = priority.number
        if self._num_nodes == self._search.num_nodes:
            heappush(self._heap, (-self._waits[priority.number], slot))

    def remove(self, slot: int) -> None:
        if self._numbers.pop(slot, None) is None:
            del self._others[slot]

    def touch(self, slot: int) -> None:
        if slot in self._others:
            self._others.move_to_end(slot)

    def update(self, slot: int, priority: Priority = None) -> None:
        if isinstance(priority, SearchTreeNode):
            self.remove(slot)
            self.insert(slot, priority)
        self.touch(slot)

    def victim(self) -> int:
        if self._others:
            return next(iter(self._others))
        if self._num_nodes != self._search.num_nodes:
            self._look_at_search()
        while True:
            negative_wait, slot = self._heap[0]
            if slot in self._numbers and -self._waits[self._numbers[slot]] == negative_wait:
                return slot
            heappop(self._heap)

    def _begin(self, search: SearchTree) -> None:
        self._others.update(dict.fromkeys(self._numbers))
        self._numbers.clear()
        self._search, self._num_nodes, self._heap = search, 0, []

    def _look_at_search(self) -> None:
        self._waits = self._search.waits()
        self._num_nodes = len(self._waits)
        negative_waits = -self._waits[list(self._numbers.values())]
        self._heap = list(zip(negative_waits.tolist(), self._numbers))
        heapify(self._heap)
