"""The contexts of a search's nodes: found in the pools, or computed again."""
from collections.abc import Sequence
from typing import Any, Optional, Union

import numpy as np

from ..manager import KVCacheManager
from ..stats import RebuildStats
from ..store.context import Context, ContextBatch
from ..store.token_store import TokenStore
from .episode import Episode
from .rebuild import MOST_TOKENS, ContextRebuilder, Route
from .search import Search


class SearchContexts:
    """Looks contexts up in the pools, has missing ones computed again by ``forward``, and caches new ones.
    ``lossless``: a missing context may still be used if its tokens are there, and computed from its ancestors. Each
    step has ``tokens_per_step``, an action and a latent state.
    """

    def __init__(
            self, manager: KVCacheManager, store: TokenStore, stats: RebuildStats, lossless: bool, tokens_per_step: int
    ) -> None:
        self.last_missing: frozenset[int] = frozenset()
        self._manager = manager
        self._store = store
        self._stats = stats
        self._lossless = lossless
        self._tokens_per_step = tokens_per_step
        self._rebuilder = ContextRebuilder(store, stats, lossless, tokens_per_step)
        # Of the running search, so that every node has an ancestor whose context is there.
        self._pinned: list[Context] = []
        if manager.budget is not None:
            store.expected_tokens = manager.budget.store_tokens(manager.sizes)

    def resume(
            self, forward: Any, episodes: Sequence[Episode], env_ids: Sequence[int], are_running: Sequence[bool]
    ) -> tuple[ContextBatch, int]:
        """Gather the contexts of running episodes, empty for others, and count those that init pools had."""
        contexts: list[Optional[Context]] = [
            None if episode.key is None else self._manager.get_init_cache(env_id, episode.key)
            for episode, env_id in zip(episodes, env_ids)
        ]
        hits = len(contexts) - contexts.count(None)
        for row, episode in enumerate(episodes):
            if contexts[row] is None and episode.key is not None and episode.context is not None:
                self._stats.restored += 1
                contexts[row] = episode.context
        missing = [row for row, context in enumerate(contexts) if context is None and are_running[row]]
        self.last_missing = frozenset(missing)
        self._stats.rebuilds += len(missing)
        self._rebuilder.encode_in_place(forward, contexts)
        encoded = self._rebuilder.encode_episodes(forward, [episodes[row] for row in missing])
        for row, context in zip(missing, encoded):
            contexts[row] = context
        batch = self._store.gather(contexts, self._tokens_per_step, forward.model)
        self._store.release(encoded)
        return batch, hits

    def begin(
            self, search: Search, roots: Sequence[int], contexts: Sequence[Context], episodes: Sequence[Episode],
            env_ids: Sequence[int], priorities: Sequence[Optional[float]]
    ) -> None:
        """Cache the contexts of a search's roots, which continue episodes, in their environments' init pools."""
        for root, episode, env_id, priority in zip(roots, episodes, env_ids, priorities):
            search.env_ids[root], search.episodes[root], search.priorities[root] = env_id, episode, priority
        self.cache(search, roots, contexts)
        for root, context, episode in zip(roots, contexts, episodes):
            self.hold(episode, context)
            episode.key = search.first_key + root
        if self._lossless:
            self._pinned = [self._store.retain(context) for context in contexts]

    def hold(self, episode: Episode, context: Optional[Context]) -> None:
        """Let an episode hold a context in place of its former one, where misses lose nothing."""
        if episode.context is not None:
            self._store.release([episode.context])
        episode.context = self._store.retain(context) if self._lossless and context is not None else None

    def unpin(self) -> None:
        """The roots of the search need no contexts any more."""
        pinned, self._pinned = self._pinned, []
        self._store.release(pinned)

    def expand(
            self, forward: Any, search: Search, nodes: Sequence[int], actions: Any, positions: Optional[np.ndarray]
    ) -> tuple[Any, list[int], list[Context]]:
        """Take an action at nodes. Returns predictions, context lengths, and new contexts, held once, by the caller."""
        found = self._look_up(search, nodes)
        missing = [row for row, context in enumerate(found) if context is None]
        self.last_missing = frozenset(missing)
        raw = [] if missing else [row for row, context in enumerate(found) if context.is_raw]
        if missing or (raw and not self._fits_into_a_step(forward, [found[row] for row in raw])):
            return self._expand_missing(forward, search, nodes, found, actions, positions)
        store, count = self._store, self._tokens_per_step
        index, lengths = store.index_of(found, store.reserve(len(found) * count).reshape(-1, count))
        if not raw:
            outputs = forward.step(store, index, lengths, actions, positions)
            return outputs, lengths, store.extend(index, lengths, count)
        encoded = store.reserve(len(raw) * store.kept).reshape(len(raw), -1)
        outputs = forward.step(store, index, lengths, actions, positions, raw, encoded)
        index[raw, :store.kept] = encoded
        longer = store.extend(index, lengths, count)
        for row, table in zip(raw, encoded):
            store.replace(found[row], table)
        return outputs, lengths, longer

    def _fits_into_a_step(self, forward: Any, raw: Sequence[Context]) -> bool:
        are_distinct = len({id(context) for context in raw}) == len(raw)
        return are_distinct and len(raw) * self._store.kept <= MOST_TOKENS and forward.encodes_in_steps

    def _expand_missing(
            self, forward: Any, search: Search, nodes: Sequence[int], found: list[Optional[Context]], actions: Any,
            positions: Optional[np.ndarray]
    ) -> tuple[Any, list[int], list[Context]]:
        missing = sorted(self.last_missing)
        routes = dict(zip(missing, self._rebuilder.routes(forward, search, [nodes[row] for row in missing])))
        raw = {
            row: Route(nodes[row], self._store.retain(context), [])
            for row, context in enumerate(found) if context is not None and context.is_raw
        }
        batch, preceding = self._rebuilder.gather(forward, search, found, {**routes, **raw})
        with batch:
            # Only now that the batch holds the found contexts: this may evict them.
            finished = [route for route in routes.values() if not route.steps]
            self.cache(search, [route.number for route in finished], [route.context for route in finished])
            outputs = forward.predict(batch, actions, positions, preceding)
            if preceding is None:
                contexts = self._store.add(batch, forward.model)
            else:
                again = self._store.add(preceding.batch, forward.model, preceding.ends)
                contexts = self._store.add(batch, forward.model)
                self._take_over(search, set(nodes), preceding.made, again)
        self._store.release([route.context for route in (*routes.values(), *raw.values())])
        return outputs, batch.lengths.tolist(), contexts

    def _take_over(
            self, search: Search, wanted: set[int], made: Sequence[Union[int, Context]], contexts: Sequence[Context]
    ) -> None:
        """Replace raw contexts by encoded ones, and cache recomputed nodes that the search has asked for."""
        missing = {}
        for owner, context in zip(made, contexts):
            if isinstance(owner, Context):
                self._store.replace(owner, context.table)
                continue
            search.contexts[owner] = context
            if owner in wanted:
                missing[owner] = context
        self.cache(search, list(missing), list(missing.values()))
        self._store.release(contexts)

    def peek(self, forward: Any, search: Search, nodes: Sequence[int]) -> list[Context]:
        """The contexts of nodes, each held once more, by the caller. The pools stay as they are."""
        contexts = [self._peek(search, number) for number in nodes]
        missing = [row for row, context in enumerate(contexts) if context is None]
        for context in contexts:
            if context is not None:
                self._store.retain(context)
        routes = self._rebuilder.routes(forward, search, [nodes[row] for row in missing])
        self._rebuilder.finish(forward, search, routes)
        for row, route in zip(missing, routes):
            contexts[row] = route.context
        return contexts

    def _peek(self, search: Search, number: int) -> Optional[Context]:
        if self._lossless:
            # Its tokens count, not whether a pool has it.
            return self._rebuilder.whole_context(search, number)
        if number in search.env_ids:
            return self._manager.init_pools[search.env_ids[number]].peek(search.first_key + number)
        context = self._manager.recur_pool.peek(search.first_key + number)
        return self._manager.wm_pool.peek(search.first_key + number) if context is None else context

    def encode_in_place(self, forward: Any, contexts: Sequence[Optional[Context]]) -> None:
        """Encode those contexts that are raw, for everybody who holds them."""
        self._rebuilder.encode_in_place(forward, contexts)

    def cache(self, search: Search, nodes: Sequence[int], contexts: Sequence[Context]) -> None:
        """Cache the contexts of nodes: roots of environments in their init pools, all others in the recur pool."""
        keys, values, priorities = [], [], []
        first_key, env_ids = search.first_key, search.env_ids
        for number, context in zip(nodes, contexts):
            search.contexts[number] = context
            context.holders += 1
            if number in env_ids:
                self._manager.set_init_cache(
                    env_ids[number], first_key + number, context, search.priorities[number]
                )
            else:
                keys.append(first_key + number)
                values.append(context)
                priorities.append(search.priorities[number])
        if keys:
            self._manager.recur_pool.set_many(keys, values, priorities)
        if self._store.expected_tokens is not None:
            self._keep_within_budget()

    def _keep_within_budget(self) -> None:
        # Rebuilt contexts share fewer tokens, so that fewer entries fit.
        pool = self._manager.recur_pool
        while len(self._store) > self._store.expected_tokens and len(pool):
            pool.evict()

    def keep_last_inference(
            self, search: Search, nodes: Sequence[int], contexts: Sequence[Context],
            priorities: Sequence[Optional[float]]
    ) -> None:
        """Let the wm pool hold the rows of the last inference and nothing else."""
        self._manager.wm_pool.clear()
        for context in contexts:
            context.holders += 1
        self._manager.wm_pool.set_many([search.first_key + number for number in nodes], contexts, priorities)

    def _look_up(self, search: Search, nodes: Sequence[int]) -> list[Optional[Context]]:
        manager, env_ids, first_key = self._manager, search.env_ids, search.first_key
        below_roots = [first_key + number for number in nodes if number not in env_ids]
        found = iter(manager.recur_pool.get_many(below_roots) if below_roots else ())
        contexts = []
        for number in nodes:
            if number in env_ids:
                contexts.append(manager.get_init_cache(env_ids[number], first_key + number))
                continue
            context = next(found)
            contexts.append(manager.get_wm_cache(first_key + number) if context is None else context)
        return contexts
