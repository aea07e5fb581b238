import re
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from easydict import EasyDict

from lzero_kvcache import EvictionStrategy, KVCacheConfig

KEY_PATH = 'policy.model.world_model_cfg.kv_cache'

BAD_SIZES = [0, -1, 2.5, True, '3', [3]]
BAD_STRATEGIES = ['lrru', 3, True, ['lru'], 'LRU ']
NO_SWITCH = [0, 1, 'yes', None]

# The value of kv_cache, the key path below it, the value that is wrong, what the message says about it.
WRONG = [
    (dict(stratgy='lru'), '.stratgy', 'lru', "there is no such key: allowed are .*did you mean 'strategy'?"),
    (dict(size=3), '.size', 3, 'there is no such key: allowed are '),
    *[(dict(mode=mode), '.mode', mode, 'allowed are legacy, managed, validate')
      for mode in ('manged', 'MANAGED', None, 1, True, ['managed'])],
    (dict(mode='manged'), '.mode', 'manged', "did you mean 'managed'?"),
    *[(dict(on_miss=given), '.on_miss', given, 'allowed are rebuild, reset') for given in ('rebuid', 'shift', None, 0)],
    (dict(on_miss='rest'), '.on_miss', 'rest', "did you mean 'reset'?"),
    *[(dict(window=given), '.window', given, 'allowed are rebuild, shift') for given in ('shit', 'reset', None, 8)],
    (dict(window='shft'), '.window', 'shft', "did you mean 'shift'?"),
    *[(dict(rope_positions=given), '.rope_positions', given, 'allowed are aligned, release')
      for given in ('alined', None, True, 1)],
    (dict(rope_positions='alined'), '.rope_positions', 'alined', "did you mean 'aligned'?"),
    *[({switch: given}, f'.{switch}', given, 'allowed are True and False')
      for switch in ('compile', 'enable_stats') for given in NO_SWITCH],
    *[(dict(log_interval=given), '.log_interval', given, 'allowed is an integer of at least 0')
      for given in (-1, 2.5, True, '10', None)],
    *[(dict(memory_budget_mb=given), '.memory_budget_mb', given, 'allowed is a number above 0 .MiB., or None')
      for given in (0, -1, '64', True, float('nan'), float('inf'), 10 ** 400)],
    *[(dict(validation_tolerance=given), '.validation_tolerance', given, 'allowed is a number of at least 0')
      for given in (-1e-3, '1e-4', True, None, float('nan'), float('inf'))],
    *[(dict(strategy=given), '.strategy', given, 'allowed are ') for given in [*BAD_STRATEGIES, None]],
    (dict(strategy='lrru'), '.strategy', 'lrru', "no eviction strategy: allowed are .*did you mean 'lru'?"),
    (dict(strategy=dict(size=3)), '.strategy', dict(size=3), "lacks 'type': allowed is dict.type=NAME"),
    *[(dict(strategy=dict(type=given)), '.strategy.type', given, 'allowed are ') for given in [*BAD_STRATEGIES, None]],
    (dict(strategy=dict(type='priority', scor='x')), '.strategy.scor', 'x', "'priority' has no option 'scor'"),
    (dict(strategy=dict(type='priority', scor='x')), '.strategy.scor', 'x', "did you mean 'score'?"),
    (dict(strategy=dict(type='lru', capacity=9)), '.strategy.capacity', 9, "'lru' has no option 'capacity'"),
]
for pool in ('init_pool', 'recur_pool', 'wm_pool'):
    WRONG += [
        *[({pool: given}, f'.{pool}', given, 'allowed is a dict such as') for given in (None, 100, 'lru', [1], True)],
        ({pool: dict(sise=3)}, f'.{pool}.sise', 3, "no such key: allowed are size, strategy; did you mean 'size'?"),
        ({pool: dict(type='lru')}, f'.{pool}.type', 'lru', 'no such key: allowed are size, strategy'),
        *[({pool: dict(size=given)}, f'.{pool}.size', given, 'allowed is an integer of at least 1')
          for given in BAD_SIZES],
        *[({pool: dict(strategy=given)}, f'.{pool}.strategy', given, 'allowed are ') for given in BAD_STRATEGIES],
        ({pool: dict(strategy='fif')}, f'.{pool}.strategy', 'fif', "did you mean 'fifo'?"),
        ({pool: dict(strategy=dict(type='fif'))}, f'.{pool}.strategy.type', 'fif', "did you mean 'fifo'?"),
        ({pool: dict(strategy=dict(type='lru', score='x'))}, f'.{pool}.strategy.score', 'x', "has no option 'score'"),
        ({pool: dict(strategy={})}, f'.{pool}.strategy', {}, "lacks 'type'"),
    ]


@pytest.mark.parametrize('kv_cache, key_path, value, allowed', WRONG)
@pytest.mark.parametrize('config_type', [EasyDict, SimpleNamespace])
def test_wrong_config_is_refused(config_type, kv_cache, key_path, value, allowed):
    with pytest.raises(ValueError) as error:
        KVCacheConfig.from_world_model_config(config_type(kv_cache=kv_cache))
    message = str(error.value)
    assert message.startswith(f'{KEY_PATH}{key_path} is {value!r}'), message
    assert re.search(allowed.replace('?', r'\?'), message), message


