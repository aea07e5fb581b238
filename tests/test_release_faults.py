"""Each fault of the release: that it is there, and that the managed cache does not have it."""
import numpy as np
import pytest
import torch
from lzero.model.unizero_world_models.utils import hash_state
from models import build_model, kv_cache, observations, two_tokens_per_observation
from oracle import Oracle
from test_policies import build_policy
from test_stock_agreement import stock_twin

MANAGED = kv_cache(strategy='lru')


def twins(**options):
    """The same weights under the managed cache and under the stock code."""
    managed = build_model(kv_cache=MANAGED, **options)
    return managed, stock_twin(managed, **options)


@torch.no_grad()
def first_step(model, batch_size=2, seed=0, timestep=0):
    current = observations(model, batch_size, torch.Generator().manual_seed(seed))
    root = model.initial_inference(torch.zeros_like(current), [-1] * batch_size, current, at(timestep, batch_size))
    return current, root


def at(timestep, batch_size):
    return [np.array(timestep)] * batch_size


@torch.no_grad()
def expand(model, latents, actions, depth=1, timestep=0):
    return model.recurrent_inference(
        [(latents.numpy(), torch.tensor(actions))], 0, [depth] * len(actions), at(timestep, len(actions))
    )


def test_a_recurrent_miss_crashes():
    managed, stock = twins()
    for model in (managed, stock):
        _, root = first_step(model)
        child = expand(model, root.latent_state, [1, 2])
        model.world_model.past_kv_cache_recurrent_infer.clear()
        if model is stock:
            with pytest.raises(TypeError, match='list indices must be integers'):
                expand(model, child.latent_state, [1, 2], depth=2)
        else:
            assert torch.isfinite(expand(model, child.latent_state, [1, 2], depth=2).policy_logits).all()


@torch.no_grad()
def test_keys_of_overwritten_slots_return_another_steps_entry():
    managed, stock = twins(context_length=20)
    for model in (managed, stock):
        current, root = first_step(model, batch_size=1)
        if model is managed:
            first = model.world_model.kv_cache_inference.search.first_key
        else:
            first_key = hash_state(root.latent_state[0].numpy())
        for step in range(1, 4):
            last, current = current, observations(model, 1, torch.Generator().manual_seed(step))
            model.initial_inference(last, [1], current, at(step, 1))
    stock_world_model = stock.world_model
    slot = stock_world_model.past_kv_cache_init_infer_envs[0][first_key]
    assert stock_world_model.shared_pool_init_infer[0][slot].size == 5
    assert len(stock_world_model.past_kv_cache_init_infer_envs[0]) == 4

    pool = managed.world_model.kv_cache_manager.init_pools[0]
    assert [len(pool.peek(key)) for key in pool.keys()] == [1, 3, 5, 7]
    assert len(pool.peek(first)) == 1


@torch.no_grad()
def test_first_steps_beside_running_episodes():
    managed, stock = twins()
    for model in (managed, stock):
        last, _ = first_step(model)
        current = observations(model, 2, torch.Generator().manual_seed(1))
        if model is stock:
            with pytest.raises(IndexError):
                model.initial_inference(last, [1, -1], current, at(1, 2))
        else:
            model.initial_inference(last, [1, -1], current, at(1, 2))
            assert model.world_model.kv_cache_inference.context_lengths == [1, 0]


def test_the_end_of_one_episode_wipes_all():
    for options, survives in ((dict(), False), (dict(kv_cache=MANAGED), True)):
        policy = build_policy(**options)
        data = observations(policy._model, 4, torch.Generator().manual_seed(0))
        arguments = ([np.ones(3)] * 4, 1., [-1] * 4, 0.)
        policy.collect_mode.forward(data, *arguments, ready_env_id={0, 1, 2, 3}, timestep=at(0, 4))
        policy.collect_mode.reset([2])
        policy.collect_mode.forward(data, *arguments, ready_env_id={0, 1, 2, 3}, timestep=at(1, 4))
        roots = policy._model.world_model.root_total_query_cnt
        assert roots == (3 if survives else 0)


