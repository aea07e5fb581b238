"""Whatever changes what a model computes is noticed: weights, hooks, modules and their attributes."""
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from episodes import Episodes
from lightzeros import MLP
from lzero.model.unizero_world_models.slicer import Head
from lzero.model.unizero_world_models.transformer import SelfAttention
from models import build_model, kv_cache
from torch import nn
from torch.nn.modules import module as all_modules

from lzero_kvcache.world_model import structure
from lzero_kvcache.world_model.model_watch import WEIGHTS_AT_ONCE

# Everything that the stock code calls when it predicts.
CALLED = [
    'tokenizer.encoder', 'act_embedding_table', 'pos_emb', 'transformer.drop', 'transformer.blocks.0',
    'transformer.blocks.0.ln1', 'transformer.blocks.1.attn', 'transformer.blocks.0.attn.query',
    'transformer.blocks.1.attn.key', 'transformer.blocks.0.attn.attn_drop', 'transformer.blocks.0.attn.resid_drop',
    'transformer.blocks.1.attn.proj', 'transformer.blocks.0.ln2', f'transformer.blocks.0.{MLP}',
    f'transformer.blocks.0.{MLP}.1', f'transformer.blocks.1.{MLP}.3', 'transformer.ln_f', 'head_rewards',
    'head_observations.head_module', 'head_policy.head_module.0', 'head_value.head_module.1',
]


def scale(module, arguments, output):
    return output * 0.8


def scale_before(module, arguments):
    return (arguments[0] * 0.8, *arguments[1:])


def playing(**options):
    # No place offsets, whose correction by the stock code looks at no hook.
    model = build_model(kv_cache=kv_cache(window='rebuild'), context_length=20, **options)
    episodes = Episodes(model)
    episodes.step([0, 1], 2)
    return model, episodes


@pytest.mark.parametrize('name', CALLED)
def test_hooks_that_come_and_go_after_the_first_inference_run(name):
    model, episodes = playing()
    module = model.world_model.get_submodule(name)
    calls = []
    handles = [
        module.register_forward_hook(scale), module.register_forward_hook(lambda *call: calls.append(call)),
        module.register_forward_pre_hook(scale_before) if 'embedding' not in name and 'pos_emb' != name else None,
    ]
    episodes.weights_have_changed()
    episodes.step([0, 1], 2)
    assert calls
    for handle in filter(None, handles):
        handle.remove()
    episodes.weights_have_changed()
    episodes.step([1, 0], 2)


@torch.no_grad()
def test_a_hook_that_comes_within_a_search_runs():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    root = episodes.step([0, 1])
    model.world_model.transformer.blocks[1].get_submodule(MLP)[2].register_forward_hook(scale)
    episodes.weights_have_changed()
    node = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([1, 2]))], 0, [1, 1], [0, 0])
    for env_id in range(2):
        context = episodes.context_of(env_id)
        context.add_action(env_id + 1, 1)
        expected = context.reward_and_next_token()['reward'][0]
        torch.testing.assert_close(node.reward[env_id], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize('within_search', [False, True], ids=['between searches', 'within a search'])
@pytest.mark.parametrize('register', [
    lambda transformer: transformer.register_forward_hook(scale),
    lambda transformer: transformer.register_forward_pre_hook(lambda module, arguments: None),
    lambda transformer: all_modules.register_module_forward_hook(lambda *call: None),
    lambda transformer: all_modules.register_module_forward_pre_hook(lambda *call: None),
], ids=['hook', 'pre-hook', 'hook for all modules', 'pre-hook for all modules'])
def test_hooks_on_the_whole_transformer_are_refused_at_any_time(register, within_search):
    model, episodes = playing()
    root = episodes.step([0, 1])
    handle = register(model.world_model.transformer)
    try:
        with pytest.raises(ValueError, match='the transformer of this world model .* has hooks'):
            if within_search:
                model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([1, 2]))], 0, [1, 1], [2, 2])
            else:
                episodes.step([0, 1])
    finally:
        handle.remove()
    # Without it the episode goes on.
    if within_search:
        episodes.step([0, 1], 3)


def replace_forward(module):
    forward = module.forward
    module.forward = lambda *arguments: forward(*arguments) * 0.8


class Scaled(nn.Linear):

    def forward(self, x):
        return super().forward(x) * 0.8


CHANGES = {
    'ln1.eps': lambda world_model: setattr(world_model.transformer.blocks[0].ln1, 'eps', 0.5),
    'ln_f.eps': lambda world_model: setattr(world_model.transformer.ln_f, 'eps', 0.5),
    'eps of the encoder': lambda world_model: setattr(
        next(module for module in world_model.tokenizer.encoder.modules() if hasattr(module, 'eps')), 'eps', 0.5),
    'gelu': lambda world_model: setattr(world_model.transformer.blocks[0].get_submodule(MLP)[1], 'approximate', 'none'),
    'a module replaced': lambda world_model: setattr(
        world_model.transformer.blocks[0], 'ln2', nn.LayerNorm(64, eps=0.5)),
    'a layer added': lambda world_model: world_model.head_value.head_module.append(nn.Tanh()),
    'a forward replaced': lambda world_model: replace_forward(world_model.transformer.blocks[1].attn.value),
    'a class replaced': lambda world_model: setattr(world_model.transformer.blocks[1].attn.proj, '__class__', Scaled),
    'a parameter replaced': lambda world_model: setattr(
        world_model.transformer.blocks[0].attn.key, 'weight', nn.Parameter(torch.eye(64))),
    'a bias removed': lambda world_model: setattr(
        world_model.transformer.blocks[0].get_submodule(MLP)[0], 'bias', None),
}


