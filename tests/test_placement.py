"""What belongs to the cache is refused where nothing reads it, and each run says which cache it has."""
import logging

import pytest
from easydict import EasyDict
from lzero.entry import train_unizero
from models import build_model, kv_cache
from test_broken_settings import experiment_of
from test_policies import build_policy
from training import call_entry, small_configs

from lzero_kvcache import KVCacheManager
from lzero_kvcache.experiment import apply_options, check_runnable, load_experiment
from lzero_kvcache.experiment.assignments import nested
from lzero_kvcache.placement import place_of

WORLD_MODEL = 'policy.model.world_model_cfg'
KEY_PATH = f'{WORLD_MODEL}.kv_cache'
CONFIG = '''
from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config
from ding.utils import deep_merge_dicts
main_config, create_config = (
    deep_merge_dicts(config, CHANGES.get(name, {})) for name, config in
    dict(main_config=main_config, create_config=create_config).items()
)
'''
MISPLACED = {
    'main_config.kv_cache': KEY_PATH,
    'main_config.policy.kv_cache': KEY_PATH,
    'main_config.policy.KV_CACHE': KEY_PATH,
    'main_config.policy.model.kv_cache': KEY_PATH,
    f'main_config.{WORLD_MODEL}.kvcache': KEY_PATH,
    f'main_config.{WORLD_MODEL}.kv_cahe': KEY_PATH,
    f'main_config.{WORLD_MODEL}.kv-cache': KEY_PATH,
    f'main_config.{WORLD_MODEL}.kv_cache_cfg': KEY_PATH,
    f'main_config.{WORLD_MODEL}.recur_pool': f'{KEY_PATH}.recur_pool',
    f'main_config.{WORLD_MODEL}.use_new_cache_manger': f'{WORLD_MODEL}.use_new_cache_manager',
    'main_config.policy.model.use_new_cache_manager': f'{WORLD_MODEL}.use_new_cache_manager',
    'main_config.env.kv_cache': KEY_PATH,
    'main_config.env.manager.kv_cahce': KEY_PATH,
    'create_config.kv_cache': KEY_PATH,
    'create_config.policy.kv_cache': KEY_PATH,
}


@pytest.mark.parametrize('key_path', MISPLACED)
def test_a_config_file_is_refused_with_the_place_that_is_right(key_path, tmp_path):
    config = tmp_path / 'my_config.py'
    config.write_text(f"CHANGES = {nested([(key_path, {'strategy': 'lru'})])}\n{CONFIG}")
    shown = key_path if key_path.count('.') == 1 else key_path.replace('main_config.', '')
    with pytest.raises(ValueError) as caught:
        load_experiment(config)
    assert str(caught.value) == (
        f"{config}: {shown} is {{'strategy': 'lru'}}, but nothing reads it there: its place is {MISPLACED[key_path]}"
    )


@pytest.mark.parametrize('assignment', ['policy.kv_cache.strategy=lru', f'{WORLD_MODEL}.kvcache.strategy=lru'])
def test_an_option_is_refused_with_the_place_that_is_right(assignment, tmp_path):
    config = tmp_path / 'my_config.py'
    config.write_text(f'CHANGES = {{}}\n{CONFIG}')
    with pytest.raises(ValueError, match=f'but nothing reads it there: its place is {KEY_PATH}$'):
        apply_options(load_experiment(config), [assignment])


@pytest.mark.parametrize('key_path', ['policy.kv_cache', 'policy.model.kv_cache', f'{WORLD_MODEL}.kvcache'])
def test_a_stock_entry_refuses_what_its_policy_sees(key_path, tmp_path):
    main_config, create_config = small_configs('cartpole_unizero_config', {})
    if key_path == 'policy.kv_cache':
        create_config.policy.kv_cache = dict(strategy='lru')
    else:
        *rooms, key = key_path.split('.')
        room = main_config
        for name in rooms:
            room = room[name]
        room[key] = dict(strategy='lru')
    create_config.env_manager.type = 'base'
    with pytest.raises(ValueError, match=f"^{key_path} is .*: its place is {KEY_PATH}$"):
        call_entry(train_unizero, tmp_path, (main_config, create_config))


def test_models_and_managers_by_hand_are_checked_too():
    with pytest.raises(ValueError, match=f'{WORLD_MODEL}.kv_cahe is .*: its place is {KEY_PATH}'):
        build_model(kv_cahe=kv_cache())
    with pytest.raises(ValueError, match="^KVCache is .*: did you mean 'kv_cache'"):
        KVCacheManager(dict(KVCache=dict(strategy='lru')), 2)