def test_fewer_than_all_environments_wipe_all():
    for options, survives in ((dict(), False), (dict(kv_cache=MANAGED), True)):
        policy = build_policy(**options)
        data = observations(policy._model, 4, torch.Generator().manual_seed(0))
        policy.collect_mode.forward(
            data, [np.ones(3)] * 4, 1., [-1] * 4, 0., ready_env_id={0, 1, 2, 3}, timestep=at(0, 4)
        )
        policy.collect_mode.forward(
            data[:3], [np.ones(3)] * 3, 1., [-1] * 3, 0., ready_env_id={0, 1, 3}, timestep=at(1, 3)
        )
        if not survives:
            assert policy.last_batch_action == [-1] * 4
            continue
        policy.collect_mode.forward(
            data, [np.ones(3)] * 4, 1., [-1] * 4, 0., ready_env_id=[0, 1, 3, 2], timestep=[*at(2, 3), *at(1, 1)]
        )
        assert policy._kv_cache_world_model.root_total_query_cnt == 3 + 4


@torch.no_grad()
def test_caches_belong_to_batch_positions():
    managed, stock = twins()
    last, _ = first_step(stock, batch_size=3)
    first_step(managed, batch_size=3)
    current = observations(stock, 2, torch.Generator().manual_seed(1))
    stock.initial_inference(last[[2, 1]], [1, 1], current, at(1, 2))
    assert stock.world_model.root_hit_cnt == 1
    with managed.world_model.kv_cache_roots('collect', [2, 1]):
        managed.initial_inference(last[[2, 1]], [1, 1], current, at(1, 2))
    assert managed.world_model.root_hit_cnt == 2


def test_collect_and_eval_share_the_last_step():
    data = torch.rand(3, 5)
    for options, shared in ((dict(), True), (dict(kv_cache=MANAGED), False)):
        policy = build_policy(collector_env_num=3, **options)
        collect = ([np.ones(3)] * 3, 1., [-1] * 3, 0.)
        policy.collect_mode.forward(data, *collect, ready_env_id=[0, 1, 2], timestep=at(0, 3))
        policy.eval_mode.forward(data + 1, [np.ones(3)] * 3, [-1] * 3, ready_env_id=[0, 1, 2], timestep=at(0, 3))
        if shared:
            torch.testing.assert_close(policy.last_batch_obs, data + 1)
        else:
            histories = policy._model.world_model.kv_cache_inference.histories
            torch.testing.assert_close(histories.last_steps('collect', [0, 1, 2], data)[0], data)
            torch.testing.assert_close(histories.last_steps('eval', [0, 1, 2], data)[0], data + 1)


@torch.no_grad()
def test_padding_takes_attention():
    managed, stock = twins(context_length=20)
    differences = []
    for model in (managed, stock):
        _, root = first_step(model)
        child = expand(model, root.latent_state, [1, 1])
        # Row 0 expands the root, row 1 the child of the root: contexts of one and of three tokens.
        mixed = torch.stack([root.latent_state[0], child.latent_state[1]])
        output = model.recurrent_inference([(mixed.numpy(), torch.tensor([2, 2]))], 1, [1, 2], at(0, 2))
        context = Oracle(model.world_model)
        context.add_latent(root.latent_state[0], 0)
        context.add_action(2, 0)
        expected = context.reward_and_next_token()['reward']
        differences.append((output.reward[0] - expected[0]).abs().max().item())
    assert differences[0] < 1e-5 < 1e-3 < differences[1]


def test_position_differences_of_uninitialised_weights():
    model = build_model(randomise=False)
    before = [table[2, 7].clone() for table in model.world_model.pos_emb_diff_k]
    model.world_model.precompute_pos_emb_diff_kv()
    assert max((old - table[2, 7]).abs().max() for old, table in zip(before, model.world_model.pos_emb_diff_k)) > 0.5
    # The managed window takes its correction from the weights of the moment: equal to the release once it recomputes.
    managed, stock = twins(context_length=8)
    torch.nn.init.normal_(managed.world_model.pos_emb.weight, std=0.3)
    stock.load_state_dict(managed.state_dict())
    stock.world_model.precompute_pos_emb_diff_kv()
    predictions = []
    for model in (managed, stock):
        current, _ = first_step(model, batch_size=1)
        with torch.no_grad():
            for step in range(1, 7):
                last, current = current, observations(model, 1, torch.Generator().manual_seed(step))
                output = model.initial_inference(last, [1], current, at(step, 1))
        predictions.append(output.policy_logits)
    torch.testing.assert_close(*predictions, atol=1e-4, rtol=0)


