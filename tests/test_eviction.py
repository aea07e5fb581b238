import re
from typing import Optional

import numpy as np
import pytest
import torch
from invariants import check_pool

from lzero_kvcache import EVICTION_REGISTRY, EvictionPolicy, EvictionStrategy, KVCacheConfig, KVCachePool
from lzero_kvcache.eviction import EvictionStrategyError, FIFOEviction


@pytest.fixture
def mru():
    """A user's own strategy: the most recently used entry goes, but never one of the first ``keep`` to come."""

    @EVICTION_REGISTRY.register('mru')
    class MRUEviction(EvictionPolicy):

        def __init__(self, keep: int = 0) -> None:
            self.keep = keep
            self.slots: dict[int, None] = {}

        def insert(self, slot: int, priority: Optional[float] = None) -> None:
            self.slots[slot] = None

        def remove(self, slot: int) -> None:
            del self.slots[slot]

        def victim(self) -> int:
            return list(self.slots)[self.keep:][-1]

        def touch(self, slot: int) -> None:
            self.remove(slot)
            self.insert(slot)

    yield 'mru'
    del EVICTION_REGISTRY['mru']


def test_every_member_names_a_registered_strategy():
    for strategy in EvictionStrategy:
        assert issubclass(EVICTION_REGISTRY.get(strategy.value), EvictionPolicy)


def test_every_registered_strategy_is_a_member():
    assert {strategy.value for strategy in EvictionStrategy} == set(EVICTION_REGISTRY)


@pytest.mark.parametrize('strategy', EvictionStrategy)
def test_member_name_and_dict_mean_the_same(strategy):
    kinds = {type(KVCachePool(2, given).eviction_policy)
             for given in (strategy, strategy.value, {'type': strategy.value}, {'type': strategy})}
    assert kinds == {EVICTION_REGISTRY.get(strategy.value)}


def test_own_strategy_in_a_pool(mru, keys_values):
    pool = KVCachePool(3, mru)
    for key in 'abc':
        pool.set(key, keys_values(0.))
    pool.get('a')
    pool.set('d', keys_values(0.))
    assert set(pool.keys()) == {'b', 'c', 'd'}
    pool.set('b', keys_values(0.))
    pool.set('e', keys_values(0.))
    assert set(pool.keys()) == {'c', 'd', 'e'}


def test_own_strategy_with_options(mru):
    pool = KVCachePool(3, dict(type=mru, keep=1))
    assert pool.eviction_policy.keep == 1
    pool.clear()
    assert pool.eviction_policy.keep == 1


def test_own_strategy_in_a_config(mru):
    config = KVCacheConfig.from_dict(dict(strategy=mru, recur_pool=dict(strategy=dict(type=mru, keep=1))))
    assert config.strategy_of(config.init_pool) == 'mru'
    assert config.strategy_of(config.recur_pool) == dict(type='mru', keep=1)


def test_unknown_option_of_an_own_strategy(mru):
    with pytest.raises(ValueError, match=r"strategy\.kep is 1, but strategy 'mru' has no option 'kep'.*mean 'keep'"):
        KVCacheConfig(strategy=dict(type=mru, kep=1))


def test_a_strategy_that_is_not_registered_any_more():
    with pytest.raises(ValueError, match="'mru', which is no eviction strategy"):
        KVCachePool(2, 'mru')


def test_the_base_class_says_what_a_strategy_must_do():
    assert EvictionPolicy.__abstractmethods__ == {'insert', 'remove', 'victim'}


def test_a_strategy_that_lacks_a_required_option_is_refused():

    @EVICTION_REGISTRY.register('needy')
    class NeedyEviction(FIFOEviction):

        def __init__(self, window: int, **more: int) -> None:
            super().__init__()

    try:
        with pytest.raises(ValueError, match=r"kv_cache\.strategy is 'needy': strategy 'needy' is missing .*'window'"):
            KVCacheConfig(strategy='needy')
        assert KVCacheConfig(strategy=dict(type='needy', window=3, other=4)).strategy['other'] == 4
    finally:
        del EVICTION_REGISTRY['needy']


@pytest.mark.parametrize('name, strategy, message', [
    ('lru', FIFOEviction, "'lru' is taken by the eviction strategy lzero_kvcache.eviction.lru.LRUEviction: choose ano"),
    (3, FIFOEviction, 'the name of an eviction strategy is 3: allowed is a string'),
    (['lru'], FIFOEviction, r"the name of an eviction strategy is \['lru'\]: allowed is a string"),
    ('', FIFOEviction, "the name of an eviction strategy is '': allowed is a string"),
    ('mine', dict, "<class 'dict'> cannot be the eviction strategy 'mine': allowed is a subclass of .*EvictionPolicy"),
    ('mine', FIFOEviction(), 'FIFOEviction object .* cannot be .*: allowed is a subclass of'),
    ('mine', lambda: FIFOEviction(), 'lambda.* cannot be .*: allowed is a subclass of'),
    ('mine', EvictionPolicy, "because it lacks insert and remove and victim: needed are insert, remove, victim"),
])
def test_what_cannot_be_a_strategy_is_refused_when_it_is_registered(name, strategy, message):
    before = dict(EVICTION_REGISTRY)
    with pytest.raises(ValueError, match=message):
        EVICTION_REGISTRY.register(name, strategy)
    with pytest.raises(ValueError, match=message):
        EVICTION_REGISTRY.register(name)(strategy)
    with pytest.raises(ValueError, match='the name of an eviction strategy is .*: allowed is a string, as in @'):
        EVICTION_REGISTRY.register(strategy)
    if name != 'lru':
        with pytest.raises(ValueError, match=message):
            EVICTION_REGISTRY[name] = strategy
    assert dict(EVICTION_REGISTRY) == before


