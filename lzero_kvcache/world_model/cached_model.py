"""The world model's current weights, run over gathered contexts."""
from collections.abc import Sequence
from typing import Any, Callable, NamedTuple, Optional

import numpy as np
import torch
from lzero.model.unizero_world_models.transformer import Transformer

from ..config import KEY_PATH, WORLD_MODEL_PATH
from ..lightzero import installed
from ..store import ContextBatch
from .blocks import UnknownBlock, block_of, head_of, in_parallel, in_sequence, is_plain_embedding
from .columns import Columns, EncodingColumns, LayerColumns, SpelledOutStep, StepColumns, is_for_a_compiler
from .place_offsets import place_offsets
from .positions import rotary_frequencies, rotations
from .precision import at_least_float32
from .structure import runs_its_own_forward

HEADS = ('rewards', 'observations', 'policy', 'value')


class StepOutputs(NamedTuple):
    """What ``CachedModel.step`` computes.

    hidden: The transformer's output at the last token, [B, 1, E].
    latents: [B, num_observations_tokens, E], of the parameters' dtype.
    reward, policy, value: Logits, [B, 1, size], of float32 at least.
    host: What a search needs, [B, 2 + policy size]: the expected bins of reward and value, and the policy.
    """
    hidden: torch.Tensor
    latents: torch.Tensor
    reward: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor
    host: torch.Tensor


class RawContexts(NamedTuple):
    """Contexts whose keys and values are still to be computed.

    rows: Which rows of a step they belong to, [R].
    tokens: Their raw tokens, [R, K, E].
    new: Where in the slab these go, [R, K].
    rotation: Of their rotary positions, complex, [R, K, 1, 1, head_dim / 2]; None with learned ones.
    """
    rows: torch.Tensor
    tokens: torch.Tensor
    new: torch.Tensor
    rotation: Optional[torch.Tensor]


