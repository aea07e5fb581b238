"""The stock inference, untouched: mode 'legacy'."""
from collections.abc import Sequence
from typing import Any, Optional

import torch

from ..config import KEY_PATH
from .imagination import Imagination


class LegacyInference:
    """Hands every call to the stock world model. It has no manager and keeps nothing."""
    manager = None

    def initial(
            self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: Any
    ) -> tuple[torch.Tensor, ...]:
        """As ``WorldModel.forward_initial_inference``."""
        return world_model.stock_initial_inference(obs_act_dict, start_pos)

    def recurrent(
            self, world_model: Any, state_action_history: list[tuple], simulation_index: int,
            search_depth: Sequence[int], start_pos: Any
    ) -> tuple[torch.Tensor, ...]:
        """As ``WorldModel.forward_recurrent_inference``."""
        return world_model.stock_recurrent_inference(
            state_action_history, simulation_index, search_depth, start_pos
        )

    def imagine(self, *args: Any) -> Imagination:
        """Raises a RuntimeError: the stock code has no such function."""
        raise RuntimeError(
            f"imagine needs the managed cache: set {KEY_PATH} to dict(mode='managed'), now the stock code runs, which "
            'has no such function'
        )

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """Nothing: the stock policies forget by themselves."""

    def clear(self) -> None:
        """Nothing: the stock world model clears by itself."""

    def leave_device(self) -> None:
        """Nothing: the stock world model keeps no pool of its own on a device."""
