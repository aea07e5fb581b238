"""One recorded run through real pools of another strategy and size."""
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from ..eviction import Expansion, Priority, SearchTree, SearchTreeNode, build_eviction_policy
from ..pool import KVCachePool
from ..stats import CacheStats
from .belady import BeladyPool, Future
from .choices import BELADY, Choice
from .contexts import ReplayedContext, TokenAccounts
from .counts import POOLS, PhaseCounts, Rebuilds
from .format import CONTINUES, DROP, EXPANSION, FIRST_STEP, ROOTS, ManagerFacts
from .reader import Search


@dataclass
class Route:
    """
    Overview:
        The way to a missing context, as in ``world_model.rebuild``.
    Arguments:
        - node (:obj:`int`): Whose context is missing.
        - context (:obj:`ReplayedContext`): What the way goes on from.
        - steps (:obj:`List[int]`): The nodes on the way, ``node`` last.
    """
    node: int
    context: ReplayedContext
    steps: list[int]


class _Episode:

    def __init__(self) -> None:
        self.key: Optional[str] = None
        self.length = 0
        self.context: Optional[ReplayedContext] = None


class Replay:
    """
    Overview:
        The pools of one manager under another strategy and recur pool size. The searches are those of the trace; what
        the pools have, and what has to be computed again, is decided here, by the same pools and the same order of
        operations as in ``world_model.contexts``. ``counts`` are by phase.
    Arguments:
        - facts (:obj:`ManagerFacts`): The manager's.
        - choice (:obj:`Choice`): The strategy of all pools; Belady's of the recur pool, beside LRU.
        - recur_size (:obj:`int`): Entries of the recur pool; the other pools have the sizes of the run.
    """

    def __init__(self, facts: ManagerFacts, choice: Choice, recur_size: int) -> None:
        self.counts: dict[str, PhaseCounts] = {}
        self.operations = 0
        self._facts = facts
        self._accounts = TokenAccounts(facts)
        self._lossless = facts.on_miss == 'rebuild'
        self._tokens_per_step = 1 + facts.num_observations_tokens
        self._future = Future() if choice == BELADY else None

        def build(name: str, size: int) -> KVCachePool:
            options: dict[str, Any] = dict(name=name, on_release=self._accounts.release)
            if self._future is None:
                return KVCachePool(size, choice.strategy, **options)
            if name == 'recur_pool':
                return BeladyPool(size, self._future, **options)
            return KVCachePool(size, 'lru', **options)

        self.init_pools = [build(f'init_pools[{env_id}]', facts.init_size) for env_id in range(facts.env_num)]
        self.recur_pool = build('recur_pool', recur_size)
        self.wm_pool = build('wm_pool', facts.wm_size)
        self._follows_search = self.recur_pool.eviction_policy.follows_search
        self._score = None if self._future else getattr(build_eviction_policy(choice.strategy), 'score', None)
        self._rebuilds = Rebuilds()
        self._episodes: dict[tuple[str, int], _Episode] = {}
        self._num_roots = 0
        self._pinned: list[ReplayedContext] = []
        self._begin_nodes()

    def run(self, search: Search) -> None:
        """
        Overview:
            Replay one search.
        Arguments:
            - search (:obj:`Search`): The next one of the manager.
        """
        before = self._totals()
        self._end_search()
        self._begin_nodes()
        if self._future is not None:
            self._future.begin(_uses_of(search))
        node_scores = _scores(self._score, search.nodes, -search.nodes['depth'].astype(np.int64))
        root_scores = _scores(self._score, search.roots, np.zeros(len(search.roots), dtype=np.int64))
        parents = search.nodes['parent'].tolist()
        roots_met = nodes_met = expansions = 0
        for kind, rows in search.steps:
            if kind == DROP:
                self._drop_contexts()
            elif kind == ROOTS:
                own = slice(roots_met, roots_met + rows)
                self._add_roots(search.phase, search.roots[own], root_scores[own])
                roots_met += rows
            elif kind == EXPANSION:
                own = slice(nodes_met, nodes_met + rows)
                if self._future is not None:
                    self._future.now += 1
                self._expand(parents[own], search.nodes[own], node_scores[own])
                nodes_met += rows
                expansions += rows
            else:
                for _ in range(rows):
                    self._add_node(None, None)
                nodes_met += rows
        self._count(search.phase, before, expansions)

    def _begin_nodes(self) -> None:
        # By the node's number in its search.
        self._parents: list[Optional[int]] = []
        self._keys: list[str] = []
        self._contexts: list[Optional[ReplayedContext]] = []
        self._priorities: list[Priority] = []
        self._in_tree: list[Optional[SearchTreeNode]] = []
        # The environment and the episode of a root that has one.
        self._env_ids: dict[int, int] = {}
        self._episode_of: dict[int, _Episode] = {}
        self._tree: Optional[SearchTree] = None

    def _add_node(
            self, parent: Optional[int], priority: Priority, in_tree: Optional[SearchTreeNode] = None
    ) -> int:
        number = len(self._parents)
        self._parents.append(parent)
        self._keys.append(_name(number))
        self._contexts.append(None)
        self._priorities.append(priority)
        self._in_tree.append(in_tree)
        return number

    def _add_roots(self, phase: str, roots: np.ndarray, scores: Sequence[Priority]) -> None:
        in_tree = self._begin_tree(roots)
        nodes, contexts = [], []
        for row, (env_id, beginning) in enumerate(zip(roots['env_id'].tolist(), roots['beginning'].tolist())):
            if env_id < 0:
                self._add_node(None, None, in_tree[row])
                continue
            node = self._add_node(None, scores[row], in_tree[row])
            episode = self._episodes.setdefault((phase, env_id), _Episode())
            context = self._go_on(episode, env_id, beginning)
            self._num_roots += 1
            self._keys[node] = episode.key = f'root {self._num_roots}'
            episode.length = len(context.tokens)
            self._env_ids[node], self._episode_of[node] = env_id, episode
            nodes.append(node)
            contexts.append(context)
        self._cache(nodes, contexts)
        if self._lossless:
            for node, context in zip(nodes, contexts):
                self._hold(self._episode_of[node], context)
                self._pinned.append(self._accounts.retain(context))
        self._accounts.release(contexts)

    def _go_on(self, episode: _Episode, env_id: int, beginning: int) -> ReplayedContext:
        num_observations_tokens = self._facts.num_observations_tokens
        if beginning == FIRST_STEP:
            self._hold(episode, None)
            return self._accounts.extend((), num_observations_tokens)
        found = None
        length = num_observations_tokens
        if beginning == CONTINUES:
            self.operations += 1
            found = self.init_pools[env_id].get(episode.key or '')
            if found is None and episode.context is not None:
                self._rebuilds.restored += 1
                found = episode.context
            if self._lossless and episode.length:
                length = episode.length
        else:
            self._hold(episode, None)
        if found is not None:
            return self._accounts.extend(found.tokens, self._tokens_per_step)
        self._rebuilds.rebuilds += 1
        encoded = self._encode(length)
        context = self._accounts.extend(encoded.tokens, self._tokens_per_step)
        self._accounts.release([encoded])
        return context

    def _begin_tree(self, roots: np.ndarray) -> Sequence[Optional[SearchTreeNode]]:
        if not self._follows_search:
            return [None] * len(roots)
        self._tree = SearchTree(len(roots), lambda: self._priors(roots), self._facts.discount_factor)
        return [SearchTreeNode(self._tree, number) for number in range(len(roots))]

    def _priors(self, records: np.ndarray) -> np.ndarray:
        if self._facts.samples_actions:
            return np.full((len(records), self._facts.num_actions), 1 / self._facts.num_actions)
        return records['priors']

    def _expand(self, parents: Sequence[int], nodes: np.ndarray, scores: Sequence[Priority]) -> None:
        found = self._look_up(parents)
        missing = [row for row, context in enumerate(found) if context is None]
        if missing:
            self._find_missing(parents, found, missing)
        in_tree = self._follow(parents, nodes)
        new, contexts = [], []
        for row, parent in enumerate(parents):
            contexts.append(self._accounts.extend(found[row].tokens, self._tokens_per_step))
            priority = in_tree[row] if self._follows_search else scores[row]
            new.append(self._add_node(parent, priority, in_tree[row]))
        self._cache(new, contexts)
        self.wm_pool.clear()
        for context in contexts:
            context.holders += 1
        # To the wm pool a node of a search is as any other.
        priorities = [None] * len(new) if self._follows_search else scores
        self.wm_pool.set_many([self._keys[node] for node in new], contexts, priorities)
        self.operations += len(new)
        self._accounts.release(contexts)

    def _look_up(self, nodes: Sequence[int]) -> list[Optional[ReplayedContext]]:
        below_roots = [self._keys[node] for node in nodes if node not in self._env_ids]
        found = iter(self.recur_pool.get_many(below_roots))
        self.operations += len(nodes)
        contexts = []
        for node in nodes:
            if node in self._env_ids:
                contexts.append(self.init_pools[self._env_ids[node]].get(self._keys[node]))
                continue
            context = next(found)
            if context is None:
                self.operations += 1
                context = self.wm_pool.get(self._keys[node])
            contexts.append(context)
        return contexts

    def _find_missing(
            self, parents: Sequence[int], found: list[Optional[ReplayedContext]], missing: Sequence[int]
    ) -> None:
        """Bring missing contexts back and cache them, in the order of ``NodeContexts``."""
        ways = [self._way_to(parents[row]) for row in missing]
        restored = sum(context is not None and not steps for _, context, steps in ways)
        self._rebuilds.restored += restored
        self._rebuilds.rebuilds += len(ways) - restored
        routes = []
        for row, (origin, context, steps) in zip(missing, ways):
            context = self._encode_node(origin) if context is None else self._accounts.retain(context)
            routes.append(Route(parents[row], context, steps))
        all_at_once = sum(len(route.steps) for route in routes) * self._tokens_per_step <= self._facts.most_tokens
        for route in routes:
            if not (all_at_once and self._fits_before_a_step(route)):
                self._go(route)
        ahead = [route for route in routes if not route.steps]
        self._cache([route.node for route in ahead], [route.context for route in ahead])

        wanted, made = set(parents), []
        for route in routes:
            made += self._go(route)
        of_batch = [(node, context) for node, context in made if node in wanted]
        if of_batch:
            self._cache(*zip(*of_batch))
        for row, route in zip(missing, routes):
            found[row] = route.context
        self._accounts.release([route.context for route in routes])

    def _way_to(self, node: int) -> tuple[int, Optional[ReplayedContext], list[int]]:
        if not self._lossless:
            return node, None, []
        steps: list[int] = []
        context = self._whole_context(node)
        while context is None and self._parents[node] is not None:
            steps.append(node)
            node = self._parents[node]
            context = self._whole_context(node)
        return node, context, steps[::-1]

    def _whole_context(self, node: int) -> Optional[ReplayedContext]:
        context = self._contexts[node]
        return context if context is not None and self._accounts.is_whole(context) else None

    def _fits_before_a_step(self, route: Route) -> bool:
        return self._accounts.moves_tokens or not route.steps or (
            len(route.context.tokens) + len(route.steps) * self._tokens_per_step < self._accounts.limit
        )

    def _go(self, route: Route) -> list[tuple[int, ReplayedContext]]:
        """Go all the way; the nodes on it and their contexts."""
        made = []
        for node in route.steps:
            context = self._accounts.extend(route.context.tokens, self._tokens_per_step)
            self._accounts.release([route.context])
            self._rebuilds.tokens += self._tokens_per_step
            self._contexts[node] = route.context = context
            made.append((node, context))
        route.steps = []
        return made

    def _encode_node(self, node: int) -> ReplayedContext:
        if self._lossless and node in self._episode_of:
            return self._encode(self._episode_of[node].length)
        return self._encode(self._facts.num_observations_tokens)

    def _encode(self, length: int) -> ReplayedContext:
        self._rebuilds.tokens += length
        return self._accounts.encode(length)

    def _follow(self, parents: Sequence[int], nodes: np.ndarray) -> Sequence[Optional[SearchTreeNode]]:
        in_tree: list[Optional[SearchTreeNode]] = [None] * len(parents)
        rows = [row for row, parent in enumerate(parents) if self._in_tree[parent] is not None]
        if self._follows_search and rows:
            known = nodes if len(rows) == len(nodes) else nodes[rows]
            numbers = self._tree.expand(
                [self._in_tree[parents[row]].number for row in rows],
                lambda: Expansion(known['action'], known['reward'], known['value'], self._priors(known))
            )
            for row, number in zip(rows, numbers):
                in_tree[row] = SearchTreeNode(self._tree, number)
        return in_tree

    def _cache(self, nodes: Sequence[int], contexts: Sequence[ReplayedContext]) -> None:
        below_roots = []
        for node, context in zip(nodes, contexts):
            self._contexts[node] = context
            context.holders += 1
            entry = (self._keys[node], context, self._priorities[node])
            if node in self._env_ids:
                self.init_pools[self._env_ids[node]].set(*entry)
            else:
                below_roots.append(entry)
        if below_roots:
            self.recur_pool.set_many(*zip(*below_roots))
        self.operations += len(nodes)

    def _hold(self, episode: _Episode, context: Optional[ReplayedContext]) -> None:
        if episode.context is not None:
            self._accounts.release([episode.context])
        episode.context = None if context is None else self._accounts.retain(context)

    def _end_search(self) -> None:
        self.recur_pool.clear()
        self.wm_pool.clear()
        self._unpin_roots()

    def _unpin_roots(self) -> None:
        self._accounts.release(self._pinned)
        self._pinned = []

    def _drop_contexts(self) -> None:
        for pool in (*self.init_pools, self.recur_pool, self.wm_pool):
            pool.clear()
        self._unpin_roots()
        for episode in self._episodes.values():
            self._hold(episode, None)

    def _totals(self) -> PhaseCounts:
        init = sum((pool.stats for pool in self.init_pools), CacheStats())
        pools = dict(zip(POOLS, (init, self.recur_pool.stats + CacheStats(), self.wm_pool.stats + CacheStats())))
        return PhaseCounts(pools, self._rebuilds + Rebuilds())

    def _count(self, phase: str, before: PhaseCounts, expansions: int) -> None:
        of_search = self._totals() - before
        of_search.expansions = expansions
        self.counts[phase] = self.counts.get(phase, PhaseCounts()) + of_search


# Strings are checked faster by a pool than integers are, and made once.
_NAMES: list[str] = []


def _name(number: int) -> str:
    while len(_NAMES) <= number:
        _NAMES.append(str(len(_NAMES)))
    return _NAMES[number]


def _scores(score: Optional[str], records: np.ndarray, shallowness: np.ndarray) -> Sequence[Priority]:
    if score is None:
        return [None] * len(records)
    if score == 'search_depth':
        return shallowness.tolist()
    # A model that has diverged predicts nan, which no pool takes.
    return np.nan_to_num(records['value_bin' if score == 'predicted_value' else 'reward_bin']).tolist()


def _uses_of(search: Search) -> dict[Hashable, list[int]]:
    """When the recur pool is asked for each node, counted in expansions."""
    uses: dict[Hashable, list[int]] = {}
    parents = search.nodes['parent'].tolist()
    met = now = 0
    for kind, rows in search.steps:
        if kind in (ROOTS, DROP):
            continue
        if kind == EXPANSION:
            now += 1
            for parent in parents[met:met + rows]:
                uses.setdefault(_name(parent), []).append(now)
        met += rows
    return uses
