"""The lean step over the stock modules' parameters: packed products, modules of unknown structure."""
import logging
import platform

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from lightzeros import IS_MAIN, MLP, stock_transform
from lzero.model.unizero_world_models.slicer import Head
from lzero.model.unizero_world_models.transformer import Block
from models import build_model, kv_cache, random_action
from test_world_model import TINY_POOLS, play_irregularly
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lzero_kvcache.bench.launches import launches
from lzero_kvcache.store import TokenStore
from lzero_kvcache.store.slab import TokenShape, TokenSlab
from lzero_kvcache.world_model import blocks, linear
from lzero_kvcache.world_model.cached_model import CachedModel
from lzero_kvcache.world_model.positions import rotations

X86 = platform.machine() in ('x86_64', 'AMD64')


@pytest.mark.parametrize('gelu', [None, 'none', 'tanh'])
@pytest.mark.parametrize('packed_linear', [
    pytest.param(linear.OneMKLLinear, marks=pytest.mark.skipif(
        not X86 or not torch.backends.mkl.is_available(), reason='PyTorch has been built without oneMKL'
    )),
    pytest.param(linear.OneDNNLinear, marks=pytest.mark.skipif(
        not X86 or not torch.backends.mkldnn.is_available(), reason='PyTorch has been built without oneDNN'
    )),
])
def test_packed_products(packed_linear, gelu):
    generator = torch.Generator().manual_seed(0)
    weight, bias = torch.randn(512, 256, generator=generator), torch.randn(512, generator=generator)
    packed, without_bias = packed_linear(weight, bias, gelu), packed_linear(weight, None, gelu)
    # Batches of one size, of another, of one token each and of several, and the first size again.
    for rows, tokens in [(8, 1)] * 6 + [(3, 1), (8, 2), (3, 1)] + [(3, 1)] * 5 + [(8, 1)] * 6:
        wider = torch.randn(rows * tokens, 300, generator=generator)
        for x in (wider[:, :256].contiguous(), wider[:, :256]):
            for function, of_bias in ((packed, bias), (without_bias, None)):
                expected = F.linear(x, weight, of_bias)
                expected = expected if gelu is None else F.gelu(expected, approximate=gelu)
                torch.testing.assert_close(function(x), expected, atol=1e-4, rtol=0)


def test_only_large_weights_of_single_precision_are_packed(monkeypatch):
    monkeypatch.setattr(linear, 'packed_linear', lambda: linear.OneDNNLinear)
    weight = torch.randn(512, 256)
    assert type(linear.linear(weight, None)) is linear.OneDNNLinear
    for other in (weight.double(), weight[:8], weight.to('meta')):
        assert type(linear.linear(other, None)) is linear.PlainLinear


@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
def test_wide_models_equal_the_oracle(rotary):
    model = build_model(kv_cache=kv_cache(), embed_dim=256, context_length=8, rotary=rotary)
    for parameter in model.world_model.parameters():
        parameter.data.mul_(0.5)
    episodes = play_irregularly(model)
    assert episodes.compared > 200
    episodes.learn(scale=0.001)
    for _ in range(6):
        episodes.step([0, 1, 2, 3], 8)


class OtherBlock(Block):
    """Computes something else than the stock block does."""

    def forward(self, x, past_keys_values=None, valid_context_lengths=None, freqs_cis=None):
        return super().forward(x, past_keys_values, valid_context_lengths, freqs_cis) * 0.9 + 0.1 * x


@pytest.mark.parametrize('window', ['rebuild', 'shift'])
@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
@pytest.mark.parametrize('pools', [{}, TINY_POOLS], ids=['default pools', 'tiny pools'])
def test_blocks_of_unknown_structure_run_their_own_forward(pools, rotary, window, caplog):
    model = build_model(kv_cache=kv_cache(window=window, **pools), context_length=20, rotary=rotary)
    model.world_model.transformer.blocks[1].__class__ = OtherBlock
    blocks._warn_of_unknown_block.cache_clear()
    with caplog.at_level(logging.WARNING, 'lzero_kvcache'):
        assert play_irregularly(model).compared > 200
    assert len([record for record in caplog.records if 'OtherBlock' in record.message]) == 1


