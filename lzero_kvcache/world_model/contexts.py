"""The contexts of a search's nodes: found in the pools, or computed again from the nodes' lineage."""
from collections.abc import Sequence
from typing import Optional

import numpy as np
import torch

from ..manager import KVCacheManager
from ..store import Context, ContextBatch, TokenStore
from .cached_model import CachedModel
from .histories import EnvironmentHistories
from .lineage import SearchNode
from .positions import SearchPositions
from .stock_names import count_queries
from .window import ContextWindow


class NodeContexts:
    """
    Overview:
        Looks contexts up in the pools, rebuilds those that are missing, and caches new ones.
    Arguments:
        - manager (:obj:`KVCacheManager`): The pools, whose values are contexts.
        - store (:obj:`TokenStore`): Where the contexts lie.
        - window (:obj:`ContextWindow`): Keeps them inside the model's window.
        - positions (:obj:`SearchPositions`): Rotary positions.
        - histories (:obj:`EnvironmentHistories`): What the contexts of roots are computed from.
        - lossless (:obj:`bool`): Whether a missing context is computed from its ancestors, or, as in the release, from
            the node's latent state alone.
    """

    def __init__(
            self, manager: KVCacheManager, store: TokenStore, window: ContextWindow, positions: SearchPositions,
            histories: EnvironmentHistories, lossless: bool
    ) -> None:
        self.rebuild_stats = histories.rebuild_stats
        self.last_missing: frozenset[int] = frozenset()
        self._histories = histories
        self._manager = manager
        self._store = store
        self._window = window
        self._positions = positions
        self._lossless = lossless
        if manager.budget is not None:
            store.expected_tokens = manager.budget.store_tokens(manager.sizes)

    def of(
            self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: Optional[np.ndarray]
    ) -> ContextBatch:
        """
        Overview:
            The contexts of a batch of nodes, with room for one step.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - nodes (:obj:`Sequence[SearchNode]`): One node per row.
            - timesteps (:obj:`Optional[np.ndarray]`): Timesteps of the rows' roots, :math:`(B, )`; not looked at
                without rotary positions.
        Returns:
            - batch (:obj:`ContextBatch`): The rows.
        """
        contexts = self._look_up(nodes)
        missing = [row for row, context in enumerate(contexts) if context is None]
        self.last_missing = frozenset(missing)
        count_queries(model.world_model, len(nodes), len(nodes) - len(missing))
        room = 1 + model.num_observations_tokens
        if not missing:
            return self._store.gather(contexts, room, model.like)
        # Caching a rebuilt context may evict one that was found a moment ago.
        held = [self._store.retain(context) for context in contexts if context is not None]
        try:
            missing_nodes = [nodes[row] for row in missing]
            rebuilt = self._rebuild(model, missing_nodes, None if timesteps is None else timesteps[missing])
            held += rebuilt
            self.cache(missing_nodes, rebuilt)
            for row, context in zip(missing, rebuilt):
                contexts[row] = context
            return self._store.gather(contexts, room, model.like)
        finally:
            self._store.release(held)

    def peek(self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: np.ndarray) -> list[Context]:
        """
        Overview:
            The contexts of nodes, for one who does not take part in the search: the pools stay as they are.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - nodes (:obj:`Sequence[SearchNode]`): The nodes.
            - timesteps (:obj:`np.ndarray`): Timesteps of their roots, :math:`(N, )`.
        Returns:
            - contexts (:obj:`List[Context]`): One per node, each held once more, by the caller.
        """
        contexts = [self._peek(node) for node in nodes]
        missing = [row for row, context in enumerate(contexts) if context is None]
        for context in contexts:
            if context is not None:
                self._store.retain(context)
        if missing:
            rebuilt = self._rebuild(model, [nodes[row] for row in missing], timesteps[missing])
            for row, context in zip(missing, rebuilt):
                contexts[row] = context
        return contexts

    def cache(self, nodes: Sequence[SearchNode], contexts: Sequence[Context]) -> None:
        """
        Overview:
            Cache the contexts of a batch of nodes: roots of environments in their init pools, all others in the recur
            pool.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): One node per row.
            - contexts (:obj:`Sequence[Context]`): Their contexts.
        """
        below_roots = []
        for node, context in zip(nodes, contexts):
            node.context = context
            context.holders += 1
            if node.env_id is None:
                below_roots.append((node.key, context, node.priority))
            else:
                self._manager.set_init_cache(node.env_id, node.key, context, node.priority)
        if below_roots:
            self._manager.recur_pool.set_many(*zip(*below_roots))
        if self._store.expected_tokens is not None:
            self._keep_within_budget()

    def _keep_within_budget(self) -> None:
        # Contexts share less than their number lets expect where many have been rebuilt.
        pool = self._manager.recur_pool
        while len(self._store) > self._store.expected_tokens and len(pool):
            pool.evict()

    def keep_last_inference(
            self, nodes: Sequence[SearchNode], contexts: Sequence[Context], priorities: Sequence[Optional[float]]
    ) -> None:
        """
        Overview:
            Let the wm pool hold the rows of the last inference and nothing else.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): One node per row.
            - contexts (:obj:`Sequence[Context]`): Their contexts.
            - priorities (:obj:`Sequence[Optional[float]]`): What each row is worth to the wm pool's strategy.
        """
        self._manager.wm_pool.clear()
        for context in contexts:
            context.holders += 1
        self._manager.wm_pool.set_many([node.key for node in nodes], contexts, priorities)

    def _look_up(self, nodes: Sequence[SearchNode]) -> list[Optional[Context]]:
        manager = self._manager
        below_roots = [node.key for node in nodes if node.env_id is None]
        found = iter(manager.recur_pool.get_many(below_roots) if below_roots else ())
        contexts = []
        for node in nodes:
            if node.env_id is not None:
                contexts.append(manager.get_init_cache(node.env_id, node.key))
                continue
            context = next(found)
            contexts.append(manager.get_wm_cache(node.key) if context is None else context)
        return contexts

    def _peek(self, node: SearchNode) -> Optional[Context]:
        if self._lossless:
            # Whether a pool has it does not matter, only whether its tokens are still there.
            return node.context if node.context is not None and self._store.is_whole(node.context) else None
        if node.env_id is not None:
            return self._manager.init_pools[node.env_id].peek(node.key)
        context = self._manager.recur_pool.peek(node.key)
        return self._manager.wm_pool.peek(node.key) if context is None else context

    def _rebuild(
            self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: Optional[np.ndarray]
    ) -> list[Context]:
        paths = [self._path_from_cached_ancestor(node) for node in nodes]
        origins = [path.pop(0) for path in paths]
        contexts = [self._peek(origin) if self._lossless else None for origin in origins]
        restored = sum(context is not None and not path for context, path in zip(contexts, paths))
        self.rebuild_stats.restored += restored
        self.rebuild_stats.rebuilds += len(nodes) - restored
        missing = [row for row, context in enumerate(contexts) if context is None]
        for context in contexts:
            if context is not None:
                self._store.retain(context)
        from_history = [row for row in missing if self._lossless and origins[row].history is not None]
        from_latent = [row for row in missing if row not in from_history]
        encoded = []
        if from_history:
            encoded += self._histories.encode(model, [origins[row].history for row in from_history])
        if from_latent:
            encoded += self._encode_latents(
                model, [origins[row] for row in from_latent], None if timesteps is None else timesteps[from_latent]
            )
        for row, context in zip(from_history + from_latent, encoded):
            contexts[row] = context
        while any(paths):
            rows = [row for row, path in enumerate(paths) if path]
            steps = [self._take_what_fits(model, paths[row], contexts[row]) for row in rows]
            longer = self._append_nodes(model, [contexts[row] for row in rows], steps)
            self._store.release([contexts[row] for row in rows])
            for row, context in zip(rows, longer):
                contexts[row] = context
        return contexts

    def _path_from_cached_ancestor(self, node: SearchNode) -> list[SearchNode]:
        path = [node]
        if self._lossless:
            while self._peek(path[0]) is None and path[0].parent is not None:
                path.insert(0, path[0].parent)
        return path

    def _encode_latents(
            self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: Optional[np.ndarray]
    ) -> list[Context]:
        latents = torch.from_numpy(np.stack([node.latent for node in nodes])).to(model.like)
        positions = None
        if model.uses_rotary:
            depths = np.asarray([node.depth for node in nodes])
            first = self._positions.of_reset_latent(timesteps, depths)
            positions = first[:, None] + np.arange(latents.shape[1])
        self.rebuild_stats.tokens += latents.shape[0] * latents.shape[1]
        with self._store.gather([None] * len(nodes), latents.shape[1], model.like) as batch:
            model.append(batch, latents, positions)
            return self._store.add(batch)

    def _take_what_fits(self, model: CachedModel, path: list[SearchNode], context: Context) -> list[SearchNode]:
        """As many of the next nodes as can be computed at once."""
        fitting = len(path)
        if not self._window.moves_tokens:
            of_one = 1 + model.num_observations_tokens
            fitting = max(1, -(-(self._window.limit - len(context)) // of_one))
        taken = path[:fitting]
        del path[:fitting]
        return taken

    def _append_nodes(
            self, model: CachedModel, contexts: Sequence[Context], steps: Sequence[Sequence[SearchNode]]
    ) -> list[Context]:
        nodes = [node for of_row in steps for node in of_row]
        actions = model.embed_actions(torch.stack([node.step.actions[node.row] for node in nodes]))
        latents = torch.from_numpy(np.stack([node.latent for node in nodes])).to(actions)
        tokens = torch.cat([actions, latents], dim=1)
        positions = np.stack([node.step.positions[node.row] for node in nodes]) if model.uses_rotary else None
        self.rebuild_stats.tokens += tokens.shape[0] * tokens.shape[1]
        lengths = [len(of_row) for of_row in steps]
        with self._store.gather_chains(
                contexts, lengths, tokens.shape[1], self._window.limit, self._window.kept, model.like
        ) as batch:
            model.append(batch, tokens, positions)
            made = self._window.add(model, batch)
        for node, context in zip(nodes, made):
            node.context = context
        ends = np.cumsum(lengths) - 1
        self._store.release([context for row, context in enumerate(made) if row not in ends])
        return [made[end] for end in ends]