@pytest.mark.parametrize('key', [
    'cache', 'max_cache_size', 'kv_cache_before_run', 'cache_dir', 'num_kv_heads', 'key', 'k_cache', 'v_cache',
    'qkv_cache', 'batch_validation_mode', 'use_new_page_manager'
])
def test_names_of_others_mean_nothing_of_the_cache(key):
    assert place_of(key) is None


@pytest.mark.parametrize('key', ['use_kv_cache', 'enable_kv_cache', 'kv_cache_strategy', 'kv_cache_size'])
def test_names_that_mean_the_cache_beside_its_place(key):
    assert place_of(key, is_within=True) == KEY_PATH


@pytest.mark.parametrize('names, message', [
    ("'lzero_kvcache.plugin'", r"policy.import_names is 'lzero_kvcache.plugin', of which .* allowed is \['lzero_kvc"),
    ("['lzero_kvcache']", "policy.import_names has 'lzero_kvcache', which .* did you mean 'lzero_kvcache.plugin'"),
    ('[3]', r'policy.import_names is \[3\]: allowed is a list of modules'),
])
def test_import_names_that_cannot_be_are_refused(names, message, tmp_path):
    config = tmp_path / 'my_config.py'
    config.write_text(f'CHANGES = dict(create_config=dict(policy=dict(import_names={names})))\n{CONFIG}')
    with pytest.raises(ValueError, match=f'my_config.py: create_config.{message}'):
        load_experiment(config)


def test_import_names_of_the_environment_are_checked_too(tmp_path):
    config = tmp_path / 'my_config.py'
    config.write_text(f"CHANGES = dict(create_config=dict(env=dict(import_names='zoo.envs')))\n{CONFIG}")
    with pytest.raises(ValueError, match="create_config.env.import_names is 'zoo.envs', of which"):
        load_experiment(config)


def test_import_names_by_option_come_beside_the_plugin(tmp_path):
    config = tmp_path / 'my_config.py'
    config.write_text(f'CHANGES = {{}}\n{CONFIG}')
    experiment = load_experiment(config)
    apply_options(experiment, ["create_config.policy.import_names=['json']"])
    assert experiment.create_config.policy.import_names == ['lzero_kvcache.plugin', 'json']
    with pytest.raises(ValueError, match="policy.import_names has 'no_such_module', which cannot be imported"):
        apply_options(experiment, ["create_config.policy.import_names=['no_such_module']"])


@pytest.mark.parametrize('pool', ['init', 'recur', 'wm'])
def test_a_pool_that_no_machine_holds_is_refused(pool):
    cache = kv_cache(**{f'{pool}_pool': dict(size=10 ** 12)})
    with pytest.raises(ValueError, match=rf'{pool}_pool.size is 10{{12}}: when it is full, it takes [\d,]+ MiB, and'):
        build_policy(kv_cache=cache)
    with pytest.raises(ValueError, match=rf'{KEY_PATH}.{pool}_pool.size is 10{{12}}'):
        KVCacheManager(EasyDict(kv_cache=cache), 2)
    experiment = experiment_of(('cartpole_unizero_config', {f'{KEY_PATH}.{pool}_pool.size': 10 ** 12}))
    with pytest.raises(ValueError, match=rf'{KEY_PATH}.{pool}_pool.size is 10{{12}}'):
        check_runnable(experiment)


@pytest.mark.parametrize('options, level, said', [
    (dict(kv_cache=kv_cache(strategy='lru', wm_pool=dict(strategy='fifo'))), logging.INFO,
     "kv_cache.mode='managed': init pools of 50 entries for each of 4 environments (lru), a recur pool of 24 (lru), a "
     'wm pool of 4 (fifo); 1.31 MiB when they are full, 1,024 bytes a token'),
    (dict(kv_cache=kv_cache(mode='validate', memory_budget_mb=1)), logging.INFO,
     "kv_cache.mode='validate': init pools of 36 entries for each of 4 environments (fifo), a recur pool of 24 (fifo), "
     'a wm pool of 4 (fifo); 0.98 MiB when they are full, of memory_budget_mb=1, 1,024 bytes a token'),
    (dict(kv_cache=kv_cache(mode='legacy'), env_num=10), logging.INFO, "kv_cache.mode='legacy': the stock code runs"),
    (dict(env_num=10), logging.WARNING, f'no kv_cache: the stock code runs. Its place is {KEY_PATH}'),
])
def test_a_policy_says_which_cache_it_has(options, level, said, caplog):
    with caplog.at_level(logging.INFO, 'lzero_kvcache'):
        build_policy(**options)
    assert [record[1:] for record in caplog.record_tuples if record[0] == 'lzero_kvcache'] == [(level, said)]
