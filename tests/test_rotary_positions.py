"""Rotary positions: at any timestep as training has them, and what a search of the release makes of them."""
import numpy as np
import pytest
import torch
from episodes import Episodes
from lightzeros import IS_MAIN, of_release
from models import build_model, kv_cache, observations
from searches import search
from test_imagine import begin, check_rollout
from test_validate import Player

from lzero_kvcache.world_model import validated

TABLE = 8192
TINY_POOLS = dict(init_pool=dict(size=1), recur_pool=dict(size=3), wm_pool=dict(size=1))


def build_rotary_model(max_seq_len=TABLE, actions='discrete', context_length=20, **cache):
    return build_model(
        kv_cache=kv_cache(**cache), rotary=True, max_seq_len=max_seq_len, actions=actions, context_length=context_length
    )


@pytest.mark.parametrize('cache, context_length, max_seq_len, first_timestep', [
    (dict(), 20, 12, 0), (dict(), 20, TABLE, TABLE // 2 - 3), (dict(), 20, TABLE, 250 * TABLE // 2 - 3),
    (TINY_POOLS, 20, TABLE, TABLE // 2 - 3), (TINY_POOLS, 8, 12, 0), (dict(window='rebuild'), 8, 12, 0),
    (dict(rope_positions='release'), 20, 12, 0), (dict(on_miss='reset', **TINY_POOLS), 20, 12, 0),
], ids=str)
def test_an_episode_crosses_the_end_of_the_rotary_table(cache, context_length, max_seq_len, first_timestep):
    model = build_rotary_model(max_seq_len, context_length=context_length, **cache)
    episodes = Episodes(model, first_timestep=first_timestep)
    for step in range(7):
        episodes.step([0, 1], 8)
        if step == 4:
            episodes.learn()
    assert episodes.compared > 300


@torch.no_grad()
def test_a_search_beyond_the_rotary_table_predicts_what_training_computes():
    model, first = build_rotary_model(), TABLE // 2 - 3
    generator = torch.Generator().manual_seed(0)
    last, taken = torch.zeros(1, 5), -1
    roots, actions = [], []
    for step in range(5):
        current = observations(model, 1, generator)
        roots.append(model.initial_inference(last, [taken], current, [np.array(first + step)]))
        last, taken = current, step % 3
        actions.append(taken)
    nodes = [roots[-1]]
    for depth in range(3):
        latents, action = nodes[-1].latent_state.numpy(), torch.tensor([actions[4 + depth]])
        nodes.append(model.recurrent_inference([(latents, action)], depth, [depth + 1], [np.array(first + 4)]))
        actions.append(depth)
    latents = torch.cat([output.latent_state for output in roots + nodes[1:]])[None]
    training = model.world_model(
        {'obs_embeddings_and_act_tokens': (latents, torch.tensor(actions)[None, :, None])},
        start_pos=first + np.arange(len(actions))[None]
    )
    for index, output in enumerate(roots + nodes[1:]):
        torch.testing.assert_close(output.policy_logits[0], training.logits_policy[0, index], atol=1e-4, rtol=0)
        torch.testing.assert_close(output.value[0], training.logits_value[0, index], atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_rollout_beyond_the_rotary_table():
    model = build_rotary_model(max_seq_len=12)
    current = observations(model, 2, torch.Generator().manual_seed(0))
    check_rollout(model.world_model.imagine(current, horizon=12, start_pos=[3, 7]), begin(model, current), [0, 0])


@torch.no_grad()
def test_a_rollout_goes_on_from_a_search_that_no_root_inference_has_begun():
    model = build_rotary_model()
    current, actions = observations(model, 2, torch.Generator().manual_seed(0)), torch.tensor([1, 2])
    latents = model.world_model.tokenizer.encode_to_obs_embeddings(current)
    node = model.recurrent_inference([(latents.numpy(), actions)], 0, [1, 1], [np.array(5)] * 2)
    contexts = begin(model, current)
    for row, context in enumerate(contexts):
        context.add_action(int(actions[row]), 1)
        context.add_latent(node.latent_state[row], 2)
    check_rollout(model.world_model.imagine(node.latent_state, horizon=3), contexts, [0, 0], depth=1)


@of_release('its rotary table begins again')
def test_contexts_that_the_rotary_table_of_the_release_tears_apart_are_not_compared():
    cache = kv_cache(mode='validate', rope_positions='release')
    player = Player(kv_cache=cache, rotary=True, context_length=20, max_seq_len=40)
    for _ in range(24):
        player.step([0], 5)
    report = player.report
    assert report.differed == 0 and report.agreed > 60
    assert set(report.not_compared) == {validated.TORN}
    player.end(0)
    agreed = report.agreed
    player.step([0], 5)
    assert report.agreed == agreed + 6


def test_the_release_agrees_far_into_its_rotary_table():
    cache = kv_cache(mode='validate', rope_positions='release')
    player = Player(kv_cache=cache, rotary=True, context_length=20, first_timestep=TABLE // 2 - 20)
    for _ in range(5):
        player.step([0], 8)
    assert player.report.agreed == 5 * 9 and not player.report.not_compared


@torch.no_grad()
@pytest.mark.parametrize('actions', ['discrete', 'continuous'])
def test_what_a_search_of_the_release_hands_down_as_its_depth(actions):
    model = build_rotary_model(actions=actions)
    current = observations(model, 2, torch.Generator().manual_seed(0))
    timesteps = [np.array(0)] * 2
    root = model.initial_inference(torch.zeros_like(current), [-1, -1], current, timesteps)
    depths = [[0, 0]]
    handed_down, true_depths, numbers = [], [], []
    for expansion in search(model, root, timesteps, 20).expansions:
        of_parents = [depths[parent][row] for row, parent in enumerate(expansion.parents)]
        depths.append([depth + 1 for depth in of_parents])
        handed_down += expansion.search_depth
        true_depths += of_parents
        numbers += expansion.parents
    assert max(true_depths) > 1
    if actions == 'discrete' or IS_MAIN:
        assert handed_down == [depth + 1 for depth in true_depths]
    else:
        # The number of the expanded node: that of the simulation that made it, 0 for the root.
        assert handed_down == numbers != true_depths


@of_release('the number of a simulation comes in place of the depth')
def test_children_of_the_roots_are_where_training_has_them_in_sampled_unizero():
    player = Player(kv_cache=kv_cache(mode='validate'), rotary=True, actions='continuous', context_length=20)
    for _ in range(3):
        player.step([0], 10)
    report = player.report
    # The root of each search and at least the first expansion of it.
    assert report.agreed >= 2 * 3 and report.differed == 0
    assert set(report.not_compared) == {validated.MISPLACED}
