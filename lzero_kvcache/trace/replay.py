"""One recorded run through the bookkeeping of a search, with pools of another strategy and size, and no tensors."""
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, Optional

import numpy as np

from ..eviction import Priority
from ..eviction.search_nodes import SearchNodes
from ..manager import KVCacheManager
from ..search.contexts import SearchContexts
from ..search.episode import CONTINUES, FIRST_STEP, Episode
from ..search.rebuild import Preceding
from ..search.search import Search as RunningSearch
from ..stats import CacheStats, Counts, RebuildStats
from ..store import ContextBatch, TokenStore
from .belady import BeladyPool, Future
from .choices import BELADY, as_configured
from .format import DROP, EXPANSION, STRAYS, ManagerFacts
from .reader import Search

# What ``SearchNodes.add`` takes.
TAKEN = ('parents', 'actions', 'reward_bins', 'value_bins', 'policies')


@dataclass
class PhaseCounts(Counts):
    """What one phase of a run came to: by kind of pool, what misses would have cost, and the nodes below the roots."""
    init_pools: CacheStats = field(default_factory=CacheStats)
    recur_pool: CacheStats = field(default_factory=CacheStats)
    wm_pool: CacheStats = field(default_factory=CacheStats)
    rebuilds: RebuildStats = field(default_factory=RebuildStats)
    expansions: int = 0

    @property
    def pools(self) -> dict[str, CacheStats]:
        return dict(init_pools=self.init_pools, recur_pool=self.recur_pool, wm_pool=self.wm_pool)


class _Episode(Episode):

    def __init__(self, length: int) -> None:
        super().__init__()
        # An episode whose beginning is not in the trace goes on from its last observation. No root has that key.
        self.key, self.length = 0, length


def _nothing(*_: Any) -> None:
    """In place of whatever has to do with tensors."""


class _NoForward:
    """In place of a model: the tokens of a batch are counted, and nothing is computed."""
    model = None
    encodes_in_steps = True

    def __init__(self, facts: ManagerFacts) -> None:
        self._lossless, self._of_observation = facts.on_miss == 'rebuild', facts.num_observations_tokens
        self.append_episodes = lambda batch, episodes, counts: batch.append(int(counts.max()), counts)
        self.append_latents = lambda batch, *_: batch.append(facts.num_observations_tokens)
        self.append_raw = lambda batch, *_: batch.append(facts.context_length - 3)
        self.append_steps = lambda batch, *_: batch.append(1)
        self.preceding_tokens = self.step = _nothing

    def lengths_of(self, episodes: Sequence[_Episode]) -> np.ndarray:
        return np.array([episode.length if self._lossless else self._of_observation for episode in episodes])

    def predict(self, batch: ContextBatch, actions: None, positions: None, preceding: Optional[Preceding]) -> None:
        batch.append(1)
        if preceding is not None:
            preceding.batch = batch.split(preceding.count)
        batch.append(self._of_observation)


