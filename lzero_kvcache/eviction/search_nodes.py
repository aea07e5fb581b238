"""The nodes of one batched search as arrays, in the order in which the search makes them."""
from collections.abc import Sequence
from typing import Callable, Optional

import numpy as np

ROOT = -1


class SearchNodes:
    """
    What a search's nodes are: the layout of mctx's ``Tree``, flattened. With one new node per root and simulation, a
    node's number is simulation * batch + row.

    Attributes:
        num_nodes: N so far. The arrays are longer than that.
        parents: The number of each node's parent, ``ROOT`` for a root, int64 ``[N]``.
        trees: The number of each node's root, int64 ``[N]``.
        depths: Actions since the root, int64 ``[N]``.
        actions: The index of the action that leads to each, -1 where actions are sampled, int64 ``[N]``.
        reward_bins: Predicted on the way to each, as the bin that the model expects, counted from the middle one,
            float32 ``[N]``.
        value_bins: Predicted at each, likewise, float32 ``[N]``.
        policies: Policy logits, float32 ``[N, num_logits]``.
        ends: How many nodes there were after each inference, the roots' first.

    Args:
        num_actions: Actions that the search tries at a node.
        samples_actions: Whether these are drawn, so that they have no priors.
    """
    COLUMNS = dict(parents=np.int64, trees=np.int64, depths=np.int64, actions=np.int64, reward_bins=np.float32,
                   value_bins=np.float32)

    def __init__(self, num_actions: int, samples_actions: bool = False) -> None:
        self.num_actions = num_actions
        self.samples_actions = samples_actions
        self.num_nodes = 0
        self.ends: list[int] = []
        for name, dtype in self.COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype=dtype))
        self.policies = np.zeros((0, 0), dtype=np.float32)

    def reserve(self, capacity: int) -> None:
        """Make room for so many nodes in all."""
        have = len(self.parents)
        if capacity <= have:
            return
        for name in (*self.COLUMNS, 'policies'):
            former = getattr(self, name)
            grown = np.zeros((capacity, *former.shape[1:]), dtype=former.dtype)
            grown[:have] = former
            setattr(self, name, grown)

    def add_roots(self, value_bins: np.ndarray, policies: np.ndarray, depths: Sequence[int] = ()) -> np.ndarray:
        """Add nodes without a parent and return their numbers; ``depths``: where they are not really roots."""
        new = self._take(len(policies), policies)
        self.parents[new] = ROOT
        self.trees[new] = range(new.start, new.stop)
        self.depths[new] = depths if len(depths) else 0
        self.actions[new] = -1
        self.value_bins[new] = value_bins
        return np.arange(new.start, new.stop)

    def add(
            self, parents: np.ndarray, actions: Optional[np.ndarray], reward_bins: np.ndarray, value_bins: np.ndarray,
            policies: np.ndarray
    ) -> np.ndarray:
        """Add one child of each parent and return their numbers; without ``actions``, these are sampled."""
        new = self._take(len(parents), policies)
        self.parents[new] = parents
        self.trees[new] = self.trees[parents]
        self.depths[new] = self.depths[parents] + 1
        self.actions[new] = -1 if actions is None else actions
        self.reward_bins[new] = reward_bins
        self.value_bins[new] = value_bins
        return np.arange(new.start, new.stop)

    def rewards(self, nodes: slice) -> np.ndarray:
        """On the way to some nodes, in the environment's units, float32 ``[n]``."""
        return unscaled(self.reward_bins[nodes])

    def values(self, nodes: slice) -> np.ndarray:
        """At some nodes, in the environment's units, float32 ``[n]``."""
        return unscaled(self.value_bins[nodes])

    def priors(self, nodes: slice) -> np.ndarray:
        """What the model thinks of the actions at some nodes before the search has tried any, float64 ``[n, A]``."""
        logits = self.policies[nodes]
        if self.samples_actions:
            # Which actions the search samples at a node is not known before it takes them.
            return np.full((len(logits), self.num_actions), 1 / self.num_actions)
        logits = finite(logits).astype(np.float64)
        weights = np.exp(logits - np.maximum.reduce(logits, 1, keepdims=True))
        return weights / np.add.reduce(weights, 1, keepdims=True)

    def _take(self, count: int, policies: np.ndarray) -> slice:
        new = slice(self.num_nodes, self.num_nodes + count)
        if self.policies.shape[1] != policies.shape[1]:
            self.policies = np.zeros((len(self.parents), policies.shape[1]), dtype=np.float32)
        if new.stop > len(self.parents):
            self.reserve(max(new.stop, 2 * len(self.parents)))
        self.policies[new] = policies
        self.num_nodes = new.stop
        self.ends.append(new.stop)
        return new


def unscaled(
        bins: np.ndarray, square_root: Callable[[np.ndarray], np.ndarray] = np.sqrt, epsilon: float = 0.001
) -> np.ndarray:
    """
    Rewards or values in the environment's units, of the bins that a model expects: the inverse of the scale that they
    are predicted in ("Observe and Look Further: Achieving Consistent Performance on Atari",
    https://arxiv.org/abs/1805.11593, Proposition A.2). With PyTorch's square root it is LightZero's
    ``InverseScalarTransform`` to the last bit.
    """
    root = np.abs(bins)
    root += 1
    root += epsilon
    root *= 4 * epsilon
    root += 1
    root = square_root(root)
    root -= 1
    root /= 2 * epsilon
    root *= root
    root -= 1
    root *= np.sign(bins)
    return root


def finite(numbers: np.ndarray) -> np.ndarray:
    """Zeros in place of nan and infinities: a model that has diverged must not make a copy of its search useless."""
    if np.logical_and.reduce(np.isfinite(numbers), None):
        return numbers
    return np.nan_to_num(numbers, posinf=0.0, neginf=0.0)
