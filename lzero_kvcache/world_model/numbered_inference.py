"""Inference over managed contexts, by the numbers of a search's nodes."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import isfinite
from typing import Any, Optional

import numpy as np
import torch
import torch.nn.functional as F

from ..config import KVCacheConfig
from ..eviction.search_nodes import SearchNodes
from ..search.contexts import SearchContexts
from ..search.search import Search
from ..stats import RebuildStats
from .cached_model import StepOutputs
from .current_model import CurrentModel
from .dimensions import check_dimensions
from .forward import Forward, SearchTensors
from .histories import EnvironmentHistories
from .new_cache import new_manager, new_store
from .observation import SearchObserver, observe_uncached_roots, observer_of
from .positions import SearchPositions, sequence_timesteps
from .precision import at_least_float32
from .root_inference import predict_roots
from .roots import RootEnvironments, RootRows, checked_roots
from .scores import PoolScores
from .stock_names import count_queries
from .warn_once import WarnOnce

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


class NumberedInference:
    """Root and recurrent inference of one world model over cached contexts. Inside the window (with window='rebuild',
    past it, too) every prediction equals that of a forward without a cache over the row's own tokens. Each call holds
    the manager's lock. An interrupted call leaves no contexts behind; later calls compute them again.
    ``context_lengths`` are the tokens per row in the last inference's contexts. A ValueError if the model's dimensions
    do not fit together, or the memory budget is too small.
    """

    def __init__(
            self, world_model: Any, config: KVCacheConfig, env_num: int, num_simulations: int,
            game_segment_length: Optional[int] = None, discount_factor: float = 0.997
    ) -> None:
        check_dimensions(world_model.config)
        self.config = config
        self.num_simulations = num_simulations
        self.discount_factor = discount_factor
        self.search: Optional[Search] = None
        self.context_lengths: list[int] = []
        self.observer: Optional[SearchObserver] = None
        self.rebuild_stats = RebuildStats()
        self._lossless = config.on_miss == 'rebuild'
        self.store = new_store(world_model, config)
        self.manager = new_manager(
            world_model, config, self.store, env_num, num_simulations, game_segment_length, self._lose
        )
        tokens_per_step = 1 + world_model.num_observations_tokens
        num_observations = 1 + self.store.limit // tokens_per_step
        self.histories = EnvironmentHistories(
            num_observations, world_model.num_observations_tokens, on_end=self._end_episode
        )
        self.root_stats = self.histories.root_stats
        self._scores = PoolScores(config)
        self._contexts = SearchContexts(self.manager, self.store, self.rebuild_stats, self._lossless, tokens_per_step)
        self._model = CurrentModel(config, self.store, num_observations, on_change=self._drop_contexts)
        self._positions = SearchPositions(config.rope_positions)
        self._num_searches = 0
        self._broke_off = False
        self._warn_once = WarnOnce()

    @property
    def weights_generation(self) -> int:
        """How many changes of the model an inference has met."""
        return self._model.generation

    @property
    def rows_begun_anew(self) -> frozenset[int]:
        """Rows of the last inference whose contexts, with ``on_miss='reset'``, began anew."""
        return frozenset() if self._lossless else self._contexts.last_missing

    def initial(self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments) -> Outputs:
        """Predict at the roots of a new search. With current observations every environment's episode goes on by one
        step; without, the observations are whole sequences of the replay buffer and need no cache. A ValueError if an
        environment does not exist or the rows do not match; nothing has changed then.

        Args:
            obs_act_dict: 'obs', the last observations, [B, ...]; 'action', the actions since (-1 at an episode's first
                step); 'current_obs', [B, ...] or None.
            start_pos: Timesteps of the current observations. The environment's own episode counts those that are
                negative or stand still; one that does not follow begins a new episode.

        Returns:
            Hidden states, latent states, [B, num_observations_tokens, E], reward logits (empty: a root has none),
            policy and value logits, [B, 1, size].
        """
        if self.observer is None:
            self.observer = observer_of(self, world_model)
        if obs_act_dict['current_obs'] is not None:
            rows = checked_roots(world_model, obs_act_dict, start_pos, roots, self.manager.env_num)
            with self._whole_inference():
                predicted = self._begin_at_environments(world_model, obs_act_dict, roots.phase, rows)
            return usable_anywhere(predicted)
        outputs, latents = world_model.reset_for_initial_inference(obs_act_dict, start_pos)
        with self._whole_inference():
            forward = self._model.of(world_model)
            if world_model.reanalyze_phase:
                self._begin_search(
                    forward, 'reanalyze', sequence_timesteps(start_pos, len(latents)), latents, outputs.logits_policy
                )
                observe_uncached_roots(self.observer, self.search.nodes)
        return usable_anywhere((
            outputs.output_sequence, latents, outputs.logits_rewards, outputs.logits_policy, outputs.logits_value
        ))

    def _begin_at_environments(self, world_model: Any, obs_act_dict: dict, phase: str, rows: RootRows) -> Outputs:
        forward = self._model.of(world_model)
        found = predict_roots(forward, self.histories, self._contexts, self.store, obs_act_dict, phase, rows)
        self.context_lengths = found.lengths.tolist()
        nodes = self._begin_search(forward, phase, found.timesteps, found.latents, found.policy, found.value)
        priorities = self._priorities('init_pool', self.search, nodes, found)
        self._contexts.begin(self.search, nodes, found.contexts, found.histories, rows.env_ids, priorities)
        if self.observer is not None:
            lengths = [len(context) for context in found.contexts]
            self.observer.roots(self.search.nodes, rows.env_ids, found.beginnings, lengths)
        self.store.release(found.contexts)
        return found.hidden, found.latents, found.reward[:, :0], found.policy, found.value

    def _begin_search(
            self, forward: Forward, phase: str, timesteps: np.ndarray, latents: torch.Tensor, policy: torch.Tensor,
            value: Optional[torch.Tensor] = None
    ) -> list[int]:
        """Begin a search with its roots, and return their numbers."""
        self._end_search()
        world_model = forward.model.world_model
        samples_actions = bool(world_model.continuous_action_space)
        nodes = SearchNodes(
            world_model.config.num_of_sampled_actions if samples_actions else world_model.action_space_size,
            samples_actions
        )
        capacity = len(latents) * (1 + self.num_simulations)
        nodes.reserve(capacity)
        follows = self.manager.recur_pool.eviction_policy.follows_search
        self._num_searches += 1
        search = Search(
            self._num_searches, phase, timesteps, nodes, self.discount_factor if follows else None,
            SearchTensors(latents, capacity, self._model.generation)
        )
        if self.observer is not None:
            self.observer.begin(phase)
        numbers = self._checked((
            F.pad(policy.flatten(1), (2, 0)) if value is None else forward.model.numbers_for_host(value, policy, value)
        ).cpu())
        roots = search.add(nodes.add_roots(numbers[:, 1], numbers[:, 2:]), [None] * len(numbers))
        # Only now that it has its roots: an interruption before leaves no search.
        self.search = search
        return roots

    def search_from(self, latents: Any) -> Optional[Search]:
        """The running search, if it has only roots and these are their latent states, [B, ...]."""
        with self.manager.lock:
            search = self.search
            if search is None or search.nodes.num_nodes != len(latents):
                return None
            roots = search.tensors.latents[:len(latents)]
            given = torch.as_tensor(np.asarray(latents)).to(roots)
            # A model that has diverged predicts nan, which equals nothing.
            is_same = given.shape == roots.shape and torch.equal(given.nan_to_num(), roots.nan_to_num())
            return search if is_same else None

    def expand(
            self, world_model: Any, search: Search, nodes: np.ndarray, actions: Any, search_depth: Sequence[int] = (),
            start_pos: Any = 0
    ) -> tuple[StepOutputs, np.ndarray]:
        """Take an action at a node of a search in every row.

        Args:
            search: The running search, or one that another has interrupted.
            nodes: Their numbers, int64 [B].
            actions: [B] or [B, action_space_size].
            search_depth: The depth that LightZero's search reports, [B].
            start_pos: Unused: the search has its roots' timesteps.

        Returns:
            The predictions, with ``host`` on the host, and the numbers of the new nodes, [B].
        """
        with self._whole_inference():
            return self._expand(self._model.at_simulation(world_model), search, nodes, actions, search_depth)

    def _expand(
            self, forward: Forward, search: Search, nodes: np.ndarray, actions: Any, search_depth: Sequence[int]
    ) -> tuple[StepOutputs, np.ndarray]:
        model = forward.model
        # LightZero's search draws them on the host; the copy to the device keeps nobody waiting.
        on_host = torch.as_tensor(actions).cpu()
        actions = on_host.to(model.like.device, non_blocking=True)
        positions = None
        if model.uses_rotary:
            positions = self._positions.of_expansion(
                search.timesteps_of(nodes), search.nodes.depths[nodes], search_depth, search.phase == 'reanalyze',
                model.num_observations_tokens
            )
        outputs, self.context_lengths, contexts = self._contexts.expand(
            forward, search, nodes.tolist(), actions, positions
        )
        count_queries(model.world_model, len(nodes), len(nodes) - len(self._contexts.last_missing))
        # The one time that a simulation waits for the device.
        outputs = outputs._replace(host=outputs.host.cpu())
        children = self._add_nodes(search, nodes, on_host, actions, positions, outputs)
        self._contexts.cache(search, children, contexts)
        self._contexts.keep_last_inference(
            search, children, contexts, self._priorities('wm_pool', search, children, outputs)
        )
        if self.observer is not None and search is self.search:
            self.observer.expand(search.nodes)
        self.store.release(contexts)
        return outputs, np.array(children)

    def _add_nodes(
            self, search: Search, parents: np.ndarray, on_host: torch.Tensor, actions: torch.Tensor,
            positions: Optional[np.ndarray], outputs: StepOutputs
    ) -> list[int]:
        numbers = self._checked(outputs.host)
        nodes, first = search.nodes, search.nodes.num_nodes
        added = nodes.add(
            parents, None if nodes.samples_actions else on_host.numpy().reshape(-1), numbers[:, 0], numbers[:, 1],
            numbers[:, 2:]
        )
        search.tensors.add(first, outputs.latents, actions, positions)
        return search.add(added, self._priorities('recur_pool', search, added, outputs))

    def _priorities(self, kind: str, search: Search, nodes: Any, outputs: Any) -> Sequence[Optional[float]]:
        return self._scores.priorities(kind, search.nodes, nodes, outputs.reward, outputs.policy, outputs.value)

    def _checked(self, on_host: torch.Tensor) -> np.ndarray:
        numbers = on_host.numpy()
        # A single nan or inf makes the sum nan or inf.
        if not isfinite(np.add.reduce(numbers, None)):
            self._warn_once(
                'The world model predicts nan or inf, with the cache as without: have its weights diverged?'
            )
        return numbers

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """The episodes of some environments, or of all, have ended; ``phase``: 'collect' or 'eval'."""
        with self._whole_inference():
            self.histories.forget(phase, env_ids)

    def clear(self) -> None:
        """Drop what was made of the weights. Running episodes and a running search go on and compute it again."""
        with self._whole_inference():
            self._drop_contexts()
            self._model.forget()

    def leave_device(self) -> None:
        """Drop what lies on the model's device: the model has moved to another one, or to another dtype."""
        with self._whole_inference():
            self._drop_contexts()
            self._end_search()
            self._model.forward = None
            self.store.drop_memory()

    @contextmanager
    def _whole_inference(self) -> Iterator[None]:
        with self.manager.lock, torch.inference_mode():
            if self._broke_off or not self.manager.is_whole:
                self._recover()
            self._broke_off = True
            try:
                yield
                self._broke_off = False
            finally:
                if self._broke_off:
                    self._recover()

    def _lose(self) -> None:
        # A clear or resize between inferences may be interrupted, too.
        self._broke_off = True

    def _recover(self) -> None:
        """Drop the contexts, whose state is unknown after an interruption. Episodes are whole: each step is added in
        one assignment. The search keeps the nodes that all its arrays have.
        """
        self._drop_contexts()
        if self.search is not None:
            self.search.recover()
        self._model.forward = None
        self.store.drop_memory()
        self._broke_off = False

    def _drop_contexts(self) -> None:
        """A running search keeps its nodes, to compute their contexts again."""
        if self.observer is not None:
            self.observer.drop_contexts()
        self.manager.clear_all()
        self._contexts.unpin()
        for history in self.histories:
            self._end_episode(history)

    def _end_episode(self, history: Any) -> None:
        self._contexts.hold(history, None)

    def _end_search(self) -> None:
        self.manager.clear_recur_cache()
        self.manager.wm_pool.clear()
        self._contexts.unpin()
        self.search = None

    def __getstate__(self) -> dict:
        return dict(self.__dict__, observer=None)


def usable_anywhere(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Copies outside of inference mode, which autograd and in-place changes can use."""
    return tuple(tensor.to(at_least_float32(tensor.dtype), copy=True) for tensor in tensors)
