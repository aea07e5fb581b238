"""Whether a model's weights are still those that something was made of."""
from itertools import chain
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

_optimizer_steps = 0


def _count_optimizer_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimisers write to parameters without a trace in these.
register_optimizer_step_post_hook(_count_optimizer_step)


class WeightsWatch:
    """
    Overview:
        Notices when parameters or buffers of a model have been written to or replaced, and when any optimiser of this
        process has taken a step. What is written through ``parameter.data`` leaves no trace: ``clear_caches`` of the
        world model is for that, which LightZero calls after each round of training.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._versions: list[int] = []
        self._addresses: list[int] = []
        self._steps = -1

    def remember(self, world_model: Any) -> None:
        """
        Overview:
            Take the weights as they are now.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
        """
        self._tensors = list(chain(world_model.parameters(), world_model.buffers()))
        self._versions = [tensor._version for tensor in self._tensors]
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._steps = _optimizer_steps

    def have_changed(self, world_model: Any) -> bool:
        """
        Overview:
            Whether the weights may be others than those that were taken.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
        """
        tensors = list(chain(world_model.parameters(), world_model.buffers()))
        return (
            self._steps != _optimizer_steps or self._versions != [tensor._version for tensor in tensors]
            or self._addresses != [tensor.data_ptr() for tensor in tensors]
        )

    def may_have_changed(self) -> bool:
        """
        Overview:
            A look that costs next to nothing. It notices optimisers, and whatever writes to the whole model, such as
            ``load_state_dict``.
        """
        return (
            self._steps != _optimizer_steps or self._tensors[0]._version != self._versions[0]
            or self._tensors[-1]._version != self._versions[-1]
        )
