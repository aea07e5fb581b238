"""What it costs a search to be without the context of a node."""
from collections.abc import Sequence

import numpy as np

from .search_tree import SearchTree

# What is missing is cached again once it has been computed, so that not all of its visits to come depend on the node
# that it is computed from. Chosen on traces; with 1 less is computed again, and more is missed.
OF_MISSING = 0.5


class RecomputeCosts:
    """
    Overview:
        What each cached node saves a search: the steps from the nearest ancestor whose context is there to the node,
        times how often the search will ask for the node, and for nodes below it that are missing and would be computed
        from it. Weighing an entry by what it costs to bring back is the idea of Cao and Irani 1997, "Cost-aware WWW
        proxy caching algorithms".
    Arguments:
        - search (:obj:`SearchTree`): The search; the costs are those of this moment.
        - cached (:obj:`Sequence[int]`): The nodes whose contexts are there, beside the roots.
    """

    def __init__(self, search: SearchTree, cached: Sequence[int]) -> None:
        parents, self._depths = search.parents, search.depths
        self.num_nodes = len(parents)
        # Expansions per simulation.
        self._rates = 1 / (1 + search.waits())
        nearest = parents.copy()
        nearest[cached] = cached
        for _ in range(int(self._depths.max()).bit_length()):
            nearest = nearest[nearest]
        # The nearest ancestor that is there, of cached nodes and of missing ones; of a root itself.
        self._origins = nearest[parents]
        rates_of_missing = self._rates.copy()
        rates_of_missing[cached] = 0
        self._demand = self._rates + OF_MISSING * np.bincount(nearest, rates_of_missing, minlength=self.num_nodes)

    def of(self, node: int) -> float:
        """
        Overview:
            What it costs to be without a node.
        Arguments:
            - node (:obj:`int`): The number of a cached one.
        """
        return self._demand[node] * max(self._depths[node] - self._depths[self._origins[node]], 1)

    def of_many(self, nodes: np.ndarray) -> np.ndarray:
        """
        Overview:
            What it costs to be without each of these nodes.
        Arguments:
            - nodes (:obj:`np.ndarray`): The numbers of cached ones, :math:`(N, )`.
        """
        return self._demand[nodes] * np.maximum(self._depths[nodes] - self._depths[self._origins[nodes]], 1)

    def add(self, node: int) -> int:
        """
        Overview:
            A node is there now. Those below it are not looked at again.
        Arguments:
            - node (:obj:`int`): Its number.
        Returns:
            - origin (:obj:`int`): The only node that is needed less for it.
        """
        origin = int(self._origins[node])
        self._demand[origin] -= OF_MISSING * self._rates[node]
        self._demand[node] = self._rates[node]
        return origin

    def remove(self, node: int) -> None:
        """
        Overview:
            A node is missing from now on. No other is needed less for it.
        Arguments:
            - node (:obj:`int`): Its number.
        """
        origin = self._origins[node]
        self._origins[self._origins == node] = origin
        self._demand[origin] += self._demand[node] + (OF_MISSING - 1) * self._rates[node]
