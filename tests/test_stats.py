import pytest

from lzero_kvcache import CacheStats


def test_counts_from_zero():
    assert CacheStats() == CacheStats(hits=0, misses=0, evictions=0, total_queries=0)


def test_rates_without_a_query():
    assert CacheStats().hit_rate == 0.0
    assert CacheStats().miss_rate == 1.0


def test_rates():
    stats = CacheStats(hits=3, misses=1, total_queries=4)
    assert stats.hit_rate == pytest.approx(0.75)
    assert stats.miss_rate == pytest.approx(0.25)


def test_count_queries():
    stats = CacheStats()
    stats.count_queries(hits=2, misses=0)
    stats.count_queries(hits=0, misses=1)
    assert stats == CacheStats(hits=2, misses=1, total_queries=3)


def test_reset():
    stats = CacheStats(hits=3, misses=1, evictions=2, total_queries=4)
    stats.reset()
    assert stats == CacheStats()


def test_sum_and_difference():
    early, late = CacheStats(1, 2, 3, 3), CacheStats(10, 20, 30, 30)
    assert early + late == CacheStats(11, 22, 33, 33)
    assert late - early == CacheStats(9, 18, 27, 27)
    assert early == CacheStats(1, 2, 3, 3)


def test_text():
    assert str(CacheStats(3, 1, 2, 4)) == 'CacheStats(hits=3, misses=1, evictions=2, total_queries=4, hit_rate=75.00%)'
