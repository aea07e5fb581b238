"""Inference over managed contexts: mode 'managed'."""
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch

from .forward import Forward
from .given_context import GivenContext, append_given, check_given
from .imagination import Imagination, check_rollout, roll_out
from .latent_names import LatentNames, host_copy
from .numbered_inference import NumberedInference, Outputs, usable_anywhere
from .observation import observe_uncached_roots
from .positions import host_timesteps
from .precision import at_least_float32
from .roots import check_expansion


class ManagedInference(NumberedInference):
    """``NumberedInference`` that also finds nodes by their latent states, for LightZero's interface and rollouts."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._latent_names: Optional[LatentNames] = None

    def recurrent(
            self, world_model: Any, state_action_history: list[tuple], simulation_index: int,
            search_depth: Sequence[int], start_pos: Any
    ) -> Outputs:
        """As ``expand``, with LightZero's arguments, for nodes known by their latent states. A ValueError if the rows
        do not match; nothing has changed then.

        Args:
            state_action_history: Its last item counts: latent states as an earlier inference of the search returned
                them, [B, num_observations_tokens, E], and actions.
            start_pos: Timesteps of the roots, used if no root inference has begun the search.

        Returns:
            Hidden state, next latent states, reward, policy and value logits, [B, 1, size].
        """
        latents, actions = state_action_history[-1]
        check_expansion(world_model, latents, actions, search_depth, start_pos)
        with self._whole_inference():
            forward = self._model.within_search(world_model)
            nodes = self._nodes_of(forward, latents, search_depth, start_pos)
            outputs, children = self._expand(forward, self.search, nodes, actions, search_depth)
            handed_out = self._names().hand_out(int(children[0]), host_copy(outputs.latents))
            latents = torch.from_numpy(handed_out).to(outputs.latents.device)
        return usable_anywhere((outputs.hidden, latents, outputs.reward, outputs.policy, outputs.value))

    @torch.no_grad()
    def begin_at(self, world_model: Any, latents: torch.Tensor, contexts: Sequence[torch.Tensor]) -> torch.Tensor:
        """
        Begin a search that reanalyses, at roots whose contexts are given.

        Args:
            world_model: The model.
            latents: Their latent states, ``[B, num_observations_tokens, E]``.
            contexts: Their raw tokens, the latent states last, ``[T, E]`` each.

        Returns:
            Policy logits at the roots, ``[B, size]``.

        Raises:
            ValueError: If they do not fit together; nothing has changed then.
        """
        check_given(world_model, latents, contexts)
        with self._whole_inference():
            forward = self._model.of(world_model)
            model, store = forward.model, self.store
            latents = torch.as_tensor(latents).to(model.like)
            given = [GivenContext(torch.as_tensor(tokens), model.num_observations_tokens) for tokens in contexts]
            counts = forward.lengths_of(given)
            with store.gather([None] * len(given), int(counts.max()), model) as batch:
                policy, value = model.policy_and_value(append_given(model, batch, given, counts))
            timesteps = np.array([each.timestep for each in given])
            roots = self._begin_search(forward, 'reanalyze', timesteps, latents, policy, value)
            for root, each in zip(roots, given):
                each.key = self.search.first_key + root
                self.search.episodes[root] = each
            observe_uncached_roots(self.observer, self.search.nodes)
        return usable_anywhere((policy[:, 0], ))[0]

    def nodes_of(self, world_model: Any, latents: Any, search_depth: Sequence[int], start_pos: Any) -> np.ndarray:
        """The numbers of the nodes of latent states, as ``recurrent`` takes them, [B]."""
        with self._whole_inference():
            return self._nodes_of(self._model.within_search(world_model), latents, search_depth, start_pos)

    def _nodes_of(self, forward: Forward, latents: Any, search_depth: Sequence[int], start_pos: Any) -> np.ndarray:
        latents, like = torch.as_tensor(latents), forward.model.like
        # Nodes are found by every bit of their latent states.
        on_host = latents.detach().to('cpu', at_least_float32(like.dtype)).numpy()
        found = [None] * len(latents) if self.search is None else self._names().find_all(on_host)
        strays = [row for row, number in enumerate(found) if number is None]
        if not strays:
            return np.array(found)
        self._warn_once(
            'A search expands a latent state that no inference of this search has returned; its context starts from '
            'that latent state alone.'
        )
        given, timesteps = latents[strays].to(like), host_timesteps(start_pos, len(latents))
        depths = [max(0, int(search_depth[row]) - 1) if len(search_depth) else 0 for row in strays]
        if self.search is None or (self.search.phase == 'unknown' and len(strays) == len(found)):
            world_model = forward.model.world_model
            logits = world_model.action_space_size * (2 if world_model.continuous_action_space else 1)
            new = self._begin_search(forward, 'unknown', timesteps, given, given.new_zeros(len(strays), 1, logits))
            self.search.nodes.depths[new] = depths
        else:
            new = self.search.add_strays(strays, depths, timesteps[strays])
            self.search.tensors.add(new[0], given)
        if self.observer is not None:
            self.observer.strays(self.search.nodes)
        return np.array([new[strays.index(row)] if number is None else number for row, number in enumerate(found)])

    def imagine(
            self, world_model: Any, obs_or_latent: torch.Tensor, actions: Optional[torch.Tensor],
            horizon: Optional[int], choose: str, start_pos: Any, generator: Optional[torch.Generator]
    ) -> Imagination:
        """Roll out in latent space. Arguments, result and errors as ``KVCacheWorldModelMixin.imagine``."""
        horizon = check_rollout(world_model, obs_or_latent, actions, horizon, choose, start_pos)
        with self._whole_inference():
            forward, search = self._model.of(world_model), self.search
            is_current = search is not None and search.tensors.generation == self._model.generation
            rollout = roll_out(
                forward, self.store, self._contexts, self._positions, self._names() if is_current else None,
                obs_or_latent, actions, horizon, choose, start_pos, generator
            )
        return Imagination(*usable_anywhere(rollout))

    def _recover(self) -> None:
        super()._recover()
        if self._latent_names is not None:
            self._latent_names.recover()

    def _names(self) -> LatentNames:
        if self._latent_names is None:
            self._latent_names = LatentNames(self.search)
        return self._latent_names

    def _end_search(self) -> None:
        super()._end_search()
        self._latent_names = None
