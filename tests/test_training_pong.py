"""Training on Pong: images, learned positions, the replay buffer reanalysed."""
from typing import Any

import pytest
from lzero.entry import train_unizero_segment
from lzero.mcts import UniZeroGameBuffer
from training import TINY_POOLS, Run, check_tiny_pools, check_training, train

pytestmark = pytest.mark.slow

PONG = 'atari_unizero_config'
PONG_SEGMENTS = 'atari_unizero_segment_config'


@pytest.fixture
def reanalyses(monkeypatch) -> list:
    """The batch size of every call of the buffer's reanalysis, which still does its work."""
    batch_sizes = []
    reanalyze_buffer = UniZeroGameBuffer.reanalyze_buffer

    def counted(self, batch_size: int, policy: Any) -> Any:
        batch_sizes.append(batch_size)
        return reanalyze_buffer(self, batch_size, policy)

    monkeypatch.setattr(UniZeroGameBuffer, 'reanalyze_buffer', counted)
    return batch_sizes


def train_segments(folder, **kv_cache: Any) -> Run:
    return train(PONG_SEGMENTS, folder, kv_cache, entry=train_unizero_segment, game_segment_length=10)


def check_reanalysis(run: Run) -> None:
    assert run.reanalysis_manager.total_stats()['recur_pool'].total_queries > 0


def test_episodes_with_reanalysed_targets(tmp_path):
    run = train(PONG, tmp_path, dict(strategy='lru'), reanalyze_ratio=0.5)
    check_training(run)
    check_reanalysis(run)


@pytest.mark.parametrize('strategy', ['fifo', 'tree'])
def test_episodes_with_tiny_pools(tmp_path, strategy):
    run = train(PONG, tmp_path, dict(strategy=strategy, **TINY_POOLS), reanalyze_ratio=0.5)
    check_training(run)
    check_reanalysis(run)
    check_tiny_pools(run)


@pytest.mark.parametrize('strategy', ['lru', 'priority', 'tree'])
def test_segments_with_a_reanalysed_buffer(tmp_path, reanalyses, strategy):
    run = train_segments(tmp_path, strategy=strategy, **TINY_POOLS)
    check_training(run)
    check_tiny_pools(run)
    check_reanalysis(run)
    assert len(reanalyses) > 0


def test_managed_and_stock_predictions_agree_throughout_a_training(tmp_path, reanalyses):
    run = train_segments(tmp_path, mode='validate')
    check_training(run)
    for model in (run.policy._learn_model, run.policy._target_model):
        report = model.world_model.kv_cache_inference.report
        assert report.differed == 0
        assert report.agreed > 0
    assert len(reanalyses) > 0
