"""memory_budget_mb: pool sizes that a number of bytes is enough for, and what is held stays within it."""
import re

import pytest
from easydict import EasyDict
from episodes import Episodes
from hypothesis import given
from hypothesis import strategies as st
from models import build_model, kv_cache

from lzero_kvcache import KVCacheManager
from lzero_kvcache.budget import MIB, ContextMemory, MemoryBudget, PoolSizes

DIMENSIONS = dict(num_layers=2, embed_dim=64, context_length=8)
KEY = r'policy\.model\.world_model_cfg\.kv_cache\.memory_budget_mb'

counts = st.integers(1, 1000)
memories = st.tuples(st.integers(1, 100_000), counts, counts, st.integers(0, 20)).map(
    lambda drawn: ContextMemory(drawn[0], drawn[1], min(drawn[1:3]), drawn[3])
)
sizes_to_give = st.builds(PoolSizes, *[st.one_of(st.none(), counts)] * 3)


def bytes_of(budget, sizes):
    return budget.tokens_of(sizes) * budget.memory.token_bytes


@given(megabytes=st.floats(0.001, 10_000), memory=memories, env_num=st.integers(1, 64), given=sizes_to_give,
       wanted=st.builds(PoolSizes, counts, counts, counts))
def test_sizes_use_the_budget_and_keep_within_it(megabytes, memory, env_num, given, wanted):
    budget = MemoryBudget(megabytes, memory, env_num)
    try:
        sizes = budget.fit(given, wanted)
    except ValueError as error:
        smallest = float(re.search(r'the smallest that works is ([\d.e+-]+) MiB', str(error)).group(1))
        assert smallest > megabytes
        assert min(vars(MemoryBudget(smallest, memory, env_num).fit(given, wanted)).values()) >= 1
        with pytest.raises(ValueError):
            MemoryBudget(smallest - 0.0011 - memory.token_bytes / MIB, memory, env_num).fit(given, wanted)
        return
    assert bytes_of(budget, sizes) <= megabytes * MIB + 1
    for pool in ('init', 'recur', 'wm'):
        if getattr(given, pool) is not None:
            assert getattr(sizes, pool) == getattr(given, pool)
            continue
        assert 1 <= getattr(sizes, pool) <= getattr(wanted, pool)
        if getattr(sizes, pool) < getattr(wanted, pool):
            one_more = PoolSizes(**{**vars(sizes), pool: getattr(sizes, pool) + 1})
            assert bytes_of(budget, one_more) > megabytes * MIB - memory.token_bytes


def test_a_manager_by_hand_derives_its_sizes_and_says_them():
    manager = KVCacheManager(EasyDict(kv_cache=dict(memory_budget_mb=2), num_simulations=10, **DIMENSIONS), 4)
    # Windows of 8 KiB: 256 fit, the 40 nodes first, then 4 rows, then the roots of 4 environments.
    assert (manager.init_pools[0].pool_size, manager.recur_pool.pool_size, manager.wm_pool.pool_size) == (53, 40, 4)
    assert manager.describe() == (
        "kv_cache.mode='managed': init pools of 53 entries for each of 4 environments (fifo), a recur pool of 40 "
        '(fifo), a wm pool of 4 (fifo); 2.00 MiB when they are full, of memory_budget_mb=2, 1,024 bytes a token'
    )


def test_sizes_that_are_given_stay():
    cache = dict(memory_budget_mb=2, recur_pool=dict(size=100), init_pool=dict(size=3))
    manager = KVCacheManager(EasyDict(kv_cache=cache, **DIMENSIONS), 4)
    assert (manager.init_pools[0].pool_size, manager.recur_pool.pool_size, manager.wm_pool.pool_size) == (3, 100, 4)
    cache['recur_pool']['size'] = 300
    with pytest.raises(ValueError, match=f'{KEY} is 2: the smallest that works is 2.446 MiB .*3, 300 and 1 entries'):
        KVCacheManager(EasyDict(kv_cache=cache, **DIMENSIONS), 4)


@pytest.mark.parametrize('missing', sorted(DIMENSIONS))
def test_a_manager_by_hand_needs_the_models_dimensions(missing):
    dimensions = {name: value for name, value in DIMENSIONS.items() if name != missing}
    with pytest.raises(ValueError, match=f'{KEY} is set, but beside kv_cache there is no {missing}, which'):
        KVCacheManager(EasyDict(kv_cache=dict(memory_budget_mb=2), **dimensions), 4)


@pytest.mark.parametrize('value', [0, '2', 1.5])
def test_dimensions_that_are_none_are_refused(value):
    with pytest.raises(ValueError, match=f'num_layers is {value!r}: allowed is an integer of at least 1'):
        KVCacheManager(EasyDict(kv_cache=dict(memory_budget_mb=2), **dict(DIMENSIONS, num_layers=value)), 4)


def test_too_small_a_budget_says_the_smallest_that_works():
    with pytest.raises(ValueError, match=f'{KEY} is 0.01: the smallest that works is ') as error:
        build_model(kv_cache=kv_cache(memory_budget_mb=0.01))
    smallest = float(re.search(r'works is ([\d.]+) MiB', str(error.value)).group(1))
    build_model(kv_cache=kv_cache(memory_budget_mb=smallest))


@pytest.mark.parametrize('window', ['shift', 'rebuild'])
@pytest.mark.parametrize('on_miss', ['rebuild', 'reset'])
@pytest.mark.parametrize('megabytes', [0.15, 0.5])
def test_what_the_pools_hold_keeps_within_the_budget(megabytes, on_miss, window):
    cache = kv_cache(memory_budget_mb=megabytes, on_miss=on_miss, window=window, strategy='lru')
    model = build_model(kv_cache=cache)
    manager, held = model.world_model.kv_cache_manager, []
    phases = [Episodes(model, phase) for phase in ('collect', 'eval')]
    for episodes in phases * 5:
        episodes.step([0, 1, 2, 3], 20)
        held.append(sum(manager.memory_bytes().values()))
    assert max(held) <= megabytes * MIB
    assert max(held) > 0.3 * megabytes * MIB or manager.recur_pool.stats.evictions == 0
