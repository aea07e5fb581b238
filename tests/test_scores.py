"""What the priority strategy evicts in a world model."""
import numpy as np
import pytest
import torch
from episodes import Episodes
from models import build_model, kv_cache

from lzero_kvcache.world_model.scores import SCORES, resolve_score


def evict_deep_nodes(depth, reward, policy, value):
    """A user's own score."""
    return [-10. * level for level in depth]


def depths_in(model, pool):
    search = model.world_model.kv_cache_inference.search
    return sorted(int(search.nodes.depths[key - search.first_key]) for key in pool.keys())


@pytest.mark.parametrize('score', ['search_depth', f'{__name__}.evict_deep_nodes'])
def test_shallow_nodes_survive(score):
    strategy = dict(type='priority', score=score)
    model = build_model(kv_cache=kv_cache(strategy=strategy, recur_pool=dict(size=6)), context_length=20)
    seen = []
    inference = model.world_model.kv_cache_inference
    add_nodes = inference._add_nodes

    def watch(running, parents, *arguments):
        seen.extend((running.nodes.depths[parents] + 1).tolist())
        return add_nodes(running, parents, *arguments)

    inference._add_nodes = watch
    Episodes(model).step([0], 30)
    # The newest entry stays whatever its depth; all others are the shallowest that the search has met.
    kept = depths_in(model, model.world_model.kv_cache_manager.recur_pool)
    assert max(seen) > max(kept[:-1])
    assert kept[:5] == sorted(seen)[:5]


def test_predicted_value_and_reward_rank_by_the_expected_bin():
    logits = torch.tensor([[9., 0., 0.], [0., 0., 9.], [0., 9., 0.]])
    zeros = torch.zeros(3, 3)
    depth = np.zeros(3, dtype=int)
    assert np.argsort(SCORES['predicted_value'](depth, zeros, zeros, logits)).tolist() == [0, 2, 1]
    assert np.argsort(SCORES['predicted_reward'](depth, logits, zeros, zeros)).tolist() == [0, 2, 1]


@pytest.mark.parametrize('score', sorted(SCORES))
def test_every_score_plays(score):
    cache = kv_cache(strategy=dict(type='priority', score=score), recur_pool=dict(size=3), init_pool=dict(size=1))
    episodes = Episodes(build_model(kv_cache=cache))
    for _ in range(3):
        episodes.step([1, 0], 6)
    assert episodes.compared > 50


@pytest.mark.parametrize('name', ['search_dept', 'no_module.score', 'math.pi', 3])
def test_unknown_scores_are_refused(name):
    with pytest.raises(ValueError, match=f'strategy.score is {name!r}.*search_depth'):
        resolve_score(name, 'strategy.score')


def test_every_pool_has_its_own_score():
    strategies = {'init_pool': f'{__name__}.count_rewards', 'recur_pool': 'predicted_reward', 'wm_pool': 'search_depth'}
    cache = kv_cache(**{
        pool: dict(strategy=dict(type='priority', score=score)) for pool, score in strategies.items()
    })
    model = build_model(kv_cache=cache, context_length=20)
    Episodes(model).step([0, 1], 10)
    manager = model.world_model.kv_cache_manager
    ranks = {kind: [rank for rank, _ in pools[0].eviction_policy._ranks.values()]
             for kind, pools in manager.pools().items()}
    # A root has no reward: its score sees as many zeros as a node's reward has bins.
    assert ranks['init_pools'] == [101.0]
    # Two nodes' rewards may be equal by chance.
    assert len(ranks['recur_pool']) == 20 and len(set(ranks['recur_pool'])) > 15
    assert sorted(-rank for rank in ranks['wm_pool']) == depths_in(model, manager.wm_pool)


@pytest.mark.parametrize('init_strategy', ['lru', dict(type='priority', score='predicted_value')], ids=str)
def test_only_the_recur_pool_is_told_of_the_search(init_strategy):
    cache = kv_cache(
        strategy='lru', init_pool=dict(size=2, strategy=init_strategy), recur_pool=dict(size=4, strategy='tree')
    )
    model = build_model(kv_cache=cache, context_length=20)
    episodes = Episodes(model)
    for _ in range(4):
        episodes.step([0, 1], 6)
    totals = model.world_model.kv_cache_manager.total_stats()
    assert totals['init_pools'].evictions and totals['recur_pool'].evictions


def count_rewards(depth, reward, policy, value):
    """A user's own score, which looks at the shape of what it is given."""
    assert (reward == 0).all()
    return [float(reward.shape[1])] * len(depth)
