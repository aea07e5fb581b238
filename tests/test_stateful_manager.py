"""Random operations on a manager: its pools are those of the environments and kinds that they are named after."""
import copy
import pickle
from collections import Counter

import pytest
from easydict import EasyDict
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from invariants import check_pool

from lzero_kvcache import EVICTION_REGISTRY, CacheStats, KVCacheManager

ENV_NUM = 2
KEYS = st.one_of(st.integers(0, 2), st.sampled_from('ab'))
SIZES = st.integers(1, 4)
ENV_IDS = st.integers(0, ENV_NUM - 1)
OF_ENVIRONMENTS = ['get_init_cache', 'set_init_cache', 'hierarchical_get']
BAD_ENV_IDS = st.sampled_from([-1, ENV_NUM, '0', None, True, 1.])
PRIORITIES = st.one_of(st.none(), st.integers(-2, 2))
# Bytes of a value, as the manager is to measure it.
BYTES = 7
KINDS = [('init', env_id) for env_id in range(ENV_NUM)] + [('recur', 0), ('wm', 0)]


class Released:
    """What has left the pools; copied with them."""

    def __init__(self):
        self.values = []

    def __call__(self, values):
        self.values.extend(values)


def measure(values):
    return BYTES * len(values)


class ManagerMachine(RuleBasedStateMachine):
    """
    A manager, and by pool what was last set, how much has come in and been asked for since the statistics began. Values
    are numbers, each of which is given away once and must be released once.
    """

    def __init__(self, strategy):
        super().__init__()
        self.strategy = strategy

    @initialize(
        sizes=st.tuples(SIZES, SIZES, SIZES),
        of_pools=st.tuples(*[st.sampled_from([None, None, *sorted(EVICTION_REGISTRY)])] * 3), enable_stats=st.booleans()
    )
    def begin(self, sizes, of_pools, enable_stats):
        init, recur, wm = (dict(size=size, strategy=own) for size, own in zip(sizes, of_pools))
        self.enable_stats = enable_stats
        config = EasyDict(kv_cache=dict(strategy=self.strategy, init_pool=init, recur_pool=recur, wm_pool=wm))
        self.released = Released()
        self.manager = KVCacheManager(config, ENV_NUM, enable_stats, on_release=self.released, measure=measure)
        self.last_set = {kind: {} for kind in KINDS}
        self.counted = {kind: Counter() for kind in KINDS}
        self.values = 0

    def pool(self, kind):
        name, env_id = kind
        return self.manager.init_pools[env_id] if name == 'init' else getattr(self.manager, f'{name}_pool')

    def entries(self, kind):
        return dict(zip(self.pool(kind).keys(), self.pool(kind).values()))

    def expected(self, kind, key):
        """What a look-up must find, which it counts as a query."""
        self.counted[kind]['queries'] += 1
        found = key in self.pool(kind)
        self.counted[kind]['hits'] += found
        return self.last_set[kind][key] if found else None

    @rule(kind=st.sampled_from(KINDS), key=KEYS, priority=PRIORITIES)
    def set(self, kind, key, priority):
        name, env_id = kind
        self.values += 1
        pool = self.pool(kind)
        known, full = key in pool, len(pool) == pool.pool_size
        self.counted[kind]['new'] += not known
        self.counted[kind]['evictions'] += full and not known
        others = {other: self.entries(other) for other in KINDS if other != kind}
        arguments = (env_id, key) if name == 'init' else (key, )
        slot = getattr(self.manager, f'set_{name}_cache')(*arguments, self.values, priority)
        assert 0 <= slot and pool.peek(key) == self.values
        self.last_set[kind][key] = self.values
        assert others == {other: self.entries(other) for other in others}

    @rule(kind=st.sampled_from(KINDS), key=KEYS)
    def get(self, kind, key):
        name, env_id = kind
        expected = self.expected(kind, key)
        arguments = (env_id, key) if name == 'init' else (key, )
        assert getattr(self.manager, f'get_{name}_cache')(*arguments) == expected

    @rule(env_id=ENV_IDS, key=KEYS)
    def hierarchical_get(self, env_id, key):
        expected = self.expected(('init', env_id), key)
        if expected is None:
            expected = self.expected(('recur', 0), key)
        assert self.manager.hierarchical_get(env_id, key) == expected

    @rule(env_id=BAD_ENV_IDS, key=KEYS, operation=st.sampled_from(OF_ENVIRONMENTS))
    def name_no_environment(self, env_id, key, operation):
        """Nothing changes."""
        arguments = (0, ) if operation == 'set_init_cache' else ()
        with pytest.raises(ValueError, match='allowed are the integers 0 to 1'):
            getattr(self.manager, operation)(env_id, key, *arguments)

    @rule(kind=st.sampled_from(KINDS), size=SIZES)
    def resize(self, kind, size):
        self.counted[kind]['evictions'] += max(0, len(self.pool(kind)) - size)
        self.pool(kind).resize(size)

    @rule(operation=st.sampled_from(['clear_all', 'clear_init_caches', 'clear_recur_cache']))
    def clear(self, operation):
        names = dict(clear_all=['init', 'recur', 'wm'], clear_init_caches=['init'], clear_recur_cache=['recur'])
        for kind in KINDS:
            if kind[0] in names[operation]:
                self.counted[kind]['cleared'] += len(self.pool(kind))
        entries = {kind: len(self.pool(kind)) for kind in KINDS}
        getattr(self.manager, operation)()
        for kind in KINDS:
            assert len(self.pool(kind)) == (0 if kind[0] in names[operation] else entries[kind])

    @rule()
    def reset_stats(self):
        self.manager.reset_stats()
        for kind in KINDS:
            # The entries stay: from now on they are what has come in.
            self.counted[kind] = Counter(new=len(self.pool(kind)))

    @rule(make=st.sampled_from([copy.deepcopy, lambda manager: pickle.loads(pickle.dumps(manager))]))
    def go_on_with_a_copy(self, make):
        """What becomes of the original does not reach it."""
        original, self.manager = self.manager, make(self.manager)
        self.released = self.manager.recur_pool._on_release
        original.clear_all()
        original.set_init_cache(0, 'a', 0)

    @invariant()
    def is_sound(self):
        if not hasattr(self, 'manager'):
            return
        held = []
        for kind in KINDS:
            pool, counted = self.pool(kind), self.counted[kind]
            check_pool(pool)
            entries = self.entries(kind)
            assert entries == {key: self.last_set[kind][key] for key in entries}
            held += entries.values()
            expected = CacheStats()
            if self.enable_stats:
                queries, hits = counted['queries'], counted['hits']
                expected = CacheStats(hits, queries - hits, counted['evictions'], queries)
            assert pool.stats == expected
            assert len(pool) == counted['new'] - counted['evictions'] - counted['cleared']
            assert pool._on_release is self.released
        assert Counter(self.released.values) + Counter(held) == Counter(range(1, self.values + 1))

    @invariant()
    def adds_up(self):
        if not hasattr(self, 'manager'):
            return
        manager = self.manager
        for name, total in manager.total_stats().items():
            pools = [self.pool(kind) for kind in KINDS if kind[0] == name.split('_')[0]]
            assert manager.pools()[name] == pools
            assert total == sum((pool.stats for pool in pools), CacheStats())
            assert manager.memory_bytes()[name] == BYTES * sum(map(len, pools))
        summary = manager.get_stats_summary()
        assert summary['stats_enabled'] == self.enable_stats
        if self.enable_stats:
            assert summary['init_pools'] == {
                f'env_{env_id}': str(self.pool(('init', env_id)).stats) for env_id in range(ENV_NUM)
            }
            assert summary['recur_pool'] == str(self.pool(('recur', 0)).stats)
            assert summary['wm_pool'] == str(self.pool(('wm', 0)).stats)


@pytest.mark.parametrize('strategy', sorted(EVICTION_REGISTRY))
def test_any_order_of_operations(strategy):
    run_state_machine_as_test(
        lambda: ManagerMachine(strategy), settings=settings(max_examples=50, stateful_step_count=40)
    )
