"""What of this machine the trials may use: cores, memory and GPUs."""
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

# Of a small trial, nearly all of it PyTorch and LightZero; it keeps a default from swamping a machine.
BYTES_OF_A_TRIAL = 3 * 2 ** 29
MEMORY_FILE = Path('/proc/meminfo')


def cores() -> int:
    """
    Overview:
        The processor cores that this process may use.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def trials_that_fit() -> Optional[int]:
    """
    Overview:
        How many trials the free memory holds, at 1.5 GiB each and at least 1; None where the system does not say how
        much is free.
    """
    if not MEMORY_FILE.exists():
        return None
    kibibytes = [line.split()[1] for line in MEMORY_FILE.read_text().splitlines() if line.startswith('MemAvailable:')]
    return max(1, int(kibibytes[0]) * 1024 // BYTES_OF_A_TRIAL) if kibibytes else None


def visible_gpus() -> list[str]:
    """
    Overview:
        The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them.
    """
    named = os.environ.get('CUDA_VISIBLE_DEVICES')
    if named is not None:
        return [name.strip() for name in named.split(',') if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def least_used(gpus: Sequence[str], in_use: Sequence[str]) -> Optional[str]:
    """
    Overview:
        The GPU for another trial: with trials of equal length each has its turn.
    Arguments:
        - gpus (:obj:`Sequence[str]`): All of them.
        - in_use (:obj:`Sequence[str]`): Those of the running trials, one for each.
    Returns:
        - gpu (:obj:`Optional[str]`): None where there is none.
    """
    return min(gpus, key=in_use.count, default=None)
