"""Inference over managed contexts: mode 'managed'."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
import torch.nn.functional as F

from ..budget import FLOAT_BYTES, ContextMemory
from ..checks import choices, is_number
from ..config import KVCacheConfig
from ..eviction import Priority, SearchTreeNode
from ..manager import KVCacheManager
from ..store import Context, TokenShape, TokenStore
from .cached_model import CachedModel, Predictions
from .contexts import NodeContexts
from .dimensions import check_dimensions, longest_context
from .environment_history import EnvironmentHistory, EpisodeStep
from .histories import EnvironmentHistories, RebuildStats, RootStats, stack_actions
from .imagination import Imagination, check_rollout, roll_out
from .lineage import SearchLineage, SearchNode, SearchStep, node_key
from .model_watch import ModelWatch
from .observation import SearchObserver, observer_of
from .positions import SearchPositions, host_timesteps
from .precision import at_least_float32
from .rebuild import ContextRebuilder
from .scores import Score, scores_of
from .search_following import SearchFollower
from .warn_once import WarnOnce
from .window import ContextWindow

PHASES = ('collect', 'eval')

Outputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class RootEnvironments:
    """
    Overview:
        Whose observations a root inference is given.
    Arguments:
        - phase (:obj:`str`): 'collect' or 'eval', whose episodes are kept apart.
        - env_ids (:obj:`Optional[Tuple[int, ...]]`): The environment of each row; None: row i is environment i.
    Raises:
        - ValueError: On another phase.
    """
    phase: str = 'collect'
    env_ids: Optional[tuple[int, ...]] = None

    def __post_init__(self) -> None:
        if self.phase not in PHASES:
            raise ValueError(f'phase is {self.phase!r}: {choices(self.phase, PHASES)}')

    def ids_of(self, batch_size: int) -> tuple[int, ...]:
        """
        Overview:
            The environment of each of ``batch_size`` rows.
        """
        return tuple(range(batch_size)) if self.env_ids is None else self.env_ids


class RootRows(NamedTuple):
    """
    Overview:
        The rows of a root inference, once they have been checked.
    Arguments:
        - env_ids (:obj:`Tuple[int, ...]`): The environment of each.
        - timesteps (:obj:`np.ndarray`): Timesteps of the current observations, :math:`(B, )`.
        - first_steps (:obj:`List[bool]`): Whether an episode begins.
    """
    env_ids: tuple[int, ...]
    timesteps: np.ndarray
    first_steps: list[bool]


class ManagedInference:
    """
    Overview:
        Root and recurrent inference of one world model over cached contexts. Inside the window (with window='rebuild',
        past it, too) every prediction equals that of a forward without a cache over the row's own tokens. Each call
        holds the manager's lock. One that breaks off, by whatever exception, leaves no contexts behind: what is missed
        from then on is computed again.
        ``context_lengths`` are the tokens per row, :math:`(B, )`, that the last inference found in its contexts;
        ``weights_generation`` counts the changes of the model that an inference has met; ``observer``,
        where there is one, is told of all searches.
    Arguments:
        - world_model (:obj:`WorldModel`): The model. Only its dimensions are read here; each call gets it again.
        - config (:obj:`KVCacheConfig`): The ``kv_cache`` entry.
        - env_num (:obj:`int`): Environments.
        - num_simulations (:obj:`int`): Simulations per search.
        - game_segment_length (:obj:`Optional[int]`): Steps per game segment.
        - discount_factor (:obj:`float`): Of the searches.
    Raises:
        - ValueError: If the model's dimensions do not fit together, or the memory budget is too small.
    """

    def __init__(
            self,
            world_model: Any,
            config: KVCacheConfig,
            env_num: int,
            num_simulations: int,
            game_segment_length: Optional[int] = None,
            discount_factor: float = 0.997,
    ) -> None:
        check_dimensions(world_model.config)
        self.config = config
        self.context_lengths = np.zeros(0, dtype=np.int64)
        self.weights_generation = 0
        self.num_simulations = num_simulations
        self.discount_factor = discount_factor
        self.observer: Optional[SearchObserver] = None
        self._num_observations_tokens = world_model.num_observations_tokens
        self._positions = SearchPositions(config.rope_positions)
        self.store = TokenStore(TokenShape(
            num_layers=world_model.num_layers,
            num_heads=world_model.num_heads,
            head_dim=world_model.embed_dim // world_model.num_heads,
            keep_embeddings=config.window == 'rebuild',
        ))
        self._window = ContextWindow(world_model.context_length, config.window, self.store)
        lossless = config.on_miss == 'rebuild'
        tokens_per_step = 1 + self._num_observations_tokens
        self.manager = KVCacheManager(
            SimpleNamespace(
                kv_cache=config, num_simulations=num_simulations, game_segment_length=game_segment_length
            ), env_num, on_release=self.store.release, on_loss=self._lose, measure=self.store.kv_bytes,
            memory=ContextMemory(
                token_bytes=FLOAT_BYTES * self.store.shape.numbers_per_token,
                context_tokens=self._window.limit - 1,
                # A context that is encoded again has all its tokens for itself.
                node_tokens=tokens_per_step if self._window.moves_tokens else self._window.limit - 1,
                # Those of running episodes, collect and eval.
                held_contexts=2 * env_num if lossless else 0,
            )
        )
        self._scores = scores_of(config)
        self._follower: Optional[SearchFollower] = None
        if self.manager.recur_pool.eviction_policy.follows_search:
            self._follower = SearchFollower(world_model, discount_factor)
        self.histories = EnvironmentHistories(
            self.manager, self.store,
            num_observations=1 + self._window.limit // tokens_per_step,
            num_observations_tokens=self._num_observations_tokens, lossless=lossless,
            rope_positions=config.rope_positions
        )
        rebuilder = ContextRebuilder(
            self.store, self._window, self._positions, self.histories, lossless, tokens_per_step
        )
        self._contexts = NodeContexts(
            self.manager, self.store, self._window, rebuilder, lossless, tokens_per_step
        )
        self._lineage: Optional[SearchLineage] = None
        # Of the running search, so that every node has an ancestor whose context is there.
        self._root_contexts: list[Context] = []
        self._search_generation = 0
        self._last_missing: frozenset[int] = frozenset()
        self._model: Optional[CachedModel] = None
        self._watch = ModelWatch()
        self._broke_off = False
        self._warn_once = WarnOnce()

    @property
    def rows_begun_anew(self) -> frozenset[int]:
        """
        Overview:
            Rows of the last inference whose contexts, with ``on_miss='reset'``, began anew.
        """
        if self.config.on_miss == 'rebuild':
            return frozenset()
        return self._last_missing

    @property
    def rebuild_stats(self) -> RebuildStats:
        """
        Overview:
            What misses have cost so far.
        """
        return self.histories.rebuild_stats

    @property
    def root_stats(self) -> RootStats:
        """
        Overview:
            What root inferences have found of the episodes that they go on.
        """
        return self.histories.root_stats

    def initial(self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments) -> Outputs:
        """
        Overview:
            Predict at the roots of a new search. With current observations every environment's episode goes on by
            one step; without, the observations are whole sequences of the replay buffer, which need no cache.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
            - obs_act_dict (:obj:`dict`): 'obs', the last observations :math:`(B, ...)`, 'action', the actions since (-1
                at an episode's first step), and 'current_obs', :math:`(B, ...)` or None.
            - start_pos (:obj:`Union[int, Sequence]`): Timesteps of the current observations. Those that are negative,
                as LightZero hands them down where the observation has none, or stand still, are counted from the
                environment's own episode; one that does not follow begins a new episode.
            - roots (:obj:`RootEnvironments`): Whose observations these are.
        Returns:
            - outputs (:obj:`Tuple`): Hidden states, latent states :math:`(B, num_observations_tokens, E)`, reward
                logits (empty, a root has none), policy and value logits :math:`(B, 1, ...)`.
        Raises:
            - ValueError: If an environment does not exist or the rows do not match; nothing has changed then.
        """
        if self.observer is None:
            self.observer = observer_of(self, world_model)
        if obs_act_dict['current_obs'] is not None:
            rows = _checked_roots(world_model, obs_act_dict, start_pos, roots, self.manager.env_num)
            with self._whole_inference():
                outputs = self._predict_roots(world_model, obs_act_dict, roots.phase, rows)
            return _usable_anywhere(outputs)
        outputs, latents = world_model.reset_for_initial_inference(obs_act_dict, start_pos)
        with self._whole_inference():
            self._current_model(world_model)
            if world_model.reanalyze_phase:
                self._begin_reanalysis(latents, outputs.logits_policy, host_timesteps(start_pos, len(latents)))
        return _usable_anywhere((
            outputs.output_sequence, latents, outputs.logits_rewards, outputs.logits_policy, outputs.logits_value
        ))

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
        # Pools are cleared and resized between inferences, too, and that may break off as well.
        self._broke_off = True

    def _recover(self) -> None:
        """
        What an inference that broke off has left of the contexts is in no known state. Episodes and lineage are: their
        steps and nodes are added one at a time, each in one assignment.
        """
        self._drop_contexts()
        if self._lineage is not None:
            self._lineage.forget_contexts()
        self._model = None
        self.store.drop_memory()
        self._broke_off = False

    def _predict_roots(self, world_model: Any, obs_act_dict: dict, phase: str, rows: RootRows) -> Outputs:
        model = self._current_model(world_model)
        env_ids, timesteps, first_steps = rows
        current, actions = obs_act_dict['current_obs'], obs_act_dict['action']
        batch_size = len(current)
        histories = [self.histories.of(phase, env_id) for env_id in env_ids]
        given = timesteps
        timesteps, first_steps = self.histories.meet(histories, obs_act_dict['obs'], given, first_steps)
        latents = model.embed_observations(current)
        continuing = [row for row in range(batch_size) if not first_steps[row]]
        tokens, positions, counts = self._root_tokens(model, latents, actions, timesteps, continuing)
        went_on = [history.key is not None for history in histories]
        with self.histories.resume(model, histories, env_ids) as batch:
            self._last_missing = self.histories.last_missing
            self.context_lengths = batch.lengths
            hidden = model.append(batch, tokens, positions, counts)[:, -self._num_observations_tokens:]
            contexts = self._window.add(model, batch)
        policy, value = model.policy_and_value(hidden[:, -1:])
        reward = value.new_zeros(batch_size, 1, world_model.support_size)
        for row, history in enumerate(histories):
            history.append(EpisodeStep(
                current[row].clone(), deepcopy(actions[row]), int(timesteps[row]), len(contexts[row]), int(given[row])
            ))
        self._begin_search(
            SearchLineage(phase, timesteps), latents, histories, env_ids, contexts,
            Predictions(reward, policy, value), went_on
        )
        self.store.release(contexts)
        return hidden, latents, reward[:, :0], policy, value

    def _begin_reanalysis(self, latents: torch.Tensor, policies: torch.Tensor, timesteps: np.ndarray) -> None:
        self._start_search(SearchLineage('reanalyze', timesteps))
        on_host = self._on_host(latents)
        step = SearchStep(on_host, policies)
        in_tree = self._begin_following(policies)
        nodes = []
        for row, latent in enumerate(on_host):
            scope = f'reanalyze/{row}'
            node = SearchNode(scope, node_key(scope, 0, latent), row, 0, step, tree=row, in_tree=in_tree[row])
            self._lineage.add(node, latent.tobytes())
            nodes.append(node)
        if self.observer is not None:
            self.observer.roots(nodes, [False] * len(nodes), None)

    def recurrent(
            self, world_model: Any, state_action_history: list[tuple], simulation_index: int,
            search_depth: Sequence[int], start_pos: Any
    ) -> Outputs:
        """
        Overview:
            Predict what follows from taking an action at a node, for a batch of nodes, one per root.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
            - state_action_history (:obj:`List[Tuple]`): Its last item is looked at: the latent states of the nodes as
                an earlier inference of the search returned them, :math:`(B, num_observations_tokens, E)`, and the
                actions, :math:`(B, )` or :math:`(B, action_space_size)`.
            - simulation_index (:obj:`int`): Not needed.
            - search_depth (:obj:`Sequence[int]`): The depth that the search tree reports, :math:`(B, )`.
            - start_pos (:obj:`Union[int, Sequence]`): Timesteps of the roots, looked at where no root inference has
                begun the search.
        Returns:
            - outputs (:obj:`Tuple`): Hidden state, next latent states :math:`(B, num_observations_tokens, E)`, reward,
                policy and value logits :math:`(B, 1, ...)`.
        Raises:
            - ValueError: If the rows do not match; nothing has changed then.
        """
        latents, actions = state_action_history[-1]
        check_expansion(world_model, latents, actions, search_depth)
        with self._whole_inference():
            outputs = self._predict_next_states(world_model, latents, actions, search_depth, start_pos)
        return _usable_anywhere(outputs)

    def _predict_next_states(
            self, world_model: Any, latents: Any, actions: Any, search_depth: Sequence[int], start_pos: Any
    ) -> Outputs:
        model = self._model_of_search(world_model)
        # Nodes are found by every bit of their latent states.
        latents = torch.as_tensor(latents).detach().to('cpu', at_least_float32(model.like.dtype)).numpy()
        actions = torch.as_tensor(actions, device=model.like.device)
        given = host_timesteps(start_pos, len(latents)) if model.uses_rotary else None
        parents = self.nodes_of(latents, search_depth, given)
        timesteps = positions = None
        if given is not None:
            timesteps = self._lineage.timesteps_of(parents, given)
            positions = self._expansion_positions(parents, timesteps, search_depth)
        with self._contexts.of(model, parents, timesteps) as batch:
            self._last_missing = self._contexts.last_missing
            hidden, next_latents, predictions = model.predict_next_state(batch, actions, positions)
            self.context_lengths = batch.lengths
            contexts = self._contexts.add(model, batch, parents)
        next_latents = self._add_nodes(parents, next_latents, actions, positions, contexts, predictions)
        self.store.release(contexts)
        return hidden, next_latents, predictions.reward, predictions.policy, predictions.value

    def imagine(
            self, world_model: Any, obs_or_latent: torch.Tensor, actions: Optional[torch.Tensor],
            horizon: Optional[int], choose: str, start_pos: Any, generator: Optional[torch.Generator]
    ) -> Imagination:
        """
        Overview:
            Roll out in latent space. Arguments, result and errors as ``KVCacheWorldModelMixin.imagine``.
        """
        horizon = check_rollout(world_model, obs_or_latent, actions, horizon, choose, start_pos)
        with self._whole_inference():
            rollout = self._imagine(world_model, obs_or_latent, actions, horizon, choose, start_pos, generator)
        return Imagination(*_usable_anywhere(rollout))

    def _imagine(
            self, world_model: Any, obs_or_latent: torch.Tensor, actions: Optional[torch.Tensor],
            horizon: int, choose: str, start_pos: Any, generator: Optional[torch.Generator]
    ) -> Imagination:
        model = self._current_model(world_model)
        given = torch.as_tensor(obs_or_latent, device=model.like.device)
        is_latent = given.shape[1:] == (self._num_observations_tokens, world_model.embed_dim)
        latents = given.to(model.like.dtype) if is_latent else model.embed_observations(given)
        # Nodes are found by every bit of the latent states that the search was given.
        names = (given if is_latent else latents).to(at_least_float32(model.like.dtype))
        timesteps = host_timesteps(start_pos or 0 if np.ndim(start_pos) == 0 else start_pos, len(latents)).copy()
        positions = 2 * timesteps[:, None] + np.arange(self._num_observations_tokens)
        with self.store.gather([None] * len(latents), self._num_observations_tokens, model.like) as batch:
            hidden = model.append(batch, latents, positions)
            contexts = self.store.add(batch)
        policy = model.policy_and_value(hidden[:, -1:])[0][:, 0]
        depths = np.zeros(len(latents), dtype=np.int64)
        known = {
            row: node for row, node in enumerate(self._known_nodes(_copy_to_host(names)))
            if node is not None and node.step.policies is not None and node.tree < len(self._lineage.timesteps)
            and self._search_generation == self.weights_generation
        }
        if known:
            rows, nodes = list(known), list(known.values())
            timesteps[rows] = self._lineage.timesteps[[node.tree for node in nodes]]
            self.store.release([contexts[row] for row in rows])
            for row, context in zip(rows, self._contexts.peek(model, nodes, timesteps[rows])):
                contexts[row] = context
            policy[rows] = torch.stack([node.step.policies[node.row] for node in nodes])
            depths[rows] = [node.depth for node in nodes]
        return roll_out(
            model, contexts, policy, timesteps, depths, self.store, self._window, self._positions, actions, horizon,
            choose, generator
        )

    def _known_nodes(self, latents: np.ndarray) -> list[Optional[SearchNode]]:
        if self._lineage is None:
            return [None] * len(latents)
        return [self._lineage.find(row, latent.tobytes()) for row, latent in enumerate(latents)]

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """
        Overview:
            The episodes of some environments have ended.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_ids (:obj:`Optional[Sequence[int]]`): The environments; None: all.
        """
        with self._whole_inference():
            self.histories.forget(phase, env_ids)

    def clear(self) -> None:
        """
        Overview:
            Drop every context, and whatever else was made of the weights. Running episodes and a running search go on:
            what they miss is computed again.
        """
        with self._whole_inference():
            self._drop_contexts()
            self._model = None
            # Weights may have been written to without a trace, which is what LightZero calls this for.
            self._watch = ModelWatch()

    def leave_device(self) -> None:
        """
        Overview:
            Drop everything that lies on the model's device, because the model has moved to another, or to another
            dtype.
        """
        with self._whole_inference():
            self._drop_contexts()
            self._end_search()
            self._model = None
            self.store.drop_memory()

    def _current_model(self, world_model: Any) -> CachedModel:
        if self._watch.has_changed(world_model):
            self._watch.remember(world_model)
            self.weights_generation += 1
            self._drop_contexts()
            self._model = None
            if not self.store.fits(world_model.transformer.ln_f.weight):
                self.store.drop_memory()
        if self._model is None:
            num_places = longest_context(world_model.context_length, self._num_observations_tokens)
            self._model = CachedModel(world_model, num_places, self._window.moves_tokens)
            self.store.place_offsets = self._model.place_offsets
        return self._model

    def _model_of_search(self, world_model: Any) -> CachedModel:
        if self._model is None or self._watch.may_have_changed():
            return self._current_model(world_model)
        return self._model

    def _drop_contexts(self) -> None:
        """Of a running search the lineage stays, from which its contexts are computed again."""
        if self.observer is not None:
            self.observer.drop_contexts()
        self.manager.clear_all()
        self._unpin_roots()
        for history in self.histories:
            self.histories.hold(history, None)

    def _unpin_roots(self) -> None:
        pinned, self._root_contexts = self._root_contexts, []
        self.store.release(pinned)

    def __getstate__(self) -> dict:
        # What is made of the weights is made anew by a copy, whose weights are its own. Its searches are its own, too.
        return dict(self.__dict__, _model=None, _watch=ModelWatch(), observer=None)

    def _start_search(self, lineage: SearchLineage) -> None:
        self._end_search()
        self._lineage = lineage
        self._search_generation = self.weights_generation
        if self.observer is not None:
            self.observer.begin(lineage.phase)

    def _end_search(self) -> None:
        self.manager.clear_recur_cache()
        self.manager.wm_pool.clear()
        self._unpin_roots()
        self._lineage = None

    def _root_tokens(
            self, model: CachedModel, latents: torch.Tensor, actions: Sequence[Any], timesteps: np.ndarray,
            continuing: Sequence[int]
    ) -> tuple[torch.Tensor, np.ndarray, np.ndarray]:
        batch_size, num_latents, _ = latents.shape
        counts = np.full(batch_size, num_latents)
        tokens, positions = latents, 2 * timesteps[:, None] + np.arange(num_latents)
        if continuing:
            counts[continuing] += 1
            tokens = F.pad(latents, (0, 0, 1, 0))
            tokens[continuing, :1] = model.embed_actions(
                stack_actions([actions[row] for row in continuing], latents.device)
            )
            positions = 2 * timesteps[:, None] + np.arange(-1, num_latents)
        return tokens, positions, counts

    def _begin_search(
            self, lineage: SearchLineage, latents: torch.Tensor, histories: Sequence[EnvironmentHistory],
            env_ids: Sequence[int], contexts: Sequence[Context], predictions: Predictions, went_on: Sequence[bool]
    ) -> None:
        self._start_search(lineage)
        on_host = self._on_host(latents)
        priorities = _priorities(self._scores['init_pool'], [0] * len(histories), predictions)
        nodes = []
        step = SearchStep(on_host, predictions.policy[:, 0])
        in_tree = self._begin_following(step.policies)
        for row, history in enumerate(histories):
            history.roots += 1
            scope = f'{history.scope}/{history.roots}'
            nodes.append(SearchNode(
                scope, node_key(scope, 0, on_host[row]), row, 0, step, row, priority=priorities[row],
                in_tree=in_tree[row], env_id=env_ids[row], history=history
            ))
            self._lineage.add(nodes[row], on_host[row].tobytes())
        self._contexts.cache(nodes, contexts)
        for history, node, context in zip(histories, nodes, contexts):
            self.histories.hold(history, context)
            history.key = node.key
        if self.config.on_miss == 'rebuild':
            self._root_contexts = [self.store.retain(context) for context in contexts]
        if self.observer is not None:
            self.observer.roots(nodes, went_on, predictions)

    def _on_host(self, latents: torch.Tensor) -> np.ndarray:
        on_host = _copy_to_host(latents)
        if not np.isfinite(on_host).all():
            self._warn_once(
                'The world model predicts latent states with nan or inf, with the cache as without: have its weights '
                'diverged?'
            )
        return on_host

    def _begin_following(self, policies: torch.Tensor) -> Sequence[Optional[SearchTreeNode]]:
        return [None] * len(policies) if self._follower is None else self._follower.begin(policies)

    def nodes_of(
            self, latents: np.ndarray, search_depth: Sequence[int], timesteps: Optional[np.ndarray] = None
    ) -> list[SearchNode]:
        """
        Overview:
            The nodes of the running search that a batch of latent states means, one per row.
        Arguments:
            - latents (:obj:`np.ndarray`): :math:`(B, num_observations_tokens, E)`.
            - search_depth (:obj:`Sequence[int]`): The depth that the search tree reports, :math:`(B, )`.
            - timesteps (:obj:`Optional[np.ndarray]`): Timesteps of the roots, :math:`(B, )`, for a search that no root
                inference has begun; None: 0.
        Returns:
            - nodes (:obj:`List[SearchNode]`): A latent state that this search has not met becomes a node of its own.
        """
        parents = self._known_nodes(latents)
        if self._lineage is None or (self._lineage.phase == 'unknown' and not any(parents)):
            begin = np.zeros(len(latents), dtype=np.int64) if timesteps is None else timesteps
            self._start_search(SearchLineage('unknown', begin))
        return [
            self._unknown_node(row, latents, search_depth) if parent is None else parent
            for row, parent in enumerate(parents)
        ]

    def _unknown_node(self, row: int, latents: np.ndarray, search_depth: Sequence[int]) -> SearchNode:
        self._warn_once(
            'A search expands a latent state that no inference of this search has returned; its context starts from '
            'that latent state alone.'
        )
        depth = max(0, int(search_depth[row]) - 1) if len(search_depth) else 0
        scope = f'unknown/{row}'
        node = SearchNode(
            scope, node_key(scope, depth, latents[row]), row, depth, SearchStep(latents, None), tree=row
        )
        self._lineage.add(node, latents[row].tobytes())
        return node

    def _expansion_positions(
            self, parents: Sequence[SearchNode], timesteps: np.ndarray, search_depth: Sequence[int]
    ) -> np.ndarray:
        depths = np.asarray([parent.depth for parent in parents])
        action, latent = self._positions.of_expansion(
            timesteps, depths, search_depth, self._lineage.phase == 'reanalyze'
        )
        return np.concatenate([action[:, None], latent[:, None] + np.arange(self._num_observations_tokens)], axis=1)

    def _add_nodes(
            self, parents: Sequence[SearchNode], latents: torch.Tensor, actions: torch.Tensor,
            positions: Optional[np.ndarray], contexts: Sequence[Context], predictions: Predictions
    ) -> torch.Tensor:
        on_host = self._on_host(latents)
        distinct, names = self._lineage.name_latents(on_host, [parent.tree for parent in parents])
        if distinct is not on_host:
            latents = torch.from_numpy(distinct).to(latents.device)
        step = SearchStep(on_host, predictions.policy[:, 0], actions.clone(), positions)
        depths = [parent.depth + 1 for parent in parents]
        priorities: Sequence[Priority] = _priorities(self._scores['recur_pool'], depths, predictions)
        in_tree: Sequence[Optional[SearchTreeNode]] = [None] * len(parents)
        if self._follower is not None:
            in_tree = priorities = self._follower.expand([parent.in_tree for parent in parents], actions, predictions)
        nodes = []
        for row, parent in enumerate(parents):
            key = node_key(parent.scope, depths[row], distinct[row])
            node = SearchNode(
                parent.scope, key, row, depths[row], step, parent.tree, parent, priorities[row], in_tree[row]
            )
            self._lineage.add(node, names[row])
            nodes.append(node)
        self._contexts.cache(nodes, contexts)
        self._contexts.keep_last_inference(
            nodes, contexts, _priorities(self._scores['wm_pool'], depths, predictions)
        )
        if self.observer is not None:
            self.observer.expand(nodes, predictions)
        return latents


def _usable_anywhere(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    # Tensors of inference mode can take no part in what is differentiated or changed in place outside.
    return tuple(tensor.to(at_least_float32(tensor.dtype), copy=True) for tensor in tensors)


def _copy_to_host(latents: torch.Tensor) -> np.ndarray:
    return latents.detach().to('cpu', at_least_float32(latents.dtype), copy=True).numpy()


def is_first_step(action: Any, world_model: Any) -> bool:
    """
    Overview:
        Whether an action marks an episode's first step.
    Arguments:
        - action (:obj:`Any`): As a policy hands it down: -1 at a first step.
        - world_model (:obj:`WorldModel`): The model.
    """
    if world_model.continuous_action_space:
        return np.ndim(action) == 0
    return int(action) == -1


def _priorities(score: Optional[Score], depths: Sequence[int], predictions: Predictions) -> Sequence[Optional[float]]:
    if score is None:
        return [None] * len(depths)
    reward, policy, value = (logits.flatten(1) for logits in predictions)
    priorities = score(np.asarray(depths), reward, policy, value)
    for priority in priorities:
        # Here, because a pool that refuses one has taken those before it.
        if not is_number(priority):
            raise ValueError(f'priority is {priority!r}, which a score has returned: allowed is a number')
    return priorities


def _checked_roots(
        world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments, env_num: int
) -> RootRows:
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


def check_expansion(world_model: Any, latents: Any, actions: Any, search_depth: Sequence[int]) -> None:
    """
    Overview:
        Find what is wrong with the arguments of ``ManagedInference.recurrent``.
    Raises:
        - ValueError: If they do not fit together.
    """
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
