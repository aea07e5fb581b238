"""Whatever the stock code touches keeps working."""
import copy
import io
import pickle

import numpy as np
import pytest
import torch
from ding.utils import MODEL_REGISTRY
from episodes import Episodes
from lzero.model.sampled_unizero_model import SampledUniZeroModel
from lzero.model.unizero_model import UniZeroModel
from lzero.model.unizero_world_models.world_model import WorldModel
from models import build_model, kv_cache, model_config, observations
from searches import search

from lzero_kvcache.world_model import KVCacheWorldModel, KVCacheWorldModelMixin

MODES = ['managed', 'legacy', 'validate']
KINDS = {'UniZeroKVCacheModel': (UniZeroModel, 'discrete'),
         'SampledUniZeroKVCacheModel': (SampledUniZeroModel, 'continuous')}


def played(model, steps=2):
    episodes = Episodes(model)
    for _ in range(steps):
        episodes.step([0, 1, 2], 4)
    return episodes


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('kind', KINDS)
def test_state_dict_has_not_one_key_more_and_loads_both_ways(kind, mode):
    stock_class, actions = KINDS[kind]
    ours = MODEL_REGISTRY.get(kind)(**model_config(actions=actions, kv_cache=kv_cache(mode=mode)))
    stock = stock_class(**model_config(actions=actions))
    assert list(ours.state_dict()) == list(stock.state_dict())
    checkpoint = io.BytesIO()
    torch.save(stock.state_dict(), checkpoint)
    checkpoint.seek(0)
    ours.load_state_dict(torch.load(checkpoint), strict=True)
    stock.load_state_dict(ours.state_dict(), strict=True)


def test_the_same_seed_gives_the_stock_weights():
    torch.manual_seed(4)
    stock = UniZeroModel(**model_config())
    ours = build_model(seed=4, randomise=False, kv_cache=kv_cache())
    for (name, parameter), other in zip(ours.named_parameters(), stock.parameters()):
        torch.testing.assert_close(parameter, other, rtol=0, atol=0, msg=name)


def test_deepcopy_is_independent_and_right():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = played(model)
    target = copy.deepcopy(model)
    assert target.world_model.kv_cache_manager is not model.world_model.kv_cache_manager
    # The stock names of the copy must reach the copy's pools.
    assert target.world_model.past_kv_cache_recurrent_infer is target.world_model.kv_cache_manager.recur_pool
    entries = len(model.world_model.kv_cache_manager.recur_pool)
    target.world_model.clear_caches()
    assert len(model.world_model.kv_cache_manager.recur_pool) == entries > 0
    played(target)
    episodes.step([0, 1, 2], 4)


def test_pickle_keeps_model_and_cache():
    model = build_model(kv_cache=kv_cache(strategy='priority'), context_length=20)
    played(model)
    restored = pickle.loads(pickle.dumps(model))
    assert len(restored.world_model.kv_cache_manager.recur_pool) == len(model.world_model.kv_cache_manager.recur_pool)
    played(restored)


def test_torch_compile_around_the_model():
    model = torch.compile(build_model(kv_cache=kv_cache(), context_length=20))
    played(model)
    assert model.world_model.kv_cache_manager.recur_pool.stats.hits > 0


def test_the_stock_clearing_reaches_the_pools_and_changes_no_prediction():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = played(model)
    world_model = model.world_model
    for cache in world_model.past_kv_cache_init_infer_envs:
        cache.clear()
    world_model.past_kv_cache_recurrent_infer.clear()
    world_model.keys_values_wm_list.clear()
    manager = world_model.kv_cache_manager
    assert [len(pool) for pools in manager.pools().values() for pool in pools] == [0] * 6
    episodes.step([0, 1, 2], 4)
    assert world_model.kv_cache_inference.rebuild_stats.restored == 3
    world_model.precompute_pos_emb_diff_kv()
    world_model.clear_caches()
    assert len(manager.recur_pool) == 0
    episodes.step([0, 1, 2], 4)


def test_the_stock_counters_count():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    played(model, steps=3)
    world_model = model.world_model
    assert world_model.root_total_query_cnt == world_model.root_hit_cnt == 6
    assert world_model.total_query_count == world_model.hit_count == 3 * 3 * 4
    world_model._initialize_statistics()
    assert world_model.hit_count == 0


def test_every_node_has_a_key_of_its_own():
    model = build_model(kv_cache=kv_cache())
    generator = torch.Generator().manual_seed(0)
    current = observations(model, 2, generator)
    with torch.no_grad():
        root = model.initial_inference(torch.zeros_like(current), [-1, -1], current, [0, 0])
        search(model, root, [np.array(0)] * 2, 5)
    manager = model.world_model.kv_cache_manager
    for row in range(2):
        (key, ) = manager.init_pools[row].keys()
        assert type(key) is int
    assert len({key for pool in manager.init_pools for key in pool.keys()} | set(manager.recur_pool.keys())) == 12


def test_moving_the_model_drops_what_lies_on_the_former_device():
    model = build_model(kv_cache=kv_cache())
    played(model)
    model.to('meta')
    manager = model.world_model.kv_cache_manager
    assert [len(pool) for pools in manager.pools().values() for pool in pools] == [0] * 6
    assert len(model.world_model.kv_cache_inference.store) == 0


@pytest.mark.parametrize('world_model_cfg', [dict(), dict(kv_cache=kv_cache(mode='legacy'))])
def test_legacy_runs_the_stock_code_untouched(world_model_cfg):
    model = build_model(**world_model_cfg)
    twin = UniZeroModel(**model_config()).eval()
    twin.load_state_dict(model.state_dict())
    assert model.world_model.kv_cache_manager is None
    assert type(twin.world_model) is WorldModel and isinstance(model.world_model, KVCacheWorldModelMixin)
    generator = torch.Generator().manual_seed(0)
    current = observations(model, 2, generator)
    with torch.no_grad():
        for candidate in (model, twin):
            root = candidate.initial_inference(torch.zeros_like(current), [-1, -1], current, [np.array(0)] * 2)
            nodes = (root.latent_state.numpy(), torch.tensor([1, 2]))
            candidate.recurrent_inference([nodes], 0, [1, 1], [np.array(0)] * 2)
    assert vars(model.world_model).keys() - vars(twin.world_model).keys() == {
        '_kv_cache_inference', '_kv_cache_roots'
    }
    assert dict(model.world_model.past_kv_cache_recurrent_infer) == dict(twin.world_model.past_kv_cache_recurrent_infer)
    with pytest.raises(TypeError):
        model.recurrent_inference([(root.latent_state.numpy() + 1, torch.tensor([1, 2]))], 1, [1, 1], [0, 0])


def test_the_mixin_builds_a_world_model_of_its_own():
    config = model_config(kv_cache=kv_cache(strategy='fifo')).world_model_cfg
    config.norm_type = 'BN'
    world_model = KVCacheWorldModel(config, build_model().world_model.tokenizer)
    assert world_model.kv_cache_manager.recur_pool.pool_size == 50 * 4
