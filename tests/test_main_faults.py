"""What LightZero's main branch does wrong by itself, and the cache does not: one test for each row of the guide."""
import numpy as np
import pytest
import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lightzeros import IS_MAIN, simulations
from models import build_model, kv_cache, model_config, observations
from oracle import Oracle
from searches import replay, search
from test_policies import Environments, build_policy
from training import STOCK_POLICIES

pytestmark = pytest.mark.skipif(not IS_MAIN, reason="the installed LightZero is not the main branch's")
NO_TIMESTEP = [np.array(-1)]


def stock_policy(name='unizero', fields=('learn', 'collect', 'eval'), policy=None, **options):
    """Main's own policy, without the plugin's hands on it."""
    stock = STOCK_POLICIES[name]
    actions = 'continuous' if name == 'sampled_unizero' else 'discrete'
    changes = dict(
        type=name, cuda=False, device='cpu', use_wandb=False, collector_env_num=4, evaluator_env_num=3,
        game_segment_length=50, collect_with_pure_policy=False, model=model_config(actions=actions, **options),
        **{**simulations(6), **(policy or {})}
    )
    return stock(deep_merge_dicts(stock.default_config(), EasyDict(changes)), enable_field=list(fields))


def collect(policy, env_ids, timestep=0, **options):
    world_model_cfg = policy._cfg.model.world_model_cfg
    shape = (3, 64, 64) if world_model_cfg.obs_type == 'image' else (5, )
    generator = torch.Generator().manual_seed(timestep)
    data = torch.rand(len(env_ids), *shape, generator=generator)
    return policy.collect_mode.forward(
        data, [np.ones(world_model_cfg.action_space_size)] * len(env_ids), 1., [-1] * len(env_ids),
        options.get('epsilon', 0.), ready_env_id=env_ids, timestep=[np.array(timestep)] * len(env_ids)
    )


def root_of(model, rows=1, seed=0, timestep=0):
    current = observations(model, rows, torch.Generator().manual_seed(seed))
    return model.initial_inference(torch.zeros_like(current), [-1] * rows, current, [np.array(timestep)] * rows)


