"""Every prediction of mode 'managed' equals a forward without a cache."""
import numpy as np
import pytest
import torch
from episodes import Episodes
from invariants import check_store
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from oracle import Oracle
from searches import PREDICTIONS, live_nodes, replay, search

from lzero_kvcache.search.search import Search
from lzero_kvcache.store import TokenStore
from lzero_kvcache.world_model.cached_model import CachedModel
from lzero_kvcache.world_model.forward import Forward
from lzero_kvcache.world_model.managed import ManagedInference

MODELS = {
    'vector, learned positions': dict(),
    'vector, rotary positions': dict(rotary=True),
    'images, learned positions': dict(observation='image'),
    'images, rotary positions': dict(observation='image', rotary=True),
    'continuous actions, learned positions': dict(actions='continuous'),
    'continuous actions, rotary positions': dict(actions='continuous', rotary=True),
    'gated transformer': dict(gru_gating=True),
}
TINY_POOLS = dict(init_pool=dict(size=1), recur_pool=dict(size=3), wm_pool=dict(size=1))


@pytest.fixture(params=MODELS, ids=str)
def model_options(request):
    return MODELS[request.param]


def play_irregularly(model, num_simulations=8):
    """Mixed first steps and running episodes, unready environments, any order, ends at different times."""
    episodes = Episodes(model)
    episodes.step([0, 1, 2, 3], num_simulations)
    episodes.step([2, 0], num_simulations)
    episodes.step([3, 1, 0], num_simulations)
    episodes.end(1)
    episodes.step([1, 0, 2, 3], num_simulations)
    episodes.end(3)
    episodes.end(0)
    episodes.step([3], num_simulations)
    episodes.step([0, 3, 1, 2], num_simulations)
    return episodes


@pytest.mark.parametrize('context_length', [8, 20])
@pytest.mark.parametrize('name, rope_positions', [
    (name, rope_positions) for name, options in MODELS.items()
    for rope_positions in (['aligned', 'release'] if options.get('rotary') else ['aligned'])
])
@pytest.mark.parametrize('window', ['shift', 'rebuild'])
def test_predictions_equal_the_oracle(window, name, rope_positions, context_length):
    cache = kv_cache(strategy='lru', window=window, rope_positions=rope_positions)
    episodes = play_irregularly(build_model(kv_cache=cache, context_length=context_length, **MODELS[name]))
    assert episodes.compared > 200
    if context_length == 8:
        assert episodes.longest_context >= 7, 'the window was never full'


@pytest.mark.parametrize('strategy', ['fifo', 'lru', 'priority'])
@pytest.mark.parametrize('window', ['shift', 'rebuild'])
def test_eviction_changes_no_prediction(model_options, strategy, window):
    cache = kv_cache(strategy=strategy, window=window, **TINY_POOLS)
    model = build_model(kv_cache=cache, context_length=8, **model_options)
    assert play_irregularly(model).compared > 200
    assert model.world_model.kv_cache_manager.recur_pool.stats.evictions > 50
    assert model.world_model.kv_cache_inference.rebuild_stats.rebuilds > 15


@pytest.mark.parametrize('pools', [{}, TINY_POOLS], ids=['default pools', 'tiny pools'])
@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
@pytest.mark.parametrize('window', ['shift', 'rebuild'])
def test_observations_of_two_tokens(window, rotary, pools):
    model = two_tokens_per_observation(build_model(
        kv_cache=kv_cache(window=window, **pools), tokens_per_block=3, context_length=14, rotary=rotary
    ))
    episodes = play_irregularly(model)
    assert episodes.compared > 200
    assert episodes.longest_context >= 9


@pytest.mark.parametrize('window', ['shift', 'rebuild'])
def test_a_search_through_tiny_pools_equals_one_through_unlimited_pools(model_options, window):
    """The same expansions in both, past the window, too."""
    unlimited = build_model(kv_cache=kv_cache(window=window), context_length=8, **model_options)
    recorded = {}
    for strategy in ('fifo', 'lru', 'priority'):
        tiny = build_model(kv_cache=kv_cache(strategy=strategy, window=window, **TINY_POOLS), context_length=8,
                           **model_options)
        generator = torch.Generator().manual_seed(0)
        last = observations(tiny, 3, generator)
        actions = [-1] * 3
        for step in range(5):
            current, timesteps = observations(tiny, 3, generator), [np.array(step)] * 3
            with torch.no_grad():
                if (step, 'root') not in recorded:
                    recorded[step, 'root'] = unlimited.initial_inference(last, actions, current, timesteps)
                    recorded[step] = search(unlimited, recorded[step, 'root'], timesteps, 20)
                root = tiny.initial_inference(last, actions, current, timesteps)
            torch.testing.assert_close(root.policy_logits, recorded[step, 'root'].policy_logits, atol=1e-5, rtol=0)
            nodes = replay(tiny, root, timesteps, recorded[step].expansions, range(3))
            for expected, output in zip(recorded[step].outputs, nodes):
                for name in PREDICTIONS:
                    torch.testing.assert_close(output[name], expected[name], atol=1e-4, rtol=0)
            last, actions = current, [random_action(tiny, torch.Generator().manual_seed(step)) for _ in range(3)]
        assert tiny.world_model.kv_cache_inference.rebuild_stats.tokens > 0
    assert unlimited.world_model.kv_cache_inference.rebuild_stats.tokens == 0


