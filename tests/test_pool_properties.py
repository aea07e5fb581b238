"""Random operations on a pool: exactly a plain model where there is one, sound for every registered strategy."""
import copy
import pickle
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from invariants import check_pool

from lzero_kvcache import EVICTION_REGISTRY, CacheStats, KVCachePool
from lzero_kvcache.eviction import SearchNodes, SearchTree, SearchTreeNode

VICTIM_ORDER = {
    'fifo': lambda entry: entry['inserted'],
    'lru': lambda entry: entry['used'],
    'priority': lambda entry: (entry['priority'], entry['used']),
}

KEYS = st.one_of(st.integers(0, 8), st.sampled_from('ab'))
SIZES = st.integers(1, 6)
PRIORITIES = st.one_of(st.none(), st.integers(-2, 2), st.floats(allow_nan=False))
NUM_ROOTS, NUM_ACTIONS = 2, 2


class NaivePool:
    """The specification, in O(n): a list of entries, and the least of them goes."""

    def __init__(self, size, strategy):
        self.size, self.order = size, VICTIM_ORDER[strategy]
        self.entries, self.clock, self.stats = [], 0, CacheStats()

    def find(self, key):
        return next((entry for entry in self.entries if entry['key'] == key), None)

    def set(self, key, value, priority):
        self.clock += 1
        entry = self.find(key)
        if entry is None:
            self.shrink_to(self.size - 1)
            entry = dict(key=key, inserted=self.clock, priority=0)
            self.entries.append(entry)
        entry.update(value=value, used=self.clock)
        if priority is not None:
            entry['priority'] = priority

    def get(self, key):
        self.clock += 1
        entry = self.find(key)
        if entry is None:
            self.stats.misses += 1
            return None
        self.stats.hits += 1
        entry['used'] = self.clock
        return entry['value']

    def resize(self, size):
        self.size = size
        self.shrink_to(size)

    def evict(self):
        self.shrink_to(len(self.entries) - 1)

    def shrink_to(self, size):
        while len(self.entries) > size:
            self.entries.remove(min(self.entries, key=self.order))
            self.stats.evictions += 1

    def clear(self):
        self.entries = []


class NoSpecification:
    """In place of a naive pool where a strategy has none."""

    def __getattr__(self, name):
        return lambda *arguments: None


class Released:
    """What has left a pool; copied with it."""

    def __init__(self):
        self.values = []

    def __call__(self, values):
        self.values.extend(values)


