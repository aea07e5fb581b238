"""Timesteps that observations do not have, and timesteps that do not follow."""
import numpy as np
import pytest
import torch
from ding.envs import BaseEnvTimestep
from episodes import Episodes
from lzero.entry import train_unizero_segment
from models import build_model, kv_cache, observations
from test_policies import Environments, build_policy
from test_validate import Player
from training import ENV_NUM, check_training, train
from zoo.classic_control.cartpole.envs.cartpole_lightzero_env import CartPoleEnv

from lzero_kvcache.plugin import UniZeroKVCachePolicy
from lzero_kvcache.world_model import validated

TINY_POOLS = dict(init_pool=dict(size=1), recur_pool=dict(size=3), wm_pool=dict(size=1))
NEW_EPISODE = 'does not follow timestep'
SEGMENTS = dict(
    entry=train_unizero_segment, game_segment_length=10, num_segments=ENV_NUM, train_start_after_envsteps=0,
    buffer_reanalyze_freq=1 / 10 ** 6, reanalyze_batch_size=4
)


@pytest.mark.parametrize('cache', [
    dict(), dict(rope_positions='release'), dict(window='rebuild', **TINY_POOLS), dict(on_miss='reset', **TINY_POOLS)
], ids=str)
def test_without_timesteps_positions_are_counted_from_each_episode(cache):
    model = build_model(kv_cache=kv_cache(**cache), rotary=True, context_length=8)
    episodes = Episodes(model, has_timesteps=False)
    episodes.step([0, 1, 2], 8)
    episodes.step([2, 0], 8)
    episodes.end(2)
    episodes.step([2, 1, 0], 8)
    episodes.learn()
    episodes.step([0, 2], 8)
    episodes.step([0, 2, 1], 8)
    assert episodes.longest_context >= 7
    assert model.world_model.kv_cache_inference.root_stats.cold_starts == 0


def test_without_timesteps_a_step_may_be_taken_again(monkeypatch):
    model = build_model(kv_cache=kv_cache(), rotary=True, context_length=20)
    episodes = Episodes(model, has_timesteps=False)
    for _ in range(3):
        episodes.step([0, 1])
    generator_state = episodes._generator.get_state()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match='no luck'):
        patch.setattr(episodes, '_compare', lambda *_: (_ for _ in ()).throw(RuntimeError('no luck')))
        episodes.step([0, 1])
    episodes.weights_have_changed()
    episodes._generator.set_state(generator_state)
    episodes.step([0, 1], 8)
    assert model.world_model.kv_cache_inference.root_stats.cold_starts == 0


@torch.no_grad()
def test_a_rollout_goes_on_from_a_search_without_timesteps():
    model, counted = (build_model(kv_cache=kv_cache(), rotary=True, context_length=20) for _ in range(2))
    for has_timesteps in (True, False):
        episodes = Episodes([counted, model][not has_timesteps], has_timesteps=has_timesteps)
        roots = [episodes.step([0, 1]) for _ in range(4)]
    ours, expected = (twin.world_model.imagine(roots[-1].latent_state, horizon=4) for twin in (model, counted))
    torch.testing.assert_close(ours.latents, expected.latents, atol=1e-4, rtol=0)


@pytest.mark.parametrize('rope_positions', ['aligned', 'release'])
def test_without_timesteps_the_release_is_not_compared(rope_positions):
    cache = kv_cache(mode='validate', rope_positions=rope_positions)
    player = Player(kv_cache=cache, rotary=True, context_length=20, has_timesteps=False)
    for _ in range(3):
        player.step([0], 4)
    assert (player.report.agreed, player.report.differed) == (1, 0)
    assert player.report.not_compared[validated.NO_TIMESTEPS] >= 2
    learned = Player(kv_cache=cache, context_length=20, has_timesteps=False)
    for _ in range(3):
        learned.step([0], 4)
    assert learned.report.agreed == 3 * 5


@pytest.mark.parametrize('phase, timesteps', [
    ('collect', 'none'), ('eval', 'none'), ('collect', 'left out'), ('eval', 'left out'), ('collect', 'standing still')
])
def test_policies_without_timesteps(phase, timesteps):
    policy = build_policy(rotary=True, context_length=20, kv_cache=kv_cache())
    environments = Environments(policy, phase, timesteps=timesteps)
    environments.step([0, 1, 2])
    environments.step([2, 0])
    environments.end(0)
    environments.step([0, 1, 2])
    environments.step([1, 0])
    assert max(environments.context_lengths) == 5


def without_timestep(observation):
    return {key: value for key, value in observation.items() if key != 'timestep'}


@pytest.fixture
def handed_down(monkeypatch):
    """What the policy's collector hands down: environments and timesteps of each step."""
    steps, forward = [], UniZeroKVCachePolicy._forward_collect

    def watched(policy, *arguments, ready_env_id, timestep, **keywords):
        steps.append({env_id: int(step) for env_id, step in zip(ready_env_id, timestep)})
        return forward(policy, *arguments, ready_env_id=ready_env_id, timestep=timestep, **keywords)

    monkeypatch.setattr(UniZeroKVCachePolicy, '_forward_collect', watched)
    return steps


