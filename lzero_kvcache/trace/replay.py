"""One recorded run through the bookkeeping of a search, with pools of another strategy and size, and no tensors."""
from collections.abc import Hashable, Sequence
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np

from ..eviction import Priority, build_eviction_policy
from ..eviction.search_nodes import SearchNodes
from ..manager import KVCacheManager
from ..search.contexts import SearchContexts
from ..search.episode import CONTINUES, FIRST_STEP, Episode
from ..search.rebuild import Preceding
from ..search.search import Search as RunningSearch
from ..stats import RebuildStats
from ..store import ContextBatch, TokenStore
from .belady import BeladyPool, Future
from .choices import BELADY, Choice
from .counts import PhaseCounts
from .format import DROP, EXPANSION, STRAYS, ManagerFacts
from .reader import Search


class _Episode(Episode):

    def __init__(self, length: int) -> None:
        super().__init__()
        # An episode whose beginning is not in the trace goes on from its last observation. No root has that key.
        self.key, self.length = 0, length


class _NoTensors:
    """In place of a slab."""

    def gather(self, batch: ContextBatch, size: int, model: Any) -> None:
        pass

    def write(self, batch: ContextBatch, new: np.ndarray, chosen: Optional[np.ndarray], size: int, model: Any) -> None:
        pass


class _NoForward:
    """In place of a model: the tokens of a batch are counted, and nothing is computed."""
    model = None
    encodes_in_steps = True

    def __init__(self, facts: ManagerFacts) -> None:
        self._lossless = facts.on_miss == 'rebuild'
        self._num_observations_tokens = facts.num_observations_tokens
        self._kept = facts.context_length - 3

    def lengths_of(self, episodes: Sequence[_Episode]) -> np.ndarray:
        return np.array([
            episode.length if self._lossless else self._num_observations_tokens for episode in episodes
        ])

    def append_episodes(self, batch: ContextBatch, episodes: Sequence[Episode], counts: np.ndarray) -> None:
        batch.append(int(counts.max()), counts)

    def append_latents(self, batch: ContextBatch, search: RunningSearch, numbers: Sequence[int]) -> None:
        batch.append(self._num_observations_tokens)

    def append_raw(self, batch: ContextBatch, tables: Sequence[np.ndarray]) -> None:
        batch.append(self._kept)

    def append_steps(self, batch: ContextBatch, search: RunningSearch, numbers: Sequence[int]) -> None:
        batch.append(1)

    def preceding_tokens(
            self, tables: Sequence[np.ndarray], search: RunningSearch, numbers: Sequence[int]
    ) -> None:
        pass

    def step(self, *arguments: Any) -> None:
        pass

    def predict(
            self, batch: ContextBatch, actions: None, positions: None, preceding: Optional[Preceding]
    ) -> None:
        batch.append(1)
        if preceding is not None:
            preceding.batch = batch.split(preceding.count)
        batch.append(self._num_observations_tokens)


