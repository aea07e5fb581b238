"""What eviction strategies are told of the running search."""
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import numpy as np
import torch
from lzero.policy.scaling_transform import inverse_scalar_transform

from ..eviction import Expansion, SearchTree, SearchTreeNode
from .cached_model import Predictions


class SearchFollower:
    """
    Overview:
        Keeps a ``SearchTree`` of the running search. What the model has predicted is looked at when a strategy asks.
    Arguments:
        - world_model (:obj:`WorldModel`): The model. Only its dimensions are read.
    """

    def __init__(self, world_model: Any) -> None:
        self._support_size = world_model.support_size
        self._is_continuous = world_model.continuous_action_space
        self._num_actions = world_model.action_space_size
        if self._is_continuous:
            self._num_actions = world_model.config.num_of_sampled_actions
        self._tree: Optional[SearchTree] = None

    def begin(self, policies: torch.Tensor) -> list[SearchTreeNode]:
        """
        Overview:
            A search begins.
        Arguments:
            - policies (:obj:`torch.Tensor`): Policy logits of the roots, :math:`(B, ...)`.
        Returns:
            - nodes (:obj:`List[SearchTreeNode]`): The roots.
        """
        self._tree = SearchTree(len(policies), partial(self._priors, policies))
        return [SearchTreeNode(self._tree, number) for number in range(len(policies))]

    def expand(
            self, parents: Sequence[Optional[SearchTreeNode]], actions: torch.Tensor, predictions: Predictions
    ) -> list[Optional[SearchTreeNode]]:
        """
        Overview:
            The search has expanded some nodes.
        Arguments:
            - parents (:obj:`Sequence[Optional[SearchTreeNode]]`): One per row; None: not of this search.
            - actions (:obj:`torch.Tensor`): The actions taken there, :math:`(B, ...)`.
            - predictions (:obj:`Predictions`): What the model says of the new nodes.
        Returns:
            - children (:obj:`List[Optional[SearchTreeNode]]`): The new nodes, one per row; None below None.
        """
        rows = [row for row, parent in enumerate(parents) if parent is not None]
        children: list[Optional[SearchTreeNode]] = [None] * len(parents)
        if rows:
            numbers = self._tree.expand(
                [parents[row].number for row in rows], partial(self._expansion, rows, actions, predictions)
            )
            for row, number in zip(rows, numbers):
                children[row] = SearchTreeNode(self._tree, number)
        return children

    def _expansion(self, rows: Sequence[int], actions: torch.Tensor, predictions: Predictions) -> Expansion:
        return Expansion(
            np.full(len(rows), -1) if self._is_continuous else actions[rows].cpu().numpy(),
            self._scalars(predictions.reward[rows, 0]), self._scalars(predictions.value[rows, 0]),
            self._priors(predictions.policy[rows, 0]),
        )

    def _priors(self, policies: torch.Tensor) -> np.ndarray:
        if self._is_continuous:
            # Which actions the search samples at a node is not known before it takes them.
            return np.full((len(policies), self._num_actions), 1 / self._num_actions)
        return policies.float().softmax(-1).cpu().numpy()

    def _scalars(self, logits: torch.Tensor) -> np.ndarray:
        size = self._support_size
        scalars = inverse_scalar_transform(logits.float(), size // 2, categorical_distribution=size > 1)
        return scalars[:, 0].cpu().numpy()
