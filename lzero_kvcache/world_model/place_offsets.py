from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from .structure import runs_its_own_forward


def place_offsets(world_model: Any, num_places: int) -> torch.Tensor:
    """
    What the stock position correction takes a place to contribute to keys and values, in every layer,
    ``[num_places, num_layers, 2, num_heads, head_dim]``.
    """
    embeddings = world_model.pos_emb.weight[:num_places]
    offsets = []
    for block in world_model.transformer.blocks:
        for projection in (block.attn.key, block.attn.value):
            if type(projection) is nn.Linear and not runs_its_own_forward(projection):
                moved = F.linear(embeddings, projection.weight)
            else:
                moved = projection(embeddings) - projection(torch.zeros_like(embeddings))
            offsets.append(moved.unflatten(-1, (block.attn.num_heads, -1)))
    return torch.stack(offsets, dim=1).unflatten(1, (-1, 2))