class Replay:
    """
    One manager under another strategy and recur pool size. The searches are those of the trace; what the pools have,
    and what has to be computed again, is decided by what a run decides it by.

    Args:
        facts: The manager's.
        choice: The strategy of all pools; Belady's of the recur pool, beside LRU.
        recur_size: Entries of the recur pool; the other pools have the sizes of the run.

    Attributes:
        counts: By phase.
        operations: Gets and sets of all pools.
        search: The one that has been replayed last.
        manager: The pools.
    """

    def __init__(self, facts: ManagerFacts, choice: Choice, recur_size: int) -> None:
        self.counts: dict[str, PhaseCounts] = {}
        self.operations = 0
        self._facts = facts
        limit, kept = facts.context_length - 1, facts.context_length - 3
        self._store = TokenStore(_NoTensors(), limit, kept, facts.window == 'rebuild')
        self._tokens_per_step = 1 + facts.num_observations_tokens
        self._future = Future() if choice == BELADY else None
        strategy = 'lru' if self._future else choice.strategy
        self.manager = KVCacheManager(
            SimpleNamespace(kv_cache=dict(strategy=strategy)), facts.env_num, on_release=self._store.release
        )
        # Not by the config, which refuses what this machine has no memory for: here entries have no tensors.
        sizes = dict(init_pools=facts.init_size, recur_pool=recur_size, wm_pool=facts.wm_size)
        for kind, pools in self.manager.pools().items():
            for pool in pools:
                pool.resize(sizes[kind])
        if self._future is not None:
            self.manager.recur_pool = BeladyPool(
                recur_size, self._future, name='recur_pool', on_release=self._store.release, lock=self.manager.lock
            )
        self._score = getattr(build_eviction_policy(strategy), 'score', None)
        self._rebuilds = RebuildStats()
        self._contexts = SearchContexts(
            self.manager, self._store, self._rebuilds, facts.on_miss == 'rebuild', self._tokens_per_step
        )
        self._forward = _NoForward(facts)
        self._episodes: dict[tuple[str, int], _Episode] = {}
        self._num_searches = 0
        self.search: Optional[RunningSearch] = None

    def run(self, recorded: Search) -> None:
        """Replay one search, the next one of the manager."""
        before = self._totals()
        self.search = search = self._begin(recorded.phase)
        if self._future is not None:
            self._future.begin(_uses_of(recorded, search.first_key))
        expansions = 0
        for kind, roots, nodes in recorded.steps:
            if kind == DROP:
                self._drop_contexts()
            elif kind == EXPANSION:
                if self._future is not None:
                    self._future.now += 1
                self._expand(search, nodes)
                expansions += len(nodes)
            else:
                new = search.nodes.add_roots(nodes['value_bins'], nodes['policies'], roots['depth'])
                search.add(new, [None] * len(new))
                if kind != STRAYS:
                    self._continue_episodes(search, roots)
        self._count(recorded.phase, before, expansions)

    def _begin(self, phase: str) -> RunningSearch:
        self.manager.clear_recur_cache()
        self.manager.wm_pool.clear()
        self._contexts.unpin()
        self._num_searches += 1
        facts, pool = self._facts, self.manager.recur_pool
        nodes = SearchNodes(facts.num_actions, facts.samples_actions)
        discount_factor = facts.discount_factor if pool.eviction_policy.follows_search else None
        return RunningSearch(self._num_searches, phase, np.zeros(0, dtype=np.int64), nodes, discount_factor)

    def _continue_episodes(self, search: RunningSearch, roots: np.ndarray) -> None:
        (numbers, ) = np.nonzero(roots['env_id'] >= 0)
        if not len(numbers):
            return
        env_ids, beginnings = roots['env_id'][numbers].tolist(), roots['beginning'][numbers].tolist()
        episodes = [
            self._episodes.setdefault((search.phase, env_id), _Episode(self._facts.num_observations_tokens))
            for env_id in env_ids
        ]
        for episode, beginning in zip(episodes, beginnings):
            if beginning != CONTINUES:
                self._contexts.hold(episode, None)
                episode.key, episode.length = None, self._facts.num_observations_tokens
        are_running = [beginning != FIRST_STEP for beginning in beginnings]
        batch, _ = self._contexts.resume(self._forward, episodes, env_ids, are_running)
        with batch:
            batch.append(self._tokens_per_step, self._facts.num_observations_tokens + np.array(are_running))
            contexts = self._store.add(batch, None)
        priorities = self._priorities(search.nodes, numbers)
        self._contexts.begin(search, numbers.tolist(), contexts, episodes, env_ids, priorities)
        for episode, context in zip(episodes, contexts):
            episode.length = len(context)
        self._store.release(contexts)
        self.operations += len(contexts)

    def _expand(self, search: RunningSearch, records: np.ndarray) -> None:
        _, _, contexts = self._contexts.expand(self._forward, search, records['parents'].tolist(), None, None)
        new = search.nodes.add(*(records[name] for name in records.dtype.names))
        priorities = self._priorities(search.nodes, new)
        children = search.add(new, priorities)
        self._contexts.cache(search, children, contexts)
        self._contexts.keep_last_inference(search, children, contexts, priorities)
        self._store.release(contexts)
        self.operations += 2 * len(contexts)

    def _priorities(self, nodes: SearchNodes, new: np.ndarray) -> Sequence[Priority]:
        if self._score is None:
            return [None] * len(new)
        if self._score == 'search_depth':
            return (-nodes.depths[new]).tolist()
        bins = nodes.value_bins if self._score == 'predicted_value' else nodes.reward_bins
        # A model that has diverged predicts nan, which no pool takes.
        return np.nan_to_num(bins[new]).tolist()

    def _drop_contexts(self) -> None:
        self.manager.clear_all()
        self._contexts.unpin()
        for episode in self._episodes.values():
            self._contexts.hold(episode, None)

    def _totals(self) -> PhaseCounts:
        # Sums are copies of what goes on counting.
        return PhaseCounts(**self.manager.total_stats(), rebuilds=self._rebuilds) + PhaseCounts()

    def _count(self, phase: str, before: PhaseCounts, expansions: int) -> None:
        of_search = self._totals() - before
        of_search.expansions = expansions
        self.operations += sum(stats.total_queries for stats in of_search.pools.values())
        self.counts[phase] = self.counts.get(phase, PhaseCounts()) + of_search


def _uses_of(search: Search, first_key: int) -> dict[Hashable, list[int]]:
    """When the recur pool is asked for each node, counted in expansions."""
    uses: dict[Hashable, list[int]] = {}
    expansions = (nodes for kind, _, nodes in search.steps if kind == EXPANSION)
    for now, nodes in enumerate(expansions, 1):
        for parent in nodes['parents'].tolist():
            uses.setdefault(first_key + parent, []).append(now)
    return uses