def test_a_context_matters(model_options):
    """The comparisons above would be empty if the randomised model ignored its context."""
    model = build_model(kv_cache=kv_cache(), **model_options)
    generator = torch.Generator().manual_seed(0)
    first, second = observations(model, 1, generator), observations(model, 1, generator)
    with torch.no_grad():
        alone = model.initial_inference(first, [-1], second, [0])
        model.initial_inference(second, [-1], first, [0])
        action = 1 if not model.world_model.continuous_action_space else torch.tensor([.5, -.5]).numpy()
        with_history = model.initial_inference(first, [action], second, [1])
    assert (alone.policy_logits - with_history.policy_logits).abs().max() > 0.05


def test_collect_and_eval_keep_separate_histories():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    collect, evaluation = Episodes(model, 'collect', seed=1), Episodes(model, 'eval', seed=2)
    for _ in range(3):
        collect.step([0, 1], 4)
        evaluation.step([1, 0, 2], 4)
    evaluation.end(1)
    collect.step([1, 0], 4)
    assert collect.longest_context > 7


def test_a_history_that_is_not_the_callers_is_not_used():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    Episodes(model, seed=1).step([0, 1])
    # Another caller starts over with other observations under the same ids, without saying that episodes have ended.
    generator = torch.Generator().manual_seed(7)
    last, current = observations(model, 2, generator), observations(model, 2, generator)
    fresh = build_model(kv_cache=kv_cache(), context_length=20)
    with torch.no_grad():
        output = model.initial_inference(last, [1, 2], current, [5, 5])
        expected = fresh.initial_inference(last, [1, 2], current, [5, 5])
    torch.testing.assert_close(output.policy_logits, expected.policy_logits)


def test_nodes_of_a_freshly_initialised_model_stay_apart():
    """Its latent states are all equal, so that nothing but their last bits can name a node."""
    model = build_model(kv_cache=kv_cache(), randomise=False, context_length=20)
    for head in ('head_policy', 'head_value', 'head_rewards'):
        for parameter in getattr(model.world_model, head).parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    torch.nn.init.normal_(model.world_model.act_embedding_table.weight, std=3.)
    episodes = Episodes(model)
    for _ in range(3):
        episodes.step([0, 1, 2, 3], 25)
    assert episodes.compared > 1000


def test_contexts_in_the_pools_are_not_touched_by_later_inferences():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    episodes.step([0, 1], 4)
    inference = model.world_model.kv_cache_inference
    pool = model.world_model.kv_cache_manager.init_pools[0]
    context = pool.peek(next(pool.keys()))
    before = kv_of(inference, context)
    with inference.store.gather([context], 0, inference._model.forward.model) as batch:
        batch.kv.fill_(7.)
    episodes.step([0, 1], 4)
    torch.testing.assert_close(kv_of(inference, context), before, rtol=0, atol=0)
    assert len(context) == 1


def kv_of(inference, context):
    with inference.store.gather([context], 0, inference._model.forward.model) as batch:
        return batch.kv.clone()


def load_other_weights(model, options):
    model.load_state_dict(build_model(seed=9, context_length=20, **options).state_dict())


def fused_step(model, options):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05, fused=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()


def write_data_and_clear(model, options):
    for parameter in model.parameters():
        parameter.data.mul_(1.3)
    model.world_model.clear_caches()


CHANGES = {
    'a learner step': None, 'a fused learner step': fused_step, 'load_state_dict': load_other_weights,
    'writing to parameter.data and clear_caches': write_data_and_clear,
}


@pytest.mark.parametrize('change', CHANGES)
def test_no_prediction_uses_keys_and_values_of_old_weights(model_options, change):
    model = build_model(kv_cache=kv_cache(), context_length=20, **model_options)
    episodes = Episodes(model)
    for _ in range(3):
        episodes.step([0, 1, 2], 4)
    if CHANGES[change] is None:
        episodes.learn()
    else:
        CHANGES[change](model, model_options)
        episodes.weights_have_changed()
    episodes.step([2, 0, 1], 4)


