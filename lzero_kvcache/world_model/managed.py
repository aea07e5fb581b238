"""Inference over managed contexts: mode 'managed'."""
import logging
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch

from ..config import KEY_PATH, KVCacheConfig
from ..eviction import EvictionPolicy
from ..manager import KVCacheManager
from ..store import ContextBatch, ContextShape, ContextStore
from .cached_transformer import ContextWindow, apply_head, embed_actions, extend
from .history import EnvironmentHistory
from .lineage import SearchLineage, SearchNode
from .positions import SearchPositions, history_positions, host_timesteps
from .scores import Score, resolve_score

logger = logging.getLogger('lzero_kvcache')

Predictions = Tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Outputs = Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass(frozen=True)
class RootEnvironments:
    """
    Overview:
        Whose observations a root inference is given.
    Arguments:
        - phase (:obj:`str`): 'collect' or 'eval', whose episodes are kept apart.
        - env_ids (:obj:`Optional[Tuple[int, ...]]`): The environment of each row; None: row i is environment i.
    """
    phase: str = 'collect'
    env_ids: Optional[Tuple[int, ...]] = None

    def ids_of(self, batch_size: int) -> Tuple[int, ...]:
        """
        Overview:
            The environment of each of ``batch_size`` rows.
        """
        return tuple(range(batch_size)) if self.env_ids is None else self.env_ids


@dataclass
class RebuildStats:
    """
    Overview:
        What misses have cost.
    Arguments:
        - rebuilds (:obj:`int`): Contexts that were computed again.
        - tokens (:obj:`int`): Tokens that went through the transformer for them.
    """
    rebuilds: int = 0
    tokens: int = 0