@pytest.mark.parametrize('has_timesteps', [True, False])
def test_segments_train_with_the_timestep_of_each_step(tmp_path, monkeypatch, caplog, handed_down, has_timesteps):
    reset, step = CartPoleEnv.reset, CartPoleEnv.step

    def step_without(env, action):
        timestep = step(env, action)
        return timestep._replace(obs=without_timestep(timestep.obs))

    if not has_timesteps:
        monkeypatch.setattr(CartPoleEnv, 'reset', lambda env: without_timestep(reset(env)))
        monkeypatch.setattr(CartPoleEnv, 'step', step_without)
    run = train('cartpole_unizero_config', tmp_path, {}, **SEGMENTS)
    check_training(run)
    last = {}
    for step in handed_down:
        for env_id, timestep in step.items():
            assert timestep in (0, last.get(env_id, -1) + 1)
            last[env_id] = timestep
    assert max(map(max, (step.values() for step in handed_down))) >= 10
    assert NEW_EPISODE not in caplog.text
    assert run.world_model.kv_cache_inference.root_stats.cold_starts == 0


@pytest.mark.parametrize('cache', [None, dict(mode='legacy')], ids=str)
def test_segments_of_the_stock_code_train_without_timesteps(tmp_path, monkeypatch, cache):
    reset, step = CartPoleEnv.reset, CartPoleEnv.step
    monkeypatch.setattr(CartPoleEnv, 'reset', lambda env: without_timestep(reset(env)))
    monkeypatch.setattr(
        CartPoleEnv, 'step',
        lambda env, action: (lambda timestep: timestep._replace(obs=without_timestep(timestep.obs)))(step(env, action))
    )
    check_training(train('cartpole_unizero_config', tmp_path, cache, **SEGMENTS))


def test_a_step_without_an_observation_is_left_to_the_segment_collector(tmp_path, monkeypatch):
    """As DI-engine's managers return one where an environment has failed."""
    steps, step = [], CartPoleEnv.step

    def step_or_fail(env, action):
        steps.append(env)
        if len(steps) == 5:
            return BaseEnvTimestep(None, None, False, {'abnormal': True})
        return step(env, action)

    monkeypatch.setattr(CartPoleEnv, 'step', step_or_fail)
    check_training(train('cartpole_unizero_config', tmp_path, {}, **SEGMENTS))


@torch.no_grad()
def test_a_models_loop_that_reuses_its_buffer_is_said_once(caplog):
    model = build_model(kv_cache=kv_cache(), context_length=20)
    generator, buffer = torch.Generator().manual_seed(0), torch.zeros(1, 5)
    for step in range(4):
        buffer.copy_(observations(model, 1, generator))
        model.initial_inference(buffer, [1 if step else -1], buffer, [np.array(step)])
    assert caplog.text.count('an observation that the cache has not seen') == 1


@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
@pytest.mark.parametrize('timesteps', [0, 7], ids=['falls back', 'leaps'])
def test_a_policys_episode_whose_timestep_does_not_follow_is_a_new_one(timesteps, rotary, caplog):
    policy = build_policy(rotary=rotary, context_length=20, kv_cache=kv_cache())
    environments = Environments(policy, 'collect')
    for _ in range(3):
        environments.step([0, 1, 2])
    environments.begin_anew(1, timesteps)
    environments.begin_anew(2, timesteps)
    environments.step([2, 1, 0])
    environments.step([0, 1, 2])
    assert environments.context_lengths[-3:] == [9, 3, 3]
    assert caplog.text.count(NEW_EPISODE) == 1
    assert policy._model.world_model.kv_cache_inference.root_stats.cold_starts == 0


def test_a_policys_step_may_be_taken_again(caplog):
    environments = Environments(build_policy(context_length=20, kv_cache=kv_cache()), 'collect')
    for _ in range(3):
        environments.step([0, 1])
    environments.step_again([0, 1])
    environments.step([1, 0])
    assert environments.context_lengths[-1] == 9
    assert NEW_EPISODE not in caplog.text


@torch.no_grad()
@pytest.mark.parametrize('mode', ['managed', 'validate'])
@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
def test_a_models_episode_whose_timestep_does_not_follow_is_a_new_one(rotary, mode, caplog):
    model, fresh = (
        build_model(kv_cache=kv_cache(mode=mode), rotary=rotary, context_length=20) for _ in range(2)
    )
    generator = torch.Generator().manual_seed(0)
    last, action = torch.zeros(1, 5), -1
    for step in range(3):
        current = observations(model, 1, generator)
        model.initial_inference(last, [action], current, [np.array(step)])
        last, action = current, 1
    leap, begin = observations(model, 2, generator)[:, None]
    expected = fresh.initial_inference(last, [action], leap, [np.array(9)])
    output = model.initial_inference(last, [action], leap, [np.array(9)])
    torch.testing.assert_close(output.policy_logits, expected.policy_logits)
    expected = fresh.initial_inference(torch.zeros(1, 5), [-1], begin, [np.array(0)])
    output = model.initial_inference(leap, [action], begin, [np.array(0)])
    torch.testing.assert_close(output.policy_logits, expected.policy_logits)
    assert caplog.text.count(NEW_EPISODE) == 1
