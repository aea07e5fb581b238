"""Searches that reanalyse the replay buffer: batches far wider than the environments, sequences instead of episodes."""
import numpy as np
import pytest
import torch
from models import build_model, kv_cache, observations, random_action
from oracle import Oracle
from searches import live_nodes, search

from lzero_kvcache.budget import MIB
from lzero_kvcache.search import rebuild
from lzero_kvcache.world_model.cached_model import CachedModel

UNROLL_STEPS = 5
BATCH_SIZE = 6


def begin_reanalysis(model, seed=0):
    """A root inference as the stock buffer asks for it: sequences of one observation more than there are actions."""
    generator = torch.Generator().manual_seed(seed)
    model.world_model.reanalyze_phase = True
    sequences = observations(model, BATCH_SIZE * (UNROLL_STEPS + 1), generator)
    actions = np.asarray([
        [random_action(model, generator) for _ in range(UNROLL_STEPS)] for _ in range(BATCH_SIZE)
    ])
    timesteps = np.arange(UNROLL_STEPS)[None] + 10 * np.arange(BATCH_SIZE)[:, None]
    with torch.no_grad():
        root = model.initial_inference(sequences, actions, start_pos=timesteps)
    return root, np.pad(timesteps, ((0, 0), (0, 1))).reshape(-1)


def expand_with_oracle(model, root, timesteps, num_simulations):
    """Search, and compare every node with a forward over the latent state of its root and what came after it."""
    world_model = model.world_model
    nodes = [[context_of(world_model, latent, step) for latent, step in zip(root.latent_state, timesteps)]]
    deepest = largest = 0

    def compare(expansion, output):
        nonlocal deepest, largest
        children = []
        for row, parent in enumerate(expansion.parents):
            context = nodes[parent][row].copy()
            depth = len(context.tokens) // 2
            of_action, of_latent = 2 * (int(timesteps[row]) + depth) + np.array([1, 2])
            if world_model.kv_cache_inference.config.rope_positions == 'release':
                # The release gives both tokens of a reanalysed expansion the same rotary position.
                of_action = of_latent = 2 * (int(timesteps[row]) + expansion.search_depth[row]) + 3
            context.add_action(expansion.actions[row].numpy(), of_action)
            largest = max(largest, difference(output.reward[row], context.reward_and_next_token()['reward']))
            context.add_latent(output.latent_state[row], of_latent)
            expected = context.policy_and_value()
            largest = max(largest, difference(output.policy_logits[row], expected['policy']))
            largest = max(largest, difference(output.value[row], expected['value']))
            if len(context) >= world_model.context_length - 1:
                context.shift(world_model.context_length - 3)
            deepest = max(deepest, expansion.search_depth[row])
            children.append(context)
        nodes.append(children)

    search(model, root, [np.array(step) for step in timesteps], num_simulations, compare)
    return deepest, largest


def context_of(world_model, latent, timestep):
    context = Oracle(world_model)
    context.add_latent(latent, 2 * int(timestep))
    return context


def difference(predicted, expected):
    return (predicted.reshape(-1) - expected.reshape(-1)).abs().max().item()


@pytest.mark.parametrize('pools', [{}, dict(recur_pool=dict(size=3), wm_pool=dict(size=1))], ids=['default', 'tiny'])
@pytest.mark.parametrize('rope_positions, options', [
    ('aligned', dict()), ('aligned', dict(rotary=True)), ('release', dict(rotary=True)),
    ('aligned', dict(actions='continuous')), ('aligned', dict(observation='image'))
], ids=str)
def test_nodes_use_the_context_of_their_search(rope_positions, options, pools):
    model = build_model(kv_cache=kv_cache(rope_positions=rope_positions, **pools), **options)
    root, timesteps = begin_reanalysis(model)
    assert len(timesteps) == BATCH_SIZE * (UNROLL_STEPS + 1) > model.world_model.env_num
    deepest, largest = expand_with_oracle(model, root, timesteps, 12)
    assert deepest > 2 and largest < 1e-4


def test_memory_is_bounded_by_one_search():
    model = build_model(kv_cache=kv_cache())
    manager, inference = model.world_model.kv_cache_manager, model.world_model.kv_cache_inference
    held, nodes, others = [], [], live_nodes()
    for seed in range(4):
        root, timesteps = begin_reanalysis(model, seed)
        assert len(inference.store) == 0
        search(model, root, [np.array(step) for step in timesteps], 10)
        held.append(len(inference.store))
        nodes.append(live_nodes() - others)
        assert len(manager.recur_pool) <= manager.recur_pool.pool_size == 50 * 4
        assert sum(len(pool) for pool in manager.init_pools) == 0
    assert nodes == [len(timesteps) * 11] * 4
    assert max(held) <= model.world_model.context_length * (manager.recur_pool.pool_size + manager.wm_pool.pool_size)


def test_memory_keeps_within_the_budget():
    megabytes = 0.2
    model = build_model(kv_cache=kv_cache(memory_budget_mb=megabytes))
    manager, held = model.world_model.kv_cache_manager, []
    root, timesteps = begin_reanalysis(model)
    search(model, root, [np.array(step) for step in timesteps], 15,
           lambda expansion, output: held.append(sum(manager.memory_bytes().values())))
    assert 0.5 * megabytes * MIB < max(held) <= megabytes * MIB


def test_forwards_that_rebuild_are_bounded(monkeypatch):
    monkeypatch.setattr(rebuild, 'MOST_TOKENS', 40)
    model = build_model(kv_cache=kv_cache(recur_pool=dict(size=3), wm_pool=dict(size=1)))
    largest, append = [], CachedModel.append

    def watch(self, batch, tokens, *arguments, **options):
        largest.append(len(tokens))
        return append(self, batch, tokens, *arguments, **options)

    monkeypatch.setattr(CachedModel, 'append', watch)
    root, timesteps = begin_reanalysis(model)
    deepest, difference = expand_with_oracle(model, root, timesteps, 12)
    # Every row takes at least one step of two tokens, or takes part with one token beside 40 at most.
    assert max(largest) <= max(2 * len(timesteps), 40 + len(timesteps))
    assert deepest > 2 and difference < 1e-4
