"""Traces: what is recorded of a real search, and that its replay counts what the real pools count."""
import copy
import pickle
import resource

import numpy as np
import pytest
import torch
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from searches import replay, search
from test_reanalysis import begin_reanalysis
from test_trace_files import FACTS

from lzero_kvcache.eviction.search_nodes import SearchNodes
from lzero_kvcache.search.episode import CONTINUES, NO_EPISODE
from lzero_kvcache.trace.choices import as_configured, chosen_strategies
from lzero_kvcache.trace.format import DROP, EXPANSION, STRAYS, ManagerFacts
from lzero_kvcache.trace.reader import TraceReader
from lzero_kvcache.trace.recorder import SearchRecorder, record_searches
from lzero_kvcache.trace.replay import TAKEN, Replay
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
    manager = replayed.manager
    return (
        [vars(pool.stats) for pool in (*manager.init_pools, manager.recur_pool, manager.wm_pool)],
        sum(counts.rebuilds.rebuilds for counts in replayed.counts.values()),
        sum(counts.rebuilds.tokens for counts in replayed.counts.values()),
        sum(counts.rebuilds.restored for counts in replayed.counts.values()),
    )


def column(search, name):
    return np.concatenate([nodes[name] for _, nodes in search.steps])


def replayed(path, strategy, recur_size):
    reader = TraceReader(path)
    replays = {}
    for each in reader.searches():
        if each.manager not in replays:
            replays[each.manager] = Replay(reader.managers[each.manager], strategy, recur_size)
        replays[each.manager].run(each)
    assert reader.is_complete
    return replays


def real_counts(model):
    inference = model.world_model.kv_cache_inference
    manager, stats = inference.manager, inference.rebuild_stats
    pools = [vars(pool.stats) for pool in (*manager.init_pools, manager.recur_pool, manager.wm_pool)]
    return pools, stats.rebuilds, stats.tokens, stats.restored


MODELS = [
    dict(rotary=True), dict(window='rebuild'), dict(on_miss='reset'), dict(actions='continuous'),
    dict(tokens=2, context_length=11), dict(randomise=False),
]
@pytest.fixture(scope='module')
def plain(tmp_path_factory):
    """A trace of the plain model, and its expansions."""
    path = tmp_path_factory.mktemp('plain') / 'trace'
    return path, record(path)[1]


@pytest.mark.parametrize('recur_size', [4, 15])
@pytest.mark.parametrize('strategy', chosen_strategies(['all']))
def test_a_replay_counts_what_the_real_pools_count(plain, strategy, recur_size):
    path, expansions = plain
    real = build(as_configured(strategy), recur_size)
    play(real, expansions)
    (simulated, ) = replayed(path, strategy, recur_size).values()
    assert counts_of(simulated) == real_counts(real)
    assert recur_size > 4 or simulated.manager.recur_pool.stats.misses and simulated.counts['collect'].rebuilds.tokens


@pytest.mark.parametrize('name, config', [
    *(('tree', config) for config in MODELS), ('lru', MODELS[1]), ('s3fifo', MODELS[0]),
    ('priority:predicted_value', MODELS[2])
], ids=str)
def test_a_replay_counts_what_the_recorded_run_has_counted(name, config, tmp_path):
    real = build(as_configured(name), 6, **config)
    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        play(real)
    (simulated, ) = replayed(tmp_path / 'trace', name, 6).values()
    assert counts_of(simulated) == real_counts(real)
    assert simulated.manager.recur_pool.stats.misses


@pytest.mark.parametrize('name', ['fifo', 'tree', 'priority:predicted_reward'])
def test_a_replay_counts_what_reanalysis_has_counted(name, tmp_path):
    real = build(as_configured(name), 40)
    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        root, timesteps = begin_reanalysis(real)
        search(real, root, [np.array(step) for step in timesteps], NUM_SIMULATIONS)
    (simulated, ) = replayed(tmp_path / 'trace', name, 40).values()
    assert list(simulated.counts) == ['reanalyze']
    assert counts_of(simulated) == real_counts(real)
    assert simulated.manager.recur_pool.stats.misses


def test_a_state_that_the_search_has_not_got_from_the_model_is_recorded(tmp_path):
    def expand(model):
        latents = np.random.default_rng(0).normal(size=(2, 1, 64)).astype(np.float32)
        for simulation in range(4):
            output = model.recurrent_inference([(latents, torch.tensor([0, 1]))], simulation, [1, 1], [0, 0])
            if simulation % 2:
                latents = output.latent_state.numpy().copy()

    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        model = build('lru', 1000)
        expansions = play(model, steps=1)
        expand(model)
    real = build('lru', 2)
    play(real, expansions, steps=1)
    expand(real)
    (simulated, ) = replayed(tmp_path / 'trace', 'lru', 2).values()
    assert counts_of(simulated) == real_counts(real)


def test_lengths_and_depths_are_those_of_the_replay(plain):
    reader = TraceReader(plain[0])
    simulated = None
    for each in reader.searches():
        simulated = simulated or Replay(reader.managers[0], 'lru', 5)
        simulated.run(each)
        _, roots = each.steps[0]
        running = simulated.search
        assert [len(context) for context in running.contexts[:len(roots)]] == roots['tokens'].tolist()
        assert running.nodes.depths[:each.num_nodes].tolist() == column(each, 'depths').tolist()


