import pytest
import torch
from lzero.policy.scaling_transform import InverseScalarTransform
from models import kv_cache
from test_policies import build_policy

from lzero_kvcache.plugin.scalar_transform import LogitsToScalars, read_scalars_lean


@pytest.mark.parametrize('support_size', [5, 50, 300])
def test_scalars_are_those_of_the_stock_transform(support_size):
    generator = torch.Generator().manual_seed(0)
    stock = InverseScalarTransform(support_size)
    lean = LogitsToScalars(stock)
    for scale in (0., 0.1, 1., 10., 100.):
        logits = scale * torch.randn(8, stock.value_support.shape[-1], generator=generator)
        logits[0] = logits[0].sort().values
        before = logits.clone()
        assert torch.equal(lean(logits), stock(logits))
        assert torch.equal(logits, before)


@pytest.mark.parametrize('name', ['unizero', 'sampled_unizero'])
def test_searches_with_a_managed_cache_use_it(name):
    managed, stock = build_policy(name, kv_cache=kv_cache()), build_policy(name)
    for tree in ('_mcts_collect', '_mcts_eval'):
        assert type(getattr(managed, tree).inverse_scalar_transform_handle) is LogitsToScalars
        assert type(getattr(stock, tree).inverse_scalar_transform_handle) is InverseScalarTransform


@pytest.mark.parametrize('transform', [lambda logits: logits, None])
def test_another_transform_than_the_stock_one_stays(transform):
    tree = build_policy(kv_cache=kv_cache())._mcts_collect
    tree.inverse_scalar_transform_handle = transform
    read_scalars_lean(tree)
    assert tree.inverse_scalar_transform_handle is transform
