"""A LightZero that has a cache manager of its own, as its main branch has: the plugin's manager takes its place."""
import copy
import inspect
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from easydict import EasyDict
from lzero.model.unizero_model import UniZeroModel
from lzero.model.unizero_world_models.world_model import WorldModel
from lzero.policy.unizero import UniZeroPolicy
from models import kv_cache, model_config, observations
from searches import replay, search
from test_policies import build_policy
from torch.utils.tensorboard import SummaryWriter
from training import NUM_SIMULATIONS, call_entry, read_scalars, small_configs

from lzero_kvcache import KVCacheConfig
from lzero_kvcache.eviction import EVICTION_REGISTRY
from lzero_kvcache.plugin import UniZeroKVCacheModel, manager_hook
from lzero_kvcache.plugin.hooked_manager import HookedKVCacheManager
from lzero_kvcache.plugin.hooks import has_inference_hook, has_manager_hook, name_hook
from lzero_kvcache.plugin.pools_config import pools_config

needs_manager_hook = pytest.mark.skipif(
    not has_manager_hook(WorldModel), reason='the installed LightZero has no cache manager of its own'
)


class HookedWorldModel:
    """Calls its manager as LightZero's main branch does."""
    num_observations_tokens = 1
    env_num = 2

    def __init__(self, **config):
        self.config = EasyDict(dict(
            use_new_cache_manager=False, env_num=self.env_num, num_layers=2, embed_dim=8, context_length=4
        ), **config)
        self._initialize_cache_structures()

    def _initialize_cache_structures(self):
        self.use_new_cache_manager = self.config.use_new_cache_manager
        self.kv_cache_manager = None
        self.past_kv_cache_recurrent_infer = {}

    def retrieve_or_generate_kvcache(self, env_id, key):
        return self.kv_cache_manager.hierarchical_get(env_id=env_id, cache_key=key)

    def update_cache_context(self, env_id, key, entry):
        if env_id is None:
            return self.kv_cache_manager.set_recur_cache(cache_key=key, kv_cache=entry)
        return self.kv_cache_manager.set_init_cache(env_id=env_id, cache_key=key, kv_cache=entry)

    @torch.no_grad()
    def clear_caches(self):
        self.kv_cache_manager.clear_all()


@dataclass
class Entry:
    """What a ``KeysValues`` is to a manager."""
    number: int
    size: int = 3

    def clone(self):
        return copy.copy(self)


class TestDetection:

    def test_the_installed_lightzero_has_one_hook(self):
        assert has_manager_hook(WorldModel) != has_inference_hook(WorldModel)

    def test_a_manager_hook(self):
        assert has_manager_hook(HookedWorldModel) and not has_inference_hook(HookedWorldModel)
        assert name_hook(HookedWorldModel, '0.2.0') == name_hook(HookedWorldModel, '0.3.0') == 'manager_hook'

    def test_a_subclass_may_leave_the_rest_to_its_base(self):

        class CustomWorldModel(HookedWorldModel):

            def clear_caches(self):
                super().clear_caches()

        assert has_manager_hook(CustomWorldModel)

    @pytest.mark.parametrize('method', [
        '_initialize_cache_structures', 'retrieve_or_generate_kvcache', 'update_cache_context', 'clear_caches'
    ])
    def test_half_a_hook_is_none(self, method):
        without = {name: value for name, value in vars(HookedWorldModel).items() if name != method}
        half = type('HalfHooked', (), dict(without, **{method: lambda self: None}))
        with pytest.raises(ImportError, match='lightzero 0.2.0 has neither hook'):
            name_hook(half, '0.2.0')

    @pytest.mark.parametrize('version', ['0.1.0', '0.2.0', '0.3.0', None])
    @pytest.mark.parametrize('world_model_class', [None, object])
    def test_neither_hook_names_the_versions_that_work(self, world_model_class, version):
        with pytest.raises(ImportError, match=(
                r"needs lightzero>=0\.2\.0,<0\.3, or one whose WorldModel takes a KVCacheManager .*main branch.*, but "
                r"lightzero .* has neither hook: pip install 'lightzero>=0\.2\.0,<0\.3'"
        )):
            name_hook(world_model_class, version)


