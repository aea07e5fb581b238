"""Products with weights that stay the same for many small batches."""
import platform
from functools import cache
from pathlib import Path
from typing import Callable, Optional

import torch
import torch.nn.functional as F

from .columns import is_for_a_compiler
from .precision import as_computed_with

# Below, the cost of a call hides what packing saves.
SMALLEST_PACKED = 2 ** 17
# Packing pays only for weights that are used again and again, as those of a search are.
CALLS_BEFORE_PACKING = 4


def linear(
        weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str] = None
) -> Callable[[torch.Tensor], torch.Tensor]:
    """A linear layer, [N, in] to [N, out], with a weight, [out, in], that does not change, in the dtype that
    ``torch.autocast`` asks for now. With few rows the product waits for the weight: so a CPU keeps a large float32
    weight in the order in which its library reads it. ``gelu`` is the approximation of the GELU that follows, 'none' or
    'tanh'; None: none follows.
    """
    packed = packed_linear() if is_packed(weight) else PlainLinear
    return packed(
        as_computed_with(weight.detach()), None if bias is None else as_computed_with(bias.detach()), gelu
    )


def is_packed(weight: torch.Tensor) -> bool:
    """Whether ``linear`` keeps a packed copy of this weight."""
    return (
        weight.device.type == 'cpu' and as_computed_with(weight.detach()[:0]).dtype == torch.float32
        and weight.numel() >= SMALLEST_PACKED and packed_linear() is not None
    )


def one_call_is_cheaper(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Whether one product with both weights as blocks, and zeros beside them, beats a product with each."""
    size = (first.shape[0] + second.shape[0]) * (first.shape[1] + second.shape[1])
    return first.is_cuda or size < SMALLEST_PACKED


@cache
def packed_linear() -> Optional[type['PlainLinear']]:
    """The packed product that is fastest on this processor; None: it has none."""
    if platform.machine() not in ('x86_64', 'AMD64'):
        return None
    if is_intel() and torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, '_mkl_linear'):
        return OneMKLLinear
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_reorder_linear_weight'):
        return OneDNNLinear
    return None


def is_intel() -> bool:
    """Whether the processor is Intel's. On others oneMKL's packed product is slower than an unpacked one."""
    cpuinfo = Path('/proc/cpuinfo')
    return 'GenuineIntel' in (cpuinfo.read_text() if cpuinfo.exists() else platform.processor())


def takes_gelu(weight: torch.Tensor) -> bool:
    """Whether a product includes the GELU (by tanh) that follows, as cuBLAS does."""
    return weight.is_cuda


class PlainLinear:
    """The product as PyTorch computes it. Arguments as ``linear``."""

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str]) -> None:
        self._weight = weight
        self._transposed = weight.t()
        self._bias = bias
        self._gelu = gelu
        self._at_once = gelu == 'tanh' and bias is not None and takes_gelu(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self._at_once:
            return torch._addmm_activation(self._bias, x, self._transposed, use_gelu=True)
        if self._bias is None:
            return self._activate(torch.mm(x, self._transposed))
        return self._activate(torch.addmm(self._bias, x, self._transposed))

    def _activate(self, y: torch.Tensor) -> torch.Tensor:
        return y if self._gelu is None else F.gelu(y, approximate=self._gelu)


class OneDNNLinear(PlainLinear):
    """A product by oneDNN. Its packed weight serves batches of any size."""
    _calls = 0
    _packed: Optional[torch.Tensor] = None

    def __init__(self, weight: torch.Tensor, bias: Optional[torch.Tensor], gelu: Optional[str]) -> None:
        super().__init__(weight, bias, gelu)
        self._then = ('none', [], '') if gelu is None else ('gelu', [], gelu)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if is_for_a_compiler():
            return super().__call__(x)
        if self._packed is None:
            self._calls += 1
            if self._calls < CALLS_BEFORE_PACKING:
                return super().__call__(x)
            self._packed = torch.ops.mkldnn._reorder_linear_weight(self._weight, len(x))
        return torch.ops.mkldnn._linear_pointwise(x, self._packed, self._bias, *self._then)


class OneMKLLinear(PlainLinear):
    """A product by oneMKL. Its packed weight serves batches of one size, the last that kept coming."""
    _calls = _coming = _rows = 0
    _packed: Optional[torch.Tensor] = None

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if is_for_a_compiler():
            return super().__call__(x)
        rows = len(x)
        if rows != self._rows:
            if rows != self._coming:
                self._coming, self._calls = rows, 0
            self._calls += 1
            if self._calls < CALLS_BEFORE_PACKING:
                return super().__call__(x)
            self._rows = rows
            self._packed = torch.ops.mkl._mkl_reorder_linear_weight(self._weight, rows)
        # Another size has to come without a break before it is packed.
        self._calls = 0
        return self._activate(torch.ops.mkl._mkl_linear(x, self._packed, self._weight, self._bias, rows))
