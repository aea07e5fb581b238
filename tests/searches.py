"""LightZero's real C++ searches over a world model, watched node by node, recorded and replayed."""
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable

import numpy as np
import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lzero.mcts import SampledUniZeroMCTSCtree, UniZeroMCTSCtree
from lzero.policy.unizero import UniZeroPolicy

from lzero_kvcache.world_model.lineage import SearchNode

PREDICTIONS = ('latent_state', 'reward', 'value', 'policy_logits')


@dataclass
class Expansion:
    """
    One simulation: which node each row expands (0 is the root, i the node of simulation i), by which action, and the
    depth that the search reports.
    """
    parents: list[int]
    actions: torch.Tensor
    search_depth: list[int]


class WatchedModel:
    """Stands between a search and a model, and knows which node each latent state belongs to."""

    def __init__(self, model: torch.nn.Module, root_latents: np.ndarray) -> None:
        self._model = model
        self._node_of = [{latent.tobytes(): 0} for latent in root_latents]
        self.expansions: list[Expansion] = []
        self.outputs: list[Any] = []
        self.watcher: Callable[[Expansion, Any], None] = lambda expansion, output: None
        self.foreseer: Callable[[np.ndarray, Sequence[int]], None] = lambda latents, search_depth: None

    def eval(self) -> None:
        self._model.eval()

    def recurrent_inference(self, history: list, simulation_index: int, search_depth: Sequence[int], start_pos: Any):
        latents, actions = history[-1]
        parents = [self._node_of[row][latent.tobytes()] for row, latent in enumerate(latents)]
        self.foreseer(latents, search_depth)
        output = self._model.recurrent_inference(history, simulation_index, search_depth, start_pos)
        for row, latent in enumerate(output.latent_state.cpu().numpy()):
            assert latent.tobytes() not in self._node_of[row], 'two nodes of one search share a latent state'
            self._node_of[row][latent.tobytes()] = simulation_index + 1
        self.expansions.append(Expansion(parents, actions.clone(), list(search_depth)))
        self.outputs.append({name: getattr(output, name).clone() for name in PREDICTIONS})
        self.watcher(self.expansions[-1], output)
        return output


def search(
        model: torch.nn.Module, root: Any, timesteps: Sequence[np.ndarray], num_simulations: int,
        watcher: Callable[[Expansion, Any], None] = lambda expansion, output: None,
        foreseer: Callable[[np.ndarray, Sequence[int]], None] = lambda latents, search_depth: None
) -> WatchedModel:
    """
    Search from the roots that ``model.initial_inference`` has returned, as a policy does. ``foreseer`` is called before
    each recurrent inference, ``watcher`` after it.
    """
    world_model = model.world_model
    config = deep_merge_dicts(UniZeroPolicy.default_config(), EasyDict(
        device='cpu', num_simulations=num_simulations, model=dict(
            continuous_action_space=world_model.continuous_action_space, num_of_sampled_actions=5,
            action_space_size=world_model.action_space_size
        )
    ))
    batch_size = len(root.latent_state)
    watched = WatchedModel(model, root.latent_state.cpu().numpy())
    watched.watcher, watched.foreseer = watcher, foreseer
    if world_model.continuous_action_space:
        tree = SampledUniZeroMCTSCtree(config)
        roots = SampledUniZeroMCTSCtree.roots(
            batch_size, [[-1] * 5] * batch_size, world_model.action_space_size, 5, True
        )
    else:
        tree = UniZeroMCTSCtree(config)
        roots = UniZeroMCTSCtree.roots(batch_size, [list(range(world_model.action_space_size))] * batch_size)
    to_play = [-1] * batch_size
    roots.prepare_no_noise([0.] * batch_size, root.policy_logits.tolist(), to_play)
    tree.search(roots, watched, root.latent_state.cpu().numpy(), to_play, list(timesteps))
    return watched


def live_nodes() -> int:
    """How many nodes the caches of this process keep the lineage of."""
    gc.collect()
    return sum(type(thing) is SearchNode for thing in gc.get_objects())


def replay(
        model: torch.nn.Module, root: Any, timesteps: Sequence[np.ndarray], expansions: Sequence[Expansion],
        rows: Sequence[int]
) -> list[dict[str, torch.Tensor]]:
    """Expand the same nodes by the same actions through another model, for some rows of the recorded search."""
    latents = [root.latent_state.cpu().numpy()]
    outputs = []
    for index, expansion in enumerate(expansions):
        parents = np.stack([latents[expansion.parents[row]][i] for i, row in enumerate(rows)])
        actions = expansion.actions[list(rows)].to(root.latent_state.device)
        output = model.recurrent_inference(
            [(parents, actions)], index, [expansion.search_depth[row] for row in rows], list(timesteps)
        )
        latents.append(output.latent_state.cpu().numpy().copy())
        outputs.append({name: getattr(output, name).clone() for name in PREDICTIONS})
    return outputs
