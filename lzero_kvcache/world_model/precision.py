"""The dtypes in which a model computes and its predictions leave the cache."""
from typing import Optional

import torch


def autocast_dtype(device_type: str) -> Optional[torch.dtype]:
    """The dtype that ``torch.autocast`` casts to here; None outside of it."""
    if hasattr(torch, 'get_autocast_dtype'):
        is_enabled = torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
        return torch.get_autocast_dtype(device_type) if is_enabled else None
    # Before torch 2.4 each type of device has functions of its own.
    if device_type == 'cpu':
        return torch.get_autocast_cpu_dtype() if torch.is_autocast_cpu_enabled() else None
    return torch.get_autocast_gpu_dtype() if torch.is_autocast_enabled() else None


def as_computed_with(weight: torch.Tensor) -> torch.Tensor:
    """A weight cast once as ``torch.autocast`` would cast it in each call."""
    dtype = autocast_dtype(weight.device.type)
    # It leaves double precision alone.
    return weight if dtype is None or weight.dtype == torch.float64 else weight.to(dtype)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which numbers leave the cache: NumPy knows no bfloat16, and float32 has all numbers of 16 bits."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype
