"""Predictions at the roots of a search, which continue the episodes of environments."""
from collections.abc import Sequence
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from ..search.contexts import SearchContexts
from ..search.episode import COLD_START, CONTINUES, FIRST_STEP
from ..store import Context, TokenStore
from .cached_model import CachedModel
from .environment_history import EnvironmentHistory, EpisodeStep
from .forward import Forward, stack_actions
from .histories import EnvironmentHistories
from .roots import RootRows


class RootPredictions(NamedTuple):
    """What a root inference has found and predicted, one row per environment.

    Attributes:
        beginnings: How their contexts began, see ``search.episode``.
        lengths: Tokens of the contexts that they go on from, [B].
        contexts: Theirs, each held once, by the caller.
        hidden, latents: [B, num_observations_tokens, E].
        reward, policy, value: Logits, [B, 1, size]; a root's reward is zeros.
    """
    histories: Sequence[EnvironmentHistory]
    timesteps: np.ndarray
    beginnings: Sequence[int]
    lengths: np.ndarray
    contexts: Sequence[Context]
    hidden: torch.Tensor
    latents: torch.Tensor
    reward: torch.Tensor
    policy: torch.Tensor
    value: torch.Tensor


def predict_roots(
        forward: Forward, histories: EnvironmentHistories, contexts: SearchContexts, store: TokenStore,
        obs_act_dict: dict, phase: str, rows: RootRows
) -> RootPredictions:
    """Let the episodes of environments go on by one step each, by LightZero's ``obs_act_dict``."""
    model, world_model = forward.model, forward.model.world_model
    current, actions = obs_act_dict['current_obs'], obs_act_dict['action']
    episodes = [histories.of(phase, env_id) for env_id in rows.env_ids]
    timesteps, first_steps = histories.meet(episodes, obs_act_dict['obs'], rows.timesteps, rows.first_steps)
    latents = model.embed_observations(current)
    tokens, positions, counts = _tokens(model, latents, actions, timesteps, first_steps)
    went_on = [episode.key is not None for episode in episodes]
    batch, hits = contexts.resume(forward, episodes, rows.env_ids, [bool(episode.steps) for episode in episodes])
    world_model.root_total_query_cnt += sum(went_on)
    world_model.root_hit_cnt += hits
    histories.root_stats.context_tokens += int(batch.lengths.sum())
    with batch:
        hidden = model.append(batch, tokens, positions, counts)[:, -model.num_observations_tokens:]
        made = store.add(batch, model)
    policy, value = model.policy_and_value(hidden[:, -1:])
    for row, episode in enumerate(episodes):
        episode.append(EpisodeStep(
            current[row].clone(), deepcopy(actions[row]), int(timesteps[row]), len(made[row]), int(rows.timesteps[row])
        ))
    beginnings = [
        CONTINUES if continues else COLD_START if len(episode.steps) > 1 else FIRST_STEP
        for episode, continues in zip(episodes, went_on)
    ]
    reward = value.new_zeros(len(current), 1, world_model.support_size)
    return RootPredictions(
        episodes, timesteps, beginnings, batch.lengths, made, hidden, latents, reward, policy, value
    )


def _tokens(
        model: CachedModel, latents: torch.Tensor, actions: Sequence[Any], timesteps: np.ndarray,
        first_steps: Sequence[bool]
) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
    """Action and observation of each row, at first steps only the latter; positions; tokens per row."""
    continuing = [row for row, is_first in enumerate(first_steps) if not is_first]
    batch_size, num_latents, _ = latents.shape
    counts = np.full(batch_size, num_latents)
    if not continuing:
        return latents, 2 * timesteps[:, None] + np.arange(num_latents), counts
    counts[continuing] += 1
    tokens = F.pad(latents, (0, 0, 1, 0))
    tokens[continuing, :1] = model.embed_actions(
        stack_actions([actions[row] for row in continuing], latents.device)
    )
    return tokens, 2 * timesteps[:, None] + np.arange(-1, num_latents), counts
