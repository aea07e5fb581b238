"""The world model's current weights, run over gathered contexts."""
from functools import partial
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F
from lzero.model.unizero_world_models.slicer import Head, PolicyHeadCont
from lzero.model.unizero_world_models.transformer import Transformer
from torch import nn

from ..config import KEY_PATH, WORLD_MODEL_PATH
from ..store import ContextBatch
from .blocks import (
    UnknownBlock,
    block_of,
    in_parallel,
    in_sequence,
    is_plain_embedding,
    warn_of_unknown_layer,
)
from .positions import rotary_frequencies, rotations
from .precision import at_least_float32
from .structure import runs_its_own_forward

HEADS = ('rewards', 'observations', 'policy', 'value')


class Predictions(NamedTuple):
    """
    Overview:
        The logits of one inference.
    Arguments:
        - reward (:obj:`torch.Tensor`): :math:`(B, 1, support_size)`.
        - policy (:obj:`torch.Tensor`): :math:`(B, 1, action_space_size)`; of a continuous policy, mean and deviation.
        - value (:obj:`torch.Tensor`): :math:`(B, 1, support_size)`.
    """
    reward: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor


class CachedModel:
    """
    Overview:
        A world model ready for inference in eval mode, without gradients. What is made of its weights and modules here
        is made once, under the ``torch.autocast`` of the moment: when one of these changes, a new instance is needed.
        Tokens are of the parameters' dtype, predictions of float32 at least.
    Arguments:
        - world_model (:obj:`WorldModel`): The model, whose own parameters and modules are used.
        - num_places (:obj:`int`): The tokens of the longest context.
        - move_tokens (:obj:`bool`): Whether tokens move to other places of their rows when the window drops old ones.
    """

    def __init__(self, world_model: Any, num_places: int, move_tokens: bool) -> None:
        self.world_model = world_model
        self.num_observations_tokens: int = world_model.num_observations_tokens
        self.like: torch.Tensor = world_model.transformer.ln_f.weight
        self._observation_dtype = _dtype_of(world_model.tokenizer, self.like.dtype)
        self.uses_rotary: bool = world_model.config.rotary_emb
        self.place_offsets = None
        if move_tokens and not self.uses_rotary:
            self.place_offsets = _place_offsets(world_model, num_places)
        if type(world_model.transformer).forward is not Transformer.forward or (
                runs_its_own_forward(world_model.transformer)
        ):
            raise ValueError(
                f'the transformer of this world model ({type(world_model.transformer).__name__}) has hooks or a '
                'forward of its own, or there are hooks for all modules, which the cache cannot run token by token: '
                f"remove the hooks, or choose {KEY_PATH}.mode='legacy'"
            )
        if self.uses_rotary and not world_model.transformer.freqs_cis.is_complex():
            raise ValueError(
                'the rotary table transformer.freqs_cis of this world model is of '
                f'{world_model.transformer.freqs_cis.dtype}, for .to(dtype) of the transformer has left only the real '
                'parts of its complex numbers: cast the transformer by .half(), .bfloat16(), .float() or .double()'
            )
        self._embedding_dropout = in_sequence(world_model.transformer.drop)
        if self.uses_rotary:
            self._frequencies = rotary_frequencies(world_model.transformer.freqs_cis)
        else:
            self._embed_positions = in_sequence(world_model.pos_emb)
            self._position_table = world_model.pos_emb.weight if is_plain_embedding(world_model.pos_emb) else None
        self._blocks = [block_of(block) for block in world_model.transformer.blocks]
        most = world_model.config.max_tokens
        if num_places > most and any(isinstance(block, UnknownBlock) for block in self._blocks):
            raise ValueError(
                f'{WORLD_MODEL_PATH}.max_tokens is {most}, and a block that is called as it is sees no more tokens, '
                f'but contexts have up to {num_places}: allowed are at least as many, or a smaller context_length'
            )
        self._embed_actions = in_sequence(world_model.act_embedding_table)
        self._final_norm = in_sequence(world_model.transformer.ln_f)
        heads = [_module_of(getattr(world_model, f'head_{name}')) for name in HEADS]
        self._reward_and_next_token = in_parallel(heads[0], heads[1])
        self._policy_and_value = in_parallel(heads[2], heads[3])
        self._next_token = in_sequence(heads[1])

    def append(
            self, batch: ContextBatch, tokens: torch.Tensor, positions: Optional[np.ndarray] = None,
            counts: Optional[np.ndarray] = None
    ) -> torch.Tensor:
        """
        Overview:
            Append tokens to every row of a batch and run them through the transformer. Each token attends to its own
            row's tokens up to itself.
        Arguments:
            - batch (:obj:`ContextBatch`): The rows, changed in place.
            - tokens (:obj:`torch.Tensor`): Token embeddings without positions, :math:`(B, T, E)`.
            - positions (:obj:`Optional[np.ndarray]`): Rotary positions, :math:`(B, T)`; not looked at with learned
                positions, which follow from the tokens' places in their rows.
            - counts (:obj:`Optional[np.ndarray]`): How many of the T tokens, on the right, belong to each row,
                :math:`(B, )`, the others being padding; None: all.
        Returns:
            - hidden (:obj:`torch.Tensor`): The transformer's output, :math:`(B, T, E)`; of padding it means nothing.
        """
        start = batch.used
        places, mask = batch.append(tokens.shape[1], counts)
        batch.embeddings.append(tokens)
        # What rows go on from comes with the first tokens that are appended.
        links = batch.links if start == batch.width else None
        rotation = None
        if self.uses_rotary:
            batch.positions.append(positions)
            rotation = self._rotation(positions)
            hidden = tokens
        else:
            hidden = tokens + self._position_embeddings(places)
        hidden = self._embedding_dropout(hidden)
        new = batch.kv[:, start:batch.used].unbind(2)
        keys_values = batch.kv[:, :batch.used].permute(2, 3, 0, 4, 1, 5).flatten(0, 1).unbind(0)
        for layer, block in enumerate(self._blocks):
            hidden = block(
                hidden, new[layer], keys_values[2 * layer], keys_values[2 * layer + 1], mask, rotation,
                None if links is None else partial(links.follow, layer)
            )
        return self._final_norm(hidden)

    def embed_observations(self, observations: torch.Tensor) -> torch.Tensor:
        """
        Overview:
            Turn observations into latent states.
        Arguments:
            - observations (:obj:`torch.Tensor`): :math:`(B, ...)`.
        Returns:
            - latents (:obj:`torch.Tensor`): :math:`(B, num_observations_tokens, E)`.
        Raises:
            - ValueError: If the encoder makes another number of tokens.
        """
        if observations.is_floating_point():
            observations = observations.to(self._observation_dtype)
        latents = self.world_model.tokenizer.encode_to_obs_embeddings(observations).to(self.like.dtype)
        if latents.shape[1] != self.num_observations_tokens:
            raise ValueError(
                f'{WORLD_MODEL_PATH}.tokens_per_block is {1 + self.num_observations_tokens}, of which one is the '
                f'action, but the encoder makes {latents.shape[1]} of an observation: allowed is {1 + latents.shape[1]}'
            )
        return latents

    def embed_actions(self, actions: torch.Tensor) -> torch.Tensor:
        """
        Overview:
            Turn actions into tokens.
        Arguments:
            - actions (:obj:`torch.Tensor`): :math:`(B, )` for discrete, :math:`(B, action_space_size)` for continuous
                ones.
        Returns:
            - tokens (:obj:`torch.Tensor`): :math:`(B, 1, E)`.
        """
        if self.world_model.continuous_action_space:
            actions = actions.to(self.like.dtype).reshape(-1, 1, self.world_model.action_space_size)
        else:
            actions = actions.long().reshape(-1, 1)
        return self._embed_actions(actions).to(self.like.dtype)

    def policy_and_value(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Overview:
            Policy and value logits.
        Arguments:
            - hidden (:obj:`torch.Tensor`): Outputs at the last tokens of observations, :math:`(B, 1, E)`.
        Returns:
            - policy, value (:obj:`Tuple[torch.Tensor, torch.Tensor]`): :math:`(B, 1, ...)`.
        """
        policy, value = self._policy_and_value(hidden)
        if isinstance(policy, dict):
            policy = torch.cat([policy['mu'], policy['sigma']], dim=-1)
        return _widened(policy), _widened(value)

    def predict_next_state(
            self, batch: ContextBatch, actions: torch.Tensor, positions: Optional[np.ndarray]
    ) -> tuple[torch.Tensor, torch.Tensor, Predictions]:
        """
        Overview:
            Take an action in every row: predict the reward at its token, then the next latent state, token by token.
            Preceding steps are taken together with the action.
        Arguments:
            - batch (:obj:`ContextBatch`): The rows, to which action and latent state are appended. Preceding rows leave
                it, and what they append is complete.
            - actions (:obj:`torch.Tensor`): :math:`(B, )` or :math:`(B, action_space_size)`.
            - positions (:obj:`Optional[np.ndarray]`): Rotary positions of the new tokens,
                :math:`(B, 1 + num_observations_tokens)`; None with learned ones.
        Returns:
            - hidden (:obj:`torch.Tensor`): The transformer's output at the last token, :math:`(B, 1, E)`.
            - latents (:obj:`torch.Tensor`): :math:`(B, num_observations_tokens, E)`.
            - predictions (:obj:`Predictions`): The logits.
        """

        def append(token: torch.Tensor, index: int) -> torch.Tensor:
            return self.append(batch, token, None if positions is None else positions[:, index:index + 1])

        hidden = self._append_with_preceding(batch, self.embed_actions(actions), positions)
        reward, latent = self._reward_and_next_token(hidden)
        latents = [latent.to(self.like.dtype)]
        hidden = append(latents[0], 1)
        for index in range(2, 1 + self.num_observations_tokens):
            latents.append(self._next_token(hidden).to(self.like.dtype))
            hidden = append(latents[-1], index)
        predictions = Predictions(_widened(reward), *self.policy_and_value(hidden))
        return hidden, latents[0] if len(latents) == 1 else torch.cat(latents, 1), predictions

    def _append_with_preceding(
            self, batch: ContextBatch, actions: torch.Tensor, positions: Optional[np.ndarray]
    ) -> torch.Tensor:
        of_actions = None if positions is None else positions[:, :1]
        steps = batch.preceding
        if steps is None:
            return self.append(batch, actions, of_actions)
        if positions is not None:
            of_actions = np.concatenate([steps.positions, of_actions])
        hidden = self.append(batch, torch.cat([steps.tokens, actions]), of_actions)
        steps.batch = batch.split(len(steps))
        return hidden[len(steps):]

    def _rotation(self, positions: np.ndarray) -> torch.Tensor:
        return self._on_device(rotations(positions, self._frequencies))[:, :, None, None]

    def _position_embeddings(self, places: np.ndarray) -> torch.Tensor:
        if len(places) == 1 and self._position_table is not None:
            first = int(places[0, 0])
            return self._position_table[first:first + places.shape[1]]
        return self._embed_positions(self._on_device(places))

    def _on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.like.device, non_blocking=True)


class _HeadAtOneToken(nn.Module):
    """A head whose forward is not the stock's, called as the stock code calls it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = head
        # The place in a block whose predictions this head makes, so that its slicing lets the token through.
        self._place = next(place for place in range(head.block_size) if len(head.compute_slice(1, place)))

    def forward(self, x: torch.Tensor) -> Any:
        return self._head(x, num_steps=1, prev_steps=self._place)


def _dtype_of(module: nn.Module, default: torch.dtype) -> torch.dtype:
    return next((weight.dtype for weight in module.parameters() if weight.is_floating_point()), default)


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(at_least_float32(logits.dtype))


def _module_of(head: nn.Module) -> nn.Module:
    if type(head).forward in (Head.forward, PolicyHeadCont.forward) and not runs_its_own_forward(head):
        return head.head_module
    warn_of_unknown_layer(type(head).__name__)
    return _HeadAtOneToken(head)


def _place_offsets(world_model: Any, num_places: int) -> torch.Tensor:
    # What the stock position correction takes a place to contribute to keys and values, in every layer.
    embeddings = world_model.pos_emb.weight[:num_places]
    offsets = []
    for block in world_model.transformer.blocks:
        for projection in (block.attn.key, block.attn.value):
            offsets.append(F.linear(embeddings, projection.weight).unflatten(-1, (block.attn.num_heads, -1)))
    return torch.stack(offsets, dim=1).unflatten(1, (-1, 2))