class Doubled(nn.Linear):

    def forward(self, x):
        return 2 * super().forward(x)


def test_layers_of_unknown_structure_run_their_own_forward():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    block = model.world_model.transformer.blocks[0]
    mlp, head = block.get_submodule(MLP), model.world_model.head_policy.head_module
    for layer in (block.attn.key, block.attn.proj, mlp[0], next(layer for layer in head if type(layer) is nn.Linear)):
        layer.__class__ = Doubled
    block.ln2.register_forward_hook(lambda module, arguments, output: output + 0.1)
    assert play_irregularly(model).compared > 200


def without_bias(world_model, name):
    module = world_model
    for part in name.split('.'):
        module = getattr(module, part) if not part.isdigit() else module[int(part)]
    module.bias = None


@pytest.mark.parametrize('name', [
    'transformer.blocks.0.attn.query', 'transformer.blocks.0.attn.key', f'transformer.blocks.1.{MLP}.0',
    'head_rewards.head_module.0', 'head_observations.head_module.0', 'head_policy.head_module.0',
])
def test_layers_without_a_bias(name):
    model = build_model(kv_cache=kv_cache(), context_length=20)
    without_bias(model.world_model, name)
    assert play_irregularly(model).compared > 200


class DoubledHead(Head):

    def forward(self, x, num_steps, prev_steps):
        return 2 * super().forward(x, num_steps, prev_steps)


def replace_forward(module):
    forward = module.forward
    module.forward = lambda *arguments: forward(*arguments) * 0.9


def add_hook(module):
    module.register_forward_hook(lambda module, arguments, output: output * 0.9)


@pytest.mark.parametrize('change', [
    lambda world_model: setattr(world_model.head_value, '__class__', DoubledHead),
    lambda world_model: add_hook(world_model.head_rewards),
    lambda world_model: replace_forward(world_model.transformer.blocks[0]),
    lambda world_model: replace_forward(world_model.transformer.blocks[0].attn.query),
    lambda world_model: add_hook(world_model.transformer.blocks[0].attn.attn_drop),
    lambda world_model: add_hook(world_model.transformer.blocks[1].attn.resid_drop),
    lambda world_model: add_hook(world_model.pos_emb),
], ids=['head', 'hook on a head', 'block', 'layer', 'hook on attn_drop', 'hook on resid_drop', 'hook on positions'])
def test_whatever_runs_its_own_forward_is_called_as_it_is(change):
    # No place offsets, whose correction by the stock code looks at no hook.
    model = build_model(kv_cache=kv_cache(window='rebuild'), context_length=20)
    change(model.world_model)
    assert play_irregularly(model).compared > 200


def test_a_transformer_with_a_forward_of_its_own_is_refused():
    model = build_model(kv_cache=kv_cache())
    add_hook(model.world_model.transformer)
    with pytest.raises(ValueError, match="transformer .* has hooks or a forward of its own.*kv_cache.mode='legacy'"):
        play_irregularly(model)


@pytest.fixture
def no_gradients():
    with torch.no_grad():
        yield


