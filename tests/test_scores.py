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


def depths_in(pool):
    return sorted(int(key.split('/')[-2]) for key in pool.keys())


@pytest.mark.parametrize('score', ['search_depth', f'{__name__}.evict_deep_nodes'])
def test_shallow_nodes_survive(score):
    strategy = dict(type='priority', score=score)
    model = build_model(kv_cache=kv_cache(strategy=strategy, recur_pool=dict(size=6)), context_length=20)
    seen = []
    inference = model.world_model.kv_cache_inference
    add_nodes = inference._add_nodes

    def watch(parents, *arguments):
        seen.extend(parent.depth + 1 for parent in parents)
        return add_nodes(parents, *arguments)

    inference._add_nodes = watch
    Episodes(model).step([0], 30)
    # The newest entry stays whatever its depth; all others are the shallowest that the search has met.
    kept = depths_in(model.world_model.kv_cache_manager.recur_pool)
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
    assert sorted(ranks['wm_pool']) == sorted(-float(key.split('/')[-2]) for key in manager.wm_pool.keys())


def count_rewards(depth, reward, policy, value):
    """A user's own score, which looks at the shape of what it is given."""
    assert (reward == 0).all()
    return [float(reward.shape[1])] * len(depth)
