import copy
import inspect
from types import SimpleNamespace

import pytest
import torch
from easydict import EasyDict

from lzero_kvcache import EVICTION_REGISTRY, CacheStats, EvictionPolicy, KVCacheConfig, KVCacheManager, KVCachePool
from lzero_kvcache.eviction import FIFOEviction, LRUEviction, PriorityEviction


@pytest.fixture
def manager():
    return KVCacheManager(EasyDict(num_simulations=5), env_num=3)


def sizes(manager):
    return [pool.pool_size for pool in manager.init_pools], manager.recur_pool.pool_size, manager.wm_pool.pool_size


@pytest.mark.parametrize('config_type', [EasyDict, SimpleNamespace])
@pytest.mark.parametrize('config, init, recur', [
    (dict(), 256, 150),
    (dict(num_simulations=25), 256, 75),
    (dict(num_simulations=200), 400, 600),
    (dict(num_simulations=200, game_segment_length=20), 20, 600),
    (dict(num_simulations=None, game_segment_length=None), 256, 150),
])
def test_default_sizes(config_type, config, init, recur):
    assert sizes(KVCacheManager(config_type(**config), env_num=3)) == ([init] * 3, recur, 3)


@pytest.mark.parametrize('config_type', [EasyDict, SimpleNamespace])
def test_sizes_and_strategies_of_the_config(config_type):
    manager = KVCacheManager(config_type(
        num_simulations=25, game_segment_length=20,
        kv_cache=dict(strategy='lru', init_pool=dict(size=4), recur_pool=dict(size=9, strategy='priority'),
                      wm_pool=dict(strategy=dict(type='fifo'))),
    ), env_num=2)
    assert sizes(manager) == ([4, 4], 9, 2)
    assert all(isinstance(pool.eviction_policy, LRUEviction) for pool in manager.init_pools)
    assert isinstance(manager.recur_pool.eviction_policy, PriorityEviction)
    assert isinstance(manager.wm_pool.eviction_policy, FIFOEviction)


def test_wrong_config_is_refused():
    with pytest.raises(ValueError, match=r"world_model_cfg\.kv_cache\.recur_pool\.size is 0"):
        KVCacheManager(EasyDict(kv_cache=dict(recur_pool=dict(size=0))), env_num=2)


@pytest.mark.parametrize('env_num', [0, -1, True, '2', None, 1.5])
def test_bad_env_num_is_refused(env_num):
    with pytest.raises(ValueError, match='env_num is .*: allowed is an integer of at least 1'):
        KVCacheManager(EasyDict(), env_num)


def test_the_names_of_the_arguments():
    manager = KVCacheManager(config={}, env_num=2, enable_stats=True)
    manager.set_init_cache(env_id=0, cache_key=123, kv_cache='root', priority=1)
    manager.set_recur_cache(cache_key='node', kv_cache='context', priority=None)
    manager.set_wm_cache(cache_key='row', kv_cache='working', priority=None)
    assert manager.get_init_cache(env_id=0, cache_key=123) == 'root'
    assert manager.get_recur_cache(cache_key='node') == 'context'
    assert manager.get_wm_cache(cache_key='row') == 'working'
    assert manager.hierarchical_get(env_id=0, cache_key='node') == 'context'


@pytest.mark.parametrize('owner', [KVCachePool, KVCacheManager, EvictionPolicy])
def test_keys_and_values_have_one_name_everywhere(owner):
    for name, method in inspect.getmembers(owner, inspect.isfunction):
        if not name.startswith('_') or name == '__contains__':
            assert not {'key', 'kv', 'value', 'keys', 'kvs', 'values'} & set(inspect.signature(method).parameters), name


def test_environments_are_isolated(manager, keys_values):
    contexts = [keys_values(env_id) for env_id in range(3)]
    for env_id, kv in enumerate(contexts):
        manager.set_init_cache(env_id, 'root', kv)
    assert [manager.get_init_cache(env_id, 'root') for env_id in range(3)] == contexts
    manager.init_pools[1].clear()
    assert [manager.get_init_cache(env_id, 'root') for env_id in range(3)] == [contexts[0], None, contexts[2]]


