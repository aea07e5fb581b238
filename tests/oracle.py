"""The forward without a cache that every prediction must equal."""
from typing import Optional

import numpy as np
import torch

from lzero_kvcache.lightzero import installed


class Oracle:
    """
    One environment's own tokens, pushed through the transformer in one forward, no cache.

    ``tokens`` are raw embeddings (latent, action, latent, ...), ``positions`` their rotary positions. A window that
    has moved on (``shift``) is a matter of what each token may see: those from its ``first_seen`` on, counted, with
    learned positions, from there.
    """

    def __init__(self, world_model) -> None:
        self.world_model = world_model
        self.tokens: list[torch.Tensor] = []
        self.positions: list[int] = []
        self.first_seen: list[int] = []
        self.begin = 0
        self._hidden: Optional[torch.Tensor] = None

    def copy(self) -> 'Oracle':
        other = Oracle(self.world_model)
        other.tokens, other.positions = list(self.tokens), list(self.positions)
        other.first_seen, other.begin, other._hidden = list(self.first_seen), self.begin, self._hidden
        return other

    def __len__(self) -> int:
        return len(self.tokens) - self.begin

    def clear(self) -> None:
        self.__init__(self.world_model)

    def shift(self, kept: int) -> None:
        """What comes sees the last ``kept`` tokens only."""
        self.begin = len(self.tokens) - kept

    def encode_again(self, kept: int) -> None:
        """The last ``kept`` tokens are all that there is."""
        tokens, positions = self.tokens[-kept:], self.positions[-kept:]
        self.clear()
        for token, position in zip(tokens, positions):
            self._add(token, position)

    def add_observation(self, observation: torch.Tensor, timestep: int) -> torch.Tensor:
        dtype = next(self.world_model.tokenizer.parameters()).dtype
        latent = self.world_model.tokenizer.encode_to_obs_embeddings(observation[None].to(dtype))[0]
        self.add_latent(latent, 2 * timestep)
        return latent

    def add_latent(self, latent: torch.Tensor, position: int) -> None:
        for index, token in enumerate(latent):
            self._add(token, position + index)

    def add_action(self, action, position: int) -> None:
        table = self.world_model.act_embedding_table
        if self.world_model.continuous_action_space:
            embedded = table(torch.as_tensor(np.asarray(action), dtype=table[0].weight.dtype)[None])
        else:
            embedded = table(torch.as_tensor(np.asarray(action)).long().reshape(1))
        self._add(embedded[0], position)

    def _add(self, token: torch.Tensor, position: int) -> None:
        self.tokens.append(token.to(self.world_model.transformer.ln_f.weight.dtype))
        self.positions.append(position)
        self.first_seen.append(self.begin)
        self._hidden = None

    @torch.no_grad()
    def hidden(self) -> torch.Tensor:
        """The transformer's output at the last token, :math:`(1, 1, E)`."""
        if self._hidden is None:
            self._hidden = self.through_stock_blocks() if self.begin == 0 else self.through_moving_window()
        return self._hidden

    @torch.no_grad()
    def through_stock_blocks(self) -> torch.Tensor:
        """By the stock modules, where every token sees all before it."""
        world_model = self.world_model
        sequence = torch.stack(self.tokens)[None]
        rotation = self._rotation()
        if rotation is None:
            sequence = sequence + world_model.pos_emb(torch.arange(len(self.tokens)))
        sequence = world_model.transformer.drop(sequence)
        for block in world_model.transformer.blocks:
            sequence = block(sequence, None, None, rotation)
        return world_model.transformer.ln_f(sequence)[:, -1:]

    @torch.no_grad()
    def through_moving_window(self) -> torch.Tensor:
        """By the definition of attention, each token seeing its own window."""
        transformer = self.world_model.transformer
        hidden = torch.stack(self.tokens)
        if self._rotation() is None:
            first_seen = torch.tensor(self.first_seen)
            hidden = hidden + self.world_model.pos_emb(torch.arange(len(hidden)) - first_seen)
        hidden = transformer.drop(hidden)
        for block in transformer.blocks:
            attended = self._attend(block.attn, block.ln1(hidden))
            if block.gru_gating:
                hidden = block.gate1(hidden[None], attended[None])[0]
                hidden = block.gate2(hidden[None], installed().feed_forward(block)(block.ln2(hidden)[None]))[0]
            else:
                hidden = hidden + attended
                hidden = hidden + installed().feed_forward(block)(block.ln2(hidden)[None])[0]
        return transformer.ln_f(hidden)[None, -1:]

    def _attend(self, attention, x: torch.Tensor) -> torch.Tensor:
        length = len(x)
        index, first_seen = torch.arange(length), torch.tensor(self.first_seen)
        heads = (attention.num_heads, -1)
        queries, keys, values = (layer(x) for layer in (attention.query, attention.key, attention.value))
        rotation = self._rotation()
        if rotation is None:
            # [i, j]: where the window of token i puts token j, as far as it sees it.
            last_place = self.world_model.pos_emb.num_embeddings - 1
            seen_at = (index - first_seen[:, None]).clamp(0, last_place)
            moved = self.world_model.pos_emb(seen_at) - self.world_model.pos_emb(index - first_seen)
            still = torch.zeros_like(moved)
            keys = keys + (attention.key(moved) - attention.key(still))
            values = values + (attention.value(moved) - attention.value(still))
        else:
            queries, keys = (
                torch.view_as_real(
                    torch.view_as_complex(states.unflatten(-1, heads).unflatten(-1, (-1, 2)).float())
                    * rotation[0][:, None]
                ).flatten(-3).to(values.dtype) for states in (queries, keys)
            )
            keys, values = keys.expand(length, -1, -1), values.expand(length, -1, -1)
        queries, keys, values = (states.unflatten(-1, heads) for states in (queries, keys, values))
        scores = torch.einsum('ihd,ijhd->hij', queries, keys) / queries.shape[-1] ** 0.5
        visible = (index <= index[:, None]) & (index >= first_seen[:, None])
        weights = scores.masked_fill(~visible, -torch.inf).softmax(-1)
        return attention.proj(torch.einsum('hij,ijhd->ihd', weights, values).flatten(1))

    def _rotation(self) -> Optional[torch.Tensor]:
        world_model = self.world_model
        if not world_model.config.rotary_emb:
            return None
        config = world_model.config
        head_dim = config.embed_dim // config.num_heads
        frequencies = config.rope_theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
        angles = torch.tensor(self.positions, dtype=torch.float64)[:, None] * frequencies
        return torch.polar(torch.ones_like(angles), angles).to(torch.complex64)[None]

    @torch.no_grad()
    def reward_and_next_token(self) -> dict[str, torch.Tensor]:
        """What the model predicts at an action token."""
        return {'reward': self._predict('head_rewards'), 'latent': self.next_token()}

    @torch.no_grad()
    def next_token(self) -> torch.Tensor:
        """The next token of an observation, predicted at an action or at one of its tokens but the last."""
        return self._predict('head_observations')

    @torch.no_grad()
    def policy_and_value(self) -> dict[str, torch.Tensor]:
        """What the model predicts at the last token of an observation."""
        policy, control = self._predict('head_policy'), installed().policy_control(self.world_model)
        return {'policy': policy if control is None else control(policy), 'value': self._predict('head_value')}

    def _predict(self, name: str) -> torch.Tensor:
        head = getattr(self.world_model, name)
        # The place in a block whose predictions this head makes, so that the stock slicing lets the token through.
        place = next(place for place in range(head.block_size) if len(head.compute_slice(1, place)))
        return head(self.hidden(), num_steps=1, prev_steps=place)[0]
