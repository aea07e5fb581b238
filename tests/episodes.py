"""Episodes of several environments, every prediction of which is compared with the oracle."""
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from models import observations, random_action
from oracle import Oracle
from searches import Expansion, WatchedModel, search, search_of

from lzero_kvcache.search.search import Search

TOLERANCE = 1e-4


class Episodes:
    """Plays environments on a model of mode 'managed' and compares all that it predicts, past the window, too."""

    def __init__(
            self, model: torch.nn.Module, phase: str = 'collect', seed: int = 0, first_timestep: int = 0,
            has_timesteps: bool = True
    ) -> None:
        self.model = model
        self.compared = 0
        self.largest_difference = 0.0
        self.longest_context = 0
        self.resets = 0
        self._phase = phase
        self._first_timestep = first_timestep
        self._has_timesteps = has_timesteps
        self._world_model = model.world_model
        self._inference = model.world_model.kv_cache_inference
        self._config = self._inference.config
        self._generator = torch.Generator().manual_seed(seed)
        self._contexts: dict[int, Oracle] = {}
        # By environment: the episode's observations, the actions that led to them, their timesteps.
        self._episodes: dict[int, list[tuple[torch.Tensor, Any, int]]] = {}
        self._next_actions: dict[int, Any] = {}
        self._outdated: set[int] = set()

    def context_of(self, env_id: int) -> Oracle:
        """A copy of an environment's context after its last step, under the weights of now."""
        if env_id in self._outdated:
            self._prepare_context(env_id)
        return self._contexts[env_id].copy()

    def end(self, env_id: int) -> None:
        """An environment's episode ends."""
        self._episodes.pop(env_id, None)
        self._outdated.discard(env_id)
        self._inference.forget(self._phase, [env_id])

    def learn(self, scale: float = 0.05) -> None:
        """The weights change by one step of an optimiser."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=1.)
        for parameter in self.model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=self._generator) * scale
        optimizer.step()
        self.weights_have_changed()

    def weights_have_changed(self) -> None:
        """Every running episode is to be embedded again, as far back as its context goes."""
        self._outdated = {env_id for env_id, episode in self._episodes.items() if episode}

    @torch.no_grad()
    def step(self, env_ids: Sequence[int], num_simulations: int = 0) -> Any:
        """Some environments take a step: root inference, a whole search, an action."""
        current = observations(self.model, len(env_ids), self._generator)
        first = torch.zeros_like(current[0])
        timesteps, last, actions = [], [], []
        for env_id in env_ids:
            self._prepare_context(env_id)
            episode = self._episodes.setdefault(env_id, [])
            timesteps.append(np.array(self._first_timestep + len(episode)))
            last.append(episode[-1][0] if episode else first)
            actions.append(self._next_actions[env_id] if episode else -1)
        with self._world_model.kv_cache_roots(self._phase, env_ids):
            root = self.model.initial_inference(torch.stack(last), actions, current, self._given(timesteps))
        for row, env_id in enumerate(env_ids):
            context, timestep = self._contexts[env_id], int(timesteps[row])
            if self._episodes[env_id]:
                context.add_action(actions[row], 2 * timestep - 1)
            context.add_observation(current[row], timestep)
            expected = context.policy_and_value()
            self._compare(root.policy_logits[row], expected['policy'])
            self._compare(root.value[row], expected['value'])
            self._fit_window(context)
            self._episodes[env_id].append((current[row], actions[row], timestep))
            self._next_actions[env_id] = random_action(self.model, self._generator)
        if num_simulations:
            self._search(env_ids, root, timesteps, num_simulations)
        return root

    def _given(self, timesteps: Sequence[np.ndarray]) -> list[np.ndarray]:
        """As LightZero's collectors hand them down."""
        return list(timesteps) if self._has_timesteps else [np.array(-1)] * len(timesteps)

    def _prepare_context(self, env_id: int) -> None:
        episode = self._episodes.get(env_id)
        if not episode:
            self._contexts[env_id] = Oracle(self._world_model)
            return
        key = self._inference.histories.of(self._phase, env_id).key
        in_pool = key is not None and key in self._inference.manager.init_pools[env_id]
        lost = not in_pool or env_id in self._outdated
        if lost and self._config.on_miss == 'reset':
            self.resets += 1
            self._encode(env_id, episode[-1:], one_late=self._config.rope_positions == 'release')
        elif env_id in self._outdated:
            length = len(self._contexts[env_id])
            self._encode(env_id, episode)
            self._contexts[env_id].encode_again(length)
        self._outdated.discard(env_id)

    def _encode(self, env_id: int, episode: Sequence[tuple], one_late: bool = False) -> None:
        context = self._contexts[env_id] = Oracle(self._world_model)
        for index, (observation, action, timestep) in enumerate(episode):
            if index:
                context.add_action(action, 2 * timestep - 1)
            context.add_observation(observation, timestep + one_late)

    def _search(self, env_ids: Sequence[int], root: Any, timesteps: Sequence[np.ndarray], num_simulations: int) -> None:
        nodes: list[list[Any]] = [[(self._contexts[env_id].copy(), 0) for env_id in env_ids]]
        parents = torch.zeros(0)
        lost: list[bool] = []

        begun = search_of(self.model, root)

        def foresee(numbers: np.ndarray, search_depth: Sequence[int]) -> None:
            nonlocal parents, lost
            parents = begun.tensors.latents[numbers].clone()
            lost = [self._is_lost(begun, number) for number in numbers.tolist()]

        def compare(expansion: Expansion, output: Any) -> None:
            children = []
            for row, parent in enumerate(expansion.parents):
                context, depth = nodes[parent][row]
                timestep = int(timesteps[row])
                if lost[row] and self._config.on_miss == 'reset':
                    self.resets += 1
                    context = Oracle(self._world_model)
                    aligned = depth if self._config.rope_positions == 'aligned' else 0
                    context.add_latent(parents[row], 2 * (timestep + aligned))
                    nodes[parent][row] = (context, depth)
                context = context.copy()
                action_position, latent_position = self._positions(timestep, depth, expansion.search_depth[row])
                context.add_action(expansion.actions[row].numpy(), action_position)
                self._compare(output.reward[row], context.reward_and_next_token()['reward'])
                for index, token in enumerate(output.latent_state[row]):
                    self._compare(token, context.next_token())
                    context.add_latent(token[None], latent_position + index)
                expected = context.policy_and_value()
                self._compare(output.policy_logits[row], expected['policy'])
                self._compare(output.value[row], expected['value'])
                self._fit_window(context)
                children.append((context, depth + 1))
            nodes.append(children)

        watched: WatchedModel = search(
            self.model, root, self._given(timesteps), num_simulations, compare, foresee
        )
        assert len(watched.expansions) == num_simulations

    def _is_lost(self, begun: Search, number: int) -> bool:
        manager, key = self._inference.manager, begun.first_key + number
        if number in begun.env_ids:
            return key not in manager.init_pools[begun.env_ids[number]]
        return key not in manager.recur_pool and key not in manager.wm_pool

    def _positions(self, timestep: int, parent_depth: int, search_depth: int) -> Sequence[int]:
        steps = timestep + (parent_depth if self._config.rope_positions == 'aligned' else search_depth)
        return 2 * steps + 1, 2 * steps + 2

    def _fit_window(self, context: Oracle) -> None:
        self.longest_context = max(self.longest_context, len(context))
        if len(context) >= self._world_model.context_length - 1:
            kept = self._world_model.context_length - 3
            context.shift(kept) if self._config.window == 'shift' else context.encode_again(kept)

    def _compare(self, predicted: torch.Tensor, expected: torch.Tensor) -> None:
        difference = (predicted.reshape(-1) - expected.reshape(-1)).abs().max().item()
        assert difference < TOLERANCE
        self.largest_difference = max(self.largest_difference, difference)
        self.compared += 1