def test_a_full_environment_evicts_only_its_own(keys_values):
    manager = KVCacheManager(EasyDict(kv_cache=dict(init_pool=dict(size=1))), env_num=2)
    manager.set_init_cache(0, 'a', keys_values(0.))
    manager.set_init_cache(1, 'b', keys_values(1.))
    manager.set_init_cache(1, 'c', keys_values(2.))
    assert manager.get_init_cache(0, 'a') is not None
    assert manager.get_init_cache(1, 'b') is None


def test_the_kinds_are_isolated(manager, keys_values):
    init, recur, wm = keys_values(1.), keys_values(2.), keys_values(3.)
    slots = manager.set_init_cache(0, 'a', init), manager.set_recur_cache('a', recur), manager.set_wm_cache('a', wm)
    assert slots == (0, 0, 0)
    assert manager.get_init_cache(0, 'a') is init
    assert manager.get_recur_cache('a') is recur
    assert manager.get_wm_cache('a') is wm


def test_priorities_reach_every_kind(keys_values):
    pool = dict(size=2)
    manager = KVCacheManager(
        EasyDict(kv_cache=dict(strategy='priority', init_pool=pool, recur_pool=pool, wm_pool=pool)), env_num=1)
    for key, priority in (('a', 2), ('b', 1), ('c', 3)):
        manager.set_init_cache(0, key, keys_values(0.), priority)
        manager.set_recur_cache(key, keys_values(0.), priority)
        manager.set_wm_cache(key, keys_values(0.), priority)
    for pool in (manager.init_pools[0], manager.recur_pool, manager.wm_pool):
        assert set(pool.keys()) == {'a', 'c'}


@pytest.mark.parametrize('clear, left', [
    ('clear_all', (0, 0, 0)), ('clear_init_caches', (0, 1, 1)), ('clear_recur_cache', (2, 0, 1)),
    ('reset_stats', (2, 1, 1)),
])
def test_clearing(clear, left, manager, keys_values):
    manager.set_init_cache(0, 'a', keys_values(0.))
    manager.set_init_cache(2, 'a', keys_values(0.))
    manager.set_recur_cache('a', keys_values(0.))
    manager.set_wm_cache('a', keys_values(0.))
    manager.get_wm_cache('a')
    getattr(manager, clear)()
    assert (sum(map(len, manager.init_pools)), len(manager.recur_pool), len(manager.wm_pool)) == left
    assert manager.wm_pool.stats.hits == (clear != 'reset_stats')


def test_reset_stats_reaches_every_pool(manager):
    for env_id in range(3):
        manager.get_init_cache(env_id, 'a')
    manager.get_recur_cache('a'), manager.get_wm_cache('a')
    assert manager.total_stats() == dict(
        init_pools=CacheStats(misses=3, total_queries=3), recur_pool=CacheStats(misses=1, total_queries=1),
        wm_pool=CacheStats(misses=1, total_queries=1),
    )
    manager.reset_stats()
    assert set(map(str, manager.total_stats().values())) == {str(CacheStats())}


def test_stats_summary(manager, keys_values):
    manager.set_init_cache(1, 'a', keys_values(0.))
    manager.get_init_cache(1, 'a'), manager.get_init_cache(1, 'b'), manager.get_recur_cache('a')
    summary = manager.get_stats_summary()
    assert list(summary) == ['stats_enabled', 'init_pools', 'recur_pool', 'wm_pool']
    assert summary['stats_enabled'] is True
    assert list(summary['init_pools']) == ['env_0', 'env_1', 'env_2']
    assert summary['init_pools']['env_1'].startswith('CacheStats(hits=1, misses=1, ')
    assert summary['recur_pool'].startswith('CacheStats(hits=0, misses=1, ')
    assert summary['wm_pool'].startswith('CacheStats(hits=0, misses=0, ')


@pytest.mark.parametrize('in_argument, in_config', [(False, True), (True, False), (False, False)])
def test_disabled_stats(in_argument, in_config):
    manager = KVCacheManager(EasyDict(kv_cache=dict(enable_stats=in_config)), 2, enable_stats=in_argument)
    manager.get_init_cache(0, 'a'), manager.get_recur_cache('a'), manager.get_wm_cache('a')
    assert manager.get_stats_summary() == {'stats_enabled': False}
    assert set(map(str, manager.total_stats().values())) == {str(CacheStats())}


