from collections.abc import Sequence
from typing import Any, Optional

import numpy as np

from ..eviction.base import Priority
from ..eviction.search_nodes import SearchNodes
from ..eviction.search_tree import SearchTree, SearchTreeNode
from ..store.context import Context
from .episode import Episode

MOST_NODES = 2 ** 32


class Search:
    """One batched search. Every node has a number: simulation * batch + row, if each simulation expands all rows.

    Attributes:
        first_key: The pools' key of node 0. Node n has the n-th key after it, unique among all searches.
        phase: 'collect', 'eval', 'reanalyze' or 'unknown'.
        timesteps: Timesteps of the roots and of other nodes without a parent, by number, int64.
        env_ids, episodes: By number, of roots that continue an episode: its environment, whose init pool has the
            context, and itself.
        contexts: By number, the node's last computed one. Its tokens may outlive its eviction.
        priorities: By number, what the node's pool is told of it.
        tree: What strategies that follow the search are told, if one does.
    """

    def __init__(
            self, serial: int, phase: str, timesteps: np.ndarray, nodes: SearchNodes,
            discount_factor: Optional[float] = None, tensors: Any = None
    ) -> None:
        self.first_key = serial * MOST_NODES
        self.phase = phase
        self.nodes = nodes
        self.timesteps = timesteps
        self.env_ids: dict[int, int] = {}
        self.episodes: dict[int, Episode] = {}
        self.contexts: list[Optional[Context]] = []
        self.priorities: list[Priority] = []
        self.tree = None if discount_factor is None else SearchTree(nodes, discount_factor)
        self.tensors = tensors

    def add(self, numbers: np.ndarray, priorities: Sequence[Priority]) -> list[int]:
        """Let the newest of ``nodes`` take part; returns their numbers."""
        added = numbers.tolist()
        self.contexts.extend([None] * len(added))
        if self.tree is not None:
            priorities = [SearchTreeNode(self.tree, number) for number in added]
        # Last, in one statement: only a node with a priority takes part, wherever an interruption comes.
        self.priorities.extend(priorities)
        return added

    def add_strays(self, rows: Sequence[int], depths: Sequence[int], timesteps: np.ndarray) -> list[int]:
        """Add nodes without a parent, not predicted by the model. Those in ``rows`` of roots take the roots' timesteps.
        """
        first, num_roots = self.nodes.num_nodes, self.nodes.ends[0]
        policies = np.zeros((len(rows), self.nodes.policies.shape[1]), dtype=np.float32)
        added = self.nodes.add_roots(np.zeros(len(rows), dtype=np.float32), policies, depths)
        of_rows = [self.timesteps[row] if row < num_roots else given for row, given in zip(rows, timesteps)]
        self.timesteps = np.concatenate([np.resize(self.timesteps, first), of_rows])
        return self.add(added, [None] * len(rows))

    def parent(self, number: int) -> Optional[int]:
        parent = int(self.nodes.parents[number])
        return None if parent < 0 else parent

    def timesteps_of(self, numbers: np.ndarray) -> np.ndarray:
        """Timesteps of the nodes' roots, [B]."""
        return self.timesteps[self.nodes.trees[numbers]]

    def recover(self) -> None:
        """Go on from the nodes that an interrupted inference has left whole. None knows a context any more."""
        self.nodes.num_nodes = len(self.priorities)
        while self.nodes.ends and self.nodes.ends[-1] > self.nodes.num_nodes:
            self.nodes.ends.pop()
        self.contexts = [None] * self.nodes.num_nodes
