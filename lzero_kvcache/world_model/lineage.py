"""What a search's nodes descend from: enough to compute any evicted context again."""
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch
from lzero.model.unizero_world_models.utils import hash_state

from ..eviction import Priority, SearchTreeNode
from ..store import Context
from .environment_history import EnvironmentHistory


class SearchStep:
    """
    Overview:
        What one inference of a search has made, one node per row.
    Arguments:
        - latents (:obj:`np.ndarray`): Latent states, :math:`(B, num_observations_tokens, E)`.
        - policies (:obj:`Optional[torch.Tensor]`): Policy logits, :math:`(B, ...)`; None where no inference has
            predicted the states.
        - actions (:obj:`Optional[torch.Tensor]`): The actions that led to them, :math:`(B, ...)`; None for roots.
        - positions (:obj:`Optional[np.ndarray]`): Rotary positions of action and latent state, :math:`(B, num_tokens)`.
    """
    __slots__ = ('latents', 'policies', 'actions', 'positions')

    def __init__(
            self, latents: np.ndarray, policies: Optional[torch.Tensor], actions: Optional[torch.Tensor] = None,
            positions: Optional[np.ndarray] = None
    ) -> None:
        self.latents = latents
        self.policies = policies
        self.actions = actions
        self.positions = positions


class SearchNode:
    """
    Overview:
        One node of a search tree, as the cache knows it.
    Arguments:
        - scope (:obj:`str`): What sets its tree's keys apart from others'.
        - key (:obj:`str`): Its key in the pools.
        - row (:obj:`int`): Its row in the inference that made it.
        - depth (:obj:`int`): Actions since the root.
        - step (:obj:`SearchStep`): That inference.
        - tree (:obj:`int`): Its root's row.
        - parent (:obj:`Optional[SearchNode]`): None for a root.
        - priority (:obj:`Union[float, SearchTreeNode, None]`): What the pool's strategy is told of it.
        - in_tree (:obj:`Optional[SearchTreeNode]`): Its place in the search, where a strategy follows that.
        - env_id (:obj:`Optional[int]`): The environment whose init pool holds the context, for a root that has one.
        - history (:obj:`Optional[EnvironmentHistory]`): The episode that such a root is the last step of.
    """
    __slots__ = (
        'scope', 'key', 'row', 'depth', 'step', 'tree', 'parent', 'priority', 'in_tree', 'env_id', 'history', 'context'
    )

    def __init__(
            self,
            scope: str,
            key: str,
            row: int,
            depth: int,
            step: SearchStep,
            tree: int,
            parent: Optional['SearchNode'] = None,
            priority: Priority = None,
            in_tree: Optional[SearchTreeNode] = None,
            env_id: Optional[int] = None,
            history: Optional[EnvironmentHistory] = None,
    ) -> None:
        self.scope = scope
        self.key = key
        self.row = row
        self.depth = depth
        self.step = step
        self.tree = tree
        self.parent = parent
        self.priority = priority
        self.in_tree = in_tree
        self.env_id = env_id
        self.history = history
        # The last one computed for the node, whose tokens may outlive its eviction.
        self.context: Optional[Context] = None

    @property
    def latent(self) -> np.ndarray:
        return self.step.latents[self.row]


