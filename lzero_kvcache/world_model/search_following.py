"""What eviction strategies are told of the running search."""
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional

import numpy as np
import torch

from ..eviction import Expansion, SearchTree, SearchTreeNode
from .cached_model import Predictions


class SearchFollower:
    """
    Overview:
        Keeps a ``SearchTree`` of the running search. What the model has predicted is looked at when a strategy asks.
    Arguments:
        - world_model (:obj:`WorldModel`): The model. Only its dimensions are read.
        - discount_factor (:obj:`float`): Of the searches.
    """

    def __init__(self, world_model: Any, discount_factor: float) -> None:
        self._discount_factor = discount_factor
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
        self._tree = SearchTree(len(policies), partial(self.priors, policies), self._discount_factor)
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
        rows: Optional[list[int]] = None
        if None in parents:
            rows = [row for row, parent in enumerate(parents) if parent is not None]
        known = parents if rows is None else [parents[row] for row in rows]
        numbers = iter(self._tree.expand(
            [parent.number for parent in known], partial(self.expansion, rows, actions, predictions)
        ) if known else ())
        return [None if parent is None else SearchTreeNode(self._tree, next(numbers)) for parent in parents]

    def expansion(
            self, rows: Optional[Sequence[int]], actions: torch.Tensor, predictions: Predictions
    ) -> Expansion:
        """
        Overview:
            What a search tree is told of new nodes.
        Arguments:
            - rows (:obj:`Optional[Sequence[int]]`): Those of the batch that count; None: all.
            - actions (:obj:`torch.Tensor`): The actions that lead to the batch's nodes, :math:`(B, ...)`.
            - predictions (:obj:`Predictions`): What the model says of them.
        Returns:
            - expansion (:obj:`Expansion`): One row for each that counts.
        """
        if rows is not None:
            actions, predictions = actions[rows], Predictions(*(logits[rows] for logits in predictions))
        count = len(actions)
        rewards_and_values = self._scalars(torch.cat([predictions.reward[:, 0], predictions.value[:, 0]]))
        return Expansion(
            np.full(count, -1) if self._is_continuous else actions.cpu().numpy(),
            rewards_and_values[:count], rewards_and_values[count:], self.priors(predictions.policy[:, 0]),
        )

    def priors(self, policies: torch.Tensor) -> np.ndarray:
        """
        Overview:
            What the model thinks of the actions at some nodes, before the search has tried any.
        Arguments:
            - policies (:obj:`torch.Tensor`): Policy logits, :math:`(B, ...)`.
        Returns:
            - priors (:obj:`np.ndarray`): :math:`(B, num_actions)`, summing to 1.
        """
        if self._is_continuous:
            # Which actions the search samples at a node is not known before it takes them.
            return np.full((len(policies), self._num_actions), 1 / self._num_actions)
        return policies.float().softmax(-1).cpu().numpy()

    def _scalars(self, logits: torch.Tensor) -> np.ndarray:
        if self._support_size > 1:
            bins = torch.arange(self._support_size, dtype=torch.float32, device=logits.device)
            logits = logits.float().softmax(-1) @ (bins - self._support_size // 2)
        return _unscaled(logits.float().flatten().cpu().numpy())


def _unscaled(scaled: np.ndarray, epsilon: float = 0.001) -> np.ndarray:
    """The inverse of the scale that values are predicted in (https://arxiv.org/abs/1805.11593, Proposition A.2)."""
    root = np.sqrt(1 + 4 * epsilon * (np.abs(scaled) + 1 + epsilon))
    return np.sign(scaled) * (((root - 1) / (2 * epsilon)) ** 2 - 1)
