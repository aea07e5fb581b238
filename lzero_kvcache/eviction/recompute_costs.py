"""What it costs a search to be without the context of a node."""
from array import array
from collections.abc import Collection
from heapq import heapify, heappop, heappush, heapreplace

import numpy as np

from .search_nodes import finite
from .search_tree import SearchTree

# What is missing is cached again once it has been computed, so that not all of its visits to come depend on the node
# that it is computed from. Chosen on traces; with 1 less is computed again, and more is missed.
OF_MISSING = 0.5
# An exponent of e from which on a wait is as good as endless.
LARGEST = 20.0


class RecomputeCosts:
    """
    What each cached node saves a search: the steps from the nearest ancestor whose context is there to the node, times
    how often the search will ask for the node, and for nodes below it that are missing and would be computed from it.
    Weighing an entry by what it costs to bring back is the idea of Cao and Irani 1997, "Cost-aware WWW proxy caching
    algorithms".

    The costs are those of the moment when this is made. Of nodes that the search has made since, they are estimated
    from the predicted rewards and values.

    Args:
        search: The search.
        cached: The numbers of the nodes whose contexts are there, beside the roots; what ``add`` and ``remove`` are
            told of changes it, too.
    """

    def __init__(self, search: SearchTree, cached: Collection[int]) -> None:
        lifts, levels = search.lifts(), search.levels()
        self.num_nodes = lifts.shape[1] - 1
        self._nodes, self._cached, self._discount_factor = search.nodes, cached, search.discount_factor
        # Expansions per simulation; the first row stands above the roots.
        rates = np.zeros(self.num_nodes + 1)
        rates[1:] = 1 / (1 + search.waits())
        rows = np.fromiter(cached, np.int64, len(cached)) + 1
        # The nearest ancestor that is there, as all roots are.
        nearest = lifts[0].copy()
        nearest[rows] = rows
        roots = (lifts[0] == 0).nonzero()[0]
        nearest[roots] = roots
        for _ in lifts:
            nearest = nearest.take(nearest)
        rates_of_missing = rates.copy()
        rates_of_missing[rows] = 0
        demand = rates + OF_MISSING * np.bincount(nearest, rates_of_missing, minlength=len(rates))
        steps = levels[rows] - levels[nearest[lifts[0, rows]]]
        # Of what is cached, at least one entry for each.
        self._heap = list(zip((demand[rows] * steps).tolist(), cached))
        heapify(self._heap)
        self._offsets, self._slopes, later = search.forecast()
        self._later = 1 / (1 + later)
        # One by one, numbers of an array are read faster than those of NumPy's.
        self._rates, self._demand = (array('d', numbers[1:].tobytes()) for numbers in (rates, demand))
        self._parents = array('q', (lifts[0, 1:] - 1).tobytes())
        self._levels = array('q', levels[1:].tobytes())

    def of(self, node: int) -> float:
        """What it costs to be without a cached node."""
        return self._demand[node] * (self._levels[node] - self._levels[self._origin(node)])

    def cheapest(self) -> int:
        """The cached node that costs least."""
        heap = self._heap
        while True:
            cost, node = heap[0]
            if node not in self._cached:
                heappop(heap)
                continue
            # What was removed since may have made it dearer.
            cost_now = self.of(node)
            if cost_now <= cost:
                return node
            heapreplace(heap, (cost_now, node))

    def add(self, node: int) -> None:
        """A node is there now."""
        if node >= len(self._rates):
            self._go_on()
        self._demand[node] = self._rates[node]
        if node < self.num_nodes:
            origin = self._origin(node)
            self._demand[origin] -= OF_MISSING * self._rates[node]
            if origin in self._cached:
                heappush(self._heap, (self.of(origin), origin))
        heappush(self._heap, (self.of(node), node))

    def remove(self, node: int) -> None:
        """A node is missing from now on. No other is needed less for it."""
        self._demand[self._origin(node)] += self._demand[node] - (1 - OF_MISSING) * self._rates[node]

    def _origin(self, node: int) -> int:
        """The nearest ancestor that is there; of a root itself."""
        parents, cached = self._parents, self._cached
        above = parents[node]
        while above >= 0:
            node, above = above, parents[above]
            if node in cached:
                break
        return node

    def _go_on(self) -> None:
        """Nodes have come. Their parents need not be expanded again soon."""
        nodes, new = self._nodes, slice(len(self._rates), self._nodes.num_nodes)
        parents = nodes.parents[new]
        # Nothing is known of nodes that have come since, and of what strays come from.
        rows = np.where(parents < self.num_nodes, parents + 1, 0)
        values = finite(nodes.rewards(new) + self._discount_factor * nodes.values(new))
        exponents = self._offsets.take(rows) - self._slopes.take(rows) * values
        rates = array('d', (1 / (1 + np.exp(np.minimum(exponents, LARGEST)))).tobytes())
        self._rates.extend(rates)
        self._demand.extend(rates)
        parents = parents.tolist()
        self._parents.extend(parents)
        rates, demand, levels, cached = self._rates, self._demand, self._levels, self._cached
        for parent, later in zip(parents, self._later.take(rows).tolist()):
            levels.append(0 if parent < 0 else levels[parent] + 1)
            lost = rates[parent] - later
            if lost <= 0 or parent < 0:
                continue
            rates[parent] = later
            if parent in cached:
                demand[parent] -= lost
                heappush(self._heap, (self.of(parent), parent))
            else:
                demand[self._origin(parent)] -= OF_MISSING * lost
