"""What a search's nodes descend from: enough to compute any evicted context again."""
from typing import Optional

import numpy as np
import torch
from lzero.model.unizero_world_models.utils import hash_state

from ..store import Context
from .histories import EnvironmentHistory


class SearchNode:
    """
    Overview:
        One node of a search tree, as the cache knows it.
    Arguments:
        - key (:obj:`str`): Its key in the pools.
        - row (:obj:`int`): Its row in the search's batch.
        - depth (:obj:`int`): Actions since the root.
        - latents (:obj:`np.ndarray`): The latent states of the inference that made it,
            :math:`(B, num_observations_tokens, E)`, of which its own is ``latents[row]``.
        - parent (:obj:`Optional[SearchNode]`): None for a root.
        - actions (:obj:`Optional[torch.Tensor]`): The actions of that inference, its own being ``actions[row]``.
        - positions (:obj:`Optional[np.ndarray]`): Rotary positions of its tokens, :math:`(num_tokens, )`.
        - env_id (:obj:`Optional[int]`): The environment whose init pool holds the context, for a root that has one.
        - priority (:obj:`Optional[float]`): What it is worth to a strategy that evicts by priority.
        - policies (:obj:`Optional[torch.Tensor]`): The policy logits of that inference, :math:`(B, ...)`, its own being
            ``policies[row]``; None for a node that no inference has predicted.
        - history (:obj:`Optional[EnvironmentHistory]`): The episode that a root is the last step of.
        - context (:obj:`Optional[Context]`): A root's context, which outlives its eviction.
    """
    __slots__ = (
        'key', 'row', 'depth', 'latents', 'parent', 'actions', 'positions', 'env_id', 'priority', 'policies', 'history',
        'context'
    )

    def __init__(
            self,
            key: str,
            row: int,
            depth: int,
            latents: np.ndarray,
            parent: Optional['SearchNode'] = None,
            actions: Optional[torch.Tensor] = None,
            positions: Optional[np.ndarray] = None,
            env_id: Optional[int] = None,
            priority: Optional[float] = None,
            policies: Optional[torch.Tensor] = None,
            history: Optional[EnvironmentHistory] = None,
    ) -> None:
        self.key = key
        self.row = row
        self.depth = depth
        self.latents = latents
        self.parent = parent
        self.actions = actions
        self.positions = positions
        self.env_id = env_id
        self.priority = priority
        self.policies = policies
        self.history = history
        self.context: Optional[Context] = None

    @property
    def latent(self) -> np.ndarray:
        return self.latents[self.row]


class SearchLineage:
    """
    Overview:
        The nodes of the running search, found by their latent states. It goes when its search goes.
    Arguments:
        - phase (:obj:`str`): 'collect', 'eval' or 'reanalyze'.
        - timesteps (:obj:`np.ndarray`): Timesteps of the roots, :math:`(B, )`.

    ``roots`` are its nodes without a parent.
    """

    def __init__(self, phase: str, timesteps: np.ndarray) -> None:
        self.phase = phase
        self.timesteps = timesteps
        self.batch_size = len(timesteps)
        self.roots: list[SearchNode] = []
        self._nodes: list[dict[bytes, SearchNode]] = [{} for _ in timesteps]
        self._copies: dict[tuple[int, bytes], int] = {}

    def find(self, row: int, latent: np.ndarray) -> Optional[SearchNode]:
        """
        Overview:
            The node that a search means by a latent state.
        Arguments:
            - row (:obj:`int`): The row in the search's batch.
            - latent (:obj:`np.ndarray`): The latent state as it was handed to the search,
                :math:`(num_observations_tokens, E)`.
        Returns:
            - node (:obj:`Optional[SearchNode]`): The node, or None if this search has none with that latent state.
        """
        return self._nodes[row].get(latent.tobytes())

    def distinct_latents(self, latents: np.ndarray) -> np.ndarray:
        """
        Overview:
            Make every row's latent state unlike those of the row's earlier nodes. The search names a node by nothing
            but its latent state, and a model may predict the same one for different nodes (a freshly initialised model
            always does); such a copy is told apart by the last bits of its largest element.
        Arguments:
            - latents (:obj:`np.ndarray`): Predicted latent states, :math:`(B, num_observations_tokens, E)`.
        Returns:
            - latents (:obj:`np.ndarray`): The same array, or a changed copy where a row had to differ.
        """
        distinct = latents
        for row, nodes in enumerate(self._nodes):
            name = latents[row].tobytes()
            if name not in nodes:
                continue
            if distinct is latents:
                distinct = latents.copy()
            largest = int(np.abs(latents[row]).argmax())
            bits = distinct[row].reshape(-1).view(f'i{latents.itemsize}')
            while distinct[row].tobytes() in nodes:
                self._copies[row, name] = self._copies.get((row, name), 0) + 1
                bits[largest] = latents[row].reshape(-1).view(bits.dtype)[largest] + self._copies[row, name]
        return distinct

    def add(self, node: SearchNode, latent: np.ndarray) -> None:
        """
        Overview:
            Let a node be found by a latent state.
        Arguments:
            - node (:obj:`SearchNode`): The node.
            - latent (:obj:`np.ndarray`): What the search is given for it, of ``distinct_latents``.
        """
        self._nodes[node.row][latent.tobytes()] = node
        if node.parent is None:
            self.roots.append(node)


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