class TestConfig:
    """What LightZero's code does by itself is refused, not ignored."""

    @pytest.mark.parametrize('asked, message', [
        (dict(mode='validate'), r"kv_cache\.mode is 'validate', but this LightZero has a cache manager of its own"),
        (dict(on_miss='rebuild'), r"kv_cache\.on_miss is 'rebuild', .* begins anew from its latent state"),
        (dict(window='rebuild'), r"kv_cache\.window is 'rebuild', .*rebuild_kv_window_from_tokens=True"),
        (dict(rope_positions='aligned'), r"kv_cache\.rope_positions is 'aligned', "),
        (dict(wm_pool=dict(size=3)), r'kv_cache\.wm_pool is .* never asks the wm pool'),
        (dict(strategy='tree'), r"kv_cache\.strategy is 'tree', .* that need nothing are fifo, lfu, lru, "),
        (dict(strategy=dict(type='priority')), r"kv_cache\.strategy is 'priority', "),
        (dict(recur_pool=dict(strategy='priority')), r"kv_cache\.recur_pool\.strategy is 'priority', "),
        (dict(strategy='lruu'), r"kv_cache\.strategy is 'lruu', .* did you mean 'lru'\?"),
        (dict(stratgy='lru'), r"kv_cache\.stratgy is 'lru', .* did you mean 'strategy'\?"),
    ])
    def test_refused(self, asked, message):
        with pytest.raises(ValueError, match=message):
            pools_config(EasyDict(kv_cache=asked))

    def test_refused_in_a_config_object_and_in_the_older_spelling(self):
        with pytest.raises(ValueError, match="window is 'rebuild'"):
            pools_config(EasyDict(dict(), kv_cache=KVCacheConfig(window='rebuild')))
        with pytest.raises(ValueError, match='cache_validation_mode is True'):
            pools_config(EasyDict(cache_validation_mode=True))

    @pytest.mark.parametrize('option', ['rebuild_kv_window_from_tokens', 'exact_kv_window_reset'])
    def test_two_ways_of_moving_the_window_are_refused(self, option):
        with pytest.raises(ValueError, match=rf"kv_cache\.window is 'shift', .* world_model_cfg\.{option}=True"):
            pools_config(EasyDict({'kv_cache': dict(window='shift'), option: True}))
        assert pools_config(EasyDict({'kv_cache': dict(), option: True})) == KVCacheConfig()

    def test_what_lightzero_does_anyhow_may_be_written(self):
        written = dict(mode='managed', on_miss='reset', window='shift', rope_positions='release', wm_pool=dict())
        config = pools_config(EasyDict(kv_cache=dict(written, strategy='s3fifo')))
        assert config.strategy == 's3fifo' and config.on_miss == 'reset'

    def test_lightzeros_own_switch_says_nothing_of_the_mode(self):
        assert pools_config(EasyDict(use_new_cache_manager=False, kv_cache=dict(strategy='lru'))).mode == 'managed'
        assert pools_config(EasyDict(use_new_cache_manager=True)) is None


