"""A model whose latent states are numbers of nodes, for LightZero's search."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lzero.model.common import MZNetworkOutput

from ..eviction.search_nodes import unscaled
from ..search.search import Search


class NumberedModel:
    """A search's model that hands out numbers of nodes instead of latent states: the search never looks into these."""

    def __init__(self, model: Any, world_model: Any, search: Search) -> None:
        self._model = model
        self._world_model = world_model
        self._search = search

    def eval(self) -> None:
        self._model.eval()

    def recurrent_inference(
            self, state_action_history: list[tuple], simulation_index: int = 0, search_depth: Sequence[int] = (),
            start_pos: Any = 0
    ) -> MZNetworkOutput:
        """Take an action at a node of every row. The arguments are those of LightZero's models."""
        nodes, actions = state_action_history[-1]
        outputs, children = self._world_model.kv_cache_inference.expand(
            self._world_model, self._search, np.asarray(nodes), actions, search_depth, start_pos
        )
        scalars = scalars_of(outputs.host)
        return MZNetworkOutput(
            value=scalars[:, 1:], reward=scalars[:, :1], policy_logits=outputs.host[:, 2:],
            latent_state=torch.from_numpy(children)
        )


def scalars_of(on_host: torch.Tensor) -> torch.Tensor:
    """Rewards and values, [..., 2], in the environment's units, of what ``StepOutputs.host`` has, [..., 2 + size]."""
    return torch.from_numpy(unscaled(on_host.numpy()[..., :2], square_root=_square_root))


def _square_root(numbers: np.ndarray) -> np.ndarray:
    return torch.from_numpy(numbers).sqrt_().numpy()
