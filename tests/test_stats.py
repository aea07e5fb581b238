from types import SimpleNamespace

import pytest
import wandb
from torch.utils.tensorboard import SummaryWriter

from lzero_kvcache import CacheStats, KVCacheManager
from lzero_kvcache.plugin.statistics import StatisticsReporter
from lzero_kvcache.stats import RebuildStats
from lzero_kvcache.world_model.histories import RootStats


def test_counts_from_zero():
    assert CacheStats() == CacheStats(hits=0, misses=0, evictions=0, total_queries=0)


def test_rates_without_a_query():
    assert CacheStats().hit_rate == 0.0
    assert CacheStats().miss_rate == 1.0


def test_rates():
    stats = CacheStats(hits=3, misses=1, total_queries=4)
    assert stats.hit_rate == pytest.approx(0.75)
    assert stats.miss_rate == pytest.approx(0.25)


def test_queries_follow_from_hits_and_misses():
    stats = CacheStats(hits=3, misses=1)
    assert stats == CacheStats(3, 1, 0, 4)
    assert (stats.total_queries, stats.hit_rate, stats.miss_rate) == (4, 0.75, 0.25)
    stats.misses += 4
    assert (stats.total_queries, stats.hit_rate) == (8, 0.375)


@pytest.mark.parametrize('total_queries', [0, 3, 5, '4'])
def test_queries_that_contradict_hits_and_misses_are_refused(total_queries):
    with pytest.raises(ValueError, match=f'total_queries is {total_queries!r}, but 3 hits and 1 misses are 4 queries'):
        CacheStats(hits=3, misses=1, total_queries=total_queries)


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


def test_a_missing_run_at_weights_and_biases_is_said_once(tmp_path, caplog):
    assert wandb.run is None
    inference = SimpleNamespace(
        manager=KVCacheManager(dict(num_simulations=3), env_num=2), root_stats=RootStats(), rebuild_stats=RebuildStats()
    )
    for use_wandb in (False, True):
        reporter = StatisticsReporter(inference, log_interval=1, use_wandb=use_wandb)
        reporter.tb_logger = SummaryWriter(str(tmp_path))
        for _ in range(3):
            reporter.count_search('collect', 2)
        reporter.tb_logger.close()
        said = [record for record in caplog.records if 'no run at Weights & Biases' in record.message]
        assert len(said) == use_wandb
