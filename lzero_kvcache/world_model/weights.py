"""Whether a model's weights are still those that something was made of."""
from collections.abc import Iterator
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
        process has taken a step. Tensors that were made under ``torch.inference_mode`` do not count what is written to
        them: they are compared with a copy. What is written through ``parameter.data`` leaves no trace:
        ``clear_caches`` of the world model is for that, which LightZero calls after each round of training.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._addresses: list[int] = []
        self._counting: list[torch.Tensor] = []
        self._versions: list[int] = []
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._steps = -1

    def remember(self, world_model: Any) -> None:
        """
        Overview:
            Take the weights as they are now.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
        """
        self._tensors = list(_weights_of(world_model))
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._counting = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = [tensor._version for tensor in self._counting]
        self._copies = [(tensor, tensor.clone()) for tensor in self._tensors if tensor.is_inference()]
        self._steps = _optimizer_steps

    def have_changed(self, world_model: Any) -> bool:
        """
        Overview:
            Whether the weights may be others than those that were taken.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
        """
        tensors = list(_weights_of(world_model))
        return (
            self.may_have_changed() or len(tensors) != len(self._tensors)
            or any(tensor is not known for tensor, known in zip(tensors, self._tensors))
            or self._addresses != [tensor.data_ptr() for tensor in tensors]
            or not all(torch.equal(tensor, copy) for tensor, copy in self._copies)
        )

    def may_have_changed(self) -> bool:
        """
        Overview:
            A look that is cheap enough for every simulation. It notices optimisers, and whatever is written to weights
            that count it.
        """
        return self._steps != _optimizer_steps or self._versions != [tensor._version for tensor in self._counting]


def _weights_of(world_model: Any) -> Iterator[torch.Tensor]:
    return chain(world_model.parameters(), world_model.buffers())
