"""What the release cannot run, though the managed cache can."""
from collections.abc import Sequence
from typing import Any, Optional

import torch

from ..lightzero import installed
from .precision import autocast_dtype

NOT_FLOAT32 = 'stock fault: LightZero caches in float32, which goes with parameters of float32 alone'
BFLOAT16 = 'stock fault: LightZero cannot hand latent states of bfloat16 to its search'
ROUNDED = 'torch.autocast: both round to 16 bits, each in its own order, and go on from what they have rounded'
ODD_WINDOW = (
    'stock fault: of a full window whose context_length is odd LightZero drops the newest token, and takes the next '
    'action for an observation'
)
TOO_LONG = "stock fault: LightZero's attention sees max_tokens tokens, fewer than context_length lets a context have"


def fault_of_dtype(world_model: Any) -> Optional[str]:
    """Why predictions in the dtype of a model cannot be compared with the release's; None: they can."""
    weight = world_model.transformer.ln_f.weight
    if weight.dtype != torch.float32:
        return NOT_FLOAT32
    autocast = autocast_dtype(weight.device.type)
    if autocast is None:
        return None
    return BFLOAT16 if autocast == torch.bfloat16 else ROUNDED


def fault_of_lengths(world_model: Any, lengths: Sequence[int]) -> Optional[str]:
    """Why the release cannot go on from contexts, padded to the longest, by an action and one token; None: it can."""
    longest, entries = max(lengths), installed().stock_entries
    if entries.refuses_long_contexts and longest + 2 > world_model.config.max_tokens:
        return TOO_LONG
    # It tells observations and actions apart by whether a token's place is even.
    looked_at = [longest] if entries.pads_without_mask else lengths
    return ODD_WINDOW if any(length % 2 == 0 for length in looked_at) else None
