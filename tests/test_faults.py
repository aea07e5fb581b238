"""Bad luck and wrong use: a clear error or a clean recovery, a consistent cache afterwards, never a wrong answer."""
import logging
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from episodes import Episodes
from invariants import check_pool, check_store
from models import build_model, kv_cache, observations
from training import TINY_POOLS

import lzero_kvcache
from lzero_kvcache import EVICTION_REGISTRY, EvictionPolicy, KVCachePool
from lzero_kvcache.search.search import Search
from lzero_kvcache.store import TokenStore
from lzero_kvcache.world_model.cached_model import CachedModel
from lzero_kvcache.world_model.forward import Forward, SearchTensors

PACKAGE = str(Path(lzero_kvcache.__file__).parent)
ENV_IDS = [0, 1, 2, 3]
SMALL_MODEL = dict(embed_dim=16, num_heads=2)


class Interruption:
    """Counts the lines of the package that are run within its ``with`` block; raises Ctrl-C's exception at one."""

    def __init__(self, line=None):
        self.lines, self._line = 0, line

    def __enter__(self):
        sys.settrace(self._enter_frame)
        return self

    def __exit__(self, *_):
        sys.settrace(None)

    def _enter_frame(self, frame, event, argument):
        return self._count if frame.f_code.co_filename.startswith(PACKAGE) else None

    def _count(self, frame, event, argument):
        if event == 'line':
            self.lines += 1
            if self.lines == self._line:
                raise KeyboardInterrupt
        return self._count


def expand(model, latents, num_actions=4, timesteps=(0, 0, 0, 0)):
    actions = torch.zeros(num_actions, dtype=torch.long)
    return model.recurrent_inference([(latents.numpy(), actions)], 0, [1] * len(latents), list(timesteps))


@pytest.mark.slow
@pytest.mark.parametrize('window, strategy', [('shift', 'lru'), ('shift', 'tree'), ('rebuild', 's3fifo')])
def test_ctrl_c_at_any_line_of_an_inference(window, strategy):
    model = build_model(kv_cache=kv_cache(strategy=strategy, window=window, **TINY_POOLS), **SMALL_MODEL)
    episodes, inference, rng = Episodes(model), model.world_model.kv_cache_inference, random.Random(0)
    for _ in range(3):
        episodes.step(ENV_IDS, 4)
    with Interruption() as undisturbed:
        episodes.step(ENV_IDS, 4)
    for line in rng.sample(range(1, undisturbed.lines), 25):
        with pytest.raises(KeyboardInterrupt), Interruption(line):
            episodes.step(rng.sample(ENV_IDS, 4), 4)
            raise KeyboardInterrupt
        if inference._broke_off:
            # The recovery has been interrupted, too.
            inference.clear()
        check_store(inference)
        inference.clear()
        episodes.weights_have_changed()
        episodes.step(rng.sample(ENV_IDS, 3), 2)
        check_store(inference)
        if rng.random() < 0.3:
            episodes.end(rng.choice(ENV_IDS))


POOL_OPERATIONS = {
    'set': lambda pool: pool.set('new', 'new'),
    'set again': lambda pool: pool.set('key0', 'new'),
    'set_many': lambda pool: pool.set_many(['key1', 'new', 'newer'], ['newest', 'new', 'newer'], [None] * 3),
    'get': lambda pool: pool.get_many(['key0', 'other']),
    'resize': lambda pool: pool.resize(2),
    'evict': lambda pool: pool.evict(),
    'clear': lambda pool: pool.clear(),
}


@pytest.mark.parametrize('operation', POOL_OPERATIONS)
@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
def test_ctrl_c_at_any_line_of_a_pools_operation(strategy, operation):
    def full_pool(released):
        pool = KVCachePool(4, strategy, on_release=released.extend)
        for number in range(6):
            pool.set(f'key{number % 5}', f'value{number}')
            pool.get('key1')
        return pool

    pool = full_pool([])
    with Interruption() as undisturbed:
        POOL_OPERATIONS[operation](pool)
    assert undisturbed.lines > 3
    for line in range(1, undisturbed.lines + 1):
        released = []
        pool = full_pool(released)
        with pytest.raises(KeyboardInterrupt), Interruption(line):
            POOL_OPERATIONS[operation](pool)
        # The next operation mends what is to be mended.
        pool.peek('key0')
        assert pool.is_whole
        check_pool(pool)
        # What a broken-off release was about to release counts as released.
        assert len(released) == len(set(released))
        assert not set(released) & set(pool.values())
        for number in range(12):
            pool.set(number, number)
            pool.get(number - 1)
        pool.resize(1)
        check_pool(pool)
        pool.clear()
        assert len(pool) == 0


