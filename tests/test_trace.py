"""Traces: what is recorded of a real search, and that its replay counts what the real pools count."""
from pathlib import Path

import numpy as np
import pytest
import torch
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from searches import replay, search

from lzero_kvcache.trace import BELADY, Choice, Replay, TraceReader, chosen_strategies
from lzero_kvcache.trace.recorder import record_searches
from lzero_kvcache.trace.writer import TraceWriter

NUM_SIMULATIONS = 12
ENV_NUM = 4
STEPS = 5
# Environments of each step; in some not all are ready, and an episode ends.
READY = [(0, 1, 2, 3), (0, 2, 3), (3, 1, 2), (0, 1, 2, 3), (1, 0)]


def build(strategy, recur_size, tokens=1, **config):
    entries = {name: config.pop(name) for name in ('on_miss', 'window', 'rope_positions') if name in config}
    if tokens == 2:
        config.update(tokens_per_block=3)
    model = build_model(**config, env_num=ENV_NUM, num_simulations=NUM_SIMULATIONS, kv_cache=kv_cache(
        strategy=strategy, recur_pool=dict(size=recur_size), init_pool=dict(size=2), wm_pool=dict(size=3), **entries
    ))
    return two_tokens_per_observation(model) if tokens == 2 else model


def play(model, recorded=None, steps=STEPS):
    """Some steps of some environments; the searches' own, or those of an earlier call. Its expansions, by step."""
    generator = torch.Generator().manual_seed(3)
    world_model = model.world_model
    last, timestep, expansions = {}, {}, []
    for step in range(steps):
        env_ids = READY[step % len(READY)]
        current = observations(model, len(env_ids), generator)
        actions = [random_action(model, generator) for _ in env_ids]
        if step == 3:
            world_model.kv_cache_inference.forget('collect', [1])
            last.pop(1, None)
        first = torch.zeros_like(current[0])
        timesteps = [np.array(timestep.get(env_id, 0) if env_id in last else 0) for env_id in env_ids]
        with world_model.kv_cache_roots('collect', env_ids):
            root = model.initial_inference(
                torch.stack([last.get(env_id, first) for env_id in env_ids]),
                [action if env_id in last else -1 for env_id, action in zip(env_ids, actions)], current, timesteps
            )
        for row, env_id in enumerate(env_ids):
            last[env_id], timestep[env_id] = current[row], int(timesteps[row]) + 1
        if step == 2:
            # This environment goes on from what the cache has not seen.
            last[0] = last[0] + 1
        if recorded is None:
            expansions.append(search(model, root, timesteps, NUM_SIMULATIONS).expansions)
        else:
            replay(model, root, timesteps, recorded[step], range(len(env_ids)))
        if step == 1:
            world_model.clear_caches()
    return expansions


def record(path, **config):
    """A run with pools that are large enough, and its expansions."""
    model = build('fifo', 1000, **config)
    with record_searches(TraceWriter(path, dict(config='a test'))):
        return model, play(model)


def counts_of(replayed):
    return (
        [vars(pool.stats) for pool in (*replayed.init_pools, replayed.recur_pool, replayed.wm_pool)],
        sum((counts.rebuilds.rebuilds for counts in replayed.counts.values())),
        sum((counts.rebuilds.tokens for counts in replayed.counts.values())),
        sum((counts.rebuilds.restored for counts in replayed.counts.values())),
    )


def replayed(path, choice, recur_size):
    reader = TraceReader(path)
    replays = {}
    for each in reader.searches():
        if each.manager not in replays:
            replays[each.manager] = Replay(reader.managers[each.manager], choice, recur_size)
        replays[each.manager].run(each)
    assert reader.is_complete
    return replays


def real_counts(model):
    inference = model.world_model.kv_cache_inference
    manager, stats = inference.manager, inference.rebuild_stats
    pools = [vars(pool.stats) for pool in (*manager.init_pools, manager.recur_pool, manager.wm_pool)]
    return pools, stats.rebuilds, stats.tokens, stats.restored


MODELS = [
    dict(), dict(rotary=True), dict(window='rebuild'), dict(on_miss='reset'), dict(actions='continuous'),
    dict(tokens=2, context_length=11), dict(randomise=False),
]


@pytest.mark.parametrize('config', MODELS, ids=str)
def test_a_replay_counts_what_the_real_pools_count(config, tmp_path):
    _, expansions = record(tmp_path / 'trace', **dict(config))
    for choice in chosen_strategies(['all']):
        for recur_size in (3, 9, 30, 1000):
            if config.get('on_miss') == 'reset' and (':predicted' in choice.name or choice.name == 'tree'):
                # Another cache leads to other predictions there.
                continue
            real = build(choice.strategy, recur_size, **dict(config))
            play(real, expansions)
            (simulated, ) = replayed(tmp_path / 'trace', choice, recur_size).values()
            assert counts_of(simulated) == real_counts(real), f'{choice.name}, {recur_size} entries'