class CachedModel:
    """A world model ready for inference in eval mode, without gradients. Fuses and packs its weights once, under the
    ``torch.autocast`` of the moment: when any of these changes, build a new instance. Tokens have the parameters'
    dtype, predictions float32 at least.

    Args:
        num_places: The tokens of the longest context.
        move_tokens: Whether the window moves tokens to other places of their rows when it drops old ones.
    """

    def __init__(self, world_model: Any, num_places: int, move_tokens: bool) -> None:
        self.world_model = world_model
        self.num_places = num_places
        self.num_observations_tokens: int = world_model.num_observations_tokens
        self.tokens_per_step = 1 + self.num_observations_tokens
        self.like: torch.Tensor = world_model.transformer.ln_f.weight
        weights = world_model.tokenizer.parameters()
        self._observation_dtype = next((each.dtype for each in weights if each.is_floating_point()), self.like.dtype)
        self.uses_rotary: bool = world_model.config.rotary_emb
        moves_places = move_tokens and not self.uses_rotary
        self.place_offsets = place_offsets(world_model, num_places) if moves_places else None
        transformer = world_model.transformer
        if type(transformer).forward is not Transformer.forward or runs_its_own_forward(transformer):
            raise ValueError(
                f'the transformer of this world model ({type(transformer).__name__}) has hooks or a forward of its '
                'own, or there are hooks for all modules, which the cache cannot run token by token: '
                f"remove the hooks, or choose {KEY_PATH}.mode='legacy'"
            )
        if self.uses_rotary and not transformer.freqs_cis.is_complex():
            raise ValueError(
                f'the rotary table transformer.freqs_cis of this world model is of {transformer.freqs_cis.dtype}, for '
                '.to(dtype) of the transformer has left only the real parts of its complex numbers: cast the '
                'transformer by .half(), .bfloat16(), .float() or .double()'
            )
        self._embedding_dropout = in_sequence(transformer.drop)
        if self.uses_rotary:
            self._frequencies = rotary_frequencies(transformer.freqs_cis)
        else:
            self._embed_positions = in_sequence(world_model.pos_emb)
            self._position_table = world_model.pos_emb.weight if is_plain_embedding(world_model.pos_emb) else None
        self.blocks = [block_of(block) for block in transformer.blocks]
        most = world_model.config.max_tokens
        if num_places > most and any(isinstance(block, UnknownBlock) for block in self.blocks):
            raise ValueError(
                f'{WORLD_MODEL_PATH}.max_tokens is {most}, and a block that is called as it is sees no more tokens, '
                f'but contexts have up to {num_places}: allowed are at least as many, or a smaller context_length'
            )
        self._embed_actions = in_sequence(world_model.act_embedding_table)
        self._final_norm = in_sequence(transformer.ln_f)
        heads = [head_of(getattr(world_model, f'head_{name}')) for name in HEADS]
        self._reward_and_next_token = in_parallel(heads[0], heads[1])
        self._policy_and_value = in_parallel(heads[2], heads[3])
        self._next_token = in_sequence(heads[1])
        self._control_policy = installed().policy_control(world_model)
        self._support = _support(self.like.new_empty(world_model.support_size, dtype=at_least_float32(self.like.dtype)))

    def append(
            self, batch: ContextBatch, tokens: torch.Tensor, positions: Optional[np.ndarray] = None,
            counts: Optional[np.ndarray] = None, wanted: Optional[int] = None
    ) -> torch.Tensor:
        """Append tokens to every row of a batch and run them through the transformer. Each token attends to its own
        row's tokens up to itself.

        Args:
            tokens: Token embeddings without positions, [B, T, E].
            positions: Rotary positions, [B, T]; ignored with learned ones, which follow from the tokens' places.
            counts: How many of the T tokens, on the right, belong to each row, [B]; the others are padding. None: all.
            wanted: How many rows, the last ones, need an output; None: all.

        Returns:
            The transformer's output, [wanted rows, T, E], meaningless at padding.
        """
        start = batch.used
        places, visible = batch.append(tokens.shape[1], counts)
        batch.embeddings.append(tokens)
        # The first appended tokens complete the contexts of rows that go on from other rows.
        links = batch.links if start == batch.width else None
        rotation = None
        if self.uses_rotary:
            batch.positions.append(positions)
            rotation = self.rotation(positions)
        else:
            first = int(places[0, 0])
            tokens = tokens + (
                self._embeddings_from(first, first + tokens.shape[1]) if len(places) == 1
                else self._embeddings_at(self.on_device(places))
            )
        mask = None if visible is None else self._mask(visible, batch.used)
        columns = Columns(batch.kv).layers(start, batch.used, links, wanted)
        outputs = self._transform(tokens.flatten(0, 1), columns, rotation, mask)
        shape = (len(tokens) if wanted is None else wanted, *tokens.shape[1:])
        # A block that is called as it is computes all rows.
        return outputs[len(outputs) - shape[0] * shape[1]:].view(shape)

    def _transform(
            self, hidden: torch.Tensor, columns: Sequence[LayerColumns], rotation: Optional[torch.Tensor],
            mask: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Run tokens, [B * T, E], through all blocks."""
        hidden = self._embedding_dropout(hidden)
        for block, of_layer in zip(self.blocks, columns):
            hidden = block(hidden, of_layer, mask, rotation)
        return self._final_norm(hidden) if len(hidden) else hidden

    def _mask(self, visible: torch.Tensor, columns: int) -> torch.Tensor:
        """Mask to add to attention, [B, 1, T, columns]; columns to the right of ``visible`` are seen."""
        mask = self.like.new_zeros((*visible.shape[:3], columns))
        mask[..., :visible.shape[3]].masked_fill_(~visible, -torch.inf)
        return mask

    def embed_observations(self, observations: torch.Tensor) -> torch.Tensor:
        """Turn observations, [B, ...], into latents. A ValueError if the encoder makes another number of tokens."""
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
        """Turn actions, discrete [B] or continuous [B, action_space_size], into tokens, [B, 1, E]."""
        return self._action_tokens(actions)[:, None]

    def _action_tokens(self, actions: torch.Tensor) -> torch.Tensor:
        if self.world_model.continuous_action_space:
            actions = actions.to(self.like.dtype).reshape(-1, self.world_model.action_space_size)
        else:
            actions = actions.long().reshape(-1)
        return self._embed_actions(actions).to(self.like.dtype)

    def policy_and_value(self, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Policy and value logits, [B, 1, size], of outputs at the last tokens of observations, [B, 1, E]."""
        policy, value = self._policy_and_value(hidden[:, 0])
        if isinstance(policy, dict):
            policy = torch.cat([policy['mu'], policy['sigma']], dim=-1)
        if self._control_policy is not None:
            policy = self._control_policy(policy)
        return _widened(policy)[:, None], _widened(value)[:, None]

    def predict_from_action(
            self, batch: ContextBatch, hidden: torch.Tensor, positions: Optional[np.ndarray]
    ) -> StepOutputs:
        """Predict reward and next latent state from the output at an action, [B, 1, E], and append that state."""

        def append(token: torch.Tensor, index: int) -> torch.Tensor:
            position = None if positions is None else positions[:, index:index + 1]
            return self.append(batch, token[:, None], position)[:, 0]

        return self._follow_action(hidden[:, 0], append)

    def _follow_action(
            self, hidden: torch.Tensor, append: Callable[[torch.Tensor, int], torch.Tensor]
    ) -> StepOutputs:
        """Go on from the output at an action, [B, E], to the last token."""
        reward, latent = self._reward_and_next_token(hidden)
        latents = [latent.to(self.like.dtype)]
        hidden = append(latents[0], 1)
        for index in range(2, 1 + self.num_observations_tokens):
            latents.append(self._next_token(hidden).to(self.like.dtype))
            hidden = append(latents[-1], index)
        states = latents[0][:, None] if len(latents) == 1 else torch.stack(latents, 1)
        hidden, reward = hidden[:, None], _widened(reward)[:, None]
        policy, value = self.policy_and_value(hidden)
        return StepOutputs(hidden, states, reward, policy, value, self.numbers_for_host(reward, policy, value))

    def step(
            self, slab: torch.Tensor, index: torch.Tensor, actions: torch.Tensor, mask: Optional[torch.Tensor],
            places: Optional[torch.Tensor], rotation: Optional[torch.Tensor], raw: Optional['RawContexts'] = None
    ) -> StepOutputs:
        """Take an action in every row of a slab. With learned positions and a window that moves tokens, the slab's keys
        and values leave out what a token's place contributes.

        Args:
            slab: Keys (index 0) and values (index 1) of all tokens, [tokens, num_layers, 2, num_heads, head_dim],
                finite everywhere, changed in place.
            index: The slab places of each row's context, left-aligned, and on its right those of the new tokens, an
                action and a latent state, [B, W + T].
            actions: [B] or [B, action_space_size].
            mask: Which of the first W columns are a row's own, [B, 1, 1, W]; None: all, in every row.
            places: The new tokens' places in their rows, [B, T] or [1, T], for learned positions. Ignored without
                ``mask``: they follow the context.
            rotation: Of rotary positions, as ``CachedBlock`` takes them; None with learned ones.
            raw: Contexts to encode in the same pass as the actions.
        """
        end = index.shape[1]
        width = end - self.tokens_per_step
        columns = (SpelledOutStep if is_for_a_compiler() else StepColumns)(slab, index, width, self.place_offsets)
        attention = None if mask is None else self._mask(mask, end)
        position_embeddings = None
        if not self.uses_rotary:
            position_embeddings = self._embeddings_from(width, end) if mask is None else self._embeddings_at(places)

        def append(token: torch.Tensor, place: int) -> torch.Tensor:
            turn = None if rotation is None else rotation[:, place:place + 1]
            if position_embeddings is not None:
                token = token + position_embeddings[:, place]
            seen = None if attention is None else attention[..., :width + place + 1]
            if raw is None or place:
                return self._transform(token, columns.at(place), turn, seen)
            return self._transform(*self._after_raw(raw, token, columns.at(0), turn), seen)[-len(token):]

        outputs = self._follow_action(append(self._action_tokens(actions), 0), append)
        appended = columns.appended()
        if self.place_offsets is not None:
            appended = appended - (self.place_offsets[width:end] if mask is None else self.place_offsets[places])
        slab.index_copy_(0, index[:, width:].reshape(-1), appended.flatten(0, 1))
        if raw is not None:
            slab.index_copy_(0, raw.new.view(-1), columns.of_contexts(raw.rows, raw.new.shape[1]).flatten(0, 1))
        return outputs

    def _after_raw(
            self, raw: 'RawContexts', tokens: torch.Tensor, columns: Sequence[LayerColumns],
            rotation: Optional[torch.Tensor]
    ) -> tuple[torch.Tensor, Sequence[EncodingColumns], Optional[torch.Tensor]]:
        count, before = raw.new.shape[1], raw.tokens
        if rotation is None:
            before = before + self._embeddings_from(0, count)
        else:
            rotation = torch.cat([raw.rotation.flatten(0, 1)[:, None], rotation])
        last = len(columns) - 1
        columns = [EncodingColumns(each, raw.rows, count, layer == last) for layer, each in enumerate(columns)]
        return torch.cat([before.flatten(0, 1), tokens]), columns, rotation

    def numbers_for_host(self, reward: torch.Tensor, policy: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        """``StepOutputs.host`` of logits, [B, 1, size]."""
        expected = expected_bins(torch.cat([reward, value], 1), self._support)
        return torch.cat([expected, policy.flatten(1)], 1)

    def rotation(self, positions: np.ndarray) -> torch.Tensor:
        """Rotation of queries and keys at rotary positions, [B, T]; complex, [B, T, 1, 1, head_dim / 2]."""
        return self.on_device(rotations(positions, self._frequencies))[:, :, None, None]

    def _embeddings_from(self, first: int, end: int) -> torch.Tensor:
        if self._position_table is not None:
            return self._position_table[None, first:end]
        return self._embeddings_at(torch.arange(first, end, device=self.like.device)[None])

    def _embeddings_at(self, places: torch.Tensor) -> torch.Tensor:
        return self._embed_positions(places.reshape(-1)).view(*places.shape, -1)

    def on_device(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(array).to(self.like.device, non_blocking=True)


def expected_bins(logits: torch.Tensor, support: Optional[torch.Tensor] = None) -> torch.Tensor:
    """The bins that a model expects, counted from the middle one, [...], of logits [..., support_size]."""
    if logits.shape[-1] == 1:
        return logits[..., 0]
    # Not a product, whose last bits depend on the number of rows.
    return torch.softmax(logits, -1).mul_(_support(logits) if support is None else support).sum(-1)


def _support(logits: torch.Tensor) -> torch.Tensor:
    size = logits.shape[-1]
    return torch.arange(size, dtype=logits.dtype, device=logits.device) - size // 2


def _widened(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(at_least_float32(logits.dtype))
