"""The contexts of a search's nodes: found in the pools, or computed again from the nodes' lineage."""
from collections.abc import Mapping, Sequence
from typing import Callable, Optional, Union

import numpy as np
import torch

from ..manager import KVCacheManager
from ..store import Context, ContextBatch, PrecedingSteps, TokenStore
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
        - tokens_per_step (:obj:`int`): Tokens of an action and the latent state that follows.
    """

    def __init__(
            self, manager: KVCacheManager, store: TokenStore, window: ContextWindow, positions: SearchPositions,
            histories: EnvironmentHistories, lossless: bool, tokens_per_step: int
    ) -> None:
        self.rebuild_stats = histories.rebuild_stats
        self.last_missing: frozenset[int] = frozenset()
        self._histories = histories
        self._manager = manager
        self._store = store
        self._window = window
        self._positions = positions
        self._lossless = lossless
        self._tokens_per_step = tokens_per_step
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
        found = self._look_up(nodes)
        missing = [row for row, context in enumerate(found) if context is None]
        self.last_missing = frozenset(missing)
        count_queries(model.world_model, len(nodes), len(nodes) - len(missing))
        if not missing:
            return self._store.gather(found, self._tokens_per_step, model.like)
        begun, paths = self._begin_rebuild(
            model, [nodes[row] for row in missing], None if timesteps is None else timesteps[missing]
        )
        try:
            self._take_steps(model, begun, paths, self._fits_before_a_step)
            batch = self._with_steps(model, found, dict(zip(missing, zip(begun, paths))))
            # Not before the batch holds what was found: this may evict it.
            ready = [number for number, path in enumerate(paths) if not path]
            self.cache([nodes[missing[number]] for number in ready], [begun[number] for number in ready])
        finally:
            self._store.release(begun)
        return batch

    def add(self, model: CachedModel, batch: ContextBatch) -> list[Context]:
        """
        Overview:
            Store what has been appended to a batch that ``of`` has returned. What was missing is cached, too.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - batch (:obj:`ContextBatch`): The rows, within their ``with`` block.
        Returns:
            - contexts (:obj:`List[Context]`): One per row, each held once, by the caller.
        """
        if batch.preceding is None:
            return self._window.add(model, batch)
        rebuilt = self._window.add(model, batch.preceding.batch, batch.preceding.ends)
        contexts = self._window.add(model, batch)
        missing = []
        for (node, is_missing), context in zip(batch.preceding.owners, rebuilt):
            node.context = context
            if is_missing:
                missing.append((node, context))
        self.cache(*zip(*missing))
        self._store.release(rebuilt)
        return contexts

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
            rebuilt, paths = self._begin_rebuild(model, [nodes[row] for row in missing], timesteps[missing])
            self._take_steps(model, rebuilt, paths, lambda context, path: not path)
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

    def _begin_rebuild(
            self, model: CachedModel, nodes: Sequence[SearchNode], timesteps: Optional[np.ndarray]
    ) -> tuple[list[Context], list[list[SearchNode]]]:
        """What missing contexts go on from, each held once more, and the nodes on the way to them."""
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
        return contexts, paths

    def _take_steps(
            self, model: CachedModel, contexts: list[Context], paths: Sequence[list[SearchNode]],
            is_done: Callable[[Context, Sequence[SearchNode]], bool]
    ) -> None:
        """Go along the paths, as many nodes at once as fit. Contexts and paths are changed in place."""
        while True:
            rows = [row for row, path in enumerate(paths) if not is_done(contexts[row], path)]
            if not rows:
                return
            steps = [self._take_what_fits(paths[row], contexts[row]) for row in rows]
            longer = self._append_nodes(model, [contexts[row] for row in rows], steps)
            self._store.release([contexts[row] for row in rows])
            for row, context in zip(rows, longer):
                contexts[row] = context

    def _fits_before_a_step(self, context: Context, path: Sequence[SearchNode]) -> bool:
        """Whether a step can follow in the same forward: a context that is encoded again must come first."""
        return self._window.moves_tokens or not path or (
            len(context) + len(path) * self._tokens_per_step < self._window.limit
        )

    def _with_steps(
            self, model: CachedModel, found: Sequence[Optional[Context]],
            begun: Mapping[int, tuple[Context, Sequence[SearchNode]]]
    ) -> ContextBatch:
        """The rows, preceded by the steps that lead to those that are missing."""
        last: list[Union[Context, int, None]] = list(found)
        preceding: list[tuple[SearchNode, bool]] = []
        beginnings: list[Union[Context, int]] = []
        for row, (context, path) in begun.items():
            last[row] = self._add_beginnings(beginnings, context, len(path))
            preceding += [(node, node is path[-1]) for node in path]
        if not preceding:
            return self._store.gather(last, self._tokens_per_step, model.like)
        ends = self._ends_of(beginnings)
        batch = self._store.gather_steps(
            beginnings + last, ends, self._tokens_per_step, self._window.limit, self._window.kept, model.like
        )
        batch.preceding = PrecedingSteps(*self._step_tokens(model, [node for node, _ in preceding]), ends, preceding)
        return batch

    def _add_beginnings(
            self, beginnings: list[Union[Context, int]], context: Context, num_steps: int
    ) -> Union[Context, int]:
        """What each token of a chain of steps begins with, and what comes after the chain does."""
        last: Union[Context, int] = context
        for _ in range(num_steps * self._tokens_per_step):
            beginnings.append(last)
            last = len(beginnings) - 1
        return last

    def _ends_of(self, beginnings: Sequence[Union[Context, int]]) -> range:
        return range(self._tokens_per_step - 1, len(beginnings), self._tokens_per_step)

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

    def _take_what_fits(self, path: list[SearchNode], context: Context) -> list[SearchNode]:
        """As many of the next nodes as can be computed at once."""
        fitting = len(path)
        if not self._window.moves_tokens:
            fitting = max(1, -(-(self._window.limit - len(context)) // self._tokens_per_step))
        taken = path[:fitting]
        del path[:fitting]
        return taken

    def _append_nodes(
            self, model: CachedModel, contexts: Sequence[Context], steps: Sequence[Sequence[SearchNode]]
    ) -> list[Context]:
        nodes = [node for of_row in steps for node in of_row]
        tokens, positions = self._step_tokens(model, nodes)
        beginnings: list[Union[Context, int]] = []
        for context, of_row in zip(contexts, steps):
            self._add_beginnings(beginnings, context, len(of_row))
        ends = self._ends_of(beginnings)
        with self._store.gather_steps(
                beginnings, ends, 1, self._window.limit, self._window.kept, model.like
        ) as batch:
            model.append(batch, tokens, positions)
            made = self._window.add(model, batch, ends)
        for node, context in zip(nodes, made):
            node.context = context
        last = np.cumsum([len(of_row) for of_row in steps]) - 1
        self._store.release([context for number, context in enumerate(made) if number not in last])
        return [made[number] for number in last]

    def _step_tokens(
            self, model: CachedModel, nodes: Sequence[SearchNode]
    ) -> tuple[torch.Tensor, Optional[np.ndarray]]:
        """The tokens that lead to nodes, action and latent state, and their rotary positions, one token per row."""
        actions = model.embed_actions(torch.stack([node.step.actions[node.row] for node in nodes]))
        latents = torch.from_numpy(np.stack([node.latent for node in nodes])).to(actions)
        tokens = torch.cat([actions, latents], dim=1).flatten(0, 1)[:, None]
        self.rebuild_stats.tokens += len(tokens)
        positions = None
        if model.uses_rotary:
            positions = np.concatenate([node.step.positions[node.row] for node in nodes])[:, None]
        return tokens, positions
