"""What a search is about to do, read from what it has done: MuZero's selection rule on a copy of its statistics."""
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np

# The range of values below which LightZero's search does not stretch them to [0, 1].
SMALLEST_RANGE = 0.01

_PER_NODE = dict(
    _parents=np.int64, _trees=np.int64, _depths=np.int64, _visits=np.float64, _value_sums=np.float64,
    _rewards=np.float64, _prior=np.float64, _untried_priors=np.float64, _best_untried=np.float64,
)


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
        minus infinity for one all of whose actions have been tried. The noise that a search adds to its roots' priors
        is learned from what the search prefers. Nothing is computed before an urgency is asked for.
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
        self._outlook: Optional[_Outlook] = None
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
        outlook = self._look()
        lacking = np.zeros(self._entered)
        for nodes in self._levels():
            above = self._parents[nodes]
            lacking[nodes] = lacking[above] + outlook.best[above] - outlook.scores[nodes]
        return outlook.untried - outlook.best - lacking

    def _look(self) -> '_Outlook':
        if self._outlook is not None:
            return self._outlook
        count = self._entered
        below = slice(self._num_roots, count)
        visits, of_parent = self._visits[:count], self._parents[below]
        q_values = self._rewards[:count] + self._discount_factor * self._value_sums[:count] / np.maximum(visits, 1)
        exploration = self._exploration(visits)
        scores = self._scaled(q_values)
        scores[below] += exploration[of_parent] * self._prior[below] / (visits[below] + 1)
        untried = self._scaled(self._expected_q(q_values)) + exploration * self._best_untried[:count]
        best = untried.copy()
        np.maximum.at(best, of_parent, scores[below])
        self._outlook = _Outlook(scores, untried, self._best_untried[:count].copy(), best, exploration)
        return self._outlook

    def _levels(self) -> list[np.ndarray]:
        return [np.array(nodes) for nodes in self._nodes_by_depth[1:]]

    def _expected_q(self, q_values: np.ndarray) -> np.ndarray:
        """What the search takes the value of an untried action for: the mean of the tried ones and of the parent's."""
        below = slice(self._num_roots, len(q_values))
        sums = np.bincount(self._parents[below], q_values[below], minlength=len(q_values))
        tried = np.bincount(self._parents[below], minlength=len(q_values))
        expected = sums / np.maximum(tried, 1)
        for nodes in self._levels():
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
        count, self._num_actions = priors.shape
        self._allocate(count)
        self._parents[:] = self._trees[:] = np.arange(count)
        self._untried_priors[:] = priors
        self._best_untried[:] = priors.max(1)
        self._lowest, self._highest = np.full(count, np.inf), np.full(count, -np.inf)
        self._nodes_by_depth = [list(range(count))]
        self._entered = count

    def _allocate(self, size: int) -> None:
        former = {name: getattr(self, name, None) for name in _PER_NODE}
        for name, dtype in _PER_NODE.items():
            shape = (size, self._num_actions) if name == '_untried_priors' else (size, )
            setattr(self, name, np.zeros(shape, dtype=dtype))
            if former[name] is not None:
                getattr(self, name)[:len(former[name])] = former[name]

    def _enter(self, parents: np.ndarray, expansion: Expansion) -> None:
        outlook = self._look()
        first, count = self._entered, len(parents)
        self._entered += count
        if self._entered > len(self._parents):
            self._allocate(max(self._entered, 2 * len(self._parents)))
        new = np.arange(first, self._entered)
        untried = self._untried_priors[parents]
        actions = np.where(expansion.actions < 0, untried.argmax(1), expansion.actions)
        self._parents[new] = parents
        self._trees[new] = self._trees[parents]
        self._depths[new] = self._depths[parents] + 1
        self._prior[new] = np.maximum(untried[np.arange(count), actions], 0)
        self._rewards[new] = expansion.rewards
        self._untried_priors[parents, actions] = -np.inf
        self._untried_priors[new] = expansion.priors
        changed = np.concatenate([parents, new])
        self._best_untried[changed] = self._untried_priors[changed].max(1)
        for node, depth in zip(new.tolist(), self._depths[new].tolist()):
            if depth == len(self._nodes_by_depth):
                self._nodes_by_depth.append([])
            self._nodes_by_depth[depth].append(node)
        below_roots = self._back_up(new.tolist(), np.asarray(expansion.values, dtype=np.float64).tolist())
        self._learn_noise(below_roots, outlook)
        self._outlook = None

    def _back_up(self, nodes: Sequence[int], values: Sequence[float]) -> list[int]:
        """Count what the nodes have added to their paths; the roots' children that the paths go through."""
        below_roots = []
        # Paths are short: views of single numbers beat arrays of a few.
        parents, visits, value_sums, rewards = map(
            memoryview, (self._parents, self._visits, self._value_sums, self._rewards)
        )
        for node, value in zip(nodes, values):
            tree = self._trees[node]
            lowest, highest = self._lowest[tree], self._highest[tree]
            while True:
                visits[node] += 1
                value_sums[node] += value
                reward = rewards[node]
                q_value = reward + self._discount_factor * value_sums[node] / visits[node]
                if q_value < lowest:
                    lowest = q_value
                if q_value > highest:
                    highest = q_value
                if node < self._num_roots:
                    break
                value = reward + self._discount_factor * value
                below, node = node, parents[node]
            below_roots.append(below)
            self._lowest[tree], self._highest[tree] = lowest, highest
        return below_roots

    def _learn_noise(self, below_roots: Sequence[int], outlook: '_Outlook') -> None:
        """Raise the priors of what the search has chosen at its roots to where its choice would have been expected."""
        for node in below_roots:
            root = self._parents[node]
            exploration = outlook.exploration[root]
            if exploration == 0:
                continue
            if node < len(outlook.scores):
                score = outlook.scores[node]
            else:
                score = outlook.untried[root] + exploration * (self._prior[node] - outlook.best_untried[root])
            lacking = outlook.best[root] - score
            if lacking > 0:
                self._prior[node] += lacking * self._visits[node] / exploration


class _Outlook(NamedTuple):
    """
    Overview:
        What the selection rule said when the search was last looked at, one number per node.
    Arguments:
        - scores (:obj:`np.ndarray`): Of the node itself, among its siblings.
        - untried (:obj:`np.ndarray`): Of the best of its untried actions.
        - best_untried (:obj:`np.ndarray`): That action's prior.
        - best (:obj:`np.ndarray`): The best score among its children and untried actions.
        - exploration (:obj:`np.ndarray`): What a prior is multiplied by, before it is divided by the visits.
    """
    scores: np.ndarray
    untried: np.ndarray
    best_untried: np.ndarray
    best: np.ndarray
    exploration: np.ndarray


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
