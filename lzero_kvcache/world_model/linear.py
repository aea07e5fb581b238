"""Products with weights that stay the same for many small batches."""
from typing import Optional

import torch
import torch.nn.functional as F

# Below, the cost of a call hides what packing saves.
SMALLEST_PACKED = 2 ** 16
# Packing pays only for batches that come again and again, as those of a search do.
CALLS_BEFORE_PACKING = 4


def can_pack(weight: torch.Tensor) -> bool:
    """
    Overview:
        Whether oneMKL can pack a weight here: float32 on a CPU that PyTorch's build of it supports.
    Arguments:
        - weight (:obj:`torch.Tensor`): :math:`(out, in)`.
    """
    return (
        weight.device.type == 'cpu' and weight.dtype == torch.float32 and weight.numel() >= SMALLEST_PACKED
        and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, '_mkl_linear')
    )


class PackedLinear:
    """
    Overview:
        ``F.linear`` with a weight in the order in which oneMKL reads it, once batches of one size keep coming. A
        product of few rows spends its time waiting for the weight. The packed weight is a copy: it belongs to the
        weights of the moment.
    Arguments:
        - weight (:obj:`torch.Tensor`): :math:`(out, in)`, as ``can_pack`` allows.
        - bias (:obj:`Optional[torch.Tensor]`): :math:`(out, )`.
    """

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor]) -> None:
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()
        self._packed: Optional[torch.Tensor] = None
        self._rows = 0
        self._calls = 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """
        Overview:
            The product.
        Arguments:
            - x (:obj:`torch.Tensor`): :math:`(B, T, in)`.
        Returns:
            - y (:obj:`torch.Tensor`): :math:`(B, T, out)`.
        """
        rows = x.shape[0] * x.shape[1]
        if rows != self._rows:
            if x.shape[1] > 1:
                return F.linear(x, self._weight, self._bias)
            self._rows, self._calls, self._packed = rows, 0, None
        if self._packed is None:
            self._calls += 1
            if self._calls < CALLS_BEFORE_PACKING:
                return F.linear(x, self._weight, self._bias)
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(self._weight, rows)
        return torch.ops.mkl._mkl_linear(x, self._packed, self._weight, self._bias, rows)
