"""Random schedules of environments, weights and pools: every prediction equals the oracle's."""
import torch
from episodes import Episodes
from hypothesis import given, settings
from hypothesis import strategies as st
from invariants import check_store
from models import build_model, kv_cache, two_tokens_per_observation

from lzero_kvcache import EVICTION_REGISTRY

ENV_NUM = 4
MODELS = [
    dict(), dict(rotary=True), dict(actions='continuous'), dict(actions='continuous', rotary=True),
    dict(gru_gating=True), dict(tokens_per_block=3), dict(tokens_per_block=3, rotary=True),
]

sizes = st.one_of(st.none(), st.integers(1, 6))
pools = st.fixed_dictionaries(dict(size=sizes, strategy=st.sampled_from([None, *sorted(EVICTION_REGISTRY)])))
caches = st.fixed_dictionaries(dict(
    strategy=st.sampled_from(sorted(EVICTION_REGISTRY)), init_pool=pools, recur_pool=pools, wm_pool=pools,
    memory_budget_mb=st.sampled_from([None, None, 1.]), window=st.sampled_from(['shift', 'rebuild']),
    on_miss=st.sampled_from(['rebuild', 'reset']), rope_positions=st.sampled_from(['release', 'aligned']),
))
subsets = st.permutations(range(ENV_NUM)).flatmap(
    lambda order: st.integers(1, ENV_NUM).map(lambda count: order[:count])
)
operations = st.one_of(
    st.tuples(st.just('step'), subsets, st.integers(0, 8)),
    st.tuples(st.just('step'), subsets, st.integers(0, 8)),
    st.tuples(st.just('step'), subsets, st.integers(0, 8)),
    st.tuples(st.just('end'), st.integers(0, ENV_NUM - 1)),
    st.tuples(st.just('learn')),
    st.tuples(st.just('clear')),
    st.tuples(st.just('imagine')),
)


@settings(max_examples=80)
@given(
    model_options=st.sampled_from(MODELS), cache=caches, context_length=st.sampled_from([5, 8, 9, 20]),
    schedule=st.lists(operations, min_size=8, max_size=20),
)
def test_every_prediction_of_a_random_schedule_equals_the_oracles(model_options, cache, context_length, schedule):
    model = build_model(kv_cache=kv_cache(**cache), context_length=context_length, **model_options)
    if 'tokens_per_block' in model_options:
        two_tokens_per_observation(model)
    phases = {phase: Episodes(model, phase, seed) for seed, phase in enumerate(['collect', 'eval'])}
    for index, (name, *arguments) in enumerate(schedule):
        episodes = phases['eval' if index % 4 == 3 else 'collect']
        if name == 'step':
            episodes.step(*arguments)
        elif name == 'end':
            episodes.end(*arguments)
        elif name == 'imagine':
            # Of no consequence to what follows.
            model.world_model.imagine(torch.rand(2, 5), horizon=3)
        elif name == 'learn':
            episodes.learn(scale=0.02)
            phases['collect'].weights_have_changed()
            phases['eval'].weights_have_changed()
        else:
            # Whatever was made of the weights goes, so that contexts are encoded again.
            model.world_model.clear_caches()
            phases['collect'].weights_have_changed()
            phases['eval'].weights_have_changed()
        check_store(model.world_model.kv_cache_inference)
    inference = model.world_model.kv_cache_inference
    if cache['on_miss'] == 'reset':
        assert inference.rebuild_stats.rebuilds == sum(episodes.resets for episodes in phases.values())
    for pool_kind in inference.manager.pools().values():
        for pool in pool_kind:
            assert pool.stats.hits + pool.stats.misses == pool.stats.total_queries
            assert len(pool) <= pool.pool_size
