"""The stock transformer over cached contexts of unequal lengths: same parameters, one masked batch."""
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F

from ..store import ContextBatch


def extend(
        world_model: Any,
        context: ContextBatch,
        tokens: torch.Tensor,
        positions: Optional[np.ndarray] = None,
        counts: Optional[np.ndarray] = None,
) -> torch.Tensor:
    """
    Overview:
        Append tokens to every row of ``context`` and run them through the transformer. Each token attends to its own
        row's tokens up to itself; nothing attends to padding.
    Arguments:
        - world_model (:obj:`WorldModel`): The model whose parameters are used.
        - context (:obj:`ContextBatch`): The rows, changed in place.
        - tokens (:obj:`torch.Tensor`): Token embeddings without positions, :math:`(B, T, E)`.
        - positions (:obj:`Optional[np.ndarray]`): Rotary positions, :math:`(B, T)`; None with learned positions, which
            follow from the rows' lengths.
        - counts (:obj:`Optional[np.ndarray]`): How many of the T tokens belong to each row, :math:`(B, )`, the others
            being padding on the right; None: all.
    Returns:
        - hidden (:obj:`torch.Tensor`): The transformer's output, :math:`(B, T, E)`; of padding it means nothing.
    """
    batch_size, num_tokens, _ = tokens.shape
    device = tokens.device
    starts = torch.as_tensor(context.lengths, device=device)
    slots = starts[:, None] + torch.arange(num_tokens, device=device)
    rows = torch.arange(batch_size, device=device)[:, None]
    extent = int(context.lengths.max(initial=0)) + num_tokens

    equal_lengths = (context.lengths == context.lengths[0]).all()
    visible = None
    if num_tokens > 1 or not equal_lengths:
        visible = (torch.arange(extent, device=device) <= slots[:, :, None])[:, None]

    rotation = None
    if world_model.config.rotary_emb:
        positions = torch.as_tensor(positions, device=device)
        rotation = world_model.transformer.freqs_cis[positions % world_model.config.max_seq_len][:, None]
        hidden = tokens
    else:
        hidden = tokens + world_model.pos_emb(slots)
    if context.tokens is not None:
        context.tokens[rows, slots] = tokens
        if positions is not None:
            context.positions[rows, slots] = positions

    hidden = world_model.transformer.drop(hidden)
    for layer, block in enumerate(world_model.transformer.blocks):
        attended = _attend(block.attn, block.ln1(hidden), context.kv[:, layer], rows, slots, extent, visible, rotation)
        if block.gru_gating:
            hidden = block.gate1(hidden, attended)
            hidden = block.gate2(hidden, block.mlp(block.ln2(hidden)))
        else:
            hidden = hidden + attended
            hidden = hidden + block.mlp(block.ln2(hidden))
    context.lengths = context.lengths + (num_tokens if counts is None else counts)
    return world_model.transformer.ln_f(hidden)