@torch.no_grad()
def test_weights_that_change_within_a_search():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    for _ in range(3):
        root = episodes.step([0, 1], 4)
    episodes.learn()
    node = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([1, 2]))], 5, [1, 1], [2, 2])
    for env_id in range(2):
        context = episodes.context_of(env_id)
        context.add_action(env_id + 1, 5)
        expected = context.reward_and_next_token()
        torch.testing.assert_close(node.reward[env_id], expected['reward'][0], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('rows', [[2, 0, 1], [0, 2], [1]])
def test_any_choice_of_a_searchs_rows(rows):
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    for _ in range(4):
        root = episodes.step([0, 1, 2])
    latents, actions = root.latent_state.numpy(), torch.tensor([2, 0, 1])
    for _ in range(3):
        whole = model.recurrent_inference([(latents, actions)], 0, [1] * 3, [3] * 3)
        chosen = model.recurrent_inference([(latents[rows], actions[rows])], 0, [1] * len(rows), [3] * len(rows))
        torch.testing.assert_close(chosen.policy_logits, whole.policy_logits[rows], atol=1e-5, rtol=0)
        # The nodes of the smaller batch are nodes of the search, too.
        below = model.recurrent_inference([(chosen.latent_state.numpy(), actions[rows])], 0, [2] * len(rows), [3])
        latents = whole.latent_state.numpy()
        beside = model.recurrent_inference([(latents, actions)], 0, [2] * 3, [3] * 3)
        torch.testing.assert_close(below.policy_logits, beside.policy_logits[rows], atol=1e-5, rtol=0)


def test_episodes_survive_a_move_of_the_model():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    for _ in range(3):
        episodes.step([0, 1], 4)
    model.double().float()
    episodes.weights_have_changed()
    episodes.step([1, 0], 4)
    assert model.world_model.kv_cache_inference.root_stats.cold_starts == 0


def test_an_unknown_phase_is_refused():
    model = build_model(kv_cache=kv_cache())
    with pytest.raises(ValueError, match="phase is 'colect': .*did you mean 'collect'"):
        with model.world_model.kv_cache_roots('colect', [0]):
            pass


def test_environments_that_do_not_exist_are_refused():
    model = build_model(kv_cache=kv_cache())
    current = observations(model, 2, torch.Generator())
    for env_ids in ([0, 4], [-1, 0]):
        with pytest.raises(ValueError, match='allowed are 0 to 3'):
            with model.world_model.kv_cache_roots('collect', env_ids):
                model.initial_inference(current, [-1, -1], current, [0, 0])
    with pytest.raises(ValueError, match='one environment for each of the 2 rows'):
        with model.world_model.kv_cache_roots('collect', [1, 1]):
            model.initial_inference(current, [-1, -1], current, [0, 0])


def test_a_window_that_holds_no_context_is_refused():
    with pytest.raises(ValueError, match=r'context_length is 2: a search needs at least 4 tokens'):
        build_model(kv_cache=kv_cache(), context_length=2, randomise=False)


def test_reset_on_a_miss_starts_over_from_the_latent_state():
    model = build_model(kv_cache=kv_cache(on_miss='reset', **TINY_POOLS), context_length=20)
    generator = torch.Generator().manual_seed(0)
    current = observations(model, 1, generator)
    with torch.no_grad():
        root = model.initial_inference(torch.zeros_like(current), [-1], current, [0])
        node = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([1]))], 0, [1], [0])
        model.world_model.kv_cache_manager.clear_all()
        forgotten = model.recurrent_inference([(node.latent_state.numpy(), torch.tensor([2]))], 1, [2], [0])
    context = Oracle(model.world_model)
    context.add_latent(node.latent_state[0], 0)
    context.add_action(2, 0)
    torch.testing.assert_close(forgotten.reward[0], context.reward_and_next_token()['reward'][0], atol=1e-5, rtol=0)


@pytest.mark.parametrize('window', ['shift', 'rebuild'])
@pytest.mark.parametrize('context_length', [4, 5, 9])
def test_windows_of_any_length(window, context_length):
    model = build_model(kv_cache=kv_cache(window=window), context_length=context_length, rotary=True)
    assert play_irregularly(model).longest_context >= context_length - 1


def test_a_search_depth_for_each_row():
    model = build_model(kv_cache=kv_cache(), rotary=True)
    root = Episodes(model).step([0, 1])
    with pytest.raises(ValueError, match='search_depth has 1 entries for 2 rows: needed is one for each'):
        model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([1, 1]))], 0, [1], [0, 0])


