"""Rollouts in latent space equal the oracle, step by step."""
import numpy as np
import pytest
import torch
from episodes import Episodes
from lightzeros import stock_scalars
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from oracle import Oracle
from test_world_model import MODELS

HORIZON = 6
# Scalars come of 101 logits and a transformation that stretches them.
SCALARS = 5e-4


@pytest.fixture(params=MODELS, ids=str)
def model_options(request):
    return MODELS[request.param]


def scalar(logits):
    return stock_scalars(logits.reshape(1, -1), 50).item()


def check_rollout(imagination, contexts, timesteps, depth=0, reported=0, window='shift'):
    """``reported``: what the search would count as the depth of the first step."""
    world_model = contexts[0].world_model
    for row, context in enumerate(contexts):
        for step in range(imagination.actions.shape[1]):
            position = 2 * (timesteps[row] + depth + reported + step)
            context.add_action(imagination.actions[row, step].numpy(), position + 1)
            close(imagination.rewards[row, step], scalar(context.reward_and_next_token()['reward']), SCALARS)
            for index, token in enumerate(imagination.latents[row, step]):
                close(token, context.next_token().reshape(-1))
                context.add_latent(token[None], position + 2 + index)
            expected = context.policy_and_value()
            close(imagination.policy_logits[row, step], expected['policy'].reshape(-1))
            close(imagination.values[row, step], scalar(expected['value']), SCALARS)
            if len(context) >= world_model.context_length - 1:
                kept = world_model.context_length - 3
                context.shift(kept) if window == 'shift' else context.encode_again(kept)


def close(actual, expected, tolerance=1e-4):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=tolerance, rtol=tolerance)


def begin(model, current):
    contexts = []
    for observation in current:
        contexts.append(Oracle(model.world_model))
        with torch.no_grad():
            contexts[-1].add_observation(observation, 0)
    return contexts


def random_actions(model, rows):
    generator = torch.Generator().manual_seed(3)
    return torch.as_tensor(np.asarray(
        [[random_action(model, generator) for _ in range(HORIZON)] for _ in range(rows)]
    ))


@pytest.mark.parametrize('window', ['shift', 'rebuild'])
def test_given_actions(model_options, window):
    model = build_model(kv_cache=kv_cache(window=window), context_length=8, **model_options)
    current, actions = observations(model, 3, torch.Generator().manual_seed(0)), random_actions(model, 3)
    imagination = model.world_model.imagine(current, actions, horizon=HORIZON)
    assert imagination.latents.shape == (3, HORIZON, 1, 64)
    assert imagination.rewards.shape == imagination.values.shape == (3, HORIZON)
    assert imagination.policy_logits.shape[:2] == (3, HORIZON)
    torch.testing.assert_close(imagination.actions, actions)
    check_rollout(imagination, begin(model, current), [0] * 3, window=window)


@pytest.mark.parametrize('rope_positions', ['release', 'aligned'])
def test_rotary_positions(rope_positions):
    model = build_model(kv_cache=kv_cache(rope_positions=rope_positions), rotary=True, context_length=20)
    current = observations(model, 2, torch.Generator().manual_seed(0))
    imagination = model.world_model.imagine(current, random_actions(model, 2))
    check_rollout(imagination, begin(model, current), [0] * 2, reported=1 if rope_positions == 'release' else 0)


def test_observations_of_two_tokens():
    model = two_tokens_per_observation(
        build_model(kv_cache=kv_cache(), tokens_per_block=3, context_length=14, rotary=True)
    )
    current = observations(model, 2, torch.Generator().manual_seed(0))
    imagination = model.world_model.imagine(current, horizon=HORIZON)
    assert imagination.latents.shape == (2, HORIZON, 2, 64)
    check_rollout(imagination, begin(model, current), [0] * 2)


