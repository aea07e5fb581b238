"""How many threads PyTorch computes with on the CPU."""
import os
from collections.abc import Mapping
from typing import Any, Optional

import torch

# Up to this width a second thread costs more than it brings, because threads wait for each other at every product.
# Measured on two idle cores, the milliseconds of a search by 8 environments x 25 simulations with one and with two
# threads: 38 and 42 at 128 wide, 81 and 71 at 256, 101 and 75 at 384. Where others use the cores, too, a second thread
# costs a multiple: 101 and 360 at 64 wide.
SMALL_WIDTH = 128
# Where both say something, PyTorch does as the first of them says.
VARIABLES = ('MKL_NUM_THREADS', 'OMP_NUM_THREADS')
BY_DEFAULT = torch.get_num_threads()


def is_small(world_model_cfg: Mapping[str, Any]) -> bool:
    """
    Overview:
        Whether a world model is so small that one thread is best.
    Arguments:
        - world_model_cfg (:obj:`Mapping`): Its config; a width that it does not have is LightZero's default, 768.
    """
    return world_model_cfg.get('embed_dim', SMALL_WIDTH + 1) <= SMALL_WIDTH


def threads_of_environment() -> Optional[int]:
    """
    Overview:
        How many threads the user's environment asks for.
    Returns:
        - threads (:obj:`Optional[int]`): Of a list for nested threads, such as '4,2', the first; None: it does not say.
    Raises:
        - ValueError: If what it says is no number of threads.
    """
    for name in VARIABLES:
        given = os.environ.get(name)
        if given:
            threads = given.split(',')[0].strip()
            if not threads.isdecimal() or int(threads) < 1:
                raise ValueError(f'{name} is {given!r}: allowed is a number of threads of at least 1, such as {name}=2')
            return int(threads)
    return None


def choose_threads(world_model_cfg: Mapping[str, Any], wanted: Optional[int] = None) -> Optional[str]:
    """
    Overview:
        Give a small model one thread, unless the user has decided: by an option, by the environment, or in the config
        file by ``torch.set_num_threads`` with another number than PyTorch's default.
    Arguments:
        - world_model_cfg (:obj:`Mapping`): The model's config.
        - wanted (:obj:`Optional[int]`): The option; None: not given.
    Returns:
        - choice (:obj:`Optional[str]`): What has been chosen, as a sentence; None where it was not ours to choose.
    Raises:
        - ValueError: If what the environment says is no number of threads.
    """
    if wanted is not None:
        torch.set_num_threads(wanted)
        return None
    is_decided = threads_of_environment() is not None or torch.get_num_threads() != BY_DEFAULT
    if is_decided or BY_DEFAULT == 1 or torch.cuda.is_available() or not is_small(world_model_cfg):
        return None
    torch.set_num_threads(1)
    return (
        f"One thread, because more of them slow down a model of width {world_model_cfg['embed_dim']}. "
        'OMP_NUM_THREADS or --threads chooses another number.'
    )
