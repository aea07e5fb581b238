"""The stock inference, untouched: mode 'legacy'."""
from collections.abc import Sequence
from typing import Any, Optional

import torch

from ..config import KEY_PATH
from .imagination import Imagination


class LegacyInference:
    """Hands every call to the stock world model. It has no manager and keeps nothing."""
    manager = None

    def initial(self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: Any) -> tuple[torch.Tensor, ...]:
        """As ``WorldModel.forward_initial_inference``."""
        return world_model.stock_initial_inference(obs_act_dict, start_pos)

    def recurrent(self, world_model: Any, *arguments: Any) -> tuple[torch.Tensor, ...]:
        """As ``WorldModel.forward_recurrent_inference``."""
        return world_model.stock_recurrent_inference(*arguments)

    def imagine(self, *args: Any) -> Imagination:
        """Raises a RuntimeError: the stock code has no such function."""
        raise RuntimeError(
            f"imagine needs the managed cache: set {KEY_PATH} to dict(mode='managed'), now the stock code runs, which "
            'has no such function'
        )

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """Do nothing: the stock code keeps house by itself."""

    def clear(self) -> None:
        """Do nothing, as ``forget``."""

    leave_device = clear
