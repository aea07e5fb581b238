"""Roots of a search whose contexts are given, token by token."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from ..search.episode import Episode
from ..store import ContextBatch
from .cached_model import CachedModel


class GivenContext(Episode):
    """
    The context of a root as raw tokens, its latent state last, ``[T, E]``, without positions. With rotary positions
    the tokens follow each other, and the root is at the least timestep that has room for those before it.

    Attributes:
        tokens: ``[T, E]``.
        timestep: Of the root.
    """

    def __init__(self, tokens: torch.Tensor, num_observations_tokens: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.timestep = -(-(len(tokens) - num_observations_tokens) // 2)


def append_given(
        model: CachedModel, batch: ContextBatch, given: Sequence[GivenContext], counts: np.ndarray
) -> torch.Tensor:
    """
    Append given contexts to the empty rows of a batch.

    Args:
        model: The weights.
        batch: One row for each, changed in place.
        given: The contexts.
        counts: How many tokens, from the right, of each, ``[B]``.

    Returns:
        The transformer's output at the roots, ``[B, 1, E]``.
    """
    longest = int(counts.max())
    tokens = [
        F.pad(each.tokens[-count:].to(model.like), (0, 0, longest - count, 0))
        for each, count in zip(given, counts.tolist())
    ]
    last = np.array([2 * each.timestep for each in given]) + model.num_observations_tokens - 1
    positions = last[:, None] + np.arange(1 - longest, 1)
    return model.append(batch, torch.stack(tokens), positions, counts)[:, -1:]


def check_given(world_model: Any, latents: Any, contexts: Sequence[Any]) -> None:
    """A ValueError that says what is wrong with roots and the contexts given for them."""
    if len(latents) != len(contexts):
        raise ValueError(f'{len(contexts)} contexts came with {len(latents)} roots: needed is one for each')
    most = world_model.context_length - 2
    for row, context in enumerate(contexts):
        if not 0 < len(context) <= most:
            raise ValueError(
                f'the context of root {row} has {len(context)} tokens: allowed are 1 to {most}, which leave room for '
                'an action and what follows'
            )
