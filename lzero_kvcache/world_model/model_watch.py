"""Detects when cached data no longer matches the model's weights."""
from operator import attrgetter
from typing import Any, Optional

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from .precision import autocast_dtype
from .structure import StructureWatch

# Weights to look at in each simulation of a search.
WEIGHTS_AT_ONCE = 8

_optimizer_steps = 0
_version = attrgetter('_version')


def _count_optimizer_step(*_: Any) -> None:
    global _optimizer_steps
    _optimizer_steps += 1


# Fused optimisers write to parameters and leave no trace in these.
register_optimizer_step_post_hook(_count_optimizer_step)


class ModelWatch:
    """Notices when a model's parameters or buffers are written to or replaced, when its modules or ``torch.autocast``
    change, and when any optimiser of this process takes a step. Tensors made under ``torch.inference_mode`` do not
    count their writes, so a copy is compared. Writes through ``parameter.data`` leave no trace: call ``clear_caches``
    of the world model then, as LightZero does after each round of training.
    """

    def __init__(self) -> None:
        self._tensors: list[torch.Tensor] = []
        self._addresses: list[int] = []
        self._counting: list[torch.Tensor] = []
        self._versions: list[int] = []
        # The next of these to look at.
        self._next = 0
        self._copies: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._steps = -1
        self._structure = StructureWatch()
        self._device_type = 'cpu'
        self._autocast: Optional[torch.dtype] = None

    def remember(self, world_model: Any) -> None:
        self._tensors = _weights_of(world_model)
        self._addresses = [tensor.data_ptr() for tensor in self._tensors]
        self._counting = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = list(map(_version, self._counting))
        self._next = 0
        self._copies = [(tensor, tensor.clone()) for tensor in self._tensors if tensor.is_inference()]
        self._steps = _optimizer_steps
        self._structure.remember(world_model)
        self._device_type = world_model.transformer.ln_f.weight.device.type
        self._autocast = autocast_dtype(self._device_type)

    def has_changed(self, world_model: Any) -> bool:
        """Whether the model may predict something else than the one that was remembered."""
        tensors = _weights_of(world_model)
        return (
            self.may_have_changed() or len(tensors) != len(self._tensors)
            or any(tensor is not known for tensor, known in zip(tensors, self._tensors))
            or self._addresses != [tensor.data_ptr() for tensor in tensors]
            or not all(torch.equal(tensor, copy) for tensor, copy in self._copies)
            or self._structure.has_changed(world_model)
        )

    def may_have_changed(self) -> bool:
        """A quick look: at optimisers, writes to weights, hooks and autocast."""
        return self._versions != list(map(_version, self._counting)) or self._others_may_have_changed()

    def some_may_have_changed(self) -> bool:
        """As ``may_have_changed``, but looks at a few weights, others each time. To look at all in every simulation
        costs more than a small layer, and only an optimiser is likely to write during a search.
        """
        some = slice(self._next, self._next + WEIGHTS_AT_ONCE)
        self._next = 0 if some.stop >= len(self._counting) else some.stop
        return self._versions[some] != list(map(_version, self._counting[some])) or self._others_may_have_changed()

    def _others_may_have_changed(self) -> bool:
        return (
            self._steps != _optimizer_steps or self._structure.hooks_have_changed()
            or self._autocast != autocast_dtype(self._device_type)
        )


def _weights_of(world_model: Any) -> list[torch.Tensor]:
    return [*world_model.parameters(), *world_model.buffers()]
