"""Evaluation by ``eval_muzero``, and checkpoints carried from the stock policy to the plugin's and back."""
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from lzero.entry import eval_muzero
from lzero.model.unizero_world_models.world_model import WorldModel
from lzero.policy.unizero import UniZeroPolicy
from training import TINY_POOLS, Run, call_entry, check_training, small_configs, stock_policies, train

from lzero_kvcache.plugin import UniZeroKVCachePolicy

CARTPOLE = 'cartpole_unizero_config'
# As ``train`` takes them.
SIDES: dict[str, dict[str, Any]] = {
    'stock': dict(kv_cache=None, stock=True),
    'plugin': dict(kv_cache=dict(strategy='lru', recur_pool=dict(size=3))),
}
BOTH_WAYS = pytest.mark.parametrize('writer, reader', [('stock', 'plugin'), ('plugin', 'stock')])


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, Run]:
    return {side: train(CARTPOLE, tmp_path_factory.mktemp(side), **kwargs) for side, kwargs in SIDES.items()}


def test_stock_runs_are_stock(runs):
    assert type(runs['stock'].policy) is UniZeroPolicy
    assert type(runs['stock'].world_model) is WorldModel
    assert type(runs['plugin'].policy) is UniZeroKVCachePolicy


def test_checkpoints_have_the_stock_keys_and_shapes(runs):
    stock, plugin = (torch.load(runs[side].checkpoint, map_location='cpu') for side in ('stock', 'plugin'))
    assert plugin.keys() == stock.keys()
    for network in ('model', 'target_model'):
        assert {name: tensor.shape for name, tensor in plugin[network].items()} == {
            name: tensor.shape for name, tensor in stock[network].items()
        }


@BOTH_WAYS
def test_checkpoints_load_unchanged(runs, writer, reader):
    main_config, create_config = small_configs(CARTPOLE, **SIDES[reader])
    main_config.policy.update(cuda=False, device='cpu')
    checkpoint = torch.load(runs[writer].checkpoint, map_location='cpu')
    with stock_policies() if reader == 'stock' else nullcontext():
        config = compile_config(main_config, seed=0, auto=True, create_cfg=create_config, save_cfg=False)
        policy = create_policy(config.policy, enable_field=['learn', 'collect', 'eval'])
    policy.learn_mode.load_state_dict(checkpoint)
    for name, tensor in policy.learn_mode.state_dict()['model'].items():
        torch.testing.assert_close(tensor, checkpoint['model'][name], rtol=0, atol=0)


@pytest.mark.parametrize('writer', SIDES)
@pytest.mark.parametrize('reader', SIDES)
def test_checkpoints_evaluate(tmp_path, runs, writer, reader):
    configs = small_configs(CARTPOLE, **SIDES[reader])
    mean_return, returns = call_entry(
        eval_muzero, tmp_path, configs, stock=reader == 'stock', model_path=runs[writer].checkpoint
    )
    assert len(returns) == 1
    # CartPole pays 1 a step, for 200 at most.
    assert 0 < mean_return <= 200


@pytest.mark.parametrize('strategy', ['slru', 'random', 'tree'])
def test_tiny_pools_evaluate(tmp_path, runs, strategy):
    configs = small_configs(CARTPOLE, dict(strategy=strategy, **TINY_POOLS))
    mean_return, _ = call_entry(eval_muzero, tmp_path, configs, model_path=runs['plugin'].checkpoint)
    assert 0 < mean_return <= 200


@BOTH_WAYS
def test_training_goes_on_from_the_other_sides_checkpoint(tmp_path, runs, writer, reader):
    check_training(train(CARTPOLE, tmp_path, **SIDES[reader], model_path=runs[writer].checkpoint))
