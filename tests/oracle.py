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
        return {'reward': self._predict('head_rewards'), 'latent': self.next_token()}

    @torch.no_grad()
    def next_token(self) -> torch.Tensor:
        """The next token of an observation, predicted at an action or at one of its tokens but the last."""
        return self._predict('head_observations')

    @torch.no_grad()
    def policy_and_value(self) -> dict[str, torch.Tensor]:
        """What the model predicts at the last token of an observation."""
        return {'policy': self._predict('head_policy'), 'value': self._predict('head_value')}

    def _predict(self, name: str) -> torch.Tensor:
        head = getattr(self.world_model, name)
        # The place in a block whose predictions this head makes, so that the stock slicing lets the token through.
        place = next(place for place in range(head.block_size) if len(head.compute_slice(1, place)))
        return head(self.hidden(), num_steps=1, prev_steps=place)[0]