@pytest.mark.parametrize('kv_cache', ['lru', 3, True, False, [], ['lru']])
def test_kv_cache_must_be_a_dict(kv_cache):
    with pytest.raises(ValueError, match=f'{KEY_PATH} is {re.escape(repr(kv_cache))}: allowed is a dict such as'):
        KVCacheConfig.from_world_model_config(SimpleNamespace(kv_cache=kv_cache))


def test_keys_are_strings():
    with pytest.raises(ValueError, match=f"{KEY_PATH}.7 is 'lru', but there is no such key: allowed are "):
        KVCacheConfig.from_dict({7: 'lru'})


@pytest.mark.parametrize('name', [name for name in KVCacheConfig().to_dict() if not name.endswith('pool')])
def test_every_key_is_checked(name):
    with pytest.raises(ValueError, match=re.escape(f'{KEY_PATH}.{name} is <object')):
        KVCacheConfig.from_dict({name: object()})


def test_defaults():
    pool = dict(size=None, strategy=None)
    assert KVCacheConfig().to_dict() == dict(
        mode='managed', strategy='fifo', init_pool=pool, recur_pool=pool, wm_pool=pool, memory_budget_mb=None,
        on_miss='rebuild', window='shift', rope_positions='aligned', compile=False, enable_stats=True,
        log_interval=1000, validation_tolerance=1e-4,
    )
    assert KVCacheConfig.from_dict({}) == KVCacheConfig()


@pytest.mark.parametrize('world_model_cfg', [
    EasyDict(), EasyDict(kv_cache=None), SimpleNamespace(), EasyDict(cache_validation_mode=False),
    EasyDict(use_new_cache_manager=None),
])
def test_no_kv_cache(world_model_cfg):
    assert KVCacheConfig.from_world_model_config(world_model_cfg) is None


@pytest.mark.parametrize('config_type', [dict, EasyDict])
def test_what_users_write(config_type):
    kv_cache = config_type(
        mode='validate', strategy=dict(type='priority', score='predicted_value'), init_pool=dict(size=7),
        recur_pool=dict(size=9, strategy='lru'), wm_pool=dict(strategy=EvictionStrategy.FIFO), on_miss='reset',
        window='rebuild', rope_positions='release', enable_stats=False, log_interval=0, validation_tolerance=0,
    )
    before = dict(kv_cache)
    config = KVCacheConfig.from_world_model_config(EasyDict(kv_cache=kv_cache))
    assert config.init_pool.size == 7
    assert config.strategy_of(config.init_pool) == dict(type='priority', score='predicted_value')
    assert asdict(config.recur_pool) == dict(size=9, strategy='lru')
    assert config.strategy_of(config.recur_pool) == 'lru'
    assert config.strategy_of(config.wm_pool) is EvictionStrategy.FIFO
    assert (config.mode, config.on_miss, config.window, config.rope_positions) == (
        'validate', 'reset', 'rebuild', 'release')
    assert (config.enable_stats, config.log_interval, config.validation_tolerance) == (False, 0, 0)
    assert kv_cache == before


def test_a_config_reads_back():
    config = KVCacheConfig.from_dict(dict(strategy='lru', recur_pool=dict(size=3)))
    assert KVCacheConfig.from_dict(config.to_dict()) == config
    assert KVCacheConfig.from_dict(config) is config


@pytest.mark.parametrize('older, mode', [
    (dict(use_new_cache_manager=True), 'managed'),
    (dict(use_new_cache_manager=False), 'legacy'),
    (dict(cache_validation_mode=True), 'validate'),
    (dict(use_new_cache_manager=True, cache_validation_mode=True), 'validate'),
    (dict(use_new_cache_manager=True, cache_validation_mode=False), 'managed'),
    (dict(use_new_cache_manager=False, cache_validation_mode=False), 'legacy'),
])
def test_older_spelling_of_the_mode(older, mode):
    assert KVCacheConfig.from_world_model_config(EasyDict(older)) == KVCacheConfig(mode=mode)
    beside = KVCacheConfig.from_world_model_config(EasyDict(kv_cache=dict(strategy='lru'), **older))
    assert beside == KVCacheConfig(mode=mode, strategy='lru')
    agreeing = KVCacheConfig.from_world_model_config(EasyDict(kv_cache=dict(mode=mode), **older))
    assert agreeing.mode == mode


@pytest.mark.parametrize('older, mode', [
    (dict(use_new_cache_manager=True), 'legacy'),
    (dict(use_new_cache_manager=False), 'managed'),
    (dict(cache_validation_mode=True), 'managed'),
    (dict(use_new_cache_manager=True, cache_validation_mode=True), 'legacy'),
])
@pytest.mark.parametrize('config_type', [dict, EasyDict, KVCacheConfig])
def test_spellings_that_disagree(older, mode, config_type):
    world_model_cfg = SimpleNamespace(kv_cache=config_type(mode=mode), **older)
    with pytest.raises(ValueError, match=f"{KEY_PATH}.mode is '{mode}', but .*remove the older spelling"):
        KVCacheConfig.from_world_model_config(world_model_cfg)


@pytest.mark.parametrize('key', ['use_new_cache_manager', 'cache_validation_mode'])
@pytest.mark.parametrize('value', [0, 1, 'True', []])
def test_older_spelling_wants_a_bool(key, value):
    with pytest.raises(ValueError, match=f'policy.model.world_model_cfg.{key} is .*: allowed are True and False'):
        KVCacheConfig.from_world_model_config(SimpleNamespace(**{key: value}))