@pytest.mark.parametrize('kind', ['init_pools', 'recur_pool', 'wm_pool'])
@pytest.mark.parametrize('operation', ['clear', 'resize'])
def test_ctrl_c_at_any_line_that_changes_a_pool_between_two_inferences(operation, kind):
    model = build_model(kv_cache=kv_cache(strategy='sieve'), **SMALL_MODEL)
    episodes, inference = Episodes(model), model.world_model.kv_cache_inference
    line, undisturbed = 0, False
    while not undisturbed:
        line += 3
        episodes.step(ENV_IDS, 4)
        (pool, *_) = inference.manager.pools()[kind]
        try:
            with Interruption(line):
                pool.clear() if operation == 'clear' else pool.resize(1)
            undisturbed = True
        except KeyboardInterrupt:
            pass
        pool.resize(8)
        episodes.step(ENV_IDS, 4)
        check_store(inference)
        inference.clear()
        assert len(inference.store) == 0
        for env_id in ENV_IDS:
            episodes.end(env_id)
    assert line > 10


class Moody(EvictionPolicy):
    """A strategy of a user's own, with a fault in it."""

    def __init__(self):
        self.slots, self.moods = [], 0

    def insert(self, slot, priority):
        self.moods += 1
        if self.moods == 3:
            raise RuntimeError('a strategy that fails')
        self.slots.append(slot)

    def victim(self):
        return self.slots[0]

    def remove(self, slot):
        self.slots.remove(slot)


def test_a_strategy_that_raises_leaves_an_empty_pool(caplog):
    released = []
    EVICTION_REGISTRY.register('moody', Moody)
    try:
        pool = KVCachePool(2, 'moody', name='recur_pool', on_release=released.extend)
    finally:
        del EVICTION_REGISTRY['moody']
    pool.set('a', 1)
    pool.set('b', 2)
    with pytest.raises(RuntimeError, match='a strategy that fails'):
        pool.set('c', 3)
    with caplog.at_level(logging.WARNING, logger='lzero_kvcache'):
        assert len(pool) == 0
    assert sorted(released) == [1, 2, 3]
    assert [record.message for record in caplog.records] == [
        "An operation of pool 'recur_pool' has broken off: the pool has been emptied."
    ]
    pool.set('d', 4)
    pool.set('e', 5)
    assert dict(zip(pool.keys(), pool.values())) == {'d': 4, 'e': 5}


def check_again(root, again):
    torch.testing.assert_close(again.policy_logits, root.policy_logits)
    torch.testing.assert_close(again.value, root.value)


@pytest.mark.parametrize('window, steps', [('shift', 3), ('rebuild', 7)])
def test_a_step_that_is_taken_again_where_nothing_moves(window, steps):
    """Successive observations are often equal, and the retry is not to be taken for the next step."""
    model = build_model(kv_cache=kv_cache(strategy='lru', window=window))
    still, other = (observations(model, 4, torch.Generator().manual_seed(seed)) for seed in range(2))
    seen = [other, *[still] * steps]
    for step in range(steps):
        arguments = (seen[max(0, step - 1)], [1 if step else -1] * 4, seen[step], [step] * 4)
        root = model.initial_inference(*arguments)
        again = model.initial_inference(*arguments)
        check_again(root, again)
        assert model.world_model.kv_cache_inference.root_stats.cold_starts == 0


def test_timesteps_that_stand_still_are_not_taken_for_retries():
    model, twin = (build_model(kv_cache=kv_cache(strategy='lru')) for _ in range(2))
    still = observations(model, 4, torch.Generator().manual_seed(0))
    for step in range(3):
        actions = [1 if step else -1] * 4
        standing = model.initial_inference(still, actions, still, [0] * 4)
        counting = twin.initial_inference(still, actions, still, [step] * 4)
        torch.testing.assert_close(standing.value, counting.value)


