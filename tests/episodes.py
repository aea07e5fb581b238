"""Episodes of several environments, every prediction of which is compared with the oracle."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from models import observations, random_action
from oracle import Oracle
from searches import Expansion, WatchedModel, search

TOLERANCE = 1e-4


class Episodes:
    """
    Plays environments on a model of mode 'managed'. Compared are all predictions inside the window, and with
    window='rebuild' those past it, too.
    """

    def __init__(self, model: torch.nn.Module, phase: str = 'collect', seed: int = 0) -> None:
        self.model = model
        self.compared = 0
        self.largest_difference = 0.0
        self.longest_context = 0
        self._phase = phase
        self._world_model = model.world_model
        self._config = self._world_model.kv_cache_inference.config
        self._generator = torch.Generator().manual_seed(seed)
        self._contexts: dict[int, Oracle] = {}
        self._exact: dict[int, bool] = {}
        self._last: dict[int, Any] = {}
        self._timesteps: dict[int, int] = {}

    def end(self, env_id: int) -> None:
        """An environment's episode ends."""
        self._contexts.pop(env_id, None)
        self._last.pop(env_id, None)
        self._world_model.kv_cache_inference.forget(self._phase, [env_id])

    @torch.no_grad()
    def step(self, env_ids: Sequence[int], num_simulations: int = 0) -> Any:
        """Some environments take a step: root inference, a whole search, an action."""
        current = observations(self.model, len(env_ids), self._generator)
        first = torch.zeros_like(current[0])
        for env_id in env_ids:
            self._timesteps[env_id] = self._timesteps[env_id] + 1 if env_id in self._last else 0
        timesteps = [np.array(self._timesteps[env_id]) for env_id in env_ids]
        last = [self._last.get(env_id, (first, -1)) for env_id in env_ids]
        with self._world_model.kv_cache_roots(self._phase, env_ids):
            root = self.model.initial_inference(
                torch.stack([observation for observation, _ in last]), [action for _, action in last], current,
                timesteps
            )
        for row, env_id in enumerate(env_ids):
            if env_id not in self._last:
                self._contexts[env_id] = Oracle(self._world_model)
                self._exact[env_id] = True
            context = self._contexts[env_id]
            if env_id in self._last:
                context.add_action(last[row][1], 2 * self._timesteps[env_id] - 1)
            context.add_observation(current[row], self._timesteps[env_id])
            if self._exact[env_id]:
                expected = context.policy_and_value()
                self._compare(root.policy_logits[row], expected['policy'])
                self._compare(root.value[row], expected['value'])
            self._exact[env_id] = self._fit_window(context) and self._exact[env_id]
        if num_simulations:
            self._search(env_ids, root, timesteps, num_simulations)
        for row, env_id in enumerate(env_ids):
            self._last[env_id] = (current[row], random_action(self.model, self._generator))
        return root

    def _search(self, env_ids: Sequence[int], root: Any, timesteps: Sequence[np.ndarray], num_simulations: int) -> None:
        nodes: list[list[Any]] = [[(self._contexts[env_id].copy(), self._exact[env_id], 0) for env_id in env_ids]]

        def compare(expansion: Expansion, output: Any) -> None:
            children = []
            for row, parent in enumerate(expansion.parents):
                context, exact, depth = nodes[parent][row]
                context = context.copy()
                action_position, latent_position = self._positions(
                    int(timesteps[row]), depth, expansion.search_depth[row]
                )
                context.add_action(expansion.actions[row].numpy(), action_position)
                if exact:
                    self._compare(output.reward[row], context.reward_and_next_token()['reward'])
                for index, token in enumerate(output.latent_state[row]):
                    if exact:
                        self._compare(token, context.next_token())
                    context.add_latent(token[None], latent_position + index)
                if exact:
                    expected = context.policy_and_value()
                    self._compare(output.policy_logits[row], expected['policy'])
                    self._compare(output.value[row], expected['value'])
                exact = self._fit_window(context) and exact
                children.append((context, exact, depth + 1))
            nodes.append(children)

        watched: WatchedModel = search(self.model, root, timesteps, num_simulations, compare)
        assert len(watched.expansions) == num_simulations

    def _positions(self, timestep: int, parent_depth: int, search_depth: int) -> Sequence[int]:
        steps = timestep + (parent_depth if self._config.rope_positions == 'aligned' else search_depth)
        return 2 * steps + 1, 2 * steps + 2

    def _fit_window(self, context: Oracle) -> bool:
        length = len(context.tokens)
        self.longest_context = max(self.longest_context, length)
        if length < self._world_model.context_length - 1:
            return True
        kept = self._world_model.context_length - 3
        context.tokens = context.tokens[-kept:]
        context.positions = context.positions[-kept:]
        return self._config.window == 'rebuild'

    def _compare(self, predicted: torch.Tensor, expected: torch.Tensor) -> None:
        difference = (predicted.reshape(-1) - expected.reshape(-1)).abs().max().item()
        assert difference < TOLERANCE
        self.largest_difference = max(self.largest_difference, difference)
        self.compared += 1
