"""What the world model predicts at the tokens that are appended to a context."""
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..store import ContextBatch
from .cached_transformer import apply_head, embed_actions, extend


class Predictions(NamedTuple):
    """
    Overview:
        The logits of one inference, of which a score may be made.
    Arguments:
        - reward (:obj:`torch.Tensor`): :math:`(B, 1, support_size)`.
        - policy (:obj:`torch.Tensor`): :math:`(B, 1, action_space_size)`; of a continuous policy, mean and deviation.
        - value (:obj:`torch.Tensor`): :math:`(B, 1, support_size)`.
    """
    reward: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor


def predict_policy_and_value(world_model: Any, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Overview:
        Policy and value logits.
    Arguments:
        - world_model (:obj:`WorldModel`): The model.
        - hidden (:obj:`torch.Tensor`): Transformer outputs at the last tokens of observations, :math:`(B, 1, E)`.
    """
    return apply_head(world_model.head_policy, hidden), apply_head(world_model.head_value, hidden)


def predict_next_state(
        world_model: Any, context: ContextBatch, actions: torch.Tensor, positions: Optional[np.ndarray]
) -> tuple[torch.Tensor, torch.Tensor, Predictions]:
    """
    Overview:
        Take an action in every row: predict the reward at its token, then the next latent state, token by token.
    Arguments:
        - world_model (:obj:`WorldModel`): The model.
        - context (:obj:`ContextBatch`): The rows, to which action and latent state are appended in place.
        - actions (:obj:`torch.Tensor`): :math:`(B, )` or :math:`(B, action_space_size)`.
        - positions (:obj:`Optional[np.ndarray]`): Rotary positions of the new tokens,
            :math:`(B, 1 + num_observations_tokens)`; None with learned ones.
    Returns:
        - hidden (:obj:`torch.Tensor`): The transformer's output at the last token, :math:`(B, 1, E)`.
        - latents (:obj:`torch.Tensor`): :math:`(B, num_observations_tokens, E)`.
        - predictions (:obj:`Predictions`): The logits.
    """

    def append(token: torch.Tensor, index: int) -> torch.Tensor:
        return extend(world_model, context, token, None if positions is None else positions[:, index:index + 1])

    hidden = append(embed_actions(world_model, actions), 0)
    reward = apply_head(world_model.head_rewards, hidden)
    latents = []
    for index in range(1, 1 + world_model.num_observations_tokens):
        latents.append(apply_head(world_model.head_observations, hidden))
        hidden = append(latents[-1], index)
    policy, value = predict_policy_and_value(world_model, hidden)
    return hidden, torch.cat(latents, dim=1), Predictions(reward, policy, value)
