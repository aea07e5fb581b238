"""Products with weights that stay the same for many small batches."""
import platform
from functools import cache
from pathlib import Path
from typing import Callable, Optional

import torch
import torch.nn.functional as F

from .precision import as_computed_with

# Below, the cost of a call hides what packing saves.
SMALLEST_PACKED = 2 ** 17
# Packing pays only for weights that are used again and again, as those of a search are.
CALLS_BEFORE_PACKING = 4


def linear(
        weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str] = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """
    Overview:
        A linear layer with a weight that does not change, in the dtype that ``torch.autocast`` asks for here. A product
        of few rows spends its time waiting for the weight, so on a CPU a large one of float32 is kept in the order in
        which the processor's library reads it.
    Arguments:
        - weight (:obj:`torch.Tensor`): :math:`(out, in)`.
        - bias (:obj:`Optional[torch.Tensor]`): :math:`(out, )`.
        - gelu (:obj:`Optional[str]`): The approximation of the GELU that follows, 'none' or 'tanh'; None: none follows.
    Returns:
        - function (:obj:`Callable`): :math:`(B, T, in)` to :math:`(B, T, out)`.
    """
    weight = as_computed_with(weight.detach())
    bias = None if bias is None else as_computed_with(bias.detach())
    packed = packed_linear() if weight.device.type == 'cpu' and weight.dtype == torch.float32 else None
    if packed is None or weight.numel() < SMALLEST_PACKED:
        return PlainLinear(weight, bias, gelu)
    return packed(weight, bias, gelu)


@cache
def packed_linear() -> Optional[type['PlainLinear']]:
    """
    Overview:
        The packed product that is fastest on this processor, None where there is none.
    """
    if platform.machine() not in ('x86_64', 'AMD64'):
        return None
    if is_intel() and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, '_mkl_linear'):
        return OneMKLLinear
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_reorder_linear_weight'):
        return OneDNNLinear
    return None


def is_intel() -> bool:
    """
    Overview:
        Whether the processor is Intel's. On others oneMKL's packed product is slower than an unpacked one.
    """
    cpuinfo = Path('/proc/cpuinfo')
    return 'GenuineIntel' in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


class PlainLinear:
    """
    Overview:
        The product as PyTorch computes it. Arguments as ``linear``.
    """

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str]) -> None:
        self._weight = weight
        self._bias = bias
        self._gelu = gelu

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """
        Overview:
            The product, and GELU.
        Arguments:
            - x (:obj:`torch.Tensor`): :math:`(B, T, in)`.
        Returns:
            - y (:obj:`torch.Tensor`): :math:`(B, T, out)`.
        """
        return self._activate(F.linear(x, self._weight, self._bias))

    def _activate(self, y: torch.Tensor) -> torch.Tensor:
        return y if self._gelu is None else F.gelu(y, approximate=self._gelu)


class OneDNNLinear(PlainLinear):
    """
    Overview:
        A product by oneDNN. Its packed weight serves batches of any size.
    """

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str]) -> None:
        super().__init__(weight, bias, gelu)
        self._calls = 0
        self._packed: Optional[torch.Tensor] = None
        self._then = ('none', [], '') if gelu is None else ('gelu', [], gelu)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._packed is None:
            self._calls += 1
            if self._calls < CALLS_BEFORE_PACKING:
                return super().__call__(x)
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, len(x))
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, *self._then)


class OneMKLLinear(PlainLinear):
    """
    Overview:
        A product by oneMKL. Its packed weight serves batches of one size, the last that kept coming.
    """

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str]) -> None:
        super().__init__(weight, bias, gelu)
        self._calls = 0
        self._rows = 0
        self._packed: Optional[torch.Tensor] = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0] * x.shape[1]
        if rows != self._rows:
            if x.shape[1] > 1:
                return super().__call__(x)
            self._rows, self._calls, self._packed = rows, 0, None
        if self._packed is None:
            self._calls += 1
            if self._calls < CALLS_BEFORE_PACKING:
                return super().__call__(x)
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(self._weight, rows)
        return self._activate(torch.ops.mkl._mkl_linear(x, self._packed, self._weight, self._bias, rows))