def test_a_search_goes_on_after_an_inference_that_broke_off(monkeypatch):
    model = build_model(kv_cache=kv_cache(strategy='tree'))
    episodes, world_model = Episodes(model), model.world_model
    root = episodes.step(ENV_IDS, 0)
    node, imagined = expand(model, root.latent_state), world_model.imagine(root.latent_state, horizon=3)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='no luck'):
        patch.setattr(Forward, 'step', lambda *_: (_ for _ in ()).throw(RuntimeError('no luck')))
        expand(model, node.latent_state)
    again = world_model.imagine(root.latent_state, horizon=3)
    torch.testing.assert_close(again.values, imagined.values)
    torch.testing.assert_close(expand(model, root.latent_state).value, node.value)
    expand(model, node.latent_state)
    check_store(world_model.kv_cache_inference)


def test_nodes_with_one_latent_state_stay_apart_after_an_inference_that_broke_off(monkeypatch):
    model = build_model(kv_cache=kv_cache(strategy='lru'), context_length=20)
    root = Episodes(model).step(ENV_IDS, 0)
    node = expand(model, root.latent_state)
    again = expand(model, root.latent_state)
    assert not torch.equal(node.latent_state, again.latent_state)
    children = expand(model, node.latent_state), expand(model, again.latent_state)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='no luck'):
        patch.setattr(Forward, 'step', lambda *_: (_ for _ in ()).throw(RuntimeError('no luck')))
        expand(model, root.latent_state)
    for parent, child in zip((node, again), children):
        torch.testing.assert_close(expand(model, parent.latent_state).value, child.value)


def test_latent_states_of_another_precision_are_those_nodes():
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    root = Episodes(model).step(ENV_IDS, 0)
    node = expand(model, root.latent_state)
    for latents in (root.latent_state.double(), root.latent_state.double().numpy()):
        actions = torch.zeros(4, dtype=torch.long)
        again = model.recurrent_inference([(latents, actions)], 0, [1] * 4, [0] * 4)
        torch.testing.assert_close(again.value, node.value)


@pytest.mark.parametrize('env_ids', [[1.7, 0], [True, 0], ['0', '1'], [None, 1]], ids=str)
def test_environment_ids_that_are_no_integers_are_refused(env_ids):
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    with pytest.raises(ValueError, match='env_ids are .*: allowed are integers'):
        with model.world_model.kv_cache_roots('collect', env_ids):
            pass


def test_no_rows_at_all_are_refused():
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    nothing = observations(model, 1, torch.Generator())[:0]
    with pytest.raises(ValueError, match='no current observations'):
        model.initial_inference(nothing, [], nothing, [])


@pytest.mark.parametrize('arguments, message', [
    ((3, [1] * 4), '3 actions came with 4 latent states'), ((4, [1] * 3), 'search_depth has 3 entries for 4 rows'),
])
def test_mode_validate_refuses_wrong_batches_before_anything_changes(arguments, message):
    model = build_model(kv_cache=kv_cache(mode='validate'))
    current = observations(model, 4, torch.Generator().manual_seed(0))
    root = model.initial_inference(current, [-1] * 4, current, [0] * 4)
    num_actions, search_depth = arguments
    nodes = model.world_model.kv_cache_inference.search.nodes
    num_nodes = nodes.num_nodes
    with pytest.raises(ValueError, match=message):
        actions = torch.zeros(num_actions, dtype=torch.long)
        model.recurrent_inference([(root.latent_state.numpy() + 1, actions)], 0, search_depth, [0] * 4)
    assert nodes.num_nodes == num_nodes
    expand(model, root.latent_state)
    assert model.world_model.kv_cache_inference.report.agreed > 0


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
def test_a_search_whose_root_is_asked_for_again_equals_the_first(strategy):
    model = build_model(kv_cache=kv_cache(strategy=strategy))
    generator = torch.Generator().manual_seed(0)
    seen = [observations(model, 4, generator) for _ in range(4)]
    for step in range(3):
        arguments = (seen[max(0, step - 1)], [1 if step else -1] * 4, seen[step], [step] * 4)
        root = model.initial_inference(*arguments)
        with pytest.raises(ValueError, match='3 actions came with 4 latent states: needed is one for each'):
            expand(model, root.latent_state, 3)
        again = model.initial_inference(*arguments)
        assert model.world_model.kv_cache_inference.root_stats.cold_starts == 0
        check_again(root, again)


def test_an_allocation_that_fails_says_what_would_help(monkeypatch):
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    episodes, inference = Episodes(model), model.world_model.kv_cache_inference
    episodes.step(ENV_IDS, 8)

    def no_memory(tensor, *arguments, **keywords):
        raise torch.OutOfMemoryError('out of memory')

    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, 'new_zeros', no_memory)
        message = r'cannot grow to \d+ tokens \(\d+ MiB on cpu\).*memory_budget_mb'
        with pytest.raises(torch.OutOfMemoryError, match=message):
            # The slab is given back, and taken again.
            inference.leave_device()
            episodes.step(ENV_IDS, 8)
    check_store(inference)
    episodes.step(ENV_IDS, 8)
    check_store(inference)