@pytest.mark.parametrize('env_id', [-1, 3, '0', True, None, 1.5])
def test_bad_env_id_is_refused(env_id, manager, keys_values):
    calls = [
        lambda: manager.get_init_cache(env_id, 'a'),
        lambda: manager.set_init_cache(env_id, 'a', keys_values(0.)),
        lambda: manager.hierarchical_get(env_id, 'a'),
    ]
    for call in calls:
        with pytest.raises(ValueError) as error:
            call()
        assert str(error.value) == f'env_id is {env_id!r}: allowed are the integers 0 to 2'
    assert not any(map(len, manager.init_pools))


def test_hierarchical_get(manager, keys_values):
    root, node = keys_values(1.), keys_values(2.)
    manager.set_recur_cache('a', node)
    assert manager.hierarchical_get(0, 'a') is node
    manager.set_init_cache(0, 'a', root)
    assert manager.hierarchical_get(0, 'a') is root
    assert manager.hierarchical_get(1, 'a') is node
    assert manager.hierarchical_get(1, 'b') is None
    assert manager.init_pools[0].stats == CacheStats(hits=1, misses=1, total_queries=2)
    assert manager.init_pools[1].stats == CacheStats(misses=2, total_queries=2)
    assert manager.recur_pool.stats == CacheStats(hits=2, misses=1, total_queries=3)


def test_on_release_sees_what_leaves_any_pool(keys_values):
    released = []
    manager = KVCacheManager(EasyDict(), env_num=1, on_release=released.extend)
    manager.set_init_cache(0, 'a', keys_values(1.))
    manager.set_recur_cache('a', keys_values(2.))
    manager.set_wm_cache('a', keys_values(3.))
    manager.clear_all()
    assert [kv[0].get()[0][0, 0, 0, 0].item() for kv in released] == [1., 2., 3.]


def test_deep_copy_is_independent(manager, keys_values):
    manager.set_init_cache(0, 'a', keys_values(1.))
    twin = copy.deepcopy(manager)
    twin.get_init_cache(0, 'a')[0].update(torch.ones(1, 2, 1, 4), torch.ones(1, 2, 1, 4))
    twin.set_recur_cache('b', keys_values(2.))
    assert manager.get_init_cache(0, 'a').size == 1
    assert twin.get_init_cache(0, 'a').size == 2
    assert len(manager.recur_pool) == 0
    twin.clear_all()
    assert len(manager.init_pools[0]) == 1 and manager.init_pools[0].stats.hits == 1


@pytest.mark.parametrize('name', ['num_simulations', 'game_segment_length'])
def test_numbers_that_give_no_size_are_refused(name):
    with pytest.raises(ValueError, match=f'{name} is 0: allowed is an integer of at least 1'):
        KVCacheManager(EasyDict({name: 0}), 2)


@pytest.mark.parametrize('config', [
    KVCacheConfig(strategy='lru', recur_pool=dict(size=7)),
    {'kv_cache': {'strategy': 'lru', 'recur_pool': {'size': 7}}},
    EasyDict(strategy='lru', recur_pool=dict(size=7)),
    dict(strategy='lru', recur_pool=dict(size=7), num_simulations=3),
], ids=str)
def test_every_spelling_of_the_config_is_read(config):
    manager = KVCacheManager(config, 2)
    assert manager.recur_pool.pool_size == 7
    assert type(manager.wm_pool.eviction_policy) is EVICTION_REGISTRY.get('lru')


def test_memory_bytes(keys_values):
    manager = KVCacheManager(EasyDict(), env_num=2)
    kv = keys_values(1.)
    manager.set_init_cache(0, 'a', kv)
    manager.set_init_cache(1, 'a', kv)
    manager.set_recur_cache('b', keys_values(2.))
    manager.set_recur_cache('c', keys_values(3.))
    assert manager.memory_bytes() == {'init_pools': 512, 'recur_pool': 1024, 'wm_pool': 0}
