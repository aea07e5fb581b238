from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def tensor_bytes(values: Sequence[Any]) -> int:
    """Bytes of all tensors and arrays in values, their containers and attributes; each counts once."""
    total, met, waiting = 0, set(), list(values)
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            identity = ('tensor', value.data_ptr(), value.shape)
            size = value.numel() * value.element_size()
        else:
            identity = ('object', id(value))
            size = value.nbytes if isinstance(value, np.ndarray) else 0
        if identity in met:
            continue
        met.add(identity)
        total += size
        if isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
        elif not isinstance(value, (torch.Tensor, np.ndarray)) and hasattr(value, '__dict__'):
            waiting.extend(vars(value).values())
    return total
