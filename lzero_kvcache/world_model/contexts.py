"""The contexts of a search's nodes: found in the pools, or computed again."""
from collections.abc import Sequence
from typing import Optional

import numpy as np

from ..manager import KVCacheManager
from ..store import Context, ContextBatch, TokenStore
from .cached_model import CachedModel
from .lineage import SearchNode
from .rebuild import ContextRebuilder
from .stock_names import count_queries
from .window import ContextWindow


class NodeContexts:
    """
    Overview:
        Looks contexts up in the pools, lets those that are missing be computed again, and caches new ones.
    Arguments:
        - manager (:obj:`KVCacheManager`): The pools, whose values are contexts.
        - store (:obj:`TokenStore`): Where the contexts lie.
        - window (:obj:`ContextWindow`): Keeps them inside the model's window.
        - rebuilder (:obj:`ContextRebuilder`): Computes what is missing.
        - lossless (:obj:`bool`): Whether a context that no pool has may be used if it is still there.
        - tokens_per_step (:obj:`int`): Tokens of an action and the latent state that follows.
    """

    def __init__(
            self, manager: KVCacheManager, store: TokenStore, window: ContextWindow, rebuilder: ContextRebuilder,
            lossless: bool, tokens_per_step: int
    ) -> None:
        self.last_missing: frozenset[int] = frozenset()
        self._manager = manager
        self._store = store
        self._window = window
        self._rebuilder = rebuilder
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
        routes = self._rebuilder.begin(
            model, [nodes[row] for row in missing], None if timesteps is None else timesteps[missing]
        )
        batch = self._rebuilder.gather(model, found, dict(zip(missing, routes)))
        # Not before the batch holds what was found: this may evict it.
        finished = [route for route in routes if not route.steps]
        self.cache([route.node for route in finished], [route.context for route in finished])
        self._store.release([route.context for route in routes])
        return batch

    def add(self, model: CachedModel, batch: ContextBatch, nodes: Sequence[SearchNode]) -> list[Context]:
        """
        Overview:
            Store what has been appended to a batch that ``of`` has returned. What was missing is cached, too.
        Arguments:
            - model (:obj:`CachedModel`): The model.
            - batch (:obj:`ContextBatch`): The rows, within their ``with`` block.
            - nodes (:obj:`Sequence[SearchNode]`): The nodes that ``of`` was given.
        Returns:
            - contexts (:obj:`List[Context]`): One per row, each held once, by the caller.
        """
        if batch.preceding is None:
            return self._window.add(model, batch)
        rebuilt = self._window.add(model, batch.preceding.batch, batch.preceding.ends)
        contexts = self._window.add(model, batch)
        for node, context in zip(batch.preceding.owners, rebuilt):
            node.context = context
        wanted = set(nodes)
        missing = [(node, context) for node, context in zip(batch.preceding.owners, rebuilt) if node in wanted]
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
            routes = self._rebuilder.begin(model, [nodes[row] for row in missing], timesteps[missing])
            self._rebuilder.finish(model, routes)
            for row, route in zip(missing, routes):
                contexts[row] = route.context
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
            return self._rebuilder.whole_context(node)
        if node.env_id is not None:
            return self._manager.init_pools[node.env_id].peek(node.key)
        context = self._manager.recur_pool.peek(node.key)
        return self._manager.wm_pool.peek(node.key) if context is None else context
