import copy
import pickle
from fractions import Fraction

import numpy as np
import pytest
import torch

from lzero_kvcache import EVICTION_REGISTRY, CacheStats, EvictionStrategy, KVCachePool
from lzero_kvcache.eviction import SearchNodes, SearchTree, SearchTreeNode

STRATEGIES = sorted(EVICTION_REGISTRY)


@pytest.fixture
def filled(keys_values):
    """A full pool with the keys 'a', 'b', 'c', set in this order."""

    def fill(strategy, **options):
        pool = KVCachePool(3, strategy, **options)
        for number, key in enumerate('abc'):
            pool.set(key, keys_values(number))
        return pool

    return fill


def test_get_returns_what_was_set(keys_values):
    pool, kv = KVCachePool(2), keys_values(7.)
    pool.set('node', kv)
    assert pool.get('node') is kv
    assert pool.get('other') is None


def test_keys_are_ints_and_strings(keys_values):
    pool, kv = KVCachePool(4), keys_values(1.)
    pool.set(-2 ** 70, kv)
    pool.set('1', kv)
    pool.set(np.int64(5), kv)
    assert -2 ** 70 in pool and '1' in pool and 5 in pool
    assert 1 not in pool


@pytest.mark.parametrize('key', [None, True, 1.5, b'a', (1, 2), ['a'], torch.tensor(1)])
def test_bad_key_is_refused(key, keys_values):
    pool = KVCachePool(2, name='recur_pool')
    with pytest.raises(ValueError, match="key of pool 'recur_pool' is .*: allowed are ints and strings"):
        pool.set(key, keys_values(0.))
    assert len(pool) == 0


def test_the_names_of_the_arguments():
    pool = KVCachePool(pool_size=2, eviction_strategy='priority', enable_stats=True, name='recur')
    assert pool.set(cache_key='a', kv_cache='context', priority=1) == 0
    pool.set_many(cache_keys=['b'], kv_caches=['other'], priorities=[2])
    assert pool.get(cache_key='a') == pool.peek(cache_key='a') == 'context'
    assert pool.get_many(cache_keys=['a', 'b']) == ['context', 'other']


def test_update_in_place(keys_values):
    pool = KVCachePool(2)
    slot, other_slot = pool.set('a', keys_values(1.)), pool.set('b', keys_values(2.))
    newer = keys_values(3.)
    assert pool.set('a', newer) == slot != other_slot
    assert pool.get('a') is newer
    assert len(pool) == 2
    assert pool.stats.evictions == 0


def test_an_evicted_key_leaves_no_alias(keys_values):
    pool, newer = KVCachePool(1), keys_values(2.)
    slot = pool.set('a', keys_values(1.))
    assert pool.set('b', newer) == slot
    assert pool.get('a') is None
    assert pool.get('b') is newer


def test_fifo_ignores_use(filled, keys_values):
    pool = filled('fifo')
    pool.get('a')
    pool.set('a', keys_values(5.))
    pool.set('d', keys_values(3.))
    assert set(pool.keys()) == {'b', 'c', 'd'}


def test_lru_keeps_what_is_read(filled, keys_values):
    pool = filled('lru')
    pool.get('a')
    pool.set('d', keys_values(3.))
    assert set(pool.keys()) == {'a', 'c', 'd'}


def test_lru_keeps_what_is_overwritten(filled, keys_values):
    pool = filled('lru')
    pool.set('a', keys_values(5.))
    pool.set('d', keys_values(3.))
    assert set(pool.keys()) == {'a', 'c', 'd'}


def test_contains_and_peek_are_no_use(filled, keys_values):
    pool = filled('lru')
    assert 'a' in pool and pool.peek('a') is not None
    pool.set('d', keys_values(3.))
    assert 'a' not in pool and pool.peek('a') is None
    assert pool.stats.total_queries == 0


def test_priority_evicts_the_lowest(keys_values):
    pool = KVCachePool(3, 'priority')
    for key, priority in (('a', 2), ('b', -1.5), ('c', Fraction(1, 2))):
        pool.set(key, keys_values(0.), priority)
    pool.get('b')
    pool.set('d', keys_values(0.), 3)
    assert set(pool.keys()) == {'a', 'c', 'd'}
    pool.set('e', keys_values(0.), 3)
    assert set(pool.keys()) == {'a', 'd', 'e'}


def test_priority_breaks_ties_by_last_use(keys_values):
    pool = KVCachePool(3, 'priority')
    for key, priority in (('a', 1), ('b', 1), ('c', 2)):
        pool.set(key, keys_values(0.), priority)
    pool.get('a')
    pool.set('d', keys_values(0.), 2)
    assert set(pool.keys()) == {'a', 'c', 'd'}


