"""Whether a model still computes what it did when something was made of it."""
from typing import Any, Optional

import torch

from .precision import autocast_dtype
from .structure import StructureWatch
from .weights import WeightsWatch


class ModelWatch:
    """
    Overview:
        Notices when the weights of a model, its modules or the dtype in which ``torch.autocast`` lets it compute have
        changed.
    """

    def __init__(self) -> None:
        self._weights = WeightsWatch()
        self._structure = StructureWatch()
        self._device_type = 'cpu'
        self._autocast: Optional[torch.dtype] = None

    def remember(self, world_model: Any) -> None:
        """
        Overview:
            Take the model as it is now.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
        """
        self._weights.remember(world_model)
        self._structure.remember(world_model)
        self._device_type = world_model.transformer.ln_f.weight.device.type
        self._autocast = autocast_dtype(self._device_type)

    def has_changed(self, world_model: Any) -> bool:
        """
        Overview:
            Whether the model may predict something else than the one that was taken.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
        """
        return (
            self._weights.have_changed(world_model) or self._autocast != autocast_dtype(self._device_type)
            or self._structure.has_changed(world_model)
        )

    def may_have_changed(self) -> bool:
        """
        Overview:
            A look that is cheap enough for every simulation: at optimisers, what is written to weights, hooks and
            autocast.
        """
        return (
            self._weights.may_have_changed() or self._structure.hooks_have_changed()
            or self._autocast != autocast_dtype(self._device_type)
        )