def test_the_lineage_of_a_search_goes_when_its_search_goes():
    model = build_model(kv_cache=kv_cache(), context_length=8)
    episodes, held, nodes = Episodes(model), [], []
    others = live_nodes()
    for _ in range(6):
        episodes.step([0, 1, 2], 10)
        held.append(len(model.world_model.kv_cache_inference.store))
        nodes.append(live_nodes() - others)
    assert nodes == [3 + 30] * 6
    # Two tokens for each of the search's 30 nodes, and those of the roots that the init pools hold.
    assert held == [60 + 3 * (2 * step - 1) for step in range(1, 7)]


def test_the_roots_of_running_episodes_are_counted():
    model = build_model(kv_cache=kv_cache(), context_length=20)
    episodes = Episodes(model)
    episodes.step([0, 1, 2])
    episodes.step([1, 0])
    episodes.end(1)
    episodes.step([2, 1])
    roots = model.world_model.kv_cache_inference.root_stats
    assert (roots.first_steps, roots.continuing, roots.cold_starts, roots.context_tokens) == (4, 3, 0, 3)
    generator = torch.Generator().manual_seed(5)
    model.initial_inference(observations(model, 1, generator), [1], observations(model, 1, generator), [7])
    assert (roots.continuing, roots.cold_starts, roots.mean_context_length) == (4, 1, 1.)


@pytest.mark.parametrize('context_length', [8, 40])
@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
def test_a_node_costs_two_tokens(rotary, context_length):
    model = build_model(
        kv_cache=kv_cache(), context_length=context_length, max_tokens=80, max_blocks=40, rotary=rotary
    )
    episodes = Episodes(model)
    for _ in range(context_length // 2 + 2):
        episodes.step([0, 1])
    episodes.step([0, 1], 20)
    manager = model.world_model.kv_cache_manager
    per_token = 2 * 2 * 64 * 4
    # Beside two tokens for each node, what they share: the roots' contexts.
    shared = 2 * (context_length - 3)
    assert len(manager.recur_pool) == 40
    assert manager.memory_bytes()['recur_pool'] <= (2 * 40 + shared) * per_token
    assert manager.memory_bytes()['wm_pool'] <= manager.memory_bytes()['recur_pool']


def fail(*arguments):
    raise RuntimeError('a score that fails')


def test_an_exception_within_an_inference_leaks_nothing():
    cache = kv_cache(strategy=dict(type='priority', score=f'{__name__}.fail'))
    model = build_model(kv_cache=cache)
    for _ in range(3):
        with pytest.raises(RuntimeError, match='a score that fails'):
            Episodes(model).step([0, 1])
        check_store(model.world_model.kv_cache_inference)
        assert len(model.world_model.kv_cache_inference.store) == 0


@pytest.mark.parametrize('pools', [{}, TINY_POOLS], ids=['default pools', 'tiny pools'])
@pytest.mark.parametrize('owner, name, call', [
    (ManagedInference, '_add_nodes', 3), (Search, 'add', 3), (TokenStore, 'gather', 1), (TokenStore, 'index_of', 1),
    (TokenStore, 'reserve', 4), (TokenStore, 'extend', 1), (CachedModel, 'append', 1), (Forward, 'step', 1),
])
def test_a_search_that_breaks_off_leaks_nothing(monkeypatch, owner, name, call, pools):
    model = build_model(kv_cache=kv_cache(strategy='lru', **pools))
    inference = model.world_model.kv_cache_inference
    episodes = Episodes(model)
    episodes.step([0, 1, 2, 3], 8)
    original, calls = getattr(owner, name), []

    def fail_once(*arguments, **keywords):
        calls.append(name)
        if len(calls) == call:
            raise RuntimeError('out of memory')
        return original(*arguments, **keywords)

    monkeypatch.setattr(owner, name, fail_once)
    with pytest.raises(RuntimeError, match='out of memory'):
        episodes.step([0, 1, 2, 3], 8)
    check_store(inference)
    inference.clear()
    assert len(inference.store) == 0


def test_predictions_take_part_in_what_follows():
    model = build_model(kv_cache=kv_cache())
    generator = torch.Generator().manual_seed(0)
    current = observations(model, 2, generator)
    root = model.initial_inference(current, [-1, -1], current, [0, 0])
    node = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([0, 1]))], 0, [1, 1], [0, 0])
    rollout = model.world_model.imagine(root.latent_state, horizon=2, choose='greedy')
    predictions = [root.latent_state, root.value, node.latent_state, node.value, rollout.rewards, rollout.values]
    weight = torch.ones((), requires_grad=True)
    for prediction in predictions:
        assert not prediction.is_inference()
        (prediction * weight).sum().backward()
        prediction.zero_()
    assert weight.grad is not None
