"""One pool, and one manager, used by several threads at once."""
import copy
import pickle
import random
import sys
import threading
from collections import Counter

import pytest
from easydict import EasyDict
from invariants import check_pool

from lzero_kvcache import EVICTION_REGISTRY, KVCacheManager, KVCachePool

THREADS = 4
OPERATIONS = 1500
ENV_NUM = 2


@pytest.fixture
def threads_take_turns_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def run_threads(work):
    """``work(number, rng)`` in several threads at once; what one of them raises is raised here."""
    start, errors = threading.Barrier(THREADS), []

    def run(number):
        try:
            start.wait()
            work(number, random.Random(number))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number, )) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def check_values(pool):
    """What is true of any pool whose values are ``(key, ...)``, once all threads are done."""
    check_pool(pool)
    assert all(pool.peek(key)[0] == key for key in pool.keys())


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
def test_a_pool_loses_nothing_and_never_returns_another_keys_value(strategy, threads_take_turns_often):
    released, stored, inserted, queries = [], [[] for _ in range(THREADS)], Counter(), Counter()
    pool = KVCachePool(20, strategy, on_release=released.extend)

    def work(number, rng):
        for operation in range(OPERATIONS):
            key, choice = rng.randrange(40), rng.random()
            if choice < 0.4:
                queries[number] += 1
                value = pool.get(key)
                assert value is None or value[0] == key
            elif choice < 0.8:
                value = (key, number, operation)
                stored[number].append(value)
                with pool.lock:
                    inserted[number] += key not in pool
                    pool.set(key, value, rng.choice([None, rng.random()]))
            elif choice < 0.95:
                value = pool.peek(key)
                assert value is None or value[0] == key
            elif choice < 0.97:
                pool.resize(rng.randrange(10, 30))
            elif choice < 0.99:
                batch = [(key, number, operation) for key in rng.sample(range(40), 5)]
                stored[number] += batch
                with pool.lock:
                    for value in batch:
                        inserted[number] += value[0] not in pool
                        pool.set(value[0], value)
            else:
                assert all(value[0] < 40 for value in pool.values())

    run_threads(work)
    check_values(pool)
    assert pool.stats.total_queries == sum(queries.values())
    assert len(pool) == sum(inserted.values()) - pool.stats.evictions
    assert Counter(released) + Counter(pool.values()) == Counter(value for values in stored for value in values)


def test_a_manager_loses_nothing_and_never_returns_another_keys_value(threads_take_turns_often):
    manager = KVCacheManager(EasyDict(num_simulations=10, kv_cache=dict(strategy='lru')), ENV_NUM)

    def work(number, rng):
        for _ in range(OPERATIONS):
            key, env_id, choice = rng.randrange(600), rng.randrange(ENV_NUM), rng.random()
            if choice < 0.3:
                manager.set_init_cache(env_id, key, (key, env_id))
            elif choice < 0.5:
                manager.set_recur_cache(key, (key, 'recur'))
            elif choice < 0.6:
                manager.set_wm_cache(key, (key, 'wm'))
            elif choice < 0.7:
                assert manager.get_init_cache(env_id, key) in (None, (key, env_id))
            elif choice < 0.8:
                assert manager.hierarchical_get(env_id, key) in (None, (key, env_id), (key, 'recur'))
            elif choice < 0.9:
                assert manager.get_wm_cache(key) in (None, (key, 'wm'))
            elif choice < 0.92:
                totals = manager.total_stats()
                assert all(stats.hits + stats.misses == stats.total_queries for stats in totals.values())
            elif choice < 0.93:
                manager.clear_all()
            elif choice < 0.94:
                assert manager.get_stats_summary()['stats_enabled']
            else:
                with manager.lock:
                    twin = pickle.loads(pickle.dumps(manager)) if choice < 0.97 else copy.deepcopy(manager)
                    assert twin.total_stats() == manager.total_stats()
                check_values(twin.recur_pool)

    run_threads(work)
    for pools in manager.pools().values():
        for pool in pools:
            check_values(pool)


def test_operations_are_one_where_a_thread_holds_the_lock():
    pool, other_is_through = KVCachePool(2), threading.Event()

    def clear():
        pool.clear()
        other_is_through.set()

    with pool.lock:
        pool.set('a', 1)
        other = threading.Thread(target=clear)
        other.start()
        assert not other_is_through.wait(0.1)
        assert pool.get('a') == 1
    other.join(timeout=60)
    assert other_is_through.is_set()
    assert len(pool) == 0


@pytest.mark.parametrize('twin_of', [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))],
                         ids=['deep copy', 'pickle'])
def test_the_pools_of_a_copy_share_a_lock_of_their_own(twin_of):
    manager = KVCacheManager(EasyDict(num_simulations=10), ENV_NUM)
    with manager.lock:
        twin = twin_of(manager)
    locks = {id(pool.lock) for pools in twin.pools().values() for pool in pools}
    assert locks == {id(twin.lock)}
    assert twin.lock is not manager.lock
    # A copy of a lock that is held is free.
    assert twin.lock.acquire(blocking=False)