def test_a_name_is_taken_over_on_request(mru):

    @EVICTION_REGISTRY.register(mru, force_overwrite=True)
    class Newer(FIFOEviction):
        pass

    assert type(KVCachePool(2, mru).eviction_policy) is Newer


def test_a_strategy_that_cannot_be_built(mru):

    @EVICTION_REGISTRY.register(mru, force_overwrite=True)
    class Unfinished(FIFOEviction):

        def __init__(self, window: int = 3) -> None:
            self.window = dict(small=1)[window]

    with pytest.raises(ValueError, match="kv_cache.strategy is 'mru': Unfinished cannot be built: KeyError: 3"):
        KVCacheConfig(strategy=mru)


class Careless(FIFOEviction):
    """What a user's own strategy may do wrong, once it holds two slots."""
    result: object = None
    failing: str = ''

    def victim(self):
        if self.failing:
            return super().victim()
        return self.result

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, 'failing') and len(object.__getattribute__(self, '_slots')) == 2:
            raise KeyError(name)
        return super().__getattribute__(name)


OPERATIONS = {
    'set': lambda pool: pool.set('c', 3),
    'set_many': lambda pool: pool.set_many(['c', 'd'], [3, 4], [None, None]),
    'evict': lambda pool: pool.evict(),
    'resize': lambda pool: pool.resize(1),
    'get': lambda pool: pool.get('a'),
    'overwrite': lambda pool: pool.set('a', 3),
}


def check_failure(careless, operation, message, caplog):
    released = []
    pool = KVCachePool(2, careless, name='recur_pool', on_release=released.extend)
    pool.set_many(['a', 'b'], [1, 2], [None, None])
    with pytest.raises(RuntimeError) as failure:
        OPERATIONS[operation](pool)
    assert isinstance(failure.value, EvictionStrategyError)
    assert re.fullmatch(
        rf"the eviction strategy Careless of pool 'recur_pool' has failed: {message}", str(failure.value)
    )
    assert len(pool) == 0 and pool.stats.evictions == 0
    check_pool(pool)
    assert {1, 2} <= set(released)
    assert "pool 'recur_pool' has broken off: the pool has been emptied" in caplog.text
    pool.set('d', 4)
    assert pool.get('d') == 4
    check_pool(pool)


@pytest.fixture
def careless(monkeypatch):

    def fault(result=None, failing=''):
        monkeypatch.setattr(Careless, 'result', result)
        monkeypatch.setattr(Careless, 'failing', failing)
        return 'careless'

    EVICTION_REGISTRY.register('careless', Careless)
    yield fault
    del EVICTION_REGISTRY['careless']


@pytest.mark.parametrize('operation', ['set', 'set_many', 'evict', 'resize'])
@pytest.mark.parametrize('victim', [99, -1, None, 'a', [0], torch.tensor(0)], ids=repr)
def test_a_victim_that_the_strategy_does_not_hold(victim, operation, careless, caplog):
    message = re.escape(f'victim() has returned {victim!r}: allowed is one of the 2 slots that it holds, 0, 1')
    check_failure(careless(victim), operation, message, caplog)


@pytest.mark.parametrize('operation, method', [
    ('set', 'before_insert'), ('set', 'victim'), ('set', 'remove'), ('set_many', 'remove'), ('evict', 'remove'),
    ('resize', 'resize'), ('get', 'touch'), ('overwrite', 'update'),
])
def test_a_strategy_that_raises(operation, method, careless, caplog):
    message = rf"KeyError: '{method}' \({re.escape(__file__)}, line \d+\)"
    check_failure(careless(failing=method), operation, message, caplog)


def test_a_victim_of_numpys_is_a_slot(careless):
    pool = KVCachePool(2, careless(np.int64(1)))
    for cache_key in 'abc':
        slot = pool.set(cache_key, None)
    assert type(slot) is int and slot == 1 and set(pool.keys()) == {'a', 'c'}


def test_a_member_prints_as_what_a_saved_config_can_hold():
    assert eval(f'dict(strategy={EvictionStrategy.LRU!r})') == dict(strategy='lru')


@pytest.mark.parametrize('strategy, reason', [
    (dict(type='slru', segments=0), "segments is 0: allowed is an integer of at least 1"),
    (dict(type='slru', segments=2.5), "segments is 2.5: allowed is an integer of at least 1"),
    (dict(type='slru', segments='a'), "segments is 'a': allowed is an integer of at least 1"),
    (dict(type='random', seed=[1]), r"seed is \[1\]: allowed is an integer"),
], ids=str)
def test_a_value_that_an_option_does_not_take(strategy, reason):
    with pytest.raises(ValueError, match=rf"kv_cache\.recur_pool\.strategy is .*{strategy['type']}.*: {reason}"):
        KVCacheConfig(recur_pool=dict(strategy=strategy))