class Replay:
    """
    One manager under another strategy (Belady's is the recur pool's, beside LRU) and recur pool size. The searches are
    those of the trace; what the pools have, and what has to be computed again, is decided by what a run decides it by.
    ``counts`` are by phase; ``search`` has been replayed last.
    """

    def __init__(self, facts: ManagerFacts, strategy: str, recur_size: int) -> None:
        self.counts: dict[str, PhaseCounts] = {}
        self._facts = facts
        length = facts.context_length
        slab = SimpleNamespace(gather=_nothing, write=_nothing)
        self._store = TokenStore(slab, length - 1, length - 3, facts.window == 'rebuild')
        self._tokens_per_step = 1 + facts.num_observations_tokens
        self._future = Future()
        configured = dict(strategy='lru' if strategy == BELADY else as_configured(strategy))
        self.manager = KVCacheManager(dict(kv_cache=configured), facts.env_num, on_release=self._store.release)
        # Not by the config, which refuses what this machine has no memory for: here entries have no tensors.
        for pool in self.manager.init_pools:
            pool.resize(facts.init_size)
        self.manager.wm_pool.resize(facts.wm_size)
        self.manager.recur_pool.resize(recur_size)
        if strategy == BELADY:
            self.manager.recur_pool = BeladyPool(
                recur_size, self._future, name='recur_pool', on_release=self._store.release, lock=self.manager.lock
            )
        policy = self.manager.recur_pool.eviction_policy
        self._discount_factor = facts.discount_factor if policy.follows_search else None
        self._score = getattr(policy, 'score', None)
        self._rebuilds = RebuildStats()
        self._contexts = SearchContexts(
            self.manager, self._store, self._rebuilds, facts.on_miss == 'rebuild', self._tokens_per_step
        )
        self._forward = _NoForward(facts)
        self._episodes: dict[tuple[str, int], _Episode] = {}
        self._num_searches = 0

    def run(self, recorded: Search) -> None:
        """Replay one search, the next one of the manager."""
        before = PhaseCounts(**self.manager.total_stats(), rebuilds=replace(self._rebuilds))
        self.manager.clear_recur_cache()
        self.manager.wm_pool.clear()
        self._contexts.unpin()
        self._num_searches += 1
        nodes = SearchNodes(self._facts.num_actions, self._facts.samples_actions)
        self.search = search = RunningSearch(
            self._num_searches, recorded.phase, np.zeros(0, dtype=np.int64), nodes, self._discount_factor
        )
        self._future.uses, self._future.now = _uses_of(recorded, search.first_key), 0
        for kind, nodes in recorded.steps:
            if kind == DROP:
                self.manager.clear_all()
                self._contexts.unpin()
                for episode in self._episodes.values():
                    self._contexts.hold(episode, None)
            elif kind == EXPANSION:
                self._future.now += 1
                self._expand(search, nodes)
            else:
                new = search.nodes.add_roots(nodes['value_bins'], nodes['policies'], nodes['depths'])
                search.add(new, [None] * len(new))
                if kind != STRAYS:
                    self._continue_episodes(search, nodes)
        counts = PhaseCounts(**self.manager.total_stats(), rebuilds=self._rebuilds) - before
        counts.expansions = sum(len(nodes) for kind, nodes in recorded.steps if kind == EXPANSION)
        self.counts[search.phase] = self.counts.get(search.phase, PhaseCounts()) + counts

    def _continue_episodes(self, search: RunningSearch, roots: np.ndarray) -> None:
        (numbers, ) = np.nonzero(roots['env_ids'] >= 0)
        if not len(numbers):
            return
        env_ids, beginnings = roots['env_ids'][numbers].tolist(), roots['beginnings'][numbers]
        of_observation = self._facts.num_observations_tokens
        episodes = [self._episodes.setdefault((search.phase, env_id), _Episode(of_observation)) for env_id in env_ids]
        for episode, beginning in zip(episodes, beginnings):
            if beginning != CONTINUES:
                self._contexts.hold(episode, None)
                episode.key, episode.length = None, of_observation
        are_running = beginnings != FIRST_STEP
        batch, _ = self._contexts.resume(self._forward, episodes, env_ids, are_running)
        with batch:
            batch.append(self._tokens_per_step, of_observation + are_running)
            contexts = self._store.add(batch, None)
        priorities = self._priorities(search.nodes, numbers)
        self._contexts.begin(search, numbers.tolist(), contexts, episodes, env_ids, priorities)
        for episode, context in zip(episodes, contexts):
            episode.length = len(context)
        self._store.release(contexts)

    def _expand(self, search: RunningSearch, records: np.ndarray) -> None:
        _, _, contexts = self._contexts.expand(self._forward, search, records['parents'].tolist(), None, None)
        new = search.nodes.add(*(records[name] for name in TAKEN))
        priorities = self._priorities(search.nodes, new)
        children = search.add(new, priorities)
        self._contexts.cache(search, children, contexts)
        self._contexts.keep_last_inference(search, children, contexts, priorities)
        self._store.release(contexts)

    def _priorities(self, nodes: SearchNodes, new: np.ndarray) -> Sequence[Priority]:
        if self._score is None:
            return [None] * len(new)
        if self._score == 'search_depth':
            return (-nodes.depths[new]).tolist()
        bins = nodes.value_bins if self._score == 'predicted_value' else nodes.reward_bins
        # A model that has diverged predicts nan, which no pool takes.
        return np.nan_to_num(bins[new]).tolist()


def _uses_of(search: Search, first_key: int) -> dict[Hashable, list[int]]:
    """When the recur pool is asked for each node, counted in expansions."""
    uses = defaultdict(list)
    for now, nodes in enumerate((nodes for kind, nodes in search.steps if kind == EXPANSION), 1):
        for parent in nodes['parents'].tolist():
            uses[first_key + parent].append(now)
    return uses
