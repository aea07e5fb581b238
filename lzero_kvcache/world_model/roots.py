"""Whose roots an inference gets, and checks of its arguments."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import numpy as np

from ..checks import choices
from .positions import host_timesteps

PHASES = ('collect', 'eval')


@dataclass(frozen=True)
class RootEnvironments:
    """Whose observations a root inference gets: by row its environment (None: row i is environment i), and the phase,
    'collect' or 'eval', whose episodes are kept apart. A ValueError on another phase.
    """
    phase: str = 'collect'
    env_ids: Optional[tuple[int, ...]] = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f'phase is {self.phase!r}: {choices(self.phase, PHASES)}')

    def ids_of(self, batch_size: int) -> tuple[int, ...]:
        return tuple(range(batch_size)) if self.env_ids is None else self.env_ids


class RootRows(NamedTuple):
    """The checked rows of a root inference: environments, timesteps [B], and whether an episode begins."""
    env_ids: tuple[int, ...]
    timesteps: np.ndarray
    first_steps: list[bool]


def is_first_step(action: Any, world_model: Any) -> bool:
    """Whether an action, as a policy hands it down, marks an episode's first step: it is -1 then."""
    if world_model.continuous_action_space:
        return np.ndim(action) == 0
    return int(action) == -1


def checked_roots(
        world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments, env_num: int
) -> RootRows:
    """The rows of a root inference. A ValueError says what is wrong with its arguments."""
    batch_size = len(obs_act_dict['current_obs'])
    env_ids = roots.ids_of(batch_size)
    first_steps = [is_first_step(action, world_model) for action in obs_act_dict['action']][:batch_size]
    if not batch_size:
        raise ValueError('there are no current observations: needed is at least one row')
    if sorted(set(env_ids)) != sorted(env_ids) or len(env_ids) != batch_size:
        raise ValueError(f'env_ids are {list(env_ids)}: needed is one environment for each of the {batch_size} rows')
    if min(env_ids) < 0 or max(env_ids) >= env_num:
        raise ValueError(
            f'env_ids are {list(env_ids)}: allowed are 0 to {env_num - 1}, for the cache was set up for {env_num} '
            'environments (the larger of policy.collector_env_num and policy.evaluator_env_num; without a policy '
            'world_model_cfg.env_num)'
        )
    if len(first_steps) != batch_size:
        raise ValueError(f'{len(first_steps)} actions came with {batch_size} observations: needed is one for each')
    if not all(first_steps) and len(obs_act_dict['obs']) != batch_size:
        raise ValueError(
            f"{len(obs_act_dict['obs'])} last observations came with {batch_size} current ones: needed is one for each"
        )
    return RootRows(env_ids, host_timesteps(start_pos, batch_size), first_steps)


def check_expansion(
        world_model: Any, latents: Any, actions: Any, search_depth: Sequence[int], start_pos: Any
) -> None:
    """A ValueError if the arguments of ``ManagedInference.recurrent`` do not fit together."""
    shape, node_shape = tuple(np.shape(latents)), (world_model.num_observations_tokens, world_model.embed_dim)
    if shape[1:] != node_shape or shape[0] == 0:
        raise ValueError(
            f'latent states have the shape {shape}: needed is (rows, {node_shape[0]}, {node_shape[1]}), with at least '
            'one row'
        )
    if len(actions) != len(latents):
        raise ValueError(f'{len(actions)} actions came with {len(latents)} latent states: needed is one for each')
    if len(search_depth) not in (0, len(latents)):
        raise ValueError(
            f'search_depth has {len(search_depth)} entries for {len(latents)} rows: needed is one for each'
        )
    host_timesteps(start_pos, len(latents))
