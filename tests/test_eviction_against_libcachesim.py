"""Hit counts of the classical strategies equal libCacheSim's, request by request."""
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lzero_kvcache import KVCachePool

# It has no wheels but for Linux on x86-64.
libcachesim = pytest.importorskip('libcachesim')

REFERENCES = {
    'fifo': libcachesim.FIFO,
    'lru': libcachesim.LRU,
    'lfu': libcachesim.LFU,
    'slru': libcachesim.SLRU,
    'sieve': libcachesim.Sieve,
    's3fifo': libcachesim.S3FIFO,
}
# libCacheSim's SLRU drops the remainder of a size that is no multiple of 4, and its S3-FIFO takes nothing into a
# small queue of one entry.
SIZES = (20, 40, 100)


def zipf(rng, length):
    weights = [1 / (rank + 1) for rank in range(400)]
    return rng.choices(range(400), weights, k=length)


def loop(rng, length):
    """A loop somewhat longer than the pools, with leaps."""
    keys, key = [], 0
    for _ in range(length):
        key = rng.randrange(150) if rng.random() < 0.02 else (key + 1) % 150
        keys.append(key)
    return keys


def drifting(rng, length):
    """What is asked for moves on, as in a search."""
    return [max(0, step // 8 - int(rng.expovariate(1 / 30))) for step in range(length)]


TRACES = {'zipf': zipf, 'loop': loop, 'drifting': drifting}


def hits_of_pool(strategy, size, keys):
    pool = KVCachePool(size, strategy)
    hits = []
    for key in keys:
        hits.append(pool.get(key) is not None)
        if not hits[-1]:
            pool.set(key, key + 1)
    assert pool.stats.hits == sum(hits)
    return hits


def hits_of_reference(strategy, size, keys):
    # Small: the table is allocated in full, its default of 2 ** 24 takes longer than the trace.
    cache = REFERENCES[strategy](cache_size=size, hashpower=10)
    hits = []
    for key in keys:
        request = libcachesim.Request()
        request.obj_id, request.obj_size = key, 1
        hits.append(cache.get(request))
    return hits


@pytest.mark.parametrize('strategy', REFERENCES)
@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('trace', TRACES)
def test_hits_are_libcachesims(strategy, size, trace):
    keys = TRACES[trace](random.Random(size), 5000)
    hits = hits_of_pool(strategy, size, keys)
    assert hits == hits_of_reference(strategy, size, keys)
    assert 0 < sum(hits) < len(hits)


@pytest.mark.parametrize('strategy', REFERENCES)
@settings(max_examples=50)
@given(st.sampled_from((20, 24)), st.lists(st.lists(st.integers(0, 40), max_size=60), max_size=20))
def test_hits_are_libcachesims_on_any_trace(strategy, size, bursts):
    keys = [key for burst in bursts for key in burst]
    assert hits_of_pool(strategy, size, keys) == hits_of_reference(strategy, size, keys)