class PoolMachine(RuleBasedStateMachine):
    """
    A pool, one that is given everything one by one, and the naive pool, if there is one. Values are numbers; each is
    given to a pool once, and must leave it once.
    """

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy

    @initialize(size=SIZES)
    def begin(self, size):
        self.pool = KVCachePool(size, self.strategy, on_release=Released())
        self.one_by_one = KVCachePool(size, self.strategy, on_release=Released())
        self.naive = NaivePool(size, self.strategy) if self.strategy in VICTIM_ORDER else NoSpecification()
        self.largest_size, self.values = size, 0
        self.inserted = self.cleared = self.evicted = self.queries = 0
        self.last_set, self.slots = {}, {}
        self.tree = None

    def priority(self, data):
        """A number, none, or, where a strategy wants that, a node of the running search."""
        if self.pool.eviction_policy.follows_search and self.tree is not None and data.draw(st.booleans()):
            return SearchTreeNode(self.tree, data.draw(st.integers(0, self.tree.num_nodes - 1)))
        return data.draw(PRIORITIES)

    def expect(self, key, value):
        """A key is about to come in."""
        if key not in self.pool:
            self.inserted += 1
            self.evicted += len(self.pool) == self.pool.pool_size

    @rule(key=KEYS, data=st.data())
    def set(self, key, data):
        priority = self.priority(data)
        self.values += 1
        self.expect(key, self.values)
        known = key in self.pool
        slot = self.pool.set(key, self.values, priority)
        assert slot == self.one_by_one.set(key, self.values, priority)
        assert not known or slot == self.slots[key]
        assert key in self.pool and self.pool.peek(key) == self.values
        self.last_set[key], self.slots[key] = self.values, slot
        self.naive.set(key, self.values, priority)

    @precondition(lambda self: len(self.pool))
    @rule(data=st.data())
    def set_the_same_value_again(self, data):
        """It does not leave the pool."""
        key = data.draw(st.sampled_from(sorted(self.pool.keys(), key=str)))
        for pool in (self.pool, self.one_by_one):
            assert pool.set(key, self.last_set[key]) == self.slots[key]
        self.naive.set(key, self.last_set[key], None)

    @rule(keys=st.lists(KEYS, max_size=9), data=st.data())
    def set_many(self, keys, data):
        priorities = [self.priority(data) for _ in keys]
        values = list(range(self.values + 1, self.values + 1 + len(keys)))
        self.values += len(keys)
        for key, value, priority in zip(keys, values, priorities):
            self.slots[key] = self.one_by_one.set(key, value, priority)
            self.naive.set(key, value, priority)
            self.last_set[key] = value
        evictions, entries = self.pool.stats.evictions, len(self.pool)
        self.pool.set_many(keys, values, priorities)
        self.evicted += self.one_by_one.stats.evictions - evictions
        self.inserted += len(self.one_by_one) - entries + self.one_by_one.stats.evictions - evictions

    @rule(key=KEYS)
    def get(self, key):
        self.queries += 1
        expected = self.last_set[key] if key in self.pool else None
        assert self.pool.get(key) == self.one_by_one.get(key) == expected
        assert self.naive.get(key) in (expected, None)

    @rule(keys=st.lists(KEYS, max_size=9))
    def get_many(self, keys):
        self.queries += len(keys)
        assert self.pool.get_many(keys) == [self.one_by_one.get(key) for key in keys]
        for key in keys:
            self.naive.get(key)

    @rule(key=st.sampled_from([1.5, None, True, (1, )]), data=st.data())
    def give_a_wrong_key(self, key, data):
        """Nothing changes."""
        with pytest.raises(ValueError, match='allowed are ints and strings'):
            self.pool.set(key, 0)
        with pytest.raises(ValueError, match='allowed are ints and strings'):
            self.pool.get_many(['a', key])
        with pytest.raises(ValueError, match='allowed are ints and strings'):
            self.pool.set_many(['a', key], [0, 0], [None, None])

    @rule(key=KEYS, priority=st.sampled_from(['1', float('nan'), ()]))
    def give_a_wrong_priority(self, key, priority):
        with pytest.raises(ValueError, match='allowed is a number'):
            self.pool.set(key, 0, priority)

    @rule(size=SIZES)
    def resize(self, size):
        entries = len(self.pool)
        self.largest_size = max(self.largest_size, size)
        self.evicted += max(0, entries - size)
        for pool in (self.pool, self.one_by_one, self.naive):
            pool.resize(size)
        assert len(self.pool) == min(entries, size)

    @precondition(lambda self: len(self.pool))
    @rule()
    def evict(self):
        self.evicted += 1
        for pool in (self.pool, self.one_by_one, self.naive):
            pool.evict()

    @precondition(lambda self: not len(self.pool))
    @rule()
    def evict_from_nothing(self):
        with pytest.raises(ValueError, match='there is nothing to evict'):
            self.pool.evict()

    @rule()
    def clear(self):
        self.cleared += len(self.pool)
        for pool in (self.pool, self.one_by_one, self.naive):
            pool.clear()
        assert len(self.pool) == 0

    @rule(make=st.sampled_from([copy.deepcopy, lambda pool: pickle.loads(pickle.dumps(pool))]))
    def go_on_with_a_copy(self, make):
        """What becomes of the original does not reach it. The running search is not the copy's."""
        original, self.pool = self.pool, make(self.pool)
        original.clear()
        original.set('a', 0)
        self.one_by_one = copy.deepcopy(self.one_by_one)
        self.tree = None

    @precondition(lambda self: self.pool.eviction_policy.follows_search)
    @rule(seed=st.integers(0, 2 ** 16))
    def begin_a_search(self, seed):
        self.generator = np.random.default_rng(seed)
        nodes = SearchNodes(NUM_ACTIONS)
        nodes.add_roots(None, self.generator.normal(size=(NUM_ROOTS, NUM_ACTIONS)))
        self.tree = SearchTree(nodes)
        self.untried = {(node, action) for node in range(NUM_ROOTS) for action in range(NUM_ACTIONS)}
        self.root_of = {node: node for node in range(NUM_ROOTS)}

    @precondition(lambda self: self.tree is not None)
    @rule(data=st.data())
    def expand(self, data):
        """One simulation: a node of each tree, by an action that was not taken there yet."""
        chosen = [
            data.draw(st.sampled_from(sorted(each for each in self.untried if self.root_of[each[0]] == root)))
            for root in range(NUM_ROOTS)
        ]
        self.untried -= set(chosen)
        generator = self.generator
        parents, actions = zip(*chosen)
        new = self.tree.nodes.add(
            np.array(parents), np.array(actions), *generator.normal(size=(2, NUM_ROOTS)),
            generator.normal(size=(NUM_ROOTS, NUM_ACTIONS))
        )
        for root, node in enumerate(new.tolist()):
            self.root_of[node] = root
            self.untried |= {(node, action) for action in range(NUM_ACTIONS)}

    @invariant()
    def is_sound(self):
        if not hasattr(self, 'pool'):
            return
        pool, stats = self.pool, self.pool.stats
        check_pool(pool)
        assert len(pool) == self.inserted - stats.evictions - self.cleared
        assert stats.evictions == self.evicted and stats.hits + stats.misses == self.queries
        held = dict(zip(pool.keys(), pool.values()))
        assert held == {key: self.last_set[key] for key in held}
        assert all(0 <= self.slots[key] < self.largest_size for key in held)
        assert Counter(pool._on_release.values) + Counter(held.values()) == Counter(range(1, self.values + 1))
        assert held == dict(zip(self.one_by_one.keys(), self.one_by_one.values()))
        assert stats == self.one_by_one.stats
        assert pool._on_release.values == self.one_by_one._on_release.values
        if self.strategy in VICTIM_ORDER:
            assert held == {entry['key']: entry['value'] for entry in self.naive.entries}
            assert stats == self.naive.stats

    @invariant()
    def would_evict_each_entry_once(self):
        if hasattr(self, 'pool'):
            drained = copy.deepcopy(self.pool)
            before = list(drained.values())
            released = drained._on_release.values = []
            while len(drained):
                drained.evict()
            assert sorted(released) == sorted(before)


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
def test_any_order_of_operations(strategy):
    run_state_machine_as_test(lambda: PoolMachine(strategy), settings=settings(max_examples=60, stateful_step_count=40))


@pytest.mark.parametrize('strategy', sorted(VICTIM_ORDER))
def test_pool_is_the_naive_pool_for_long(strategy):
    rng = random.Random(0)
    pool, naive = KVCachePool(25, strategy), NaivePool(25, strategy)
    for number in range(5000):
        key = rng.randrange(40)
        if rng.random() < 0.5:
            assert pool.get(key) == naive.get(key)
        else:
            priority = rng.choice([None, -1, 0, 1])
            pool.set(key, number, priority)
            naive.set(key, number, priority)
        assert dict(zip(pool.keys(), pool.values())) == {entry['key']: entry['value'] for entry in naive.entries}
    assert pool.stats == naive.stats


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
@settings(max_examples=10)
@given(seed=st.integers(0, 2 ** 32))
def test_bookkeeping_does_not_grow_with_use(strategy, seed):
    rng, pool, sizes = random.Random(seed), KVCachePool(50, strategy), []
    for uses in (1000, 10000):
        for _ in range(uses):
            key = rng.randrange(100)
            pool.set(key, 0, rng.random()) if rng.random() < 0.5 else pool.get(key)
        sizes.append(len(pickle.dumps(pool)))
    assert sizes[1] < 2 * sizes[0]