@torch.no_grad()
def test_the_window_overflow_is_approximated():
    managed, stock = twins(context_length=8)
    managed.world_model.config.kv_cache.window = 'rebuild'
    managed.world_model.configure_kv_cache()
    worst = []
    for model in (managed, stock):
        context = Oracle(model.world_model)
        current, _ = first_step(model, batch_size=1)
        context.add_observation(current[0], 0)
        for step in range(1, 5):
            last, current = current, observations(model, 1, torch.Generator().manual_seed(step))
            root = model.initial_inference(last, [1], current, at(step, 1))
            if len(context) >= 7:
                context.encode_again(5)
            context.add_action(1, 0)
            context.add_observation(current[0], 0)
        expected = context.policy_and_value()['policy']
        worst.append((root.policy_logits[0] - expected[0]).abs().max().item())
    assert worst[0] < 1e-5 < 1e-3 < worst[1]


@torch.no_grad()
def test_after_a_miss_the_context_counts_as_one_token(monkeypatch):
    managed, stock = map(two_tokens_per_observation, twins(tokens_per_block=3, context_length=14))
    stored = []

    def look_at_contexts(**kwargs):
        stored.extend(context.size for context in stock.world_model.keys_values_wm_list)
        return pad(**kwargs)

    pad = stock.world_model.trim_and_pad_kv_cache
    monkeypatch.setattr(stock.world_model, 'trim_and_pad_kv_cache', look_at_contexts)
    for model in (managed, stock):
        last, _ = first_step(model)
        for cache in model.world_model.past_kv_cache_init_infer_envs:
            cache.clear()
        current = observations(model, 2, torch.Generator().manual_seed(1))
        model.initial_inference(last, [1, 1], current, at(1, 2))
    assert stock.world_model.keys_values_wm_size_list == [1, 1] and stored == [2, 2]
    assert managed.world_model.kv_cache_inference.context_lengths == [2, 2]


@torch.no_grad()
def test_rotary_positions_of_a_search_are_one_step_too_far():
    managed, stock = twins(rotary=True, context_length=20)
    worst = []
    for model in (managed, stock):
        current, root = first_step(model, batch_size=1)
        child = expand(model, root.latent_state, [1])
        # The same three tokens as training sees them: one sequence from timestep 0.
        tokens = torch.cat([root.latent_state, child.latent_state])[None]
        training = model.world_model(
            {'obs_embeddings_and_act_tokens': (tokens, torch.tensor([[[1], [0]]]))}, start_pos=np.array([[0, 1]])
        )
        worst.append((child.policy_logits - training.logits_policy[:, 1]).abs().max().item())
    assert worst[0] < 1e-5 < 1e-4 < worst[1]


@torch.no_grad()
@pytest.mark.parametrize('timesteps', [(-1, -1), (4095, 4096)], ids=['no timesteps', 'the end of the rotary table'])
def test_rotary_positions_of_an_episode_are_not_consecutive(timesteps):
    managed, stock = twins(rotary=True, context_length=20)
    worst = []
    for model in (managed, stock):
        last, first = first_step(model, batch_size=1, timestep=timesteps[0])
        current = observations(model, 1, torch.Generator().manual_seed(1))
        root = model.initial_inference(last, [1], current, at(timesteps[1], 1))
        tokens = torch.cat([first.latent_state, root.latent_state])[None]
        training = model.world_model(
            {'obs_embeddings_and_act_tokens': (tokens, torch.tensor([[[1], [0]]]))}, start_pos=np.array([timesteps])
        )
        worst.append((root.policy_logits - training.logits_policy[:, 1]).abs().max().item())
    assert worst[0] < 1e-5 < 1e-3 < worst[1]


def test_num_simulations_of_the_policy_does_not_reach_the_world_model():
    assert build_policy(num_simulations=70)._model.world_model.shared_pool_size == 50 * 4
    managed = build_policy(num_simulations=70, kv_cache=MANAGED)._model.world_model
    assert managed.kv_cache_manager.recur_pool.pool_size == 70 * 4


@torch.no_grad()
def test_a_longer_search_overwrites_live_entries():
    stock = twins()[1]
    world_model = stock.world_model
    _, root = first_step(stock, batch_size=1)
    child = expand(stock, root.latent_state, [1])
    slot = world_model.past_kv_cache_recurrent_infer[hash_state(child.latent_state[0].numpy())]
    kept = world_model.shared_pool_recur_infer[slot]._keys_values[0]._k_cache._cache.clone()
    for _ in range(world_model.shared_pool_size):
        expand(stock, root.latent_state, [2])
    overwritten = world_model.shared_pool_recur_infer[slot]._keys_values[0]._k_cache._cache
    assert world_model.past_kv_cache_recurrent_infer[hash_state(child.latent_state[0].numpy())] == slot
    assert not torch.equal(kept, overwritten)
