"""Training Sampled UniZero on the DeepMind Control Suite by ``train_unizero``: states and images."""
from pathlib import Path
from typing import Any

import pytest
from rendering import needs_rendering
from training import TINY_POOLS, Run, check_tiny_pools, check_training, train

STATES = 'dmc_state_sampled_unizero_config'
PIXELS = 'dmc_pixels_sampled_unizero_config'


def train_dmc(config: str, folder: Path, **kv_cache: Any) -> Run:
    # With fewer actions than simulations a search goes beyond the root's children.
    model = dict(num_of_sampled_actions=2, world_model_cfg=dict(num_of_sampled_actions=2))
    return train(config, folder, kv_cache, model=model)


def test_states_with_default_pools(tmp_path):
    run = train_dmc(STATES, tmp_path)
    check_training(run)
    assert run.manager.total_stats()['recur_pool'].misses == 0


def test_states_with_tiny_pools(tmp_path):
    run = train_dmc(STATES, tmp_path, strategy='lru', **TINY_POOLS)
    check_training(run)
    check_tiny_pools(run)


@pytest.mark.parametrize('config', [STATES, pytest.param(PIXELS, marks=[pytest.mark.slow, needs_rendering])])
def test_managed_and_stock_predictions_agree_throughout_a_training(tmp_path, config):
    run = train_dmc(config, tmp_path, mode='validate')
    check_training(run)
    report = run.world_model.kv_cache_inference.report
    assert report.differed == 0
    assert report.agreed > 0


@needs_rendering
@pytest.mark.slow
def test_images_with_tiny_pools(tmp_path):
    run = train_dmc(PIXELS, tmp_path, strategy='priority', **TINY_POOLS)
    check_training(run)
    check_tiny_pools(run)