@torch.no_grad()
def test_a_search_longer_than_the_world_model_knows_of_starts_over_at_live_nodes():
    """The policy's number of simulations does not reach it."""
    options = dict(observation='image', context_length=20, env_num=1)
    managed = build_model(kv_cache=kv_cache(), **options)
    stock = build_model(num_simulations=2, **options)
    timesteps = [np.array(0)]
    watched = search(managed, root_of(managed), timesteps, 30)
    nodes = replay(stock, root_of(stock), timesteps, watched.expansions, [0])
    assert stock.world_model.shared_pool_size_recur == 2
    difference = max(
        (mine['policy_logits'] - theirs['policy_logits']).abs().max()
        for mine, theirs in zip(watched.outputs, nodes)
    )
    assert difference > 1e-3
    enough = build_model(num_simulations=30, **options)
    nodes = replay(enough, root_of(enough), timesteps, watched.expansions, [0])
    for mine, theirs in zip(watched.outputs, nodes):
        torch.testing.assert_close(mine['policy_logits'], theirs['policy_logits'], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize('new_manager', [False, True])
def test_nodes_of_equal_latent_states_share_an_entry_whatever_their_environment(new_manager):
    """As all are where a model has hardly learned."""
    stock = stock_policy(observation='image', use_new_cache_manager=new_manager)
    collect(stock, [0, 1])
    world_model = stock._collect_model.world_model
    entries = world_model.kv_cache_manager.recur_pool if new_manager else world_model.past_kv_cache_recurrent_infer
    assert len(entries) == 1
    managed = build_model(observation='image', randomise=False, kv_cache=kv_cache())
    search(managed, root_of(managed, rows=2), [np.array(0)] * 2, 6)
    assert len(managed.world_model.kv_cache_manager.recur_pool) == 12


def test_the_priority_strategy_of_its_manager_crashes_at_a_full_pool(keys_values):
    from lzero.model.unizero_world_models.kv_cache_manager import EvictionStrategy, KVCachePool

    pool = KVCachePool(2, EvictionStrategy.PRIORITY)
    pool.set(1, keys_values(1.))
    pool.set(2, keys_values(2.))
    with pytest.raises(ValueError, match='min'):
        pool.set(3, keys_values(3.))


@torch.no_grad()
def test_in_sampled_unizero_the_first_row_decides_whether_episodes_begin():
    """Of a batch that mixes first steps and running episodes."""
    stock, managed = build_model(actions='continuous'), build_model(actions='continuous', kv_cache=kv_cache())
    frames = observations(stock, 4, torch.Generator().manual_seed(0))
    last, current, actions = frames[:2], frames[2:], [-1, np.array([0.1, 0.2])]
    expected = Oracle(managed.world_model)
    expected.add_observation(last[1], 0)
    expected.add_action(actions[1], 1)
    expected.add_observation(current[1], 1)
    outputs = {}
    for name, model in (('stock', stock), ('managed', managed)):
        model.initial_inference(torch.zeros_like(last), [-1, -1], last, [np.array(0)] * 2)
        if name == 'managed':
            model.world_model.kv_cache_inference.forget('collect', [0])
        outputs[name] = model.initial_inference(last, actions, current, [np.array(0), np.array(1)]).policy_logits[1]
    wanted = expected.policy_and_value()['policy'].flatten()
    assert (outputs['stock'] - wanted).abs().max() > 1e-3
    torch.testing.assert_close(outputs['managed'], wanted, atol=1e-4, rtol=0)


def test_sampled_unizero_cannot_end_an_episode():
    policy = stock_policy('sampled_unizero')
    collect(policy, [0, 1, 2, 3])
    with pytest.raises(AttributeError, match='last_batch_obs_collect'):
        policy.collect_mode.reset([0])
    build_policy('sampled_unizero', kv_cache=kv_cache()).collect_mode.reset([0])


def test_sampled_unizero_cannot_save_a_checkpoint():
    with pytest.raises(AttributeError, match='use_adaptive_entropy_weight'):
        stock_policy('sampled_unizero').learn_mode.state_dict()
    assert 'model' in build_policy('sampled_unizero', kv_cache=kv_cache()).learn_mode.state_dict()


def test_sampled_unizero_goes_by_the_rows_of_the_last_batch():
    policy = stock_policy('sampled_unizero')
    collect(policy, [0, 1, 2, 3])
    collect(policy, [3, 1], timestep=1)
    assert len(policy.last_batch_action) == 2


def test_last_observations_of_vectors_lose_their_fractions():
    policy = stock_policy()
    collect(policy, [0, 1, 2, 3])
    assert policy.last_batch_obs_collect.dtype == torch.int64 and not policy.last_batch_obs_collect.any()
    environments = Environments(build_policy(kv_cache=kv_cache(), context_length=20), 'collect')
    environments.step([0, 1])
    environments.step([0, 1])
    assert environments.context_lengths[-1] == 3


def test_an_evaluations_end_takes_the_contexts_of_collecting():
    policy = stock_policy(observation='image')
    collect(policy, [0, 1, 2, 3])
    caches = policy._collect_model.world_model.past_kv_cache_init_infer_envs
    assert all(len(cache) == 1 for cache in caches)
    policy.eval_mode.reset([0])
    assert len(caches[0]) == 0
    managed = build_policy(observation='image', kv_cache=kv_cache(), context_length=20)
    environments = Environments(managed, 'collect')
    environments.step([0, 1])
    managed.eval_mode.reset([0])
    environments.step([0, 1])
    assert environments.context_lengths[-1] == 3


def test_a_round_of_training_ends_all_histories():
    policy = stock_policy(observation='image')
    collect(policy, [0, 1, 2, 3])
    policy.recompute_pos_emb_diff_and_clear_cache()
    assert not any(policy._collect_model.world_model.past_kv_cache_init_infer_envs)
    managed = build_policy(observation='image', kv_cache=kv_cache(), context_length=20)
    environments = Environments(managed, 'collect')
    environments.step([0, 1])
    managed.recompute_pos_emb_diff_and_clear_cache()
    environments.step([0, 1])
    assert environments.context_lengths[-1] == 3


@torch.no_grad()
def test_rotary_positions_of_a_search_are_one_step_too_far():
    stock = build_model(observation='image', rotary=True, context_length=20)
    managed = build_model(observation='image', rotary=True, context_length=20, kv_cache=kv_cache())
    predicted = {}
    for name, model in (('stock', stock), ('managed', managed)):
        root = root_of(model)
        predicted[name] = model.recurrent_inference(
            [(root.latent_state.numpy(), torch.tensor([1]))], 0, [1], [np.array(0)]
        )
    for name, step in (('stock', 1), ('managed', 0)):
        context = Oracle(managed.world_model)
        context.add_latent(root.latent_state[0], 0)
        context.add_action(1, 2 * step + 1)
        context.add_latent(predicted[name].latent_state[0], 2 * step + 2)
        expected = context.policy_and_value()['policy']
        torch.testing.assert_close(predicted[name].policy_logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_observations_without_timesteps_are_refused_with_rotary_positions():
    with pytest.raises(ValueError, match='RoPE positions must be non-negative'):
        root_of(build_model(observation='image', rotary=True), timestep=-1)
    root_of(build_model(observation='image', rotary=True, kv_cache=kv_cache()), timestep=-1)


@pytest.mark.parametrize('fields', [['collect'], ['eval']])
def test_a_policy_that_does_not_learn_cannot_be_made_for_vectors(fields):
    with pytest.raises(AttributeError, match='pad_token_id'):
        stock_policy(fields=fields)


def test_exploring_by_chance_fails_at_an_action_that_the_search_has_not_tried():
    options = dict(eps=dict(eps_greedy_exploration_in_collect=True))
    policy = stock_policy(observation='image', policy=dict(options, collect_num_simulations=1))
    with pytest.raises(KeyError):
        for step in range(20):
            collect(policy, [0, 1, 2, 3], step, epsilon=1.)
    managed = build_policy(observation='image', kv_cache=kv_cache(), num_simulations=1)
    managed._cfg.eps.eps_greedy_exploration_in_collect = True
    for step in range(5):
        assert set(collect(managed, [0, 1, 2, 3], step, epsilon=1.)) == {0, 1, 2, 3}


@torch.no_grad()
def test_more_rows_than_environments_are_refused():
    options = dict(observation='image', env_num=2)
    with pytest.raises(UnboundLocalError):
        root_of(build_model(**options), rows=3)
    managed = build_model(kv_cache=kv_cache(), **options)
    managed.world_model.configure_kv_cache(env_num=3)
    search(managed, root_of(managed, rows=3), [np.array(0)] * 3, 4)


@torch.no_grad()
def test_contexts_given_for_reanalysis_are_apart_from_the_search_with_rotary_positions():
    """They begin at position 0, and the search at the roots' timesteps."""
    options = dict(observation='image', rotary=True, context_length=20)
    stock, managed = build_model(**options), build_model(kv_cache=kv_cache(), **options)
    latents = stock.world_model.tokenizer.encode_to_obs_embeddings(
        observations(stock, 3, torch.Generator().manual_seed(0))
    )
    outputs = {}
    for name, model in (('stock', stock), ('managed', managed)):
        world_model = model.world_model
        world_model.reanalyze_phase, world_model.latent_state = True, None
        contexts = world_model.build_reanalysis_root_token_contexts(latents, np.array([[1, 2]]), 3)
        world_model.seed_reanalysis_root_caches(latents, contexts)
        outputs[name] = model.recurrent_inference(
            [(latents.numpy(), torch.tensor([1, 1, 1]))], 0, [1] * 3, np.array([50, 51, 52])
        ).policy_logits[2]
    context = Oracle(managed.world_model)
    for place, token in enumerate(contexts[2]):
        context.add_latent(token[None], place)
    context.add_action(1, len(contexts[2]))
    context.add_latent(context.next_token(), len(contexts[2]) + 1)
    expected = context.policy_and_value()['policy'][0]
    torch.testing.assert_close(outputs['managed'], expected, atol=1e-4, rtol=0)
    assert (outputs['stock'] - expected).abs().max() > 1e-4