class ManagedInference:
    """
    Overview:
        Root and recurrent inference of one world model over cached contexts. Every prediction equals that of a forward
        without a cache over the row's own tokens. ``context_lengths`` are the tokens per row, :math:`(B, )`, that the last
        inference found in its contexts.
    Arguments:
        - world_model (:obj:`WorldModel`): The model. Only its dimensions are read here; each call gets it again.
        - config (:obj:`KVCacheConfig`): The ``kv_cache`` entry.
        - env_num (:obj:`int`): Environments.
        - num_simulations (:obj:`int`): Simulations per search.
        - game_segment_length (:obj:`Optional[int]`): Steps per game segment.
    Raises:
        - ValueError: If the model's window is too short for a cache.
    """

    def __init__(
            self,
            world_model: Any,
            config: KVCacheConfig,
            env_num: int,
            num_simulations: int,
            game_segment_length: Optional[int] = None,
    ) -> None:
        self.config = config
        self._window = ContextWindow(world_model.context_length, config.window)
        self._num_observations_tokens = world_model.num_observations_tokens
        self._shape = ContextShape(
            num_layers=world_model.num_layers,
            num_heads=world_model.num_heads,
            capacity=self._window.limit - 1 + self._num_observations_tokens,
            head_dim=world_model.embed_dim // world_model.num_heads,
            keep_tokens=config.window == 'rebuild',
        )
        self.store = ContextStore(self._shape)
        self.manager = KVCacheManager(
            SimpleNamespace(
                kv_cache=config, num_simulations=num_simulations, game_segment_length=game_segment_length
            ), env_num, on_release=self.store.release
        )
        self._root_score = _score_of(self.manager.init_pools[0].eviction_policy)
        self._node_score = _score_of(self.manager.recur_pool.eviction_policy)
        self.rebuild_stats = RebuildStats()
        self.context_lengths = np.zeros(0, dtype=np.int64)
        self._positions = SearchPositions(config.rope_positions)
        self._histories: Dict[Tuple[str, int], EnvironmentHistory] = {}
        self._lineage: Optional[SearchLineage] = None
        self._weights: Optional[Tuple] = None
        self._has_met_unknown_node = False

    def initial(self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments) -> Outputs:
        """
        Overview:
            Predict at the roots of a new search. With current observations every environment's episode goes on by
            one step; without, the observations are whole sequences of the replay buffer, which need no cache.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
            - obs_act_dict (:obj:`dict`): 'obs', the last observations :math:`(B, ...)`, 'action', the actions since (-1
                at an episode's first step), and 'current_obs', :math:`(B, ...)` or None.
            - start_pos (:obj:`Union[int, Sequence]`): Timesteps of the current observations.
            - roots (:obj:`RootEnvironments`): Whose observations these are.
        Returns:
            - outputs (:obj:`Tuple`): Hidden states, latent states :math:`(B, num_observations_tokens, E)`, reward logits
                (empty, a root has none), policy and value logits :math:`(B, 1, ...)`.
        Raises:
            - ValueError: If an environment does not exist or the rows do not match.
        """
        if obs_act_dict['current_obs'] is not None:
            return self._predict_roots(world_model, obs_act_dict, start_pos, roots)
        outputs, latents = world_model.reset_for_initial_inference(obs_act_dict, start_pos)
        if world_model.reanalyze_phase:
            self._begin_reanalysis(latents)
        return (
            outputs.output_sequence, latents, outputs.logits_rewards, outputs.logits_policy, outputs.logits_value
        )

    def _predict_roots(
            self, world_model: Any, obs_act_dict: dict, start_pos: Any, roots: RootEnvironments
    ) -> Outputs:
        self._drop_outdated(world_model)
        current = obs_act_dict['current_obs']
        batch_size = len(current)
        timesteps = host_timesteps(start_pos, batch_size)
        first_steps = [is_first_step(action, world_model) for action in obs_act_dict['action']][:batch_size]
        env_ids = roots.ids_of(batch_size)
        _check_rows(batch_size, env_ids, self.manager.env_num, obs_act_dict, first_steps)

        histories = [self._history(roots.phase, env_id) for env_id in env_ids]
        self._meet(histories, obs_act_dict, timesteps, first_steps)
        context = self._resume(world_model, histories, env_ids, first_steps)
        self.context_lengths = context.lengths
        latents = world_model.tokenizer.encode_to_obs_embeddings(current)
        continuing = [row for row in range(batch_size) if not first_steps[row]]
        tokens, positions, counts = self._root_tokens(
            world_model, latents, obs_act_dict['action'], timesteps, continuing
        )
        hidden = extend(world_model, context, tokens, positions, counts)
        last_tokens = torch.as_tensor(counts, device=hidden.device)[:, None] + torch.arange(
            -self._num_observations_tokens, 0, device=hidden.device
        )
        hidden = hidden.gather(1, last_tokens[:, :, None].expand(-1, -1, hidden.shape[-1]))
        policy, value = self._policy_and_value(world_model, hidden[:, -1:])
        self._window.apply(world_model, context, self._shape)

        for row, history in enumerate(histories):
            history.append(current[row].clone(), obs_act_dict['action'][row], int(timesteps[row]))
        no_reward = value.new_zeros(batch_size, 0, world_model.support_size)
        self._begin_search(roots.phase, latents, histories, env_ids, context, (no_reward, policy, value))
        return hidden, latents, no_reward, policy, value

    def _begin_reanalysis(self, latents: torch.Tensor) -> None:
        self.end_search()
        self._lineage = SearchLineage('reanalyze', len(latents))
        on_host = _copy_to_host(latents)
        for row in range(len(on_host)):
            key = self._lineage.node_key(f'reanalyze/{row}', 0, on_host[row])
            self._lineage.add(SearchNode(key, row, 0, on_host), on_host[row])

    def recurrent(
            self, world_model: Any, state_action_history: List[Tuple], simulation_index: int,
            search_depth: Sequence[int], start_pos: Any
    ) -> Outputs:
        """
        Overview:
            Predict what follows from taking an action at a node, for a batch of nodes, one per root.
        Arguments:
            - world_model (:obj:`WorldModel`): The model.
            - state_action_history (:obj:`List[Tuple]`): Its last item is looked at: the latent states of the nodes as an
                earlier inference of the search returned them, :math:`(B, num_observations_tokens, E)`, and the
                actions, :math:`(B, )` or :math:`(B, action_space_size)`.
            - simulation_index (:obj:`int`): Not needed.
            - search_depth (:obj:`Sequence[int]`): The depth that the search tree reports, :math:`(B, )`.
            - start_pos (:obj:`Union[int, Sequence]`): Timesteps of the roots.
        Returns:
            - outputs (:obj:`Tuple`): Hidden state, next latent states :math:`(B, num_observations_tokens, E)`, reward,
                policy and value logits :math:`(B, 1, ...)`.
        """
        latents, actions = state_action_history[-1]
        if isinstance(latents, torch.Tensor):
            latents = latents.detach().cpu().numpy()
        timesteps = host_timesteps(start_pos, len(latents))
        parents = self.nodes_of(latents, search_depth)
        depths = np.asarray([parent.depth for parent in parents])
        positions = self._expansion_positions(world_model, timesteps, depths, search_depth)
        context = self._contexts_of(world_model, parents, timesteps)
        self.context_lengths = context.lengths

        def step(token: torch.Tensor, position_index: int) -> torch.Tensor:
            at = None if positions is None else positions[:, position_index:position_index + 1]
            return extend(world_model, context, token, at)

        hidden = step(embed_actions(world_model, actions), 0)
        reward = apply_head(world_model.head_rewards, hidden)
        next_latents = []
        for index in range(1, 1 + self._num_observations_tokens):
            next_latents.append(apply_head(world_model.head_observations, hidden))
            hidden = step(next_latents[-1], index)
        policy, value = self._policy_and_value(world_model, hidden)
        next_latents = torch.cat(next_latents, dim=1)
        self._window.apply(world_model, context, self._shape)
        next_latents = self._add_nodes(parents, next_latents, actions, positions, context, (reward, policy, value))
        return hidden, next_latents, reward, policy, value

    def forget(self, phase: str, env_ids: Optional[Sequence[int]] = None) -> None:
        """
        Overview:
            The episodes of some environments have ended.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_ids (:obj:`Optional[Sequence[int]]`): The environments; None: all.
        """
        for (history_phase, env_id), history in self._histories.items():
            if history_phase == phase and (env_ids is None or env_id in env_ids):
                self._unpin(history)
                history.restart()

    def clear(self) -> None:
        """
        Overview:
            Drop every cached context. Running episodes are rebuilt from their observations when they go on.
        """
        self.end_search()
        self.manager.clear_all()
        for history in self._histories.values():
            self._unpin(history)

    def end_search(self) -> None:
        """
        Overview:
            Drop the running search with its nodes and lineage.
        """
        self.manager.clear_recur_cache()
        self.manager.wm_pool.clear()
        if self._lineage is not None:
            for node in self._lineage.nodes():
                if node.context is not None:
                    self.store.release(node.context)
        self._lineage = None

    def leave_device(self) -> None:
        """
        Overview:
            Drop everything that lies on the model's device, because the model may be moving to another.
        """
        self.clear()
        self.store.drop_memory()
        for history in self._histories.values():
            history.restart()

    def _drop_outdated(self, world_model: Any) -> None:
        weights = tuple((tensor.data_ptr(), tensor._version) for tensor in world_model.parameters())
        if weights != self._weights:
            self.clear()
        self._weights = weights

    def _history(self, phase: str, env_id: int) -> EnvironmentHistory:
        if (phase, env_id) not in self._histories:
            tokens_per_step = 1 + self._num_observations_tokens
            num_observations = 1 + max(0, self._window.kept - self._num_observations_tokens) // tokens_per_step
            self._histories[phase, env_id] = EnvironmentHistory(f'{phase}/{env_id}', num_observations)
        return self._histories[phase, env_id]

    def _meet(
            self, histories: Sequence[EnvironmentHistory], obs_act_dict: dict, timesteps: np.ndarray,
            first_steps: Sequence[bool]
    ) -> None:
        for row, history in enumerate(histories):
            if first_steps[row]:
                self._unpin(history)
                history.restart()
            elif not history.continues_from(obs_act_dict['obs'][row]):
                self._unpin(history)
                history.restart()
                history.append(obs_act_dict['obs'][row].clone(), None, int(timesteps[row]) - 1)

    def _resume(
            self, world_model: Any, histories: Sequence[EnvironmentHistory], env_ids: Sequence[int],
            first_steps: Sequence[bool]
    ) -> ContextBatch:
        context = ContextBatch.empty(len(histories), self._shape, _like(world_model))
        cached_rows, handles, missing = [], [], []
        for row, history in enumerate(histories):
            if first_steps[row]:
                continue
            handle = None
            if history.key is not None:
                handle = self.manager.get_init_cache(env_ids[row], history.key)
                world_model.root_total_query_cnt += 1
                world_model.root_hit_cnt += handle is not None
                if handle is None and self.config.on_miss == 'rebuild' and history.context is not None:
                    handle = history.context
                    self.rebuild_stats.rebuilds += 1
            if handle is None:
                missing.append(row)
            else:
                cached_rows.append(row)
                handles.append(handle)
        if cached_rows:
            context.assign(cached_rows, self.store.gather(handles))
        if missing:
            context.assign(missing, self._encode_histories(world_model, [histories[row] for row in missing]))
        return context

    def _encode_histories(self, world_model: Any, histories: Sequence[EnvironmentHistory]) -> ContextBatch:
        kept = 1 if self.config.on_miss == 'reset' else None
        observations = [list(history.observations)[-kept if kept else None:] for history in histories]
        latents = world_model.tokenizer.encode_to_obs_embeddings(
            torch.stack([observation for episode in observations for observation in episode])
        ).split([len(episode) for episode in observations])
        sequences, positions = [], []
        for history, episode in zip(histories, latents):
            blocks = [episode[0]]
            if len(episode) > 1:
                actions = embed_actions(world_model, _stack_actions(history.actions_between(), episode.device))
                for action, latent in zip(actions, episode[1:]):
                    blocks += [action, latent]
            sequences.append(torch.cat(blocks))
            timesteps = list(history.timesteps)[-len(episode):]
            if kept and self.config.rope_positions == 'release':
                timesteps = [step + 1 for step in timesteps]
            positions.append(history_positions(timesteps, self._num_observations_tokens))
        counts = np.asarray([len(sequence) for sequence in sequences])
        tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        context = ContextBatch.empty(len(histories), self._shape, tokens)
        padded = np.stack([np.pad(row, (0, counts.max() - len(row))) for row in positions])
        extend(world_model, context, tokens, padded if world_model.config.rotary_emb else None, counts)
        self.rebuild_stats.rebuilds += len(histories)
        self.rebuild_stats.tokens += int(counts.sum())
        return context

    def _root_tokens(
            self, world_model: Any, latents: torch.Tensor, actions: Sequence[Any], timesteps: np.ndarray,
            continuing: Sequence[int]
    ) -> Tuple[torch.Tensor, Optional[np.ndarray], np.ndarray]:
        batch_size, num_latents, embed_dim = latents.shape
        counts = np.full(batch_size, num_latents)
        positions = 2 * timesteps[:, None] + np.arange(num_latents)
        tokens = latents
        if continuing:
            counts[continuing] += 1
            tokens = torch.cat([latents, latents.new_zeros(batch_size, 1, embed_dim)], dim=1)
            positions = np.pad(positions, ((0, 0), (0, 1)))
            action_tokens = embed_actions(
                world_model, _stack_actions([actions[row] for row in continuing], latents.device)
            )
            tokens[continuing] = torch.cat([action_tokens, latents[continuing]], dim=1)
            positions[continuing] = 2 * timesteps[continuing, None] + np.arange(-1, num_latents)
        return tokens, positions if world_model.config.rotary_emb else None, counts

    def _policy_and_value(self, world_model: Any, hidden: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        return apply_head(world_model.head_policy, hidden), apply_head(world_model.head_value, hidden)

    def _begin_search(
            self, phase: str, latents: torch.Tensor, histories: Sequence[EnvironmentHistory], env_ids: Sequence[int],
            context: ContextBatch, predictions: Predictions
    ) -> None:
        self.end_search()
        self._lineage = SearchLineage(phase, len(histories))
        on_host = _copy_to_host(latents)
        priorities = _priorities(self._root_score, np.zeros(len(histories), dtype=np.int64), predictions)
        nodes = []
        for row, history in enumerate(histories):
            history.roots += 1
            history.key = self._lineage.node_key(f'{history.scope}/{history.roots}', 0, on_host[row])
            nodes.append(SearchNode(history.key, row, 0, on_host, env_id=env_ids[row], priority=priorities[row]))
            self._lineage.add(nodes[row], on_host[row])
        handles = self._cache(nodes, context)
        for history, node, handle in zip(histories, nodes, handles):
            self._unpin(history)
            if self.config.on_miss == 'rebuild':
                history.context = self.store.retain(handle)
                node.context = self.store.retain(handle)

    def history_key(self, phase: str, env_id: int) -> Optional[str]:
        """
        Overview:
            The key of an environment's last root context, None at an episode's first step.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_id (:obj:`int`): The environment.
        """
        history = self._histories.get((phase, env_id))
        return None if history is None else history.key

    def nodes_of(self, latents: np.ndarray, search_depth: Sequence[int]) -> List[SearchNode]:
        """
        Overview:
            The nodes of the running search that a batch of latent states means, one per row.
        Arguments:
            - latents (:obj:`np.ndarray`): :math:`(B, num_observations_tokens, E)`.
            - search_depth (:obj:`Sequence[int]`): The depth that the search tree reports, :math:`(B, )`.
        Returns:
            - nodes (:obj:`List[SearchNode]`): A latent state that this search has not met becomes a node of its own.
        """
        if self._lineage is None or self._lineage.batch_size != len(latents):
            self.end_search()
            self._lineage = SearchLineage('unknown', len(latents))
        parents = []
        for row, latent in enumerate(latents):
            node = self._lineage.find(row, latent)
            if node is None:
                node = self._unknown_node(row, latents, search_depth)
            parents.append(node)
        return parents

    def _unknown_node(self, row: int, latents: np.ndarray, search_depth: Sequence[int]) -> SearchNode:
        if not self._has_met_unknown_node:
            self._has_met_unknown_node = True
            logger.warning(
                'A search expands a latent state that no inference of this search has returned; its context starts '
                'from that latent state alone. Said once.'
            )
        depth = max(0, int(search_depth[row]) - 1) if len(search_depth) else 0
        key = self._lineage.node_key(f'unknown/{row}', depth, latents[row])
        node = SearchNode(key, row, depth, latents)
        self._lineage.add(node, latents[row])
        return node

    def _expansion_positions(
            self, world_model: Any, timesteps: np.ndarray, depths: np.ndarray, search_depth: Sequence[int]
    ) -> Optional[np.ndarray]:
        if not world_model.config.rotary_emb:
            return None
        action, latent = self._positions.of_expansion(
            timesteps, depths, search_depth, self._lineage.phase == 'reanalyze'
        )
        return np.concatenate([action[:, None], latent[:, None] + np.arange(self._num_observations_tokens)], axis=1)

    def _contexts_of(self, world_model: Any, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> ContextBatch:
        handles: List[Optional[int]] = []
        for node in nodes:
            handle = self._look_up(node)
            # Caching a rebuilt context may evict one that was found a moment ago.
            handles.append(None if handle is None else self.store.retain(handle))
        found = [row for row, handle in enumerate(handles) if handle is not None]
        missing = [row for row, handle in enumerate(handles) if handle is None]
        world_model.total_query_count += len(nodes)
        world_model.hit_count += len(found)
        try:
            if not missing:
                return self.store.gather(handles)
            context = ContextBatch.empty(len(nodes), self._shape, _like(world_model))
            if found:
                context.assign(found, self.store.gather([handles[row] for row in found]))
            missing_nodes = [nodes[row] for row in missing]
            rebuilt = self._rebuild(world_model, missing_nodes, timesteps[missing])
            context.assign(missing, rebuilt)
            self._cache(missing_nodes, rebuilt)
            return context
        finally:
            for row in found:
                self.store.release(handles[row])

    def _look_up(self, node: SearchNode) -> Optional[int]:
        if node.env_id is not None:
            return self.manager.get_init_cache(node.env_id, node.key)
        handle = self.manager.get_recur_cache(node.key)
        return self.manager.get_wm_cache(node.key) if handle is None else handle

    def _peek(self, node: SearchNode) -> Optional[int]:
        if node.env_id is not None:
            handle = self.manager.init_pools[node.env_id].peek(node.key)
            return node.context if handle is None else handle
        handle = self.manager.recur_pool.peek(node.key)
        return self.manager.wm_pool.peek(node.key) if handle is None else handle

    def _rebuild(self, world_model: Any, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> ContextBatch:
        bases: List[Optional[int]] = []
        origins: List[SearchNode] = []
        paths: List[List[SearchNode]] = []
        for node in nodes:
            path = []
            if self.config.on_miss == 'rebuild':
                while self._peek(node) is None and node.parent is not None:
                    path.append(node)
                    node = node.parent
                bases.append(self._peek(node))
            else:
                bases.append(None)
            origins.append(node)
            paths.append(path[::-1])

        context = ContextBatch.empty(len(nodes), self._shape, _like(world_model))
        based = [row for row, base in enumerate(bases) if base is not None]
        if based:
            context.assign(based, self.store.gather([bases[row] for row in based]))
        unbased = [row for row, base in enumerate(bases) if base is None]
        if unbased:
            context.assign(unbased, self._encode_latents(
                world_model, [origins[row] for row in unbased], timesteps[unbased]
            ))
        for step in range(max(len(path) for path in paths)):
            rows = [row for row, path in enumerate(paths) if len(path) > step]
            longer = context.select(rows)
            self._append_nodes(world_model, longer, [paths[row][step] for row in rows])
            context.assign(rows, longer)
        self.rebuild_stats.rebuilds += len(nodes)
        self.rebuild_stats.tokens += len(unbased) * self._num_observations_tokens
        self.rebuild_stats.tokens += sum(len(path) for path in paths) * (1 + self._num_observations_tokens)
        return context

    def _encode_latents(self, world_model: Any, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> ContextBatch:
        latents = _stack_latents(nodes, _like(world_model))
        context = ContextBatch.empty(len(nodes), self._shape, latents)
        positions = None
        if world_model.config.rotary_emb:
            depths = np.asarray([node.depth for node in nodes])
            first = self._positions.of_reset_latent(timesteps, depths)
            positions = first[:, None] + np.arange(self._num_observations_tokens)
        extend(world_model, context, latents, positions)
        return context

    def _append_nodes(self, world_model: Any, context: ContextBatch, nodes: Sequence[SearchNode]) -> None:
        actions = embed_actions(world_model, torch.stack([node.actions[node.row] for node in nodes]))
        tokens = torch.cat([actions, _stack_latents(nodes, actions)], dim=1)
        positions = np.stack([node.positions for node in nodes]) if world_model.config.rotary_emb else None
        extend(world_model, context, tokens, positions)
        self._window.apply(world_model, context, self._shape)

    def _add_nodes(
            self, parents: Sequence[SearchNode], latents: torch.Tensor, actions: torch.Tensor,
            positions: Optional[np.ndarray], context: ContextBatch, predictions: Predictions
    ) -> torch.Tensor:
        on_host = _copy_to_host(latents)
        distinct = self._lineage.distinct_latents(on_host)
        if distinct is not on_host:
            latents = torch.from_numpy(distinct).to(latents.device)
        actions = actions.clone()
        depths = np.asarray([parent.depth + 1 for parent in parents])
        priorities = _priorities(self._node_score, depths, predictions)
        nodes = []
        for row, parent in enumerate(parents):
            scope = parent.key.rsplit('/', 2)[0]
            node = SearchNode(
                self._lineage.node_key(scope, parent.depth + 1, distinct[row]), row, parent.depth + 1, on_host,
                parent=parent, actions=actions, positions=None if positions is None else positions[row],
                priority=priorities[row]
            )
            self._lineage.add(node, distinct[row])
            nodes.append(node)
        self._cache(nodes, context, as_last_inference=True)
        return latents

    def _cache(
            self, nodes: Sequence[SearchNode], context: ContextBatch, as_last_inference: bool = False
    ) -> List[int]:
        handles = []
        if as_last_inference:
            self.manager.wm_pool.clear()
        for node in nodes:
            handle = self.store.reserve()
            handles.append(handle)
            if node.env_id is not None:
                self.manager.set_init_cache(node.env_id, node.key, handle, node.priority)
                continue
            if as_last_inference:
                self.manager.set_wm_cache(node.key, self.store.retain(handle), node.priority)
            self.manager.set_recur_cache(node.key, handle, node.priority)
        # In a pool smaller than the batch a row's handle may be free again, or already another row's.
        row_of_handle = {handle: row for row, handle in enumerate(handles) if self.store.is_live(handle)}
        rows = list(row_of_handle.values())
        self.store.write(list(row_of_handle), context if len(rows) == len(context) else context.select(rows))
        return handles

    def _unpin(self, history: EnvironmentHistory) -> None:
        if history.context is not None:
            self.store.release(history.context)
            history.context = None


def _like(world_model: Any) -> torch.Tensor:
    return world_model.transformer.ln_f.weight


def _copy_to_host(latents: torch.Tensor) -> np.ndarray:
    return latents.detach().cpu().numpy().copy()


def _stack_latents(nodes: Sequence[SearchNode], like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.stack([node.latent for node in nodes])).to(like)


def _stack_actions(actions: Sequence[Any], device: torch.device) -> torch.Tensor:
    return torch.as_tensor(np.stack([np.asarray(action) for action in actions]), device=device)


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


def _score_of(policy: EvictionPolicy) -> Optional[Score]:
    name = getattr(policy, 'score', None)
    return None if name is None else resolve_score(name, f'{KEY_PATH}.strategy.score')


def _priorities(score: Optional[Score], depths: np.ndarray, predictions: Predictions) -> Sequence[Optional[float]]:
    if score is None:
        return [None] * len(depths)
    reward, policy, value = (logits.flatten(1) for logits in predictions)
    return score(depths, reward, policy, value)


def _check_rows(
        batch_size: int, env_ids: Sequence[int], env_num: int, obs_act_dict: dict, first_steps: Sequence[bool]
) -> None:
    if sorted(set(env_ids)) != sorted(env_ids) or len(env_ids) != batch_size:
        raise ValueError(f'env_ids are {list(env_ids)}: needed is one environment for each of the {batch_size} rows')
    if min(env_ids) < 0 or max(env_ids) >= env_num:
        raise ValueError(f'env_ids are {list(env_ids)}: allowed are 0 to {env_num - 1}')
    if len(first_steps) != batch_size:
        raise ValueError(f'{len(first_steps)} actions came with {batch_size} observations: needed is one for each')
    if not all(first_steps) and len(obs_act_dict['obs']) != batch_size:
        raise ValueError(
            f"{len(obs_act_dict['obs'])} last observations came with {batch_size} current ones: needed is one for each"
        )