def test_a_latent_state_begins_as_its_observation_does(model_options):
    model = build_model(kv_cache=kv_cache(), **model_options)
    current = observations(model, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        latents = model.world_model.tokenizer.encode_to_obs_embeddings(current)
    of_observation = model.world_model.imagine(current, horizon=3)
    of_latent = model.world_model.imagine(latents, horizon=3)
    for ours, theirs in zip(of_observation, of_latent):
        torch.testing.assert_close(ours, theirs)


def test_the_running_searchs_roots_go_on_from_their_contexts(model_options):
    model = build_model(kv_cache=kv_cache(), context_length=20, **model_options)
    episodes = Episodes(model)
    for _ in range(4):
        root = episodes.step([0, 1, 2], 3)
    imagination = model.world_model.imagine(root.latent_state, random_actions(model, 3))
    check_rollout(imagination, [episodes.context_of(env_id) for env_id in range(3)], [3] * 3)
    for rows in ([2, 0, 1], [2, 0], [1]):
        chosen = model.world_model.imagine(root.latent_state[rows], imagination.actions[rows])
        close(chosen.policy_logits, imagination.policy_logits[rows])
    with torch.no_grad():
        other = model.world_model.tokenizer.encode_to_obs_embeddings(observations(model, 3, torch.Generator()))
    alone = model.world_model.imagine(other, imagination.actions)
    assert (alone.policy_logits - imagination.policy_logits).abs().max() > 0.01


@torch.no_grad()
def test_the_running_searchs_nodes_go_on_from_their_contexts():
    model = build_model(kv_cache=kv_cache(), context_length=20, rotary=True)
    episodes = Episodes(model)
    for _ in range(3):
        root = episodes.step([0, 1])
    actions = torch.tensor([1, 2])
    node = model.recurrent_inference([(root.latent_state.numpy(), actions)], 0, [1, 1], [2, 2])
    contexts = [episodes.context_of(env_id) for env_id in range(2)]
    for row, context in enumerate(contexts):
        context.add_action(int(actions[row]), 5)
        context.add_latent(node.latent_state[row], 6)
    imagination = model.world_model.imagine(node.latent_state, horizon=4)
    assert imagination.actions[:, 0].tolist() == node.policy_logits.argmax(-1).tolist()
    check_rollout(imagination, contexts, [2, 2], depth=1)


@pytest.mark.parametrize('on_miss', ['rebuild', 'reset'])
def test_a_rollout_leaves_the_running_search_as_it_is(on_miss):
    outputs, queries = [], []
    for imagines in (False, True):
        cache = kv_cache(recur_pool=dict(size=3), wm_pool=dict(size=1), on_miss=on_miss)
        model = build_model(kv_cache=cache, context_length=8, rotary=True)
        root = Episodes(model).step([0, 1])
        nodes = [root]
        with torch.no_grad():
            for simulation in range(6):
                history = [(nodes[simulation // 2].latent_state.numpy(), torch.tensor([0, 2]))]
                nodes.append(model.recurrent_inference(history, simulation, [1, 1], [0]))
                if imagines:
                    model.world_model.imagine(nodes[simulation // 2].latent_state, horizon=10, start_pos=7)
        outputs.append(torch.stack([node.policy_logits for node in nodes]))
        queries.append(model.world_model.kv_cache_manager.total_stats())
    torch.testing.assert_close(outputs[0], outputs[1], atol=1e-6, rtol=0)
    assert queries[0] == queries[1]


def test_a_rollout_is_in_eval_mode():
    model = build_model(kv_cache=kv_cache())
    current = observations(model, 4, torch.Generator().manual_seed(0))
    expected = model.world_model.imagine(current, horizon=3)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.train()
    imagination = model.world_model.imagine(current, horizon=3)
    assert model.world_model.training
    torch.testing.assert_close(imagination.latents, expected.latents)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name], equal_nan=True)


def test_greedy_actions_are_the_likeliest():
    model = build_model(kv_cache=kv_cache())
    current = observations(model, 4, torch.Generator().manual_seed(0))
    imagination = model.world_model.imagine(current, horizon=HORIZON)
    torch.testing.assert_close(imagination.actions[:, 1:], imagination.policy_logits[:, :-1].argmax(-1))
    first = [int(context.policy_and_value()['policy'].argmax()) for context in begin(model, current)]
    assert imagination.actions[:, 0].tolist() == first


def test_sampled_actions_follow_the_policy():
    model = build_model(kv_cache=kv_cache())
    current = observations(model, 1, torch.Generator().manual_seed(0)).expand(4000, -1)
    drawn = model.world_model.imagine(
        current, horizon=1, choose='sample', generator=torch.Generator().manual_seed(0)
    ).actions[:, 0]
    expected = begin(model, current[:1])[0].policy_and_value()['policy'].reshape(-1).softmax(-1)
    shares = torch.bincount(drawn, minlength=3) / 4000
    assert (shares - expected).abs().max() < 0.03
    again = model.world_model.imagine(
        current, horizon=1, choose='sample', generator=torch.Generator().manual_seed(0)
    ).actions[:, 0]
    assert torch.equal(drawn, again)


def test_continuous_actions_are_drawn_from_the_squashed_normal():
    model = build_model(kv_cache=kv_cache(), actions='continuous')
    current = observations(model, 1, torch.Generator().manual_seed(0)).expand(4000, -1)
    mean, deviation = begin(model, current[:1])[0].policy_and_value()['policy'].reshape(2, 2)
    greedy = model.world_model.imagine(current[:2], horizon=2)
    assert greedy.actions.shape == (2, 2, 2)
    close(greedy.actions[0, 0], mean.tanh())
    drawn = model.world_model.imagine(current, horizon=1, choose='sample').actions[:, 0].atanh()
    assert (drawn.mean(0) - mean).abs().max() < 0.1 * deviation.max()
    assert (drawn.std(0) / deviation - 1).abs().max() < 0.1


def test_new_weights_are_used_at_once():
    model = build_model(kv_cache=kv_cache())
    episodes = Episodes(model)
    episodes.step([0, 1])
    root = episodes.step([0, 1])
    episodes.learn()
    imagination = model.world_model.imagine(root.latent_state, horizon=3)
    # The search has gone with the weights that it was made of: the latent states begin contexts of their own.
    contexts = [Oracle(model.world_model) for _ in range(2)]
    for context, latent in zip(contexts, root.latent_state):
        context.add_latent(latent, 0)
    check_rollout(imagination, contexts, [0, 0])


@pytest.mark.parametrize('arguments, message', [
    (dict(), 'neither actions nor a horizon is given'),
    (dict(horizon=0), r'horizon is 0: allowed are whole numbers of steps from 1'),
    (dict(horizon=2, choose='best'), r"choose is 'best': allowed are greedy, sample"),
    (dict(actions=torch.zeros(2, 3, dtype=torch.long), horizon=2), r'the shape \(2, 3\): needed is \(2, 2\)'),
    (dict(actions=torch.zeros(3, 2, dtype=torch.long)), r'the shape \(3, 2\): needed is \(2, steps\)'),
    (dict(actions=torch.zeros(2, 0, dtype=torch.long)), r'the shape \(2, 0\): needed is \(2, steps\)'),
    (dict(actions=torch.zeros(2, 2)), r'actions are of torch.float32: a discrete action is an integer'),
    (dict(horizon=2, start_pos=[1, 2, 3]), r'start_pos has 3 entries for 2 rows'),
    (dict(actions=torch.full((2, 2), 3)), 'actions lie between 3 and 3: allowed are 0 to 2'),
])
def test_arguments_that_do_not_fit(arguments, message):
    model = build_model(kv_cache=kv_cache())
    with pytest.raises(ValueError, match=message):
        model.world_model.imagine(observations(model, 2, torch.Generator()), **arguments)


def test_no_rows():
    model = build_model(kv_cache=kv_cache())
    with pytest.raises(ValueError, match='obs_or_latent has no rows'):
        model.world_model.imagine(torch.zeros(0, 5), horizon=2)


def test_the_stock_code_cannot_imagine():
    for options in (dict(), dict(kv_cache=kv_cache(mode='legacy'))):
        model = build_model(**options)
        with pytest.raises(RuntimeError, match=r"kv_cache to dict\(mode='managed'\)"):
            model.world_model.imagine(observations(model, 2, torch.Generator()), horizon=2)


def test_mode_validate_imagines_too():
    model, validating = (build_model(kv_cache=kv_cache(mode=mode)) for mode in ('managed', 'validate'))
    current = observations(model, 2, torch.Generator())
    ours, theirs = (each.world_model.imagine(current, horizon=3) for each in (model, validating))
    torch.testing.assert_close(ours.latents, theirs.latents)
