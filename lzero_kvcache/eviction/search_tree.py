"""What a search is about to do, read from what it has done: MuZero's selection rule on a copy of its statistics."""
from collections.abc import Sequence
from typing import Callable, NamedTuple

import numpy as np

# The range of values below which LightZero's search does not stretch them to [0, 1].
SMALLEST_RANGE = 0.01

_PER_NODE = ('_parents', '_trees', '_depths', '_visits', '_value_sums', '_rewards', '_prior', '_untried_priors')


class Expansion(NamedTuple):
    """
    Overview:
        What a recurrent inference has predicted for a batch of new nodes.
    Arguments:
        - actions (:obj:`np.ndarray`): The index of the action that leads to each, :math:`(B, )`; negative: any that its
            parent has not given yet.
        - rewards (:obj:`np.ndarray`): On the way to each, :math:`(B, )`, in the environment's units.
        - values (:obj:`np.ndarray`): Of each, :math:`(B, )`, in the environment's units.
        - priors (:obj:`np.ndarray`): Of each node's own actions, :math:`(B, num_actions)`, summing to 1.
    """
    actions: np.ndarray
    rewards: np.ndarray
    values: np.ndarray
    priors: np.ndarray


class SearchTree:
    """
    Overview:
        The trees of one batched search, one per root, and how near each node is to being expanded next. The search goes
        down by the largest pUCT score (Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by planning
        with a learned model", equation 2); a node's ``urgency`` is minus what the choices that lead to its next
        expansion lack to the best ones, added up along its path: 0 for the node that is expanded next,
        minus infinity for one all of whose actions have been tried. Root noise is not known here. Nothing is computed
        before an urgency is asked for.
    Arguments:
        - num_roots (:obj:`int`): B, the trees.
        - root_priors (:obj:`Callable`): Returns the priors of the roots' actions, :math:`(B, num_actions)`.
        - discount_factor (:obj:`float`): Of the values.
        - pb_c_base, pb_c_init (:obj:`float`): Of the selection rule; the defaults are LightZero's.
    """

    def __init__(
            self, num_roots: int, root_priors: Callable[[], np.ndarray], discount_factor: float = 0.997,
            pb_c_base: float = 19652, pb_c_init: float = 1.25
    ) -> None:
        self._root_priors = root_priors
        self._discount_factor = discount_factor
        self._pb_c_base = pb_c_base
        self._pb_c_init = pb_c_init
        self._num_roots = num_roots
        self._pending: list[tuple[Sequence[int], Callable[[], Expansion]]] = []
        self._entered = 0
        self.num_nodes = num_roots

    def expand(self, parents: Sequence[int], expansion: Callable[[], Expansion]) -> range:
        """
        Overview:
            The search has expanded some nodes, at most one in each tree.
        Arguments:
            - parents (:obj:`Sequence[int]`): The nodes; roots are 0 to ``num_roots - 1``.
            - expansion (:obj:`Callable`): Returns the ``Expansion``.
        Returns:
            - children (:obj:`range`): The numbers of the new nodes.
        """
        self._pending.append((parents, expansion))
        children = range(self.num_nodes, self.num_nodes + len(parents))
        self.num_nodes = children.stop
        return children

    def urgencies(self) -> np.ndarray:
        """
        Overview:
            How near each node is to its next expansion.
        Returns:
            - urgencies (:obj:`np.ndarray`): At most 0, :math:`(num_nodes, )`.
        """
        self._catch_up()
        count = self.num_nodes
        below = np.arange(self._num_roots, count)
        parents, visits = self._parents[:count], self._visits[:count]
        of_parent = parents[below]
        levels = np.split(below[np.argsort(self._depths[below], kind='stable')],
                          np.cumsum(np.bincount(self._depths[below]))[1:-1])

        q_values = self._rewards[:count] + self._discount_factor * self._value_sums[:count] / np.maximum(visits, 1)
        expected = self._expected_q(q_values, levels)
        exploration = self._exploration(visits)
        scores = self._scaled(q_values)
        scores[below] += exploration[of_parent] * self._prior[below] / (visits[below] + 1)
        untried = self._scaled(expected) + exploration * self._untried_priors[:count].max(1)

        best = untried.copy()
        np.maximum.at(best, of_parent, scores[below])
        lacking = np.zeros(count)
        for nodes in levels:
            above = parents[nodes]
            lacking[nodes] = lacking[above] + best[above] - scores[nodes]
        return untried - best - lacking

    def _expected_q(self, q_values: np.ndarray, levels: Sequence[np.ndarray]) -> np.ndarray:
        """What the search takes the value of an untried action for: the mean of the tried ones and of the parent's."""
        below = slice(self._num_roots, len(q_values))
        sums = np.bincount(self._parents[below], q_values[below], minlength=len(q_values))
        tried = np.bincount(self._parents[below], minlength=len(q_values))
        expected = sums / np.maximum(tried, 1)
        for nodes in levels:
            expected[nodes] = (expected[self._parents[nodes]] + sums[nodes]) / (tried[nodes] + 1)
        return expected

    def _exploration(self, visits: np.ndarray) -> np.ndarray:
        tries = visits.copy()
        # Its own prediction counts as a node's first visit.
        tries[self._num_roots:] -= 1
        return (np.log((tries + self._pb_c_base + 1) / self._pb_c_base) + self._pb_c_init) * np.sqrt(tries)

    def _scaled(self, values: np.ndarray) -> np.ndarray:
        """Values as the selection rule sees them, between 0 and 1."""
        trees = self._trees[:len(values)]
        lowest = np.where(np.isinf(self._lowest), 0, self._lowest)
        ranges = np.maximum(self._highest - self._lowest, SMALLEST_RANGE)
        ranges[np.isinf(self._lowest)] = 1
        return np.clip((values - lowest[trees]) / ranges[trees], 0, 1)

    def _catch_up(self) -> None:
        if not self._entered:
            self._enter_roots()
        for parents, expansion in self._pending:
            self._enter(np.asarray(parents), expansion())
        self._pending = []

    def _enter_roots(self) -> None:
        priors = np.asarray(self._root_priors(), dtype=np.float64)
        roots = len(priors)
        self._parents = np.arange(roots)
        self._trees = np.arange(roots)
        self._depths = np.zeros(roots, dtype=np.int64)
        self._visits = np.zeros(roots)
        self._value_sums, self._rewards = np.zeros(roots), np.zeros(roots)
        self._prior = np.ones(roots)
        self._untried_priors = priors.copy()
        self._lowest, self._highest = np.full(roots, np.inf), np.full(roots, -np.inf)
        self._entered = roots

    def _enter(self, parents: np.ndarray, expansion: Expansion) -> None:
        first, count = self._entered, len(parents)
        new = np.arange(first, first + count)
        self._make_room(first + count)
        untried = self._untried_priors[parents]
        actions = np.where(expansion.actions < 0, untried.argmax(1), expansion.actions)
        self._parents[new] = parents
        self._trees[new] = self._trees[parents]
        self._depths[new] = self._depths[parents] + 1
        self._prior[new] = np.maximum(untried[np.arange(count), actions], 0)
        self._untried_priors[parents, actions] = -np.inf
        self._untried_priors[new] = expansion.priors
        self._rewards[new] = expansion.rewards
        self._entered += count
        self._back_up(new, np.array(expansion.values, dtype=np.float64))

    def _back_up(self, nodes: np.ndarray, returns: np.ndarray) -> None:
        while len(nodes):
            trees, rewards = self._trees[nodes], self._rewards[nodes]
            self._visits[nodes] += 1
            self._value_sums[nodes] += returns
            q_values = rewards + self._discount_factor * self._value_sums[nodes] / self._visits[nodes]
            self._lowest[trees] = np.minimum(self._lowest[trees], q_values)
            self._highest[trees] = np.maximum(self._highest[trees], q_values)
            below_roots = nodes >= self._num_roots
            returns = (rewards + self._discount_factor * returns)[below_roots]
            nodes = self._parents[nodes[below_roots]]

    def _make_room(self, needed: int) -> None:
        if needed <= len(self._parents):
            return
        size = max(needed, 2 * len(self._parents))
        for name in _PER_NODE:
            former = getattr(self, name)
            larger = np.zeros((size, *former.shape[1:]), dtype=former.dtype)
            larger[:len(former)] = former
            setattr(self, name, larger)


class SearchTreeNode(NamedTuple):
    """
    Overview:
        What an eviction strategy is told of a search's node in place of a number.
    Arguments:
        - tree (:obj:`SearchTree`): The search.
        - number (:obj:`int`): The node's number in it.
    """
    tree: SearchTree
    number: int