def test_priority_without_priorities_is_lru(filled, keys_values):
    pool = filled(EvictionStrategy.PRIORITY)
    pool.get('a')
    pool.set('b', keys_values(5.))
    pool.set('d', keys_values(3.))
    assert set(pool.keys()) == {'a', 'b', 'd'}


def test_priority_can_be_changed(keys_values):
    pool = KVCachePool(2, 'priority')
    pool.set('a', keys_values(0.), 1)
    pool.set('b', keys_values(0.), 2)
    pool.set('a', keys_values(0.), 3)
    pool.set('c', keys_values(0.), 4)
    assert set(pool.keys()) == {'a', 'c'}


def test_no_priority_keeps_the_former_one(keys_values):
    pool = KVCachePool(2, 'priority')
    pool.set('a', keys_values(0.), -1)
    pool.set('b', keys_values(0.))
    pool.set('a', keys_values(0.), None)
    pool.set('c', keys_values(0.))
    assert set(pool.keys()) == {'b', 'c'}


def test_an_evicted_key_loses_its_priority(keys_values):
    pool = KVCachePool(1, 'priority')
    pool.set('a', keys_values(0.), -5)
    pool.set('b', keys_values(0.), 1)
    pool.resize(2)
    pool.set('a', keys_values(0.))
    pool.set('c', keys_values(0.), -1)
    assert set(pool.keys()) == {'b', 'c'}


@pytest.mark.parametrize('priority', ['high', float('nan'), [1], 1j])
def test_bad_priority_is_refused(priority, keys_values):
    pool = KVCachePool(2, 'priority')
    with pytest.raises(ValueError, match="priority of key 'a' in pool 'default' is .*: allowed is a number"):
        pool.set('a', keys_values(0.), priority)
    assert len(pool) == 0


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_a_node_of_a_search_is_a_priority_for_strategies_that_follow_it(strategy, keys_values):
    nodes = SearchNodes(2)
    nodes.add_roots(None, np.zeros((1, 2)))
    node = SearchTreeNode(SearchTree(nodes), 0)
    pool = KVCachePool(2, strategy, name='recur')
    if pool.eviction_policy.follows_search:
        pool.set('a', keys_values(0.), node)
        assert list(pool.keys()) == ['a']
        return
    said = f"key 'a' in pool 'recur' is a node of a search, which {type(pool.eviction_policy).__name__} does not follow"
    with pytest.raises(ValueError, match=said):
        pool.set('a', keys_values(0.), node)
    assert len(pool) == 0


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_an_empty_pool_has_nothing_to_evict(strategy, filled):
    with pytest.raises(ValueError, match="pool 'recur' is empty: there is nothing to evict"):
        KVCachePool(2, strategy, name='recur').evict()
    pool = filled(strategy)
    pool.clear()
    with pytest.raises(ValueError, match='is empty'):
        pool.evict()


def test_stats(filled, keys_values):
    pool = filled('fifo')
    for key in ('a', 'b', 'x'):
        pool.get(key)
    pool.set('d', keys_values(3.))
    pool.resize(1)
    assert pool.stats == CacheStats(hits=2, misses=1, evictions=3, total_queries=3)


def test_disabled_stats_count_nothing(filled, keys_values):
    pool = filled('fifo', enable_stats=False)
    pool.get('a'), pool.get('x'), pool.set('d', keys_values(3.))
    assert pool.stats == CacheStats()
    assert set(pool.keys()) == {'b', 'c', 'd'}


def test_contains_len_and_repr_do_not_count(filled):
    pool = filled('lru')
    assert 'a' in pool and 'x' not in pool and len(pool) == 3
    assert repr(pool).startswith("KVCachePool(name='default', entries=3, pool_size=3")
    assert pool.stats == CacheStats()


def test_peak_entries(filled, keys_values):
    pool = filled('lru')
    pool.set('a', keys_values(5.))
    pool.resize(2)
    assert pool.peak_entries == 3
    pool.clear()
    assert pool.peak_entries == 3
    pool.resize(4)
    for key in range(5):
        pool.set(key, keys_values(0.))
    assert pool.peak_entries == 4


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_clear(strategy, filled, keys_values):
    pool = filled(strategy)
    pool.get('a')
    pool.clear()
    assert len(pool) == 0 and list(pool.keys()) == []
    assert pool.stats == CacheStats(hits=1, total_queries=1)
    pool.set('d', keys_values(3.))
    assert set(pool.keys()) == {'d'}


