from typing import Optional

import pytest

from lzero_kvcache import EVICTION_REGISTRY, EvictionPolicy, EvictionStrategy, KVCacheConfig, KVCachePool
from lzero_kvcache.eviction import FIFOEviction


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
