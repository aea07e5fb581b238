from collections import OrderedDict
from heapq import heapify, heappop, heappush
from typing import Optional

import numpy as np

from .base import EvictionPolicy, Priority
from .recompute_costs import RecomputeCosts
from .search_tree import SearchTree, SearchTreeNode


class TreeEviction(EvictionPolicy):
    """
    Overview:
        Made for search trees: the node goes first whose absence costs the search least. That is one to which the search
        will not come soon, by its own selection rule on the values, rewards and priors that the model has predicted
        (see ``SearchTree``), or for which little is to be computed when it does (see ``RecomputeCosts``). Entries that
        have no place in the running search, such as roots of former steps, go before all of these, the least recently
        used one first. An eviction costs O(n).
    """
    follows_search = True

    def __init__(self) -> None:
        self._others: OrderedDict[int, None] = OrderedDict()
        self._search: Optional[SearchTree] = None
        self._nodes: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._costs: Optional[RecomputeCosts] = None
        self._heap: list[tuple[float, int]] = []

    def insert(self, slot: int, priority: Priority = None) -> None:
        if not isinstance(priority, SearchTreeNode):
            self._others[slot] = None
            return
        if priority.tree is not self._search:
            self._begin(priority.tree)
        node = priority.number
        self._nodes[slot], self._slots[node] = node, slot
        if self._is_looked_at():
            origin = self._costs.add(node)
            for cheaper in (node, origin):
                if cheaper in self._slots:
                    heappush(self._heap, (self._costs.of(cheaper), self._slots[cheaper]))

    def remove(self, slot: int) -> None:
        node = self._nodes.pop(slot, None)
        if node is None:
            del self._others[slot]
            return
        if self._slots.get(node) == slot:
            del self._slots[node]
        if self._is_looked_at():
            self._costs.remove(node)

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
        if not self._is_looked_at():
            self._look_at_search()
        while True:
            cost, slot = heappop(self._heap)
            if slot in self._nodes:
                # What was removed since may have made it dearer.
                cost_now = self._costs.of(self._nodes[slot])
                heappush(self._heap, (cost_now, slot))
                if cost_now <= cost:
                    return slot

    def _begin(self, search: SearchTree) -> None:
        self._others.update(dict.fromkeys(self._nodes))
        self._nodes.clear()
        self._slots.clear()
        self._search, self._costs, self._heap = search, None, []

    def _is_looked_at(self) -> bool:
        return self._costs is not None and self._costs.num_nodes == self._search.num_nodes

    def _look_at_search(self) -> None:
        nodes = np.array(list(self._nodes.values()))
        self._costs = RecomputeCosts(self._search, nodes)
        self._heap = list(zip(self._costs.of_many(nodes).tolist(), self._nodes))
        heapify(self._heap)
