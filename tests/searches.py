"""LightZero's real C++ searches over a world model, watched node by node, recorded and replayed."""
import gc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lzero.mcts import SampledUniZeroMCTSCtree, UniZeroMCTSCtree
from lzero.model.common import MZNetworkOutput
from lzero.policy.unizero import UniZeroPolicy

from lzero_kvcache.lightzero import installed
from lzero_kvcache.search.search import Search
from lzero_kvcache.world_model.search_model import NumberedModel

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
    """
    Stands between a search and a model that is handed latent states, and knows which node each belongs to. ``outputs``
    are logits.
    """

    def __init__(self, model: torch.nn.Module, root_latents: np.ndarray) -> None:
        self._model = model
        self._node_of = [{latent.tobytes(): 0} for latent in root_latents]
        self.expansions: list[Expansion] = []
        self.outputs: list[Any] = []
        self.watcher: Callable[[Expansion, Any], None] = lambda expansion, output: None
        self.foreseer: Callable[[np.ndarray, Sequence[int]], None] = lambda nodes, search_depth: None

    def eval(self) -> None:
        self._model.eval()

    def recurrent_inference(self, history: list, simulation_index: int, search_depth: Sequence[int], start_pos: Any):
        latents, actions = history[-1]
        parents = [self._node_of[row][latent.tobytes()] for row, latent in enumerate(latents)]
        output = self._model.recurrent_inference(history, simulation_index, search_depth, start_pos)
        for row, latent in enumerate(output.latent_state.cpu().numpy()):
            assert latent.tobytes() not in self._node_of[row], 'two nodes of one search share a latent state'
            self._node_of[row][latent.tobytes()] = simulation_index + 1
        self._watch(Expansion(parents, actions.clone(), list(search_depth)), output)
        return output

    def _watch(self, expansion: Expansion, output: Any) -> None:
        self.expansions.append(expansion)
        self.outputs.append({name: getattr(output, name).clone() for name in PREDICTIONS})
        self.watcher(expansion, output)


class WatchedNumbers(WatchedModel):
    """The same between a search and a model that is handed the numbers of nodes."""

    def __init__(self, model: torch.nn.Module, root_latents: np.ndarray, begun: Search) -> None:
        super().__init__(model, root_latents)
        self._numbered = NumberedModel(model, model.world_model, begun)
        self._batch_size = len(root_latents)

    def recurrent_inference(self, history: list, simulation_index: int, search_depth: Sequence[int], start_pos: Any):
        nodes, actions = history[-1]
        assert (nodes % self._batch_size == np.arange(self._batch_size)).all()
        inference = self._model.world_model.kv_cache_inference
        predicted, expand = [], inference.expand

        def watched_expand(*args: Any) -> Any:
            outputs, children = expand(*args)
            predicted.append(outputs)
            return outputs, children

        self.foreseer(nodes, search_depth)
        inference.expand = watched_expand
        try:
            output = self._numbered.recurrent_inference(history, simulation_index, search_depth, start_pos)
        finally:
            del inference.expand
        assert output.latent_state.tolist() == [
            self._batch_size * (simulation_index + 1) + row for row in range(self._batch_size)
        ]
        self._watch(
            Expansion((nodes // self._batch_size).tolist(), actions.clone(), list(search_depth)), logits_of(*predicted)
        )
        return output


def logits_of(outputs: Any) -> MZNetworkOutput:
    """What the cache predicts for numbers, as a model returns it for latent states."""
    return MZNetworkOutput(
        value=outputs.value[:, 0].clone(), reward=outputs.reward[:, 0].clone(),
        policy_logits=outputs.policy[:, 0].clone(), latent_state=outputs.latents.clone()
    )


def search_of(model: torch.nn.Module, root: Any) -> Optional[Search]:
    """The managed search that begins at roots that ``model.initial_inference`` has returned; None: a stock model."""
    inference = getattr(model.world_model, 'kv_cache_inference', None)
    return inference.search_from(root.latent_state.cpu().numpy()) if hasattr(inference, 'search_from') else None


def search(
        model: torch.nn.Module, root: Any, timesteps: Sequence[np.ndarray], num_simulations: int,
        watcher: Callable[[Expansion, Any], None] = lambda expansion, output: None,
        foreseer: Callable[[np.ndarray, Sequence[int]], None] = lambda nodes, search_depth: None,
        by_latents: bool = False
) -> WatchedModel:
    """
    Search from the roots that ``model.initial_inference`` has returned, as a policy does, by numbers of nodes where the
    model has a managed cache, unless ``by_latents``. ``foreseer`` is called before each recurrent inference by numbers,
    ``watcher`` after each.
    """
    world_model = model.world_model
    config = deep_merge_dicts(UniZeroPolicy.default_config(), EasyDict(
        device='cpu', num_simulations=num_simulations, model=dict(
            continuous_action_space=world_model.continuous_action_space, num_of_sampled_actions=5,
            action_space_size=world_model.action_space_size
        )
    ))
    batch_size = len(root.latent_state)
    latents = root.latent_state.cpu().numpy()
    begun = None if by_latents else search_of(model, root)
    watched = WatchedModel(model, latents) if begun is None else WatchedNumbers(model, latents, begun)
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
    handed = latents
    if begun is not None:
        handed = np.arange(batch_size)
        for name in installed().scalar_transforms:
            setattr(tree, name, lambda scalars: scalars)
    tree.search(roots, watched, handed, to_play, list(timesteps))
    return watched


def live_nodes() -> int:
    """How many nodes the searches of this process keep."""
    gc.collect()
    return sum(thing.nodes.num_nodes for thing in gc.get_objects() if type(thing) is Search)


def replay(
        model: torch.nn.Module, root: Any, timesteps: Sequence[np.ndarray], expansions: Sequence[Expansion],
        rows: Sequence[int], by_latents: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Expand the same nodes by the same actions through another model, for some rows of the recorded search."""
    begun = None if by_latents else search_of(model, root)
    latents = [root.latent_state.cpu().numpy()]
    outputs = []
    for index, expansion in enumerate(expansions):
        actions = expansion.actions[list(rows)].to(root.latent_state.device)
        search_depth = [expansion.search_depth[row] for row in rows]
        if begun is not None:
            nodes = np.array([expansion.parents[row] * len(rows) + place for place, row in enumerate(rows)])
            predicted, _ = model.world_model.kv_cache_inference.expand(
                model.world_model, begun, nodes, actions, search_depth, list(timesteps)
            )
            output = logits_of(predicted)
        else:
            parents = np.stack([latents[expansion.parents[row]][i] for i, row in enumerate(rows)])
            output = model.recurrent_inference([(parents, actions)], index, search_depth, list(timesteps))
            latents.append(output.latent_state.cpu().numpy().copy())
        outputs.append({name: getattr(output, name).clone() for name in PREDICTIONS})
    return outputs