def test_real_memory_that_is_not_there():
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    store = model.world_model.kv_cache_inference.store
    with pytest.raises(RuntimeError, match='cannot grow to 1000000000000 tokens'):
        store.slab.tensor(10 ** 12, torch.zeros(1))
    Episodes(model).step(ENV_IDS, 4)


@pytest.mark.parametrize('owner, name', [
    (TokenStore, 'add'), (TokenStore, 'extend'), (TokenStore, 'release'), (TokenStore, 'reserve'),
    (CachedModel, 'append'), (Forward, 'step'), (Search, 'add'), (SearchTensors, 'add'),
    (KVCachePool, '_evict'), (KVCachePool, 'set_many'), (KVCachePool, 'clear'),
])
@pytest.mark.parametrize('call', [1, 2, 3, 5, 8, 13])
def test_an_exception_anywhere_within_an_inference(owner, name, call, monkeypatch):
    model = build_model(kv_cache=kv_cache(strategy='lru', **TINY_POOLS), **SMALL_MODEL)
    episodes, inference = Episodes(model), model.world_model.kv_cache_inference
    episodes.step(ENV_IDS, 4)
    original, calls = getattr(owner, name), []

    def fail_once(*arguments, **keywords):
        calls.append(name)
        if len(calls) == call:
            raise RuntimeError('no luck')
        return original(*arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='no luck'):
        patch.setattr(owner, name, fail_once)
        episodes.step([3, 1, 2], 6)
        raise RuntimeError('no luck: called less often')
    check_store(inference)
    inference.clear()
    check_store(inference)
    for pools in inference.manager.pools().values():
        for pool in pools:
            check_pool(pool)
    for _ in range(2):
        episodes.step([2, 3, 0, 1], 4)
        check_store(inference)


@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('strategy', [
    *sorted(EVICTION_REGISTRY),
    dict(type='priority', score='predicted_value'), dict(type='priority', score='predicted_reward'),
], ids=str)
def test_a_latent_that_is_not_finite_harms_nobody_else(strategy, bad, caplog):
    options = dict(kv_cache=kv_cache(strategy=strategy, **TINY_POOLS), **SMALL_MODEL)
    model, twin = build_model(**options), build_model(**options)
    generator = torch.Generator().manual_seed(0)
    seen = [observations(model, 4, generator) for _ in range(4)]
    for step in range(4):
        roots = []
        for each in (model, twin):
            current, last = seen[step].clone(), seen[max(0, step - 1)].clone()
            if each is model:
                current[1] = bad
                last[1] = bad
            with caplog.at_level(logging.WARNING, logger='lzero_kvcache'):
                roots.append(each.initial_inference(last, [1 if step else -1] * 4, current, [step] * 4))
        latents = [root.latent_state.numpy() for root in roots]
        others = [0, 2, 3]
        for simulation in range(4):
            actions = torch.tensor([0, 1, 2, 1])
            nodes = [
                each.recurrent_inference([(latent, actions)], simulation, [simulation + 1] * 4, [step] * 4)
                for each, latent in zip((model, twin), latents)
            ]
            torch.testing.assert_close(nodes[0].value[others], nodes[1].value[others])
            torch.testing.assert_close(nodes[0].reward[others], nodes[1].reward[others])
            latents = [node.latent_state.numpy() for node in nodes]
            # The stock heads and blocks keep nan, and so does the cache.
            assert not nodes[0].value[1].isfinite().all()
        check_store(model.world_model.kv_cache_inference)
    said = [record.message for record in caplog.records if 'nan or inf' in record.message]
    assert len(said) == 1
    assert 'with the cache as without' in said[0]


def test_more_environments_than_the_cache_was_set_up_for():
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    episodes, inference = Episodes(model), model.world_model.kv_cache_inference
    episodes.step(ENV_IDS, 4)
    message = r'env_ids are \[0, 1, 2, 3, 4\]: allowed are 0 to 3, .*policy\.collector_env_num'
    with pytest.raises(ValueError, match=message):
        Episodes(model).step([0, 1, 2, 3, 4])
    check_store(inference)
    episodes.step(ENV_IDS, 4)
    # What is refused before it begins costs nobody the cache.
    assert inference.manager.total_stats()['init_pools'].misses == 0


