from collections import OrderedDict
from typing import Optional

from .base import EvictionPolicy, Priority
from .recompute_costs import RecomputeCosts
from .search_tree import SearchTree, SearchTreeNode

# The search is looked at again when it has made so many nodes, as a share of the entries but for some of each root.
NEW_PER_LOOK, RESERVED = 0.3, 2


class TreeEviction(EvictionPolicy):
    """
    Overview:
        Made for search trees: the node goes first whose absence costs the search least. That is one to which the search
        will not come soon, by its own selection rule on the values, rewards and priors that the model has predicted
        (see ``SearchTree``), or for which little is to be computed when it does (see ``RecomputeCosts``). Entries that
        have no place in the running search, such as roots of former steps, go before all of these, the least recently
        used one first. An eviction costs O(log n), and every few simulations a look at the search O(n).
    """
    follows_search = True

    def __init__(self) -> None:
        self._others: OrderedDict[int, None] = OrderedDict()
        self._search: Optional[SearchTree] = None
        self._nodes: dict[int, int] = {}
        self._slots: dict[int, int] = {}
        self._costs: Optional[RecomputeCosts] = None
        self._look_again_at = 0.0

    def insert(self, slot: int, priority: Priority = None) -> None:
        if not isinstance(priority, SearchTreeNode):
            self._others[slot] = None
            return
        search, node = priority
        if search is not self._search:
            self._begin(search)
        elif node in self._slots:
            former = self._slots[node]
            del self._nodes[former]
            self._others[former] = None
        self._nodes[slot], self._slots[node] = node, slot
        if self._costs is not None:
            self._costs.add(node)

    def remove(self, slot: int) -> None:
        node = self._nodes.pop(slot, None)
        if node is None:
            del self._others[slot]
            return
        del self._slots[node]
        if self._costs is not None:
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
        if self._costs is None or self._search.num_nodes >= self._look_again_at:
            self._look_at_search()
        return self._slots[self._costs.cheapest()]

    def _begin(self, search: SearchTree) -> None:
        self._others.update(dict.fromkeys(self._nodes))
        self._nodes.clear()
        self._slots.clear()
        self._search, self._costs = search, None

    def _look_at_search(self) -> None:
        self._costs = RecomputeCosts(self._search, self._slots)
        reserved = RESERVED * self._search.nodes.ends[0]
        self._look_again_at = self._costs.num_nodes + max(1, NEW_PER_LOOK * (len(self._slots) - reserved))
