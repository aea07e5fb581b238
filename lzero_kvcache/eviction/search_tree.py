"""What a search is about to do, read from what it has done: MuZero's selection rule on a copy of its statistics."""
from collections.abc import Sequence
from typing import Callable, NamedTuple

import numpy as np

# The range of values below which LightZero's search does not stretch them to [0, 1].
SMALLEST_RANGE = 0.01


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
        parents, visits = self._parents[:count], self._visits[:count]
        below = np.arange(self._num_roots, count)
        of_parent = parents[below]
        q_values = self._rewards[:count] + self._discount_factor * self._value_sums[:count] / np.maximum(visits, 1)
        lowest, ranges = self._lowest[self._trees[:count]], self._ranges()[self._trees[:count]]

        exploration = np.log((visits + self._pb_c_base + 1) / self._pb_c_base) + self._pb_c_init
        exploration *= np.sqrt(visits)
        scores = np.zeros(count)
        scores[below] = _within(q_values[below], lowest[below], ranges[below])
        scores[below] += exploration[of_parent] * self._prior[below] / (visits[below] + 1)

        sums = np.bincount(of_parent, q_values[below], minlength=count)
        tried = np.bincount(of_parent, minlength=count)
        # A root has no value of its own in the search.
        is_node = np.arange(count) >= self._num_roots
        untried_q = (sums + np.where(is_node, q_values, 0)) / np.maximum(tried + is_node, 1)
        untried = _within(untried_q, lowest, ranges) + exploration * self._untried_priors[:count].max(1)

        best = untried.copy()
        np.maximum.at(best, of_parent, scores[below])
        lacking = np.zeros(count)
        lacking[below] = best[of_parent] - scores[below]
        return -(self._summed_along_paths(lacking) + best - untried)

    def _summed_along_paths(self, numbers: np.ndarray) -> np.ndarray:
        # Roots count nothing, so that they may be added as often as it takes; the steps double in length.
        sums, ancestors = numbers.copy(), self._parents[:len(numbers)]
        while (ancestors >= self._num_roots).any():
            sums += sums[ancestors]
            ancestors = ancestors[ancestors]
        return sums

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
        self._prior[new] = np.maximum(untried[np.arange(count), actions], 0)
        self._untried_priors[parents, actions] = -np.inf
        self._untried_priors[new] = expansion.priors
        self._rewards[new] = expansion.rewards
        self._entered += count
        self._back_up(new, np.array(expansion.values, dtype=np.float64))

    def _back_up(self, nodes: np.ndarray, returns: np.ndarray) -> None:
        while len(nodes):
            self._visits[nodes] += 1
            self._value_sums[nodes] += returns
            below_roots = nodes >= self._num_roots
            nodes, returns = nodes[below_roots], returns[below_roots]
            trees, rewards = self._trees[nodes], self._rewards[nodes]
            q_values = rewards + self._discount_factor * self._value_sums[nodes] / self._visits[nodes]
            self._lowest[trees] = np.minimum(self._lowest[trees], q_values)
            self._highest[trees] = np.maximum(self._highest[trees], q_values)
            returns = rewards + self._discount_factor * returns
            nodes = self._parents[nodes]

    def _ranges(self) -> np.ndarray:
        return np.maximum(self._highest - self._lowest, SMALLEST_RANGE)

    def _make_room(self, needed: int) -> None:
        if needed <= len(self._parents):
            return
        size = max(needed, 2 * len(self._parents))
        for name in ('_parents', '_trees', '_visits', '_value_sums', '_rewards', '_prior', '_untried_priors'):
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


def _within(values: np.ndarray, lowest: np.ndarray, ranges: np.ndarray) -> np.ndarray:
    """Values as the selection rule sees them, between 0 and 1; 0 where the tree has met none yet."""
    with np.errstate(invalid='ignore'):
        scaled = (values - lowest) / ranges
    return np.clip(np.nan_to_num(scaled, nan=0.0, posinf=1.0, neginf=0.0), 0, 1)
