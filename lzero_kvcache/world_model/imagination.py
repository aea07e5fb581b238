"""Open-loop rollouts in latent space."""
from typing import Any, NamedTuple, Optional

import numpy as np
import torch

from ..checks import choices, is_integer
from ..search.contexts import SearchContexts
from ..store import TokenStore
from .forward import Forward
from .latent_names import LatentNames, host_copy
from .positions import SearchPositions, host_timesteps
from .precision import at_least_float32
from .search_model import scalars_of

ACTION_CHOICES = ('greedy', 'sample')


class Imagination(NamedTuple):
    """A rollout in latent space. Step h takes ``actions[:, h]``, earns ``rewards[:, h]`` and leads to latents h, where
    the model predicts policy logits h and values h.

    Attributes:
        latents: [B, H, num_observations_tokens, E].
        rewards, values: [B, H], in the environment's units.
        policy_logits: [B, H, action_space_size]; of a continuous policy, mean and deviation before tanh, twice as many.
        actions: [B, H], or [B, H, action_space_size] for continuous ones.
    """
    latents: torch.Tensor
    rewards: torch.Tensor
    values: torch.Tensor
    policy_logits: torch.Tensor
    actions: torch.Tensor


def check_rollout(
        world_model: Any, obs_or_latent: torch.Tensor, actions: Optional[torch.Tensor], horizon: Optional[int],
        choose: str, start_pos: Any
) -> int:
    """The steps of a rollout by ``KVCacheWorldModelMixin.imagine``. A ValueError if arguments do not fit together."""
    rows = len(obs_or_latent)
    if not rows:
        raise ValueError('obs_or_latent has no rows: needed is at least one')
    if choose not in ACTION_CHOICES:
        raise ValueError(f'choose is {choose!r}: {choices(choose, ACTION_CHOICES)}')
    if np.ndim(start_pos) and len(start_pos) != rows:
        raise ValueError(f'start_pos has {len(start_pos)} entries for {rows} rows: needed is one for each')
    if horizon is not None and (not is_integer(horizon) or horizon < 1):
        raise ValueError(f'horizon is {horizon!r}: allowed are whole numbers of steps from 1')
    if actions is None:
        if horizon is None:
            raise ValueError('neither actions nor a horizon is given: needed is one of them')
        return int(horizon)
    _check_actions(world_model, actions, rows, horizon)
    return actions.shape[1]


def _check_actions(world_model: Any, actions: torch.Tensor, rows: int, horizon: Optional[int]) -> None:
    continuous = world_model.continuous_action_space
    needed: list[Any] = [rows, 'steps' if horizon is None else horizon]
    needed += [world_model.action_space_size] if continuous else []
    if actions.dim() != len(needed) or actions.numel() == 0 or any(
            have != need for have, need in zip(actions.shape, needed) if need != 'steps'
    ):
        raise ValueError(f"actions have the shape {tuple(actions.shape)}: needed is ({', '.join(map(str, needed))})")
    if continuous:
        return
    if actions.is_floating_point():
        raise ValueError(f'actions are of {actions.dtype}: a discrete action is an integer')
    if not 0 <= int(actions.min()) <= int(actions.max()) < world_model.action_space_size:
        raise ValueError(f'actions lie between {int(actions.min())} and {int(actions.max())}: allowed are 0 to '
                         f'{world_model.action_space_size - 1}')


def roll_out(
        forward: Forward, store: TokenStore, contexts: SearchContexts, search_positions: SearchPositions,
        names: Optional[LatentNames], obs_or_latent: torch.Tensor, actions: Optional[torch.Tensor], horizon: int,
        choose: str, start_pos: Any, generator: Optional[torch.Generator]
) -> Imagination:
    """As ``KVCacheWorldModelMixin.imagine``. ``names``: the running search's, if the same weights predicted it."""
    model = forward.model
    given = torch.as_tensor(obs_or_latent, device=model.like.device)
    is_latent = given.shape[1:] == (model.num_observations_tokens, model.world_model.embed_dim)
    latents = given.to(model.like.dtype) if is_latent else model.embed_observations(given)
    timesteps = host_timesteps(start_pos or 0 if np.ndim(start_pos) == 0 else start_pos, len(latents)).copy()
    positions = 2 * timesteps[:, None] + np.arange(model.num_observations_tokens)
    with store.gather([None] * len(latents), model.num_observations_tokens, model) as batch:
        hidden = model.append(batch, latents, positions)
        held = store.add(batch, model, shortens=False)
    policy = model.policy_and_value(hidden[:, -1:])[0][:, 0]
    depths = np.zeros(len(latents), dtype=np.int64)
    known = {} if names is None else names.predicted(
        host_copy((given if is_latent else latents).to(at_least_float32(model.like.dtype)))
    )
    if known:
        rows, nodes, search = list(known), list(known.values()), names.search
        timesteps[rows], depths[rows] = search.timesteps_of(nodes), search.nodes.depths[nodes]
        policy[rows] = torch.from_numpy(search.nodes.policies[nodes]).to(policy)
        store.release([held[row] for row in rows])
        for row, context in zip(rows, contexts.peek(forward, search, nodes)):
            held[row] = context
    steps = []
    for step in range(horizon):
        action = _choose(model.world_model, policy, choose, generator) if actions is None else actions[:, step]
        rotary = None
        if model.uses_rotary:
            rotary = search_positions.of_expansion(timesteps, depths + step, (), False, model.num_observations_tokens)
        contexts.encode_in_place(forward, held)
        with store.gather(held, 1 + model.num_observations_tokens, model) as batch:
            outputs = forward.predict(batch, action, rotary)
            longer = store.add(batch, model)
        store.release(held)
        held, policy = longer, outputs.policy[:, 0]
        steps.append((outputs.latents, outputs.host, policy, action))
    store.release(held)
    latents, predicted, policies, taken = (torch.stack(column, dim=1) for column in zip(*steps))
    rewards, values = scalars_of(predicted.cpu()).to(predicted.device).unbind(-1)
    return Imagination(latents, rewards, values, policies, taken)


def _choose(world_model: Any, policy: torch.Tensor, choose: str, generator: Optional[torch.Generator]) -> torch.Tensor:
    if not world_model.continuous_action_space:
        if choose == 'greedy':
            return policy.argmax(-1)
        return torch.multinomial(policy.softmax(-1), 1, generator=generator)[:, 0]
    mean, deviation = policy.chunk(2, dim=-1)
    if choose == 'sample':
        mean = mean + deviation * torch.randn(mean.shape, generator=generator, device=mean.device, dtype=mean.dtype)
    # The search squashes its sampled actions, too.
    return mean.tanh()