class TestManager:
    """The protocol, with a stand-in for LightZero's model."""

    def test_it_takes_the_place(self):
        world_model = HookedWorldModel(kv_cache=dict(strategy='lru', recur_pool=dict(size=2)))
        manager = manager_hook.adopt(world_model, num_simulations=7, env_num=3, game_segment_length=20)
        assert world_model.kv_cache_manager is manager and world_model.use_new_cache_manager is True
        assert not hasattr(world_model, 'past_kv_cache_recurrent_infer')
        assert (manager.env_num, manager.init_pools[0].pool_size, manager.recur_pool.pool_size) == (3, 20, 2)
        for key in (1, 2):
            world_model.update_cache_context(None, key, Entry(key))
        assert world_model.retrieve_or_generate_kvcache(0, 1).number == 1
        world_model.update_cache_context(None, 3, Entry(3))
        assert set(manager.recur_pool.keys()) == {1, 3}
        world_model.update_cache_context(0, 1, Entry(10))
        assert world_model.retrieve_or_generate_kvcache(0, 1).number == 10
        assert world_model.retrieve_or_generate_kvcache(1, 1).number == 1
        world_model.keys_values_wm_list.append(Entry(0))
        world_model.clear_caches()
        assert not manager.keys_values_wm_list and not any(map(len, sum(manager.pools().values(), [])))

    def test_what_is_written_later_does_not_reach_an_entry(self):
        manager = HookedKVCacheManager(EasyDict(num_simulations=3), env_num=1)
        entry = Entry(1)
        manager.set_init_cache(0, 5, entry)
        manager.set_recur_cache(6, entry)
        manager.set_wm_cache(7, entry)
        entry.number = 2
        assert [manager.get_init_cache(0, 5), manager.get_recur_cache(6), manager.get_wm_cache(7)] == [Entry(1)] * 3

    def test_roots_are_counted_apart_from_the_search(self):
        manager = HookedKVCacheManager(EasyDict(num_simulations=3), env_num=2, tokens_per_observation=2)
        manager.set_init_cache(0, 5, Entry(1, size=7))
        manager.get_init_cache(0, 5)
        manager.get_init_cache(1, 5)
        manager.hierarchical_get(0, 5)
        roots = manager.root_stats
        assert (roots.continuing, roots.cold_starts, roots.context_tokens) == (2, 1, 9)
        assert manager.total_stats()['init_pools'].total_queries == 3

    def test_the_keys_lightzero_looks_at(self):
        manager = HookedKVCacheManager(EasyDict(num_simulations=3), env_num=1)
        manager.set_recur_cache(1, Entry(1))
        assert manager.recur_pool._key_to_index.keys() == {1}
        manager.clear_recur_cache()
        assert manager.recur_pool._key_to_index.keys() == set()

    def test_a_copy_has_its_own(self):
        manager = HookedKVCacheManager(EasyDict(num_simulations=3), env_num=1)
        manager.set_recur_cache(1, Entry(1))
        other = copy.deepcopy(manager)
        other.clear_all()
        assert len(manager.recur_pool) == 1

    @pytest.mark.parametrize('config', [dict(), dict(kv_cache=dict(mode='legacy')), dict(kv_cache=None)])
    def test_without_a_managed_cache_nothing_is_touched(self, config):
        world_model = HookedWorldModel(**config)
        before = dict(vars(world_model))
        assert manager_hook.adopt(world_model) is None
        assert vars(world_model) == before

    def test_a_world_model_without_the_hook_is_refused(self):

        class Unhooked:
            config = EasyDict(kv_cache=dict(strategy='lru'))

        with pytest.raises(ValueError, match='the world model is a Unhooked, which takes no KVCacheManager'):
            manager_hook.adopt(Unhooked())

    def test_a_memory_budget_sizes_the_pools(self):
        # A whole window of 4 tokens takes 2 * 4 bytes * 2 layers * 8 numbers * 4.
        budget = 40 * 512 / 2 ** 20
        manager = manager_hook.adopt(HookedWorldModel(kv_cache=dict(memory_budget_mb=budget)))
        sizes = manager.sizes
        assert 2 * sizes.init + sizes.recur + sizes.wm <= 40 < 100 == 50 * manager.env_num


def stock_model(**config):
    """A model with LightZero's own manager."""
    torch.manual_seed(0)
    stock = UniZeroModel(**model_config('image', use_new_cache_manager=True, num_simulations=20, **config)).eval()
    with torch.no_grad():
        for name, parameter in stock.world_model.named_parameters():
            if not name.startswith('tokenizer') and (parameter.dim() > 1 or 'bias' in name):
                parameter.copy_(torch.randn_like(parameter) * 0.1)
    if not stock.world_model.config.rotary_emb:
        stock.world_model.precompute_pos_emb_diff_kv()
    return stock


