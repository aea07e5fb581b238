"""The forward passes of a collect step alone, written lean: a cache and a search come on top of them."""
from typing import Any, Optional

import torch
import torch.nn.functional as F

from ..lightzero import installed
from ..world_model.blocks import in_parallel, in_sequence
from ..world_model.linear import linear

Pair = tuple[torch.Tensor, torch.Tensor]


class LeanPasses:
    """Passes with a world model's own weights over contexts as long as they get; one token per observation.

    Keys and values of a layer are (B, num_heads, context_length - 1, head_dim), allocated once. Each pass writes its
    tokens where contexts that have been shortened end, and all rows are equally long: no bookkeeping, and no mask.
    """

    def __init__(self, world_model: Any, batch_size: int) -> None:
        self._encode = world_model.tokenizer.encode_to_obs_embeddings
        self._embed_actions = in_sequence(world_model.act_embedding_table)
        # The longest context that is kept has one observation and action less than the longest that is attended to.
        self._end = world_model.context_length - 3
        width = world_model.context_length - 1
        if world_model.config.rotary_emb:
            self._offsets, self._rotation = None, world_model.transformer.freqs_cis[:width]
        else:
            self._offsets, self._rotation = world_model.pos_emb.weight[:width], None
        self._layers = [_Layer(block, batch_size, width) for block in world_model.transformer.blocks]
        self._norm = in_sequence(world_model.transformer.ln_f)
        heads = [getattr(world_model, f'head_{name}').head_module
                 for name in ('rewards', 'observations', 'policy', 'value')]
        self._reward_and_next_latent, self._policy_and_value = in_parallel(*heads[:2]), in_parallel(*heads[2:])
        self._actions = world_model.transformer.ln_f.weight.new_zeros(batch_size, 1, dtype=torch.long)

    @torch.inference_mode()
    def collect(self, observations: torch.Tensor, num_simulations: int) -> None:
        """What one collect step computes: the roots, and as many nodes of each as there are simulations."""
        self.root(self._actions, observations)
        for _ in range(num_simulations):
            self.recurrent(self._actions)

    def root(self, actions: torch.Tensor, observations: torch.Tensor) -> Pair:
        """Policy and value after the last actions (B, 1) and the current observations (B, ...), in one pass."""
        tokens = torch.cat([self._embed_actions(actions), self._encode(observations)], dim=1)
        return _with_tokens(self._policy_and_value(self.append(tokens, self._end)[:, -1]))

    def recurrent(self, actions: torch.Tensor) -> tuple[Pair, Pair]:
        """Reward and next latent state, then policy and value: the two passes of a simulation."""
        hidden = self.append(self._embed_actions(actions), self._end)
        reward, latent = _with_tokens(self._reward_and_next_latent(hidden[:, 0]))
        return (reward, latent), _with_tokens(self._policy_and_value(self.append(latent, self._end + 1)[:, 0]))

    def append(self, tokens: torch.Tensor, place: int) -> torch.Tensor:
        """Run tokens (B, T, E) that follow the first ``place`` ones of their contexts through the transformer."""
        count = tokens.shape[1]
        end = place + count
        mask = None if count == 1 else tokens.new_ones(count, end, dtype=torch.bool).tril(place)
        rotation = None if self._rotation is None else self._rotation[place:end, None, None]
        hidden = tokens if self._offsets is None else tokens + self._offsets[place:end]
        # Products take matrices.
        hidden = hidden.flatten(0, 1)
        for layer in self._layers:
            hidden = layer(hidden, place, end, mask, rotation)
        return self._norm(hidden).view(tokens.shape)


def _with_tokens(predictions: Pair) -> Pair:
    first, second = predictions
    return first[:, None], second[:, None]


class _Layer:

    def __init__(self, block: Any, batch_size: int, width: int) -> None:
        attention = block.attn
        projections = (attention.query, attention.key, attention.value)
        self._queries_keys_values = linear(torch.cat([layer.weight for layer in projections]),
                                           torch.cat([layer.bias for layer in projections]))
        self._norm_before_attention, self._norm_before_mlp = in_sequence(block.ln1), in_sequence(block.ln2)
        self._project, self._mlp = in_sequence(attention.proj), in_sequence(installed().feed_forward(block))
        head_dim = attention.proj.in_features // attention.num_heads
        self._keys, self._values = attention.proj.weight.new_zeros(
            2, batch_size, attention.num_heads, width, head_dim
        )

    def __call__(
            self, x: torch.Tensor, place: int, end: int, mask: Optional[torch.Tensor], rotation: Optional[torch.Tensor]
    ) -> torch.Tensor:
        states = self._queries_keys_values(self._norm_before_attention(x))
        states = states.view(len(self._keys), end - place, 3, self._keys.shape[1], -1)
        if rotation is not None:
            torch.view_as_complex(states[:, :, :2].unflatten(-1, (-1, 2))).mul_(rotation)
        queries, self._keys[:, :, place:end], self._values[:, :, place:end] = states.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(queries, self._keys[:, :, :end], self._values[:, :, :end], mask)
        x = x + self._project(mixed.transpose(1, 2).reshape(x.shape))
        return x + self._mlp(self._norm_before_mlp(x))
