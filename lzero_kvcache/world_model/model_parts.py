"""Which tensors a model's functions compute with."""
from functools import partial
from types import FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from .structure import runs_its_own_forward

# Not parts: a call brings these.
NO_PARTS = ('world_model', '_packed')


class ModelParts:
    """The tensors of a ``CachedModel`` in the order in which it is built. If two models have the same ``structure``,
    ``tensors`` at the same place do the same. ``hooked`` names a module that runs a forward of its own, if one does.
    """

    def __init__(self, model: Any) -> None:
        self.tensors: list[torch.Tensor] = []
        self.structure: list[Any] = []
        self.hooked = ''
        self._seen: dict[int, Any] = {}
        self._visit(vars(model))
        self._seen.clear()

    def place_of(self, tensor: torch.Tensor) -> int:
        """The place of a tensor, or of a view of the same numbers. A LookupError if it is not among them."""
        for place, part in enumerate(self.tensors):
            if (part.data_ptr(), part.shape, part.stride()) == (tensor.data_ptr(), tensor.shape, tensor.stride()):
                return place
        raise LookupError(f'it computes with a tensor of shape {tuple(tensor.shape)} that is no part of the model')

    def _visit(self, part: Any) -> None:
        if isinstance(part, torch.Tensor):
            self.tensors.append(part)
            self.structure.append((part.shape, part.stride(), part.dtype, part.device))
        elif isinstance(part, (str, float)):
            self.structure.append(part)
        # Whole numbers are sizes, which tensors have, and counts of calls.
        elif not isinstance(part, int) and id(part) not in self._seen:
            # Keeps it alive, so that its id stays its own.
            self._seen[id(part)] = part
            self.structure.append(getattr(part, '__qualname__', type(part).__qualname__))
            for inner in self._within(part):
                self._visit(inner)

    def _within(self, part: Any) -> list[Any]:
        if isinstance(part, nn.Module):
            for module in part.modules():
                if runs_its_own_forward(module):
                    self.hooked = type(module).__name__
            return [type(part).__qualname__, *part.parameters(), *part.buffers()]
        if isinstance(part, dict):
            return [value for name, value in part.items() if name not in NO_PARTS]
        if isinstance(part, (list, tuple)):
            return list(part)
        if isinstance(part, partial):
            return [part.func, *part.args, part.keywords]
        if isinstance(part, MethodType):
            return [part.__self__]
        if isinstance(part, FunctionType):
            return [cell.cell_contents for cell in part.__closure__ or ()]
        return [vars(part)] if hasattr(part, '__dict__') and not isinstance(part, type) else []