def filled_store(model, lengths, generator):
    """A store with one context of each length, and the model's step over it."""
    world_model = model.world_model
    cached = CachedModel(world_model, world_model.config.max_tokens, move_tokens=True)
    block = world_model.transformer.blocks[0]
    heads = block.attn.num_heads
    shape = TokenShape(len(world_model.transformer.blocks), heads, world_model.config.embed_dim // heads)
    store = TokenStore(TokenSlab(shape), limit=cached.num_places, kept=cached.num_places - 2)
    contexts = []
    for length in lengths:
        tokens = torch.randn(1, length, world_model.config.embed_dim, generator=generator)
        with store.gather([None], length, cached) as batch:
            cached.append(batch, tokens.to(cached.like), np.arange(length)[None] if cached.uses_rotary else None)
            contexts += store.add(batch, cached)
    return cached, store, contexts


def step_inputs(cached, contexts, new, positions):
    """What ``step`` takes beside slab and actions."""
    lengths = [len(context) for context in contexts]
    index = np.zeros((len(lengths), max(lengths) + new.shape[1]), dtype=np.int64)
    index[:, max(lengths):] = new
    for row, context in enumerate(contexts):
        index[row, :lengths[row]] = context.table
    mask = np.arange(max(lengths)) < np.array(lengths)[:, None]
    places = torch.from_numpy(np.array(lengths)[:, None] + np.arange(new.shape[1]))
    rotation = None
    if cached.uses_rotary:
        places, rotation = None, torch.from_numpy(rotations(positions, cached._frequencies))[:, :, None, None]
    mask = None if mask.all() else torch.from_numpy(mask)[:, None, None]
    inputs = torch.from_numpy(index), mask, places, rotation
    return tuple(None if each is None else each.to(cached.like.device) for each in inputs)


STEP_MODELS = {
    'learned positions': {}, 'rotary positions': dict(rotary=True), 'continuous actions': dict(actions='continuous'),
    'two tokens': dict(tokens_per_block=3), 'two tokens, rotary': dict(tokens_per_block=3, rotary=True),
    'gates': dict(gru_gating=True), 'wide': dict(embed_dim=256), 'one bin': dict(support_size=1),
}


@pytest.mark.parametrize('lengths', [[5, 3, 8, 1], [4, 4, 4]], ids=['ragged', 'equal'])
@pytest.mark.parametrize('config', STEP_MODELS.values(), ids=STEP_MODELS)
def test_a_step_predicts_what_tokens_appended_one_by_one_do(no_gradients, config, lengths):
    generator = torch.Generator().manual_seed(0)
    model = build_model(kv_cache=kv_cache(), **config)
    cached, store, contexts = filled_store(model, lengths, generator)
    actions = torch.from_numpy(np.array([random_action(model, generator) for _ in lengths]))
    steps = 1 + cached.num_observations_tokens
    positions = np.array(lengths)[:, None] + np.arange(steps)
    slab = store.slab.tensor(store.size, cached.like).clone()
    with store.gather(contexts, steps, cached) as batch:
        hidden = cached.append(batch, cached.embed_actions(actions), positions[:, :1])
        expected = cached.predict_from_action(batch, hidden, positions)
        new = np.stack([context.table[-steps:] for context in store.add(batch, cached)])
    index, *others = step_inputs(cached, contexts, new, positions)
    outputs = cached.step(slab, index, actions, *others)
    for name, tensor in expected._asdict().items():
        torch.testing.assert_close(getattr(outputs, name), tensor, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(slab, store.slab.tensor(store.size, cached.like), atol=1e-5, rtol=1e-5)
    assert not slab[0].any()
    bins = [expected.reward[:, 0], expected.value[:, 0]]
    if model.world_model.support_size > 1:
        support = stock_transform(50).value_support
        bins = [torch.softmax(logits, 1).mul(support).sum(1, keepdim=True) for logits in bins]
    torch.testing.assert_close(outputs.host, torch.cat([*bins, expected.policy.flatten(1)], 1), atol=1e-4, rtol=1e-5)


def test_a_step_starts_few_kernels(no_gradients):
    generator = torch.Generator().manual_seed(0)
    cached, store, contexts = filled_store(build_model(kv_cache=kv_cache()), [6] * 8, generator)
    index, *others = step_inputs(cached, contexts, store.reserve(16).reshape(8, 2), None)
    actions, slab = torch.zeros(8, dtype=torch.int64), store.slab.tensor(store.size, cached.like)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        cached.step(slab, index, actions, *others)
    events = [event for event in profiler.events() if event.cpu_parent is None]
    # A GPU computes GELU together with the product before it. The heads of LightZero's main branch have norms.
    most = 68 if IS_MAIN else 56
    assert sum(launches(event) for event in events if event.name != 'aten::gelu') <= most