@pytest.mark.parametrize('strategy, survivors', [('fifo', {'c'}), ('lru', {'a'}), ('priority', {'b'})])
def test_shrinking_evicts_in_the_order_of_the_strategy(strategy, survivors, keys_values):
    pool = KVCachePool(3, strategy)
    for key, priority in (('a', 1), ('b', 9), ('c', 1)):
        pool.set(key, keys_values(0.), priority)
    pool.get('c')
    pool.get('a')
    pool.resize(1)
    assert set(pool.keys()) == survivors
    assert pool.pool_size == 1 and pool.stats.evictions == 2


def test_what_survives_shrinking_keeps_its_slot(keys_values):
    pool = KVCachePool(3)
    slots = {key: pool.set(key, keys_values(0.)) for key in 'abc'}
    pool.resize(1)
    assert pool.set('c', keys_values(1.)) == slots['c']


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_growing_keeps_everything(strategy, filled, keys_values):
    pool = filled(strategy)
    pool.resize(5)
    pool.set('d', keys_values(3.))
    pool.set('e', keys_values(4.))
    assert set(pool.keys()) == set('abcde')
    assert pool.stats.evictions == 0


@pytest.mark.parametrize('size', [0, -1, 2.5, True, '3', None])
def test_bad_size_is_refused(size, filled):
    with pytest.raises(ValueError, match="pool_size of pool 'wm_pool' is .*: allowed is an integer of at least 1") as e:
        KVCachePool(size, name='wm_pool')
    assert repr(size) in str(e.value)
    pool = filled('fifo')
    with pytest.raises(ValueError, match='allowed is an integer of at least 1'):
        pool.resize(size)
    assert pool.pool_size == len(pool) == 3


@pytest.mark.parametrize('strategy, message', [
    ('lruu', r"eviction_strategy of pool 'p' is 'lruu'.*allowed are .*fifo.*did you mean 'lru'\?"),
    ('FIFO', r"'FIFO'.*did you mean 'fifo'\?"),
    (3, r'is 3, which is no eviction strategy: allowed are '),
    (None, r'is None, which is no eviction strategy: allowed are '),
    ({'typ': 'lru'}, r"lacks 'type': allowed is dict\(type=NAME, \.\.\.options\)"),
    ({'type': 'priorty'}, r"eviction_strategy of pool 'p'\.type is 'priorty'.*did you mean 'priority'\?"),
    ({'type': 'priority', 'scor': 'x'}, r"pool 'p'\.scor is 'x'.*no option 'scor'.*did you mean 'score'\?"),
])
def test_bad_strategy_is_refused(strategy, message):
    with pytest.raises(ValueError, match=message):
        KVCachePool(2, strategy, name='p')


def test_on_release_sees_what_leaves(keys_values):
    released = []
    pool = KVCachePool(2, on_release=released.extend)
    first, second, third, fourth = (keys_values(number) for number in range(4))
    pool.set('a', first)
    pool.set('a', first)
    assert released == []
    pool.set('a', second)
    assert [id(kv) for kv in released] == [id(first)]
    pool.set('b', third)
    pool.set('c', fourth)
    assert [id(kv) for kv in released] == [id(first), id(second)]
    pool.clear()
    assert [id(kv) for kv in released] == [id(first), id(second), id(third), id(fourth)]


def test_a_bare_pool_keeps_references(keys_values):
    pool, kv = KVCachePool(2), keys_values(1.)
    pool.set('a', kv)
    kv[0].update(torch.full((1, 2, 1, 4), 9.), torch.full((1, 2, 1, 4), 9.))
    found = pool.get('a')
    assert found is kv and found.size == 2
    assert found[0].get()[0][0, 0, :, 0].tolist() == [1., 9.]


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_deep_copy_is_independent(strategy, filled, keys_values):
    pool = filled(strategy)
    twin = copy.deepcopy(pool)
    twin.get('a')[0].update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    twin.set('d', keys_values(3.))
    assert set(pool.keys()) == set('abc') and pool.stats == CacheStats()
    assert pool.get('a')[0].get()[0].shape == (1, 2, 1, 4)
    assert len(twin) == 3 and 'd' in twin


@pytest.mark.parametrize('strategy', STRATEGIES)
def test_pickled_pool_goes_on_as_before(strategy):
    pool = KVCachePool(3, strategy)
    for key in 'abc':
        pool.set(key, torch.tensor([ord(key)]))
    pool.get('a')
    twin = pickle.loads(pickle.dumps(pool))
    assert twin.stats == pool.stats
    assert twin.peek('a').item() == ord('a')
    for either in (pool, twin):
        either.set('d', torch.tensor([0]))
    assert set(twin.keys()) == set(pool.keys())
