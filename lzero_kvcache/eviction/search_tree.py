"""What a search is about to do, read from what it has done: MuZero's selection rule on a copy of its statistics."""
from typing import NamedTuple, Optional

import numpy as np

from .search_nodes import SearchNodes, finite
from .search_waits import Choices, visits_until_chosen

# The range of values below which LightZero's search does not stretch them to [0, 1].
SMALLEST_RANGE = 0.01
# The wait for a new node, as a multiple of how rarely its parent is visited; by what power of e it shrinks where the
# node is better than expected by the whole range of values; and the wait until the parent is expanded again. Chosen on
# traces.
FIRST_WAIT, WEIGHT_OF_VALUE, WAIT_OF_PARENT = 1.5, 10.0, 0.7

_PER_ROW = ('_lifts', '_trees', '_levels', '_children', '_untried', '_priors', '_rewards', '_value_sums', '_sizes',
            '_below_root', '_averaged', '_lowest', '_highest')


class SearchTree:
    """
    The trees of one batched search, and how many simulations it will take until each node is expanded again.

    The search goes down by the largest pUCT score (Schrittwieser et al. 2020, "Mastering Atari, Go, chess and shogi by
    planning with a learned model", equation 2), of which this is a copy. The noise that a search adds to its roots'
    priors is learned from what the search prefers. Nothing is computed before it is asked for.

    Inside, a node has a row, which is one more than its number: row 0 stands above all roots.

    Args:
        nodes: Of the search. Those that come later are taken in when something is asked.
        discount_factor: Of the values.
        pb_c_base: Of the selection rule; the default is LightZero's.
        pb_c_init: The same.
    """

    def __init__(
            self, nodes: SearchNodes, discount_factor: float = 0.997, pb_c_base: float = 19652, pb_c_init: float = 1.25
    ) -> None:
        self.nodes = nodes
        self.discount_factor = discount_factor
        self._pb_c_base = pb_c_base
        self._pb_c_init = pb_c_init
        self._rows, self._inferences, self._num_pairs = 1, 0, 0
        # The ancestors at distances of 1, 2, 4, ...
        self._lifts = np.zeros((1, 1), np.int64)
        self._trees, self._levels = np.zeros(1, np.int64), np.full(1, -1)
        # By action; 0: not tried. And the priors of actions, -inf: tried.
        self._children, self._untried = np.zeros((nodes.num_actions, 1), np.int64), np.zeros((nodes.num_actions, 1))
        # Of the action that leads to a row, and of its best untried one.
        self._priors = np.zeros((2, 1))
        self._rewards, self._value_sums, self._sizes = np.zeros(1), np.zeros(1), np.ones(1)
        # 1 below the roots; and how many values the one of an untried action is the mean of.
        self._below_root, self._averaged = np.zeros(1), np.zeros(1)
        self._lowest, self._highest = np.zeros(1), np.zeros(1)
        # Of choices at the same row: the newer one, the older one, and the row.
        self._pairs = np.zeros((3, 0), np.int64)
        self._discounts = np.ones((1, 1))
        self._choices: Optional[Choices] = None
        self._waits: Optional[np.ndarray] = None

    @property
    def num_nodes(self) -> int:
        """How many nodes the search has made."""
        return self.nodes.num_nodes

    def lifts(self) -> np.ndarray:
        """The row of each row's ancestor at a distance of 1, 2, 4, ... as far as any path goes, ``[L, N + 1]``."""
        self._catch_up()
        return self._lifts[:, :self._rows]

    def levels(self) -> np.ndarray:
        """Steps from its root to each row, -1 for row 0, ``[N + 1]``."""
        self._catch_up()
        return self._levels[:self._rows]

    def waits(self) -> np.ndarray:
        """
        How many simulations it will take until each node is expanded again: the visits that its ancestors and its
        untried actions wait for, each as many simulations long as the ancestor is visited rarely. Where the rule
        predicts a longer wait than the node's visits so far, the geometric mean of both is taken.

        Returns:
            0 for the node of a tree that is expanded next, infinity for one all of whose actions have been tried,
            ``[N]``.
        """
        self._catch_up()
        if self._waits is None:
            self._waits = self._foresee()
        return self._waits

    def forecast(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """
        By what the waits for nodes to come are estimated, from the value of each to its parent.

        Returns:
            Offsets and slopes, ``[N + 1]`` by the parent's row: e to the offset less slope times value is the wait. And
            the wait until the parent is expanded again. Row 0 is for parents of which nothing is known.
        """
        choices, rows = self._look(), self._rows
        sizes, tree_sizes = self._sizes[:rows].copy(), self._sizes.take(self._trees[:rows])
        sizes[0], tree_sizes[0] = 1, tree_sizes[-1]
        slopes = WEIGHT_OF_VALUE / choices.ranges
        slopes[0] = 0
        offsets = np.log(FIRST_WAIT * tree_sizes / sizes) + slopes * choices.expected
        later = WAIT_OF_PARENT * tree_sizes / (sizes + 1)
        # No action is left then.
        later[1:][self._averaged[1:rows] >= self.nodes.num_actions] = np.inf
        return offsets, slopes, later

    def _foresee(self) -> np.ndarray:
        rows, parents = self._rows, self._lifts[0, :self._rows]
        until_chosen = visits_until_chosen(self._look(), self._pairs[:, :self._num_pairs], self._pb_c_init)
        of_choice, of_untried = until_chosen[:, :rows]
        # What the search calls a root's visits are its children's.
        visits = np.maximum(self._sizes[:rows] + self._below_root[:rows] - 1, 1)
        between_visits = visits.take(self._trees[:rows]) / visits
        # The rule alone would take every dip of a value, and the roots' noise, for lasting.
        of_choice = np.minimum(of_choice, np.sqrt(of_choice * visits.take(parents) / visits))
        until_visited = of_choice * between_visits.take(parents)
        for lift in self._lifts[:, :rows]:
            until_visited += until_visited.take(lift)
        waits = until_visited + of_untried * between_visits
        waits[self._priors[1, :rows] < 0] = np.inf
        return waits[1:]

    def _look(self) -> Choices:
        """The choices as of now."""
        if self._choices is None:
            rows = self._rows
            parents, trees, sizes = self._lifts[0, :rows], self._trees[:rows], self._sizes[:rows]
            values, visits = np.zeros(self._priors.shape), np.ones(self._priors.shape)
            scaled = values[:, :rows]
            scaled[0] = q_values = self._rewards[:rows] + self.discount_factor * self._value_sums[:rows] / sizes
            scaled[1] = expected = self._expected_q(q_values)
            # The search leaves a root out until it has a child.
            of_range = self._sizes[:rows] + self._below_root[:rows] > 1
            np.minimum.at(self._lowest, trees[of_range], q_values[of_range])
            np.maximum.at(self._highest, trees[of_range], q_values[of_range])
            lowest = self._lowest.take(trees)
            ranges = np.maximum(self._highest.take(trees) - lowest, SMALLEST_RANGE)
            scaled -= lowest
            scaled /= ranges
            np.maximum(scaled, 0, out=scaled)
            np.minimum(scaled, 1, out=scaled)
            tries = sizes - 1
            exploration = np.log1p(sizes / self._pb_c_base) + self._pb_c_init
            exploration *= np.sqrt(tries)
            bonuses = self._priors.copy()
            bonuses[0, :rows] *= exploration.take(parents)
            bonuses[1, :rows] *= exploration
            visits[0, :rows] += sizes
            scores = values + bonuses / visits
            self._choices = Choices(
                values, self._priors, visits, bonuses, scores, exploration, tries, expected, ranges
            )
        return self._choices

    def _expected_q(self, q_values: np.ndarray) -> np.ndarray:
        """What the search takes the value of an untried action for: the mean of the tried ones and of the parent's."""
        parents = self._lifts[0, :self._rows]
        # Which depends on its parent's in turn: expected = factor * expected of the parent + summand.
        factors = 1 / np.maximum(self._averaged[:self._rows], 1)
        summands = np.bincount(parents, q_values, minlength=self._rows) * factors
        factors[0] = summands[0] = 0
        for lift in self._lifts[:, :self._rows]:
            summands += factors * summands.take(lift)
            factors *= factors.take(lift)
        return summands

    def _catch_up(self) -> None:
        ends = self.nodes.ends
        while self._inferences < len(ends):
            # A search's first visits stretch its range of values, and show the noise at its roots.
            inferences = min(max(1, 3 * self._inferences - 1), len(ends))
            self._enter(ends[inferences - 1] + 1)
            self._inferences = inferences

    def _enter(self, stop: int) -> None:
        nodes, first = self.nodes, self._rows
        if stop > len(self._trees):
            self._grow(max(nodes.num_nodes + 1, len(nodes.parents) + 1))
        told, new = slice(first - 1, stop - 1), np.arange(first, stop)
        self._trees[first:stop] = trees = nodes.trees[told] + 1
        self._lifts[0, first:stop] = parents = nodes.parents[told] + 1
        self._levels[first:stop] = levels = nodes.depths[told] - nodes.depths.take(trees - 1)
        self._rewards[first:stop] = finite(nodes.rewards(told))
        self._untried[:, first:stop] = nodes.priors(told).T
        self._sizes[first:stop] = parents == 0
        self._averaged[first:stop] = self._below_root[first:stop] = parents > 0
        self._lowest[first:stop], self._highest[first:stop] = np.inf, -np.inf
        while levels.max() >= len(self._discounts):
            self._deepen()
        for lift, further in zip(self._lifts, self._lifts[1:]):
            further[first:stop] = lift.take(lift[first:stop])
        below = parents.nonzero()[0]
        if len(below):
            new, parents = new[below], parents[below]
            choices = self._look()
            self._choose(new, parents)
            paths = self._back_up(new, levels[below], finite(nodes.values(told))[below])
            # Later ones than the first of these inferences knew more.
            self._learn_noise(paths[:, :new.searchsorted(nodes.ends[self._inferences], 'right')], choices)
        self._rows = stop
        self._choices = self._waits = None

    def _choose(self, new: np.ndarray, parents: np.ndarray) -> None:
        """Each new row is a choice at its parent from now on, in place of an untried action."""
        if self.nodes.samples_actions:
            # Which ones were sampled is not known, so that they count in the order in which they are tried.
            tried = (self._children[:, parents] > 0).sum(0) + (parents == parents[:, None]).cumsum(0).diagonal() - 1
            actions = np.minimum(tried, len(self._children) - 1)
        else:
            actions = self.nodes.actions[new - 1]
        self._children[actions, parents] = new
        siblings = self._children.take(parents, 1)
        action, column = ((siblings > 0) & (siblings < new)).nonzero()
        self._pair(new[column], siblings[action, column], parents[column])
        self._pair(new, parents + len(self._trees), parents)
        self._averaged += np.bincount(parents, minlength=len(self._averaged))
        self._priors[0, new] = np.maximum(self._untried[actions, parents], 0)
        self._untried[actions, parents] = -np.inf
        self._priors[1, parents] = np.maximum.reduce(self._untried.take(parents, 1))

    def _pair(self, newer: np.ndarray, older: np.ndarray, parents: np.ndarray) -> None:
        first, self._num_pairs = self._num_pairs, self._num_pairs + len(newer)
        if self._num_pairs > self._pairs.shape[1]:
            self._pairs = _grown(self._pairs, 2 * self._num_pairs)
        for numbers, column in zip(self._pairs, (newer, older, parents)):
            numbers[first:self._num_pairs] = column

    def _back_up(self, new: np.ndarray, levels: np.ndarray, values: np.ndarray) -> np.ndarray:
        """Count what the new rows have added to their ways up, which are returned, ``[D + 1, n]``."""
        paths = np.zeros((levels.max() + 1, len(new)), np.int64)
        paths[0] = new
        for lower, upper in zip(paths, paths[1:]):
            self._lifts[0].take(lower, out=upper, mode='clip')
        rewards = self._rewards.take(paths)
        # A node's value comes like a reward below it.
        returns = self._discounts[:len(paths), :len(paths)] @ np.concatenate([values[None], rewards[:-1]])
        rows = paths.ravel()
        self._sizes += np.bincount(rows, minlength=len(self._sizes))
        self._value_sums += np.bincount(rows, returns.ravel(), minlength=len(self._sizes))
        self._value_sums[0] = 0
        return paths

    def _learn_noise(self, paths: np.ndarray, choices: Choices) -> None:
        """Raise the priors of what the search has chosen at its roots to where its choice would have been expected."""
        roots = self._trees.take(paths[0])
        chosen = paths[self._levels.take(paths[0]) - 1, np.arange(len(roots))]
        exploration = choices.exploration.take(roots)
        of_untried = choices.values[1].take(roots) + exploration * self._priors[0].take(chosen)
        scores = np.where(chosen < self._rows, choices.scores[0].take(chosen), of_untried)
        # What is no child, or has just become one, has a score of 0.
        of_children = np.maximum.reduce(choices.scores[0].take(self._children.take(roots, 1)))
        best = np.maximum(of_children, choices.scores[1].take(roots))
        raised = (best > scores) & (exploration > 0)
        if raised.any():
            chosen, lacking = chosen[raised], (best - scores)[raised]
            self._priors[0, chosen] += lacking * choices.visits[0].take(chosen) / exploration[raised]

    def _grow(self, size: int) -> None:
        former = len(self._trees)
        size = max(size, 2 * former)
        for name in _PER_ROW:
            setattr(self, name, _grown(getattr(self, name), size))
        # Untried actions are numbered after all rows.
        self._pairs[1, self._pairs[1] >= former] += size - former
        self._choices = None

    def _deepen(self) -> None:
        """Let paths be twice as long."""
        if len(self._discounts) > 1:
            self._lifts = np.concatenate([self._lifts, self._lifts[-1:, self._lifts[-1]]])
        steps = np.arange(2 * len(self._discounts))
        later = steps[:, None] - steps
        self._discounts = np.where(later < 0, 0, self.discount_factor ** np.maximum(later, 0))


def _grown(array: np.ndarray, size: int) -> np.ndarray:
    grown = np.zeros((*array.shape[:-1], size), dtype=array.dtype)
    grown[..., :array.shape[-1]] = array
    return grown


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