def hooked_copy(stock, **kv_cache_entries):
    """The same weights with the plugin's manager."""
    hooked = copy.deepcopy(stock)
    hooked.world_model.config = EasyDict(dict(hooked.world_model.config, kv_cache=dict(kv_cache_entries)))
    assert manager_hook.adopt(hooked.world_model) is hooked.world_model.kv_cache_manager
    return hooked


def play(stock, hooked, steps=6, num_simulations=12, seed=0):
    """Both models through the same episodes and searches: the largest difference of a prediction."""
    generator = torch.Generator().manual_seed(seed)
    last, actions, largest = torch.zeros_like(observations(stock, 3, generator)), [-1] * 3, 0.
    for step in range(steps):
        current = observations(stock, 3, generator)
        timesteps = [np.array(step)] * 3
        arguments = (last, actions, current, timesteps)
        root, other = (model.initial_inference(*arguments) for model in (stock, hooked))
        largest = max(largest, float((root.policy_logits - other.policy_logits).abs().max()))
        watched = search(stock, root, timesteps, num_simulations)
        outputs = replay(hooked, other, timesteps, watched.expansions, range(3))
        for mine, theirs in zip(outputs, watched.outputs):
            largest = max([largest, *(float((mine[name] - theirs[name]).abs().max()) for name in mine)])
        last, actions = current, [step % 3, 0, 1]
    return largest


