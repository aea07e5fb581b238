"""Training Sampled UniZero on Pendulum by ``train_unizero``: continuous actions, learned positions."""
from pathlib import Path
from typing import Any

import pytest
from training import TINY_POOLS, Run, check_tiny_pools, check_training, train


def train_pendulum(folder: Path, **kv_cache: Any) -> Run:
    # With fewer actions than simulations a search goes beyond the root's children.
    model = dict(num_of_sampled_actions=2, world_model_cfg=dict(num_of_sampled_actions=2))
    return train('pendulum_sampled_unizero_config', folder, kv_cache, model=model)


def test_default_pools_train(tmp_path):
    run = train_pendulum(tmp_path)
    check_training(run)
    assert run.manager.total_stats()['recur_pool'].misses == 0


@pytest.mark.parametrize('strategy', ['sieve', 'tree', dict(type='priority', score='predicted_value')], ids=str)
def test_tiny_pools_train(tmp_path, strategy):
    run = train_pendulum(tmp_path, strategy=strategy, **TINY_POOLS)
    check_training(run)
    check_tiny_pools(run)


@pytest.mark.parametrize('pools', [{}, TINY_POOLS], ids=['default pools', 'tiny pools'])
def test_managed_and_stock_predictions_agree_throughout_a_training(tmp_path, pools):
    run = train_pendulum(tmp_path, mode='validate', **pools)
    check_training(run)
    report = run.world_model.kv_cache_inference.report
    assert report.differed == 0
    assert report.agreed > 0