def test_the_number_of_environments_changes():
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    Episodes(model).step(ENV_IDS, 4)
    model.world_model.configure_kv_cache(env_num=6, num_simulations=4)
    episodes = Episodes(model)
    for _ in range(3):
        episodes.step([0, 1, 2, 3, 4, 5], 4)
    assert model.world_model.kv_cache_manager.env_num == 6
    check_store(model.world_model.kv_cache_inference)


@pytest.mark.parametrize('latents, actions, search_depth, message', [
    ((4, 1, 64), 3, [1] * 4, '3 actions came with 4 latent states'),
    ((4, 1, 63), 4, [1] * 4, r'shape \(4, 1, 63\): needed is \(rows, 1, 64\)'),
    ((4, 64), 4, [1] * 4, r'shape \(4, 64\): needed is \(rows, 1, 64\)'),
    ((0, 1, 64), 0, [], 'with at least one row'),
    ((4, 1, 64), 4, [1] * 3, 'search_depth has 3 entries for 4 rows'),
])
def test_a_batch_that_does_not_fit_together_is_refused_and_costs_nothing(latents, actions, search_depth, message):
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    generator = torch.Generator().manual_seed(0)
    current = observations(model, 4, generator)
    root = model.initial_inference(current, [-1] * 4, current, [0] * 4)
    inference = model.world_model.kv_cache_inference
    tokens = len(inference.store)
    with pytest.raises(ValueError, match=message):
        model.recurrent_inference(
            [(np.zeros(latents, dtype=np.float32), torch.zeros(actions, dtype=torch.long))], 0, search_depth, [0] * 4
        )
    assert len(inference.store) == tokens
    check_store(inference)
    expand(model, root.latent_state)
    assert inference.manager.total_stats()['init_pools'].hits == 4


@pytest.mark.parametrize('timesteps', [[0, 0, 0], [0] * 5])
def test_timesteps_for_other_rows_are_refused(timesteps):
    model = build_model(rotary=True, kv_cache=kv_cache(strategy='lru'))
    current = observations(model, 4, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=f'start_pos has {len(timesteps)} timesteps for 4 rows'):
        model.initial_inference(current, [-1] * 4, current, timesteps)
    root = model.initial_inference(current, [-1] * 4, current, [0] * 4)
    with pytest.raises(ValueError, match=f'start_pos has {len(timesteps)} timesteps for 4 rows'):
        expand(model, root.latent_state, timesteps=timesteps)
    check_store(model.world_model.kv_cache_inference)


@pytest.mark.parametrize('key', [None, 1.0, True, b'a', (1, 2), [1]], ids=str)
@pytest.mark.parametrize('call', ['get', 'peek', '__contains__', 'set', 'get_many', 'set_many'])
def test_a_key_of_the_wrong_type_finds_no_other_keys_entry(call, key):
    pool = KVCachePool(3, name='recur_pool')
    pool.set(1, 'of 1')
    arguments = {'set': (key, 0), 'get_many': ([1, key], ), 'set_many': ([key], [0], [None])}.get(call, (key, ))
    with pytest.raises(ValueError, match="key of pool 'recur_pool' is .*: allowed are ints and strings"):
        getattr(pool, call)(*arguments)
    assert list(pool.keys()) == [1]
    assert pool.stats.total_queries == 0


def test_keys_and_values_of_unequal_number_are_refused():
    pool = KVCachePool(3)
    with pytest.raises(ValueError, match="pool 'default' was given 2 keys, 1 values and 2 priorities"):
        pool.set_many(['a', 'b'], [1], [None, None])
    assert len(pool) == 0


@pytest.mark.parametrize('other', [
    dict(embed_dim=32), dict(num_layers=3), dict(observation='image'), dict(gru_gating=True)
], ids=str)
def test_a_checkpoint_of_another_architecture_is_refused_and_leaves_no_wrong_answer(other):
    model = build_model(kv_cache=kv_cache(strategy='lru'))
    episodes = Episodes(model)
    episodes.step(ENV_IDS, 4)
    episodes.step(ENV_IDS, 4)
    with pytest.raises(RuntimeError, match='Error.s. in loading state_dict'):
        model.load_state_dict(build_model(seed=5, **other).state_dict())
    # What did fit has been loaded all the same.
    episodes.weights_have_changed()
    for _ in range(3):
        episodes.step(ENV_IDS, 4)
    check_store(model.world_model.kv_cache_inference)