@needs_manager_hook
class TestOnMain:

    def test_it_has_the_methods_of_lightzeros_own(self):
        from lzero.model.unizero_world_models.kv_cache_manager import KVCacheManager

        for name, function in inspect.getmembers(KVCacheManager, inspect.isfunction):
            if not name.startswith('_'):
                ours = inspect.signature(getattr(HookedKVCacheManager, name)).parameters
                assert list(ours) == list(inspect.signature(function).parameters), name

    @pytest.mark.parametrize('rotary', [False, True])
    def test_predictions_are_those_with_lightzeros_own_manager(self, rotary):
        stock = stock_model(rotary=rotary)
        hooked = hooked_copy(stock)
        assert play(stock, hooked) == 0
        totals = hooked.world_model.kv_cache_manager.total_stats()
        assert totals['recur_pool'].hits > 0 and totals['recur_pool'].misses == 0
        assert hooked.world_model.kv_cache_manager.root_stats.cold_starts == 0
        assert hooked.world_model.kv_cache_manager.root_stats.mean_context_length > 1

    @pytest.mark.parametrize('strategy', sorted(name for name in EVICTION_REGISTRY if name not in ('priority', 'tree')))
    def test_pools_too_small_miss_and_go_on(self, strategy):
        stock = stock_model()
        hooked = hooked_copy(stock, strategy=strategy, recur_pool=dict(size=5))
        play(stock, hooked)
        manager = hooked.world_model.kv_cache_manager
        totals = manager.total_stats()['recur_pool']
        assert totals.hits + totals.misses == totals.total_queries
        assert totals.misses > 0 and totals.evictions > 0 and manager.recur_pool.peak_entries == 5

    def test_lightzeros_exact_window(self):
        """Beside each entry LightZero keeps its tokens, which go with it."""
        stock = stock_model(rebuild_kv_window_from_tokens=True)
        assert play(stock, hooked_copy(stock), steps=8) == 0
        hooked = hooked_copy(stock, strategy='lru', recur_pool=dict(size=5), init_pool=dict(size=1))
        play(stock, hooked, steps=8)
        world_model = hooked.world_model
        entries = set(world_model.kv_cache_manager.recur_pool.keys())
        assert len(entries) == 5 and world_model.past_token_context_recurrent_infer.keys() == entries

    @pytest.mark.parametrize('name, observation', [('unizero', 'image'), ('sampled_unizero', 'vector')])
    def test_two_lines_of_config(self, name, observation):
        pools = dict(strategy='lru', recur_pool=dict(size=9))
        policy = build_policy(name, observation=observation, kv_cache=kv_cache(**pools), collector_env_num=5)
        managers = [model.world_model.kv_cache_manager for model in (policy._model, policy._target_model)]
        assert managers[0] is not managers[1]
        for manager in managers:
            assert type(manager) is HookedKVCacheManager
            assert type(manager.recur_pool.eviction_policy) is EVICTION_REGISTRY.get('lru')
            assert (manager.env_num, manager.recur_pool.pool_size) == (5, 9)
            assert manager.init_pools[0].pool_size == 50

    def test_sizes_hold_the_longest_search(self):
        policy = build_policy(observation='image', kv_cache=kv_cache(), num_simulations=6)
        lengths = [policy._cfg.collect_num_simulations, policy._cfg.eval_num_simulations, 6]
        assert policy._model.world_model.kv_cache_manager.recur_pool.pool_size == 4 * max(lengths)

    @pytest.mark.parametrize('config', [dict(), dict(kv_cache=dict(mode='legacy'))])
    def test_without_a_managed_cache_lightzeros_own_runs(self, config):
        world_model = UniZeroKVCacheModel(**model_config('image', **config)).world_model
        assert not world_model.use_new_cache_manager and not hasattr(world_model, 'kv_cache_manager')
        world_model = UniZeroKVCacheModel(**model_config('image', use_new_cache_manager=True, **config)).world_model
        assert type(world_model.kv_cache_manager).__module__.startswith('lzero.')

    def test_an_evaluation_writes_its_point_when_its_last_episode_ends(self, tmp_path):
        policy = build_policy(observation='image', kv_cache=kv_cache())
        policy._kv_cache_statistics.tb_logger = SummaryWriter(str(tmp_path))
        policy.eval_mode.reset()
        policy.eval_mode.forward(
            torch.rand(2, 3, 64, 64), [np.ones(3)] * 2, [-1] * 2, ready_env_id=[0, 1], timestep=[np.array(0)] * 2
        )
        policy.eval_mode.reset(env_id=0, current_steps=1, reset_init_data=False)
        policy.eval_mode.reset([0])
        assert 'kv_cache/eval_recur_pool/hit_rate' not in read_scalars(tmp_path)
        policy.eval_mode.reset([1])
        assert len(read_scalars(tmp_path)['kv_cache/eval_recur_pool/hit_rate']) == 1
        policy.eval_mode.reset([1])
        assert len(read_scalars(tmp_path)['kv_cache/eval_recur_pool/hit_rate']) == 1

    def test_nothing_is_added_to_a_checkpoint(self):
        stock = UniZeroModel(**model_config('image'))
        hooked = UniZeroKVCacheModel(**model_config('image', kv_cache=kv_cache()))
        assert list(hooked.state_dict()) == list(stock.state_dict())

    @pytest.mark.slow
    def test_training(self, tmp_path):
        configs = small_configs(
            'atari_unizero_config', dict(strategy='lru', log_interval=1),
            collect_num_simulations=NUM_SIMULATIONS, eval_num_simulations=NUM_SIMULATIONS, reanalyze_ratio=0.5
        )
        from lzero.entry import train_unizero

        policy = call_entry(train_unizero, tmp_path, configs, max_env_step=40)
        manager = policy._learn_model.world_model.kv_cache_manager
        assert type(manager.recur_pool.eviction_policy) is EVICTION_REGISTRY.get('lru')
        totals = manager.total_stats()
        assert totals['init_pools'].hits > 0 and totals['recur_pool'].hits > 0
        scalars = read_scalars(tmp_path / 'run/log/serial')
        assert any(rate > 0 for _, rate in scalars['kv_cache/collect_recur_pool/hit_rate'])
        assert scalars['kv_cache/roots/mean_context_length'][-1][1] > 1
        assert isinstance(policy, UniZeroPolicy)
