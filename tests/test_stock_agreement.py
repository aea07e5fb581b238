"""Wherever the release is exact, the managed predictions equal the stock ones, at every node of real searches."""
import copy

import numpy as np
import pytest
import torch
from lightzeros import IS_MAIN
from models import build_model, kv_cache, observations, random_action
from searches import PREDICTIONS, replay, search
from test_world_model import MODELS

NUM_ENVS = 3
NUM_SIMULATIONS = 12
TOLERANCE = dict(atol=1e-4, rtol=0)


@pytest.fixture(params=MODELS, ids=str)
def model_options(request):
    return MODELS[request.param]


def stock_twin(model, **options):
    """The stock code with the same weights."""
    stock = build_model(randomise=False, **options)
    stock.load_state_dict(model.state_dict())
    if not stock.world_model.config.rotary_emb:
        stock.world_model.precompute_pos_emb_diff_kv()
    assert stock.world_model.kv_cache_manager is None
    return stock


@torch.no_grad()
def play(model, stock_models, num_steps):
    """
    The managed model plays all environments in one batch; each environment has a stock model of its own, because in a
    batch of one all lengths are equal, which is where the release is exact.
    """
    generator = torch.Generator().manual_seed(3)
    last = observations(model, NUM_ENVS, generator)
    actions = [-1] * NUM_ENVS
    longest = 0
    for step in range(num_steps):
        current = observations(model, NUM_ENVS, generator)
        timesteps = [np.array(step)] * NUM_ENVS
        root = model.initial_inference(last, actions, current, timesteps)
        recorded = search(model, root, timesteps, NUM_SIMULATIONS)
        for env_id, stock in enumerate(stock_models):
            row = slice(env_id, env_id + 1)
            stock_root = stock.initial_inference(last[row], actions[row], current[row], timesteps[row])
            for name in ('latent_state', 'value', 'policy_logits'):
                torch.testing.assert_close(getattr(root, name)[row], getattr(stock_root, name), **TOLERANCE)
            nodes = replay(stock, stock_root, timesteps[row], recorded.expansions, [env_id])
            for managed, expected in zip(recorded.outputs, nodes):
                for name in PREDICTIONS:
                    torch.testing.assert_close(managed[name][row], expected[name], **TOLERANCE)
        longest = max(longest, max(max(expansion.search_depth) for expansion in recorded.expansions))
        last, actions = current, [random_action(model, generator) for _ in range(NUM_ENVS)]
    assert longest > 1


@pytest.mark.parametrize('context_length', [8, 20])
def test_managed_equals_stock_inside_and_past_the_window(model_options, context_length):
    options = dict(context_length=context_length, env_num=NUM_ENVS, **model_options)
    model = build_model(kv_cache=kv_cache(strategy='lru', rope_positions='release'), **options)
    stock = stock_twin(model, num_simulations=NUM_SIMULATIONS, **options)
    play(model, [copy.deepcopy(stock) for _ in range(NUM_ENVS)], num_steps=5)


@pytest.mark.parametrize('strategy', ['fifo', 'lru', 'priority'])
def test_managed_equals_stock_with_pools_far_too_small(strategy):
    options = dict(env_num=NUM_ENVS)
    sizes = dict(init_pool=dict(size=1), recur_pool=dict(size=2), wm_pool=dict(size=1))
    model = build_model(kv_cache=kv_cache(strategy=strategy, **sizes), **options)
    stock = stock_twin(model, **options)
    play(model, [copy.deepcopy(stock) for _ in range(NUM_ENVS)], num_steps=4)
    assert model.world_model.kv_cache_inference.rebuild_stats.rebuilds > 0


@torch.no_grad()
def test_reanalysis_equals_stock_at_children_of_the_roots(model_options):
    options = dict(context_length=20, env_num=NUM_ENVS, **model_options)
    model = build_model(kv_cache=kv_cache(rope_positions='release'), **options)
    stock = stock_twin(model, **options)
    generator = torch.Generator().manual_seed(3)
    # Two sequences of three observations and two actions: six roots.
    sequence = torch.stack([observations(model, 3, generator) for _ in range(2)]).flatten(0, 1)
    actions = np.array([[random_action(model, generator) for _ in range(2)] for _ in range(2)])
    timesteps = np.array([[4, 5], [8, 9]])
    # Main's search is given those of all roots.
    of_roots = np.pad(timesteps, ((0, 0), (0, 1))).reshape(-1) if IS_MAIN else timesteps
    outputs = []
    for twin in (model, stock):
        twin.world_model.reanalyze_phase = True
        root = twin.initial_inference(sequence, actions, start_pos=timesteps)
        actions_of_roots = [random_action(model, torch.Generator().manual_seed(row)) for row in range(6)]
        children = torch.from_numpy(np.stack(actions_of_roots))
        outputs.append(twin.recurrent_inference(
            [(root.latent_state.numpy(), children)], 0, [1] * 6, of_roots
        ))
    for name in PREDICTIONS:
        torch.testing.assert_close(getattr(outputs[0], name), getattr(outputs[1], name), **TOLERANCE)
    with_context = model.recurrent_inference(
        [(outputs[0].latent_state.numpy(), children)], 1, [2] * 6, of_roots
    )
    alone = stock.recurrent_inference([(outputs[1].latent_state.numpy(), children)], 1, [2] * 6, of_roots)
    assert (with_context.policy_logits - alone.policy_logits).abs().max() > 1e-3