def _attend(attention, x, kv, rows, slots, extent, visible, rotation) -> torch.Tensor:
    batch_size, num_tokens, embed_dim = x.shape
    split = (batch_size, num_tokens, attention.num_heads, embed_dim // attention.num_heads)
    query = attention.query(x).view(split).transpose(1, 2)
    key = attention.key(x).view(split).transpose(1, 2)
    value = attention.value(x).view(split).transpose(1, 2)
    if rotation is not None:
        query, key = _rotate(query, rotation), _rotate(key, rotation)
    keys, values = kv[:, 0], kv[:, 1]
    keys.transpose(1, 2)[rows, slots] = key.transpose(1, 2)
    values.transpose(1, 2)[rows, slots] = value.transpose(1, 2)
    dropout = attention.attn_drop.p if attention.training else 0.
    mixed = F.scaled_dot_product_attention(
        query, keys[:, :, :extent], values[:, :, :extent], attn_mask=visible, dropout_p=dropout
    )
    return attention.resid_drop(attention.proj(mixed.transpose(1, 2).reshape(batch_size, num_tokens, embed_dim)))


def _rotate(x: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotation).flatten(-2).type_as(x)


def apply_head(head: Any, hidden: torch.Tensor) -> torch.Tensor:
    """
    Overview:
        Run one of the world model's heads on tokens that are known to be of its kind.
    Arguments:
        - head (:obj:`Union[Head, PolicyHeadCont]`): The head.
        - hidden (:obj:`torch.Tensor`): Transformer outputs, :math:`(B, T, E)`.
    Returns:
        - logits (:obj:`torch.Tensor`): :math:`(B, T, output_dim)`; of a continuous policy, mean and deviation.
    """
    output = head.head_module(hidden)
    if isinstance(output, dict):
        return torch.cat([output['mu'], output['sigma']], dim=-1)
    return output


def embed_actions(world_model: Any, actions: torch.Tensor) -> torch.Tensor:
    """
    Overview:
        Turn actions into tokens.
    Arguments:
        - world_model (:obj:`WorldModel`): The model.
        - actions (:obj:`torch.Tensor`): :math:`(B, )` for discrete, :math:`(B, action_space_size)` for continuous ones.
    Returns:
        - tokens (:obj:`torch.Tensor`): :math:`(B, 1, E)`.
    """
    if world_model.continuous_action_space:
        return world_model.act_embedding_table(actions.float().reshape(-1, 1, world_model.action_space_size))
    return world_model.act_embedding_table(actions.long().reshape(-1, 1))


class ContextWindow:
    """
    Overview:
        Keeps contexts inside the model's window: a row that has reached ``context_length - 1`` tokens keeps its last
        ``context_length - 3``.
    Arguments:
        - context_length (:obj:`int`): The window in tokens.
        - mode (:obj:`str`): 'shift' drops the oldest tokens and, with learned positions, corrects the keys and values
            of the others by the difference of the position embeddings, as the stock code does; 'rebuild' encodes
            the remaining tokens again from position 0 (rotary tokens keep their own positions, only whose
            differences matter).
    Raises:
        - ValueError: If the window leaves no room for a context.
    """

    def __init__(self, context_length: int, mode: str) -> None:
        if context_length < 4:
            raise ValueError(
                f'policy.model.world_model_cfg.context_length is {context_length}: the cache needs at least 4 tokens '
                "(the oldest pair, the newest pair), or kv_cache.mode='legacy'"
            )
        self.limit = context_length - 1
        self.kept = context_length - 3
        self._mode = mode

    def longest_context(self, num_observations_tokens: int) -> int:
        """
        Overview:
            The most tokens that a context has before it is shortened.
        Arguments:
            - num_observations_tokens (:obj:`int`): Tokens per observation; an action has one.
        Returns:
            - length (:obj:`int`): In tokens.
        """
        longest, met = num_observations_tokens, set()
        for length in (num_observations_tokens, self.kept):
            while length not in met:
                met.add(length)
                grown = length + 1 + num_observations_tokens
                longest = max(longest, grown)
                length = grown if grown < self.limit else self.kept
        return longest

    def apply(self, world_model: Any, context: ContextBatch) -> None:
        """
        Overview:
            Shorten the rows that have reached the limit, in place.
        Arguments:
            - world_model (:obj:`WorldModel`): The model, whose current weights are used.
            - context (:obj:`ContextBatch`): The rows.
        """
        full = np.flatnonzero(context.lengths >= self.limit)
        for length in np.unique(context.lengths[full]):
            rows = np.flatnonzero(context.lengths == length)
            dropped = int(length) - self.kept
            if self._mode == 'shift':
                self._shift(world_model, context, rows, dropped)
            else:
                self._encode_again(world_model, context, rows, dropped)

    def _shift(self, world_model: Any, context: ContextBatch, rows: np.ndarray, dropped: int) -> None:
        index = torch.as_tensor(rows, device=context.kv.device)
        kept = context.kv[index, :, :, :, dropped:dropped + self.kept]
        if not world_model.config.rotary_emb:
            kept = kept + self._position_correction(world_model, dropped)
        context.kv[index, :, :, :, :self.kept] = kept
        context.lengths[rows] = self.kept

    def _position_correction(self, world_model: Any, dropped: int) -> torch.Tensor:
        positions = world_model.pos_emb.weight
        difference = positions[:self.kept] - positions[dropped:dropped + self.kept]
        corrections = []
        for block in world_model.transformer.blocks:
            for projection in (block.attn.key, block.attn.value):
                per_head = F.linear(difference, projection.weight).view(self.kept, block.attn.num_heads, -1)
                corrections.append(per_head.transpose(0, 1))
        return torch.stack(corrections).unflatten(0, (-1, 2))

    def _encode_again(self, world_model: Any, context: ContextBatch, rows: np.ndarray, dropped: int) -> None:
        overflowing = context.select(rows)
        shortened = overflowing.emptied()
        kept = slice(dropped, dropped + self.kept)
        extend(world_model, shortened, overflowing.tokens[:, kept], overflowing.positions[:, kept])
        context.assign(rows, shortened)