class SearchLineage:
    """
    Overview:
        The nodes of the running search, found by their latent states. It goes when its search goes.
    Arguments:
        - phase (:obj:`str`): 'collect', 'eval' or 'reanalyze'.
        - timesteps (:obj:`np.ndarray`): Timesteps of the roots, :math:`(B, )`.
    """

    def __init__(self, phase: str, timesteps: np.ndarray) -> None:
        self.phase = phase
        self.timesteps = timesteps
        self._trees: list[dict[bytes, SearchNode]] = [{} for _ in timesteps]
        self._copies: dict[tuple[int, bytes], int] = {}

    def find(self, row: int, name: bytes) -> Optional[SearchNode]:
        """
        Overview:
            The node that a search means by a latent state.
        Arguments:
            - row (:obj:`int`): The row in the batch, in which its root is, too, unless the batch is another choice of
                the search's rows.
            - name (:obj:`bytes`): The latent state as it was handed to the search.
        Returns:
            - node (:obj:`Optional[SearchNode]`): The node, or None if no tree, or several other ones, have it.
        """
        node = self._trees[row].get(name) if row < len(self._trees) else None
        if node is not None:
            return node
        elsewhere = [tree[name] for tree in self._trees if name in tree]
        return elsewhere[0] if len(elsewhere) == 1 else None

    def timesteps_of(self, nodes: Sequence[SearchNode], given: np.ndarray) -> np.ndarray:
        """
        Overview:
            Timesteps of the roots that nodes descend from.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): The nodes.
            - given (:obj:`np.ndarray`): What a caller takes them for, which holds for a root that is not of this
                search, :math:`(B, )`.
        Returns:
            - timesteps (:obj:`np.ndarray`): :math:`(B, )`.
        """
        known = len(self.timesteps)
        return np.asarray([
            self.timesteps[node.tree] if node.tree < known else timestep for node, timestep in zip(nodes, given)
        ])

    def name_latents(self, latents: np.ndarray, trees: Sequence[int]) -> tuple[np.ndarray, list[bytes]]:
        """
        Overview:
            Names for new nodes. The search names a node by nothing but its latent state, and a model may predict the
            same one for different nodes of a tree (a freshly initialised model always does); such a copy is told apart
            by the last bits of its largest element.
        Arguments:
            - latents (:obj:`np.ndarray`): Predicted latent states, :math:`(B, num_observations_tokens, E)`.
            - trees (:obj:`Sequence[int]`): The tree of each.
        Returns:
            - latents (:obj:`np.ndarray`): The same array, or a changed copy where a row had to differ.
            - names (:obj:`List[bytes]`): One per row, which no earlier node of the tree has.
        """
        names = [latent.tobytes() for latent in latents]
        distinct = latents
        for row, tree in enumerate(trees):
            nodes = self._trees[tree]
            if names[row] not in nodes:
                continue
            if distinct is latents:
                distinct = latents.copy()
            copies = (tree, names[row])
            # The bits after those of inf are those of nan.
            largest = int(np.where(np.isfinite(latents[row]), np.abs(latents[row]), -1.).argmax())
            bits = distinct[row].reshape(-1).view(f'i{latents.itemsize}')
            while names[row] in nodes:
                self._copies[copies] = self._copies.get(copies, 0) + 1
                bits[largest] = latents[row].reshape(-1).view(bits.dtype)[largest] + self._copies[copies]
                names[row] = distinct[row].tobytes()
        return distinct, names

    def forget_contexts(self) -> None:
        """
        Overview:
            Let no node know a context or its place in the search any more, because the inference that was about to
            change them has broken off.
        """
        for tree in self._trees:
            for node in tree.values():
                node.context = node.priority = node.in_tree = None

    def add(self, node: SearchNode, name: bytes) -> None:
        """
        Overview:
            Let a node be found.
        Arguments:
            - node (:obj:`SearchNode`): The node.
            - name (:obj:`bytes`): Its latent state, as the search is given it.
        """
        while node.tree >= len(self._trees):
            self._trees.append({})
        self._trees[node.tree][name] = node


def node_key(scope: str, depth: int, latent: np.ndarray) -> str:
    """
    Overview:
        A key that no other environment, depth or latent state shares.
    Arguments:
        - scope (:obj:`str`): What sets one root's nodes apart from another's.
        - depth (:obj:`int`): Actions since the root.
        - latent (:obj:`np.ndarray`): The latent state, hashed by LightZero's ``hash_state``.
    Returns:
        - key (:obj:`str`): The key.
    """
    return f'{scope}/{depth}/{hash_state(latent)}'
