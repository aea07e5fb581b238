"""Random operations on a pool: exactly a plain model where there is one, sound for every registered strategy."""
import pickle
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero_kvcache import EVICTION_REGISTRY, CacheStats, KVCachePool

VICTIM_ORDER = {
    'fifo': lambda entry: entry['inserted'],
    'lru': lambda entry: entry['used'],
    'priority': lambda entry: (entry['priority'], entry['used']),
}

KEYS = st.one_of(st.integers(0, 8), st.sampled_from('ab'))
SIZES = st.integers(1, 6)
PRIORITIES = st.one_of(st.none(), st.integers(-2, 2), st.floats(allow_nan=False))
OPERATION = st.one_of(
    st.tuples(st.just('set'), KEYS, PRIORITIES),
    st.tuples(st.just('set'), KEYS, st.none()),
    st.tuples(st.just('get'), KEYS),
    st.tuples(st.just('contains'), KEYS),
    st.tuples(st.just('resize'), SIZES),
    st.tuples(st.just('clear')),
)
# Lists of lists, because hypothesis draws lists of about five: too few operations to fill a pool twice.
OPERATIONS = st.lists(st.lists(OPERATION)).map(lambda bursts: [operation for burst in bursts for operation in burst])


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
        self.stats.total_queries += 1
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

    def shrink_to(self, size):
        while len(self.entries) > size:
            self.entries.remove(min(self.entries, key=self.order))
            self.stats.evictions += 1

    def clear(self):
        self.entries = []


def check_against_naive(strategy, size, operations):
    pool, naive = KVCachePool(size, strategy), NaivePool(size, strategy)
    for number, (operation, *arguments) in enumerate(operations):
        if operation == 'set':
            key, priority = arguments
            pool.set(key, number, priority)
            naive.set(key, number, priority)
        elif operation == 'contains':
            assert (arguments[0] in pool) == (naive.find(arguments[0]) is not None)
        else:
            assert getattr(pool, operation)(*arguments) == getattr(naive, operation)(*arguments)
        assert {key: pool.peek(key) for key in pool.keys()} == {e['key']: e['value'] for e in naive.entries}
        assert pool.stats == naive.stats


@pytest.mark.parametrize('strategy', sorted(VICTIM_ORDER))
@given(size=SIZES, operations=OPERATIONS)
def test_pool_is_the_naive_pool(strategy, size, operations):
    check_against_naive(strategy, size, operations)


@pytest.mark.parametrize('strategy', sorted(VICTIM_ORDER))
def test_pool_is_the_naive_pool_for_long(strategy):
    rng = random.Random(0)
    operations = []
    for _ in range(5000):
        key = rng.randrange(40)
        operations.append(('get', key) if rng.random() < 0.5 else ('set', key, rng.choice([None, -1, 0, 1])))
    check_against_naive(strategy, 25, operations)


class Ledger:
    """What any pool must have in it, whichever entries its strategy chooses to keep."""

    def __init__(self, size, strategy):
        self.released = []
        self.pool = KVCachePool(size, strategy, on_release=self.released.extend)
        self.largest_size, self.inserted, self.cleared, self.queries = size, 0, 0, 0
        self.last_set, self.slots, self.values = {}, {}, []

    def set(self, key, priority):
        known, entries, evictions = key in self.pool, len(self.pool), self.pool.stats.evictions
        value = len(self.values)
        self.values.append(value)
        self.last_set[key] = value
        slot = self.pool.set(key, value, priority)
        assert key in self.pool
        assert self.pool.peek(key) == value
        assert self.pool.stats.evictions - evictions == (not known and entries == self.pool.pool_size)
        if known:
            assert slot == self.slots[key]
        else:
            self.inserted += 1
        self.slots[key] = slot

    def get(self, key):
        self.queries += 1
        assert self.pool.get(key) == (self.last_set[key] if key in self.pool else None)

    def contains(self, key):
        assert (key in self.pool) == (key in set(self.pool.keys()))

    def resize(self, size):
        entries = len(self.pool)
        self.largest_size = max(self.largest_size, size)
        self.pool.resize(size)
        assert len(self.pool) == min(entries, size)

    def clear(self):
        self.cleared += len(self.pool)
        self.pool.clear()
        assert len(self.pool) == 0

    def audit(self):
        pool, stats = self.pool, self.pool.stats
        assert len(pool) == len(list(pool.keys())) <= pool.pool_size
        assert len(pool) == self.inserted - stats.evictions - self.cleared
        assert stats.hits + stats.misses == stats.total_queries == self.queries
        self.slots = {key: slot for key, slot in self.slots.items() if key in pool}
        assert len(set(self.slots.values())) == len(pool)
        assert all(0 <= slot < self.largest_size for slot in self.slots.values())
        held = {key: pool.peek(key) for key in pool.keys()}
        assert held == {key: self.last_set[key] for key in held}
        assert Counter(self.released) + Counter(held.values()) == Counter(self.values)


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
@given(size=SIZES, operations=OPERATIONS)
def test_any_strategy_is_sound(strategy, size, operations):
    ledger = Ledger(size, strategy)
    for operation, *arguments in operations:
        getattr(ledger, operation)(*arguments)
        ledger.audit()


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
@given(size=SIZES, batches=st.lists(st.lists(st.tuples(KEYS, PRIORITIES), max_size=9)))
def test_operations_on_many_keys_are_those_on_each_in_turn(strategy, size, batches):
    released_together, released_one_by_one = [], []
    together = KVCachePool(size, strategy, on_release=released_together.extend)
    one_by_one = KVCachePool(size, strategy, on_release=released_one_by_one.extend)
    for number, batch in enumerate(batches):
        keys = [key for key, _ in batch]
        values = [(number, place) for place in range(len(batch))]
        priorities = [priority for _, priority in batch]
        together.set_many(keys, values, priorities)
        for key, value, priority in zip(keys, values, priorities):
            one_by_one.set(key, value, priority)
        assert together.get_many(keys) == [one_by_one.get(key) for key in keys]
        assert dict(zip(together.keys(), together.values())) == dict(zip(one_by_one.keys(), one_by_one.values()))
        assert together.stats == one_by_one.stats
        assert released_together == released_one_by_one


def test_a_wrong_key_among_many_leaves_the_pool_whole():
    released = []
    pool = KVCachePool(1, on_release=released.extend)
    with pytest.raises(ValueError, match='allowed are ints and strings'):
        pool.set_many(['a', 'b', 1.5, 'c'], [1, 2, 3, 4], [None] * 4)
    assert released == [1]
    assert dict(zip(pool.keys(), pool.values())) == {'b': 2}


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
