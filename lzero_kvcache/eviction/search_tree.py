"""What a search is about to do, read from what it has done: MuZero's selection rule on a copy of its statistics."""
from collections.abc import Iterator, Sequence
from typing import Callable, NamedTuple, Optional

import numpy as np

from .search_waits import Choices, visits_until_chosen

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
        The trees of one batched search, one per root, and how many simulations it will take until each node is expanded
        again. The search goes down by the largest pUCT score (Schrittwieser et al. 2020, "Mastering Atari, Go, chess
        and shogi by planning with a learned model", equation 2), of which this is a copy. The noise that a search adds
        to its roots' priors is learned from what the search prefers. Nothing is computed before it is asked for.
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
        self._choices: Optional[Choices] = None
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

    @property
    def parents(self) -> np.ndarray:
        """
        Overview:
            The parent of each node, of a root itself, :math:`(num_nodes, )`.
        """
        self._catch_up()
        return self._parents[:self._entered]

    @property
    def depths(self) -> np.ndarray:
        """
        Overview:
            The steps from the root to each node, :math:`(num_nodes, )`.
        """
        self._catch_up()
        return self._depths[:self._entered]

    def waits(self) -> np.ndarray:
        """
        Overview:
            How many simulations it will take until each node is expanded again: the visits that its ancestors and its
            untried actions wait for, each as many simulations long as the ancestor is visited rarely. Where the rule
            predicts a longer wait than the node's visits so far, the geometric mean of both is taken.
        Returns:
            - waits (:obj:`np.ndarray`): 0 for the node of a tree that is expanded next, infinity for one all of whose
                actions have been tried, :math:`(num_nodes, )`.
        """
        self._catch_up()
        count, choices = self._entered, self._look()
        below = np.arange(self._num_roots, count)
        of_parent, untried = self._parents[below], count + self._parents[below]
        of_choice = visits_until_chosen(
            choices, np.concatenate([self._waiting, below, untried]), np.concatenate([self._rivals, untried, below]),
            self._pb_c_init
        )
        period = np.ones(count)
        period[below] = np.maximum(1, self._visits[of_parent] / self._visits[below])
        # The rule alone would take every dip of a value, and the roots' noise, for lasting.
        of_choice[below] = np.minimum(of_choice[below], np.sqrt(of_choice[below] * period[below]))
        between_visits = self._along_paths(np.multiply, period)
        until_visited = self._along_paths(np.add, of_choice[:count] * between_visits[self._parents[:count]])
        is_exhausted = np.isneginf(self._best_untried[:count])
        return np.where(is_exhausted, np.inf, until_visited + of_choice[count:] * between_visits)

    def _look(self) -> Choices:
        """The choices as of now: of each node, and of the best untried action of each node."""
        if self._choices is None:
            count = self._entered
            visits, parents = self._visits[:count], self._parents[:count]
            q_values = self._rewards[:count] + self._discount_factor * self._value_sums[:count] / np.maximum(visits, 1)
            tries = visits.copy()
            # Its own prediction counts as a node's first visit.
            tries[self._num_roots:] -= 1
            exploration = np.log((tries + self._pb_c_base + 1) / self._pb_c_base) + self._pb_c_init
            exploration *= np.sqrt(tries)
            self._choices = Choices(
                values=np.concatenate([self._scaled(q_values), self._scaled(self._expected_q(q_values))]),
                priors=np.concatenate([self._prior[:count], self._best_untried[:count]]),
                visits=np.concatenate([visits, np.zeros(count)]),
                exploration=np.concatenate([exploration[parents], exploration]),
                tries=np.concatenate([tries[parents], tries]),
            )
        return self._choices

    def _ancestors(self) -> Iterator[np.ndarray]:
        """The ancestor of every node at twice the former distance each time, until it is a root everywhere."""
        ancestors = self._parents[:self._entered]
        for _ in range(self._deepest.bit_length()):
            yield ancestors
            ancestors = ancestors[ancestors]

    def _along_paths(self, combine: np.ufunc, numbers: np.ndarray) -> np.ndarray:
        """Each node's number combined with those of its ancestors; a root's must be neutral."""
        for ancestors in self._ancestors():
            numbers = combine(numbers, numbers[ancestors])
        return numbers

    def _expected_q(self, q_values: np.ndarray) -> np.ndarray:
        """What the search takes the value of an untried action for: the mean of the tried ones and of the parent's."""
        count = len(q_values)
        below = slice(self._num_roots, count)
        sums = np.bincount(self._parents[below], q_values[below], minlength=count)
        tried = np.bincount(self._parents[below], minlength=count)
        # Which depends on its parent's in turn: expected = factor * expected of the parent + summand.
        factors = 1 / (tried + 1)
        summands = sums * factors
        factors[:self._num_roots] = 0
        summands[:self._num_roots] = sums[:self._num_roots] / np.maximum(tried[:self._num_roots], 1)
        for ancestors in self._ancestors():
            summands = summands + factors * summands[ancestors]
            factors = factors * factors[ancestors]
        return summands

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
        self._deepest = 0
        self._children: dict[int, list[int]] = {}
        # Pairs of siblings.
        self._waiting, self._rivals = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        self._entered = count

    def _allocate(self, size: int) -> None:
        former = {name: getattr(self, name, None) for name in _PER_NODE}
        for name, dtype in _PER_NODE.items():
            shape = (size, self._num_actions) if name == '_untried_priors' else (size, )
            setattr(self, name, np.zeros(shape, dtype=dtype))
            if former[name] is not None:
                getattr(self, name)[:len(former[name])] = former[name]

    def _enter(self, parents: np.ndarray, expansion: Expansion) -> None:
        choices = self._look()
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
        self._deepest = max(self._deepest, int(self._depths[new].max()))
        self._prior[new] = np.maximum(untried[np.arange(count), actions], 0)
        self._rewards[new] = _finite(expansion.rewards)
        self._untried_priors[parents, actions] = -np.inf
        self._untried_priors[new] = _finite(expansion.priors)
        changed = np.concatenate([parents, new])
        self._best_untried[changed] = self._untried_priors[changed].max(1)
        waiting, rivals = [], []
        for node, parent in zip(new.tolist(), parents.tolist()):
            siblings = self._children.setdefault(parent, [])
            waiting += siblings + [node] * len(siblings)
            rivals += [node] * len(siblings) + siblings
            siblings.append(node)
        self._waiting = np.append(self._waiting, np.array(waiting, dtype=np.int64))
        self._rivals = np.append(self._rivals, np.array(rivals, dtype=np.int64))
        below_roots = self._back_up(new.tolist(), _finite(expansion.values).tolist())
        self._learn_noise(below_roots, choices)
        self._choices = None

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
                is_root = node < self._num_roots
                # LightZero counts one visit of a root that brings no value, and takes the result for one of the range.
                q_value = reward + self._discount_factor * value_sums[node] / (visits[node] + is_root)
                if q_value < lowest:
                    lowest = q_value
                if q_value > highest:
                    highest = q_value
                if is_root:
                    break
                value = reward + self._discount_factor * value
                below, node = node, parents[node]
            below_roots.append(below)
            self._lowest[tree], self._highest[tree] = lowest, highest
        return below_roots

    def _learn_noise(self, below_roots: Sequence[int], choices: Choices) -> None:
        """Raise the priors of what the search has chosen at its roots to where its choice would have been expected."""
        count = len(choices.values) // 2
        scores = choices.scores()
        for node in below_roots:
            root = self._parents[node]
            exploration = choices.exploration[root]
            if exploration == 0:
                continue
            score = scores[node] if node < count else choices.values[count + root] + exploration * self._prior[node]
            rivals = [child for child in self._children[root] if child < count]
            lacking = max(scores[count + root], *scores[rivals], score) - score
            if lacking > 0:
                self._prior[node] += lacking * self._visits[node] / exploration


def _finite(numbers: np.ndarray) -> np.ndarray:
    # A model that has diverged must not make the search's copy useless.
    return numbers if np.isfinite(numbers).all() else np.nan_to_num(numbers, posinf=0.0, neginf=0.0)


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