@pytest.mark.parametrize('change', CHANGES)
def test_modules_that_change_are_noticed(change):
    model, episodes = playing()
    CHANGES[change](model.world_model)
    episodes.weights_have_changed()
    episodes.step([0, 1], 2)


@pytest.mark.parametrize('owner', [SelfAttention, nn.LayerNorm, nn.Embedding, Head], ids=lambda owner: owner.__name__)
def test_a_class_that_is_given_another_forward_is_noticed(owner, monkeypatch):
    model, episodes = playing()
    forward = owner.forward
    monkeypatch.setattr(owner, 'forward', lambda *arguments, **keywords: forward(*arguments, **keywords) * 0.8)
    episodes.weights_have_changed()
    episodes.step([0, 1], 2)


@pytest.mark.parametrize('is_wrapped', [True, False])
def test_a_class_that_was_given_another_forward_before_the_cache_was_imported_is_noticed(is_wrapped):
    script = f"""
import functools
from lzero.model.unizero_world_models.transformer import SelfAttention
forward = SelfAttention.forward
def scaled(*arguments, **keywords):
    return forward(*arguments, **keywords) * 0.8
SelfAttention.forward = functools.wraps(forward)(scaled) if {is_wrapped} else scaled
from episodes import Episodes
from lightzeros import MLP
from models import build_model, kv_cache
episodes = Episodes(build_model(kv_cache=kv_cache(window='rebuild'), context_length=20))
episodes.step([0, 1], 2)
episodes.step([1, 0], 2)
"""
    subprocess.run([sys.executable, '-c', script], cwd=Path(__file__).parent, check=True)


def test_a_change_of_a_setting_is_said_once(caplog):
    structure._warn_of_change.cache_clear()
    model, episodes = playing()
    with caplog.at_level(logging.WARNING, 'lzero_kvcache'):
        for eps in (0.1, 0.2):
            model.world_model.transformer.ln_f.eps = eps
            episodes.weights_have_changed()
            episodes.step([0, 1])
    assert [record.message for record in caplog.records if 'eps' in record.message] == [
        'transformer.ln_f.eps of the world model has been set to another value: what was cached before is computed '
        'again, as it will be whenever it is set. Said once.'
    ]


def test_what_is_cached_in_training_mode_is_not_gone_on_from():
    """Batch norms of the encoder look at the whole batch then."""
    model, episodes = playing(observation='image')
    generation = model.world_model.kv_cache_inference.weights_generation
    model.train()
    model.eval()
    episodes.step([0, 1], 2)
    assert model.world_model.kv_cache_inference.weights_generation == generation
    model.train()
    with pytest.raises(AssertionError):
        episodes.step([0, 1])
    model.eval()
    episodes.weights_have_changed()
    assert model.world_model.kv_cache_inference.weights_generation > generation


@torch.no_grad()
@pytest.mark.parametrize('name', [
    'transformer.blocks.0.attn.key.weight', 'transformer.blocks.1.ln2.bias', 'pos_emb.weight',
    'head_rewards.head_module.2.weight',
])
def test_any_weight_that_is_written_to_within_a_search_is_noticed(name):
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    for _ in range(3):
        root = episodes.step([0, 1], 4)
    model.world_model.get_parameter(name).mul_(1.5)
    episodes.weights_have_changed()
    node = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([1, 2]))], 5, [1, 1], [2, 2])
    for env_id in range(2):
        context = episodes.context_of(env_id)
        context.add_action(env_id + 1, 5)
        expected = context.reward_and_next_token()['reward'][0]
        torch.testing.assert_close(node.reward[env_id], expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('name', ['transformer.blocks.0.attn.key.weight', 'head_rewards.head_module.2.weight'])
def test_a_weight_that_is_written_to_within_a_search_by_numbers_is_noticed_soon(name):
    model = build_model(kv_cache=kv_cache(), context_length=20)
    world_model, episodes = model.world_model, Episodes(model)
    for _ in range(3):
        episodes.step([0, 1], 4)
    inference = world_model.kv_cache_inference
    search, generation = inference.search, inference.weights_generation
    world_model.get_parameter(name).mul_(1.5)
    episodes.weights_have_changed()
    num_weights = len([*world_model.parameters(), *world_model.buffers()])
    for _ in range(math.ceil(num_weights / WEIGHTS_AT_ONCE)):
        outputs, _ = inference.expand(world_model, search, np.arange(2), torch.tensor([1, 2]), [1, 1])
    assert inference.weights_generation == generation + 1
    for env_id in range(2):
        context = episodes.context_of(env_id)
        context.add_action(env_id + 1, 5)
        expected = context.reward_and_next_token()['reward'][0]
        torch.testing.assert_close(outputs.reward[env_id, 0], expected, atol=1e-4, rtol=0)


def built_in_inference_mode():
    with torch.inference_mode():
        return build_model(kv_cache=kv_cache(), context_length=20)


def assigned():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    with torch.inference_mode():
        model.load_state_dict({name: tensor * 1.1 for name, tensor in model.state_dict().items()}, assign=True)
    return model


def cast():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    with torch.inference_mode():
        return model.double()


@pytest.mark.parametrize('build', [built_in_inference_mode, assigned, cast])
def test_weights_of_inference_mode(build):
    model = build()
    assert any(parameter.is_inference() for parameter in model.parameters())
    episodes = Episodes(model)
    for _ in range(2):
        episodes.step([0, 1], 3)
    generation = model.world_model.kv_cache_inference.weights_generation
    episodes.step([0, 1], 3)
    assert model.world_model.kv_cache_inference.weights_generation == generation
    with torch.inference_mode():
        model.world_model.transformer.blocks[0].attn.key.weight.mul_(1.5)
    episodes.weights_have_changed()
    episodes.step([1, 0], 3)
    assert model.world_model.kv_cache_inference.weights_generation == generation + 1