@pytest.mark.parametrize('samples_actions', [False, True])
def test_the_columns_of_a_search_are_read_as_they_were(samples_actions, tmp_path):
    generator = np.random.default_rng(0)

    def predicted(rows):
        return *generator.normal(size=(2, rows)).astype(np.float32), generator.normal(size=(rows, 3))

    facts = ManagerFacts(**dict(FACTS, samples_actions=samples_actions))
    writer = TraceWriter(tmp_path / 'trace', {})
    recorder, searches = SearchRecorder(writer, facts), []
    recorder.drop_contexts()
    for number in range(3):
        searches.append(nodes := SearchNodes(3, samples_actions))
        recorder.begin('collect')
        if number == 1:
            recorder.drop_contexts()
        if number < 2:
            nodes.add_roots(predicted(2)[1], predicted(2)[2])
            recorder.roots(nodes, [1, None], [CONTINUES, NO_EPISODE], [5, 0])
        first, actions = nodes.num_nodes, None if samples_actions else np.array([2, 1])
        nodes.add_roots(np.zeros(1), np.zeros((1, 3)), [7])
        recorder.strays(nodes)
        if number == 1:
            recorder.flush()
        nodes.add(np.array([0, first]), actions, *predicted(2))
        recorder.expand(nodes)
    # Of an inference that is broken off.
    nodes.add(np.array([0, first]), actions, *predicted(2))
    recorder.flush()
    writer.close()
    read = list(TraceReader(tmp_path / 'trace').searches())
    # The drop between a search's beginning and its roots is one before it.
    assert [[kind for kind, _ in each.steps] for each in read] == [
        [0, STRAYS, EXPANSION, DROP], [0, STRAYS, EXPANSION], [0, STRAYS, EXPANSION]
    ]
    for each, nodes in zip(read, searches):
        rebuilt, own = SearchNodes(3, samples_actions), slice(0, each.num_nodes)
        for kind, records in each.steps:
            if kind <= STRAYS and len(records):
                rebuilt.add_roots(records['value_bins'], records['policies'], records['depths'])
            elif kind == EXPANSION:
                rebuilt.add(*(records[name] for name in TAKEN))
        for name in ('parents', 'trees', 'depths', 'actions', 'reward_bins', 'value_bins'):
            assert (getattr(rebuilt, name)[own] == getattr(nodes, name)[own]).all(), name
        assert (rebuilt.priors(own) == nodes.priors(own)).all()
    assert [each.num_nodes for each in read] == [5, 5, 3]
    assert read[0].steps[0][1][['env_ids', 'beginnings', 'tokens']].tolist() == [(1, CONTINUES, 5), (-1, NO_EPISODE, 0)]


def test_what_is_asked_for_does_not_depend_on_the_pools_of_the_run(plain, tmp_path):
    small = build('lru', 3)
    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        play(small, plain[1])
    for large, of_small in zip(TraceReader(plain[0]).searches(), TraceReader(tmp_path / 'trace').searches()):
        assert [(kind, len(nodes)) for kind, nodes in large.steps] == [
            (kind, len(nodes)) for kind, nodes in of_small.steps
        ]
        assert (column(large, 'parents') == column(of_small, 'parents')).all()
        assert np.allclose(column(large, 'value_bins'), column(of_small, 'value_bins'), atol=1e-3)


def test_a_copy_of_an_observed_model_has_searches_of_its_own(tmp_path):
    model = build('lru', 1000)
    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        play(model, steps=1)
        twin = copy.deepcopy(model)
        assert twin.world_model.kv_cache_inference.observer is None
        play(twin, steps=2)
        assert pickle.loads(pickle.dumps(model.world_model.kv_cache_inference)).observer is None
    assert model.world_model.kv_cache_inference.observer is None
    play(model, steps=1)
    reader = TraceReader(tmp_path / 'trace')
    assert sorted(each.manager for each in reader.searches()) == [0, 1, 1]
    assert len(reader.managers) == 2


def test_an_interrupted_run_keeps_what_it_did(tmp_path):
    model = build('lru', 1000)
    with pytest.raises(KeyboardInterrupt):
        with record_searches(TraceWriter(tmp_path / 'trace', {})):
            play(model, steps=2)
            raise KeyboardInterrupt
    reader = TraceReader(tmp_path / 'trace')
    assert len(list(reader.searches())) == 2
    assert reader.is_complete


def test_a_large_search_is_written_block_by_block(plain, tmp_path, monkeypatch):
    monkeypatch.setattr('lzero_kvcache.trace.recorder.BLOCK_BYTES', 300)
    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        play(build('fifo', 1000), plain[1])
    assert len(list((tmp_path / 'trace').glob('*.npz'))) > 2 * STEPS
    searches = [[*TraceReader(path).searches()] for path in (plain[0], tmp_path / 'trace')]
    for whole, parts in zip(*searches):
        assert [(kind, nodes.tobytes()) for kind, nodes in whole.steps] == [
            (kind, nodes.tobytes()) for kind, nodes in parts.steps
        ]


def test_a_run_without_a_search_leaves_no_trace(tmp_path):
    with record_searches(TraceWriter(tmp_path / 'trace', {})):
        pass
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_from_the_beginning_is_refused(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match='File too large'):
            TraceWriter(tmp_path / 'trace', {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_ends_the_trace_and_not_the_run(tmp_path, caplog):
    writer = TraceWriter(tmp_path / 'trace', {})
    model = build('lru', 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with record_searches(writer):
            play(model, steps=1)
            model.world_model.kv_cache_inference.observer.flush()
            play(model, steps=2)
            # What the system says of a file that must not grow; Python ignores the signal that comes with it.
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
            model.world_model.kv_cache_inference.observer.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            play(model, steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{tmp_path / 'trace' / '000001.npz'} cannot be written: File too large" == writer.error
    assert f'The trace ends here, the run goes on: {writer.error}' in caplog.text
    reader = TraceReader(tmp_path / 'trace')
    assert len(list(reader.searches())) == writer.searches == 1
    assert not reader.is_complete
