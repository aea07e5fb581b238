"""The forward without a cache that every prediction must equal."""
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch


class Oracle:
    """
    One environment's own tokens, pushed through the stock transformer modules in one forward, no cache.

    ``tokens`` are raw embeddings (latent, action, latent, ...), ``positions`` their rotary positions.
    """

    def __init__(self, world_model, tokens: Sequence[torch.Tensor] = (), positions: Sequence[int] = ()) -> None:
        self.world_model = world_model
        self.tokens: list[torch.Tensor] = list(tokens)
        self.positions: list[int] = list(positions)

    def copy(self) -> 'Oracle':
        return Oracle(self.world_model, self.tokens, self.positions)

    def add_observation(self, observation: torch.Tensor, timestep: int) -> torch.Tensor:
        latent = self.world_model.tokenizer.encode_to_obs_embeddings(observation[None])[0]
        self.add_latent(latent, 2 * timestep)
        return latent

    def add_latent(self, latent: torch.Tensor, position: int) -> None:
        for index, token in enumerate(latent):
            self.tokens.append(token)
            self.positions.append(position + index)

    def add_action(self, action, position: int) -> None:
        table = self.world_model.act_embedding_table
        if self.world_model.continuous_action_space:
            embedded = table(torch.as_tensor(np.asarray(action), dtype=torch.float32)[None])
        else:
            embedded = table(torch.as_tensor(np.asarray(action)).long().reshape(1))
        self.tokens.append(embedded[0])
        self.positions.append(position)

    @torch.no_grad()
    def hidden(self) -> torch.Tensor:
        """The transformer's output at the last token, :math:`(1, 1, E)`."""
        world_model = self.world_model
        sequence = torch.stack(self.tokens)[None]
        rotation: Optional[torch.Tensor] = None
        if world_model.config.rotary_emb:
            positions = torch.tensor(self.positions) % world_model.config.max_seq_len
            rotation = world_model.transformer.freqs_cis[positions][None]
        else:
            sequence = sequence + world_model.pos_emb(torch.arange(len(self.tokens)))
        for block in world_model.transformer.blocks:
            sequence = block(sequence, None, None, rotation)
        return world_model.transformer.ln_f(sequence)[:, -1:]

    @torch.no_grad()
    def reward_and_next_token(self) -> dict[str, torch.Tensor]:
        """What the model predicts at an action token."""
        hidden = self.hidden()
        return {
            'reward': self.world_model.head_rewards(hidden, num_steps=1, prev_steps=1)[0],
            'latent': self.world_model.head_observations(hidden, num_steps=1, prev_steps=1)[0],
        }

    @torch.no_grad()
    def policy_and_value(self) -> dict[str, torch.Tensor]:
        """What the model predicts at the last token of an observation."""
        hidden = self.hidden()
        return {
            'policy': self.world_model.head_policy(hidden, num_steps=1, prev_steps=0)[0],
            'value': self.world_model.head_value(hidden, num_steps=1, prev_steps=0)[0],
        }
