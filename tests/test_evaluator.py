"""LightZero's evaluator takes any number of episodes, and its collectors say at once which rounds they cannot run."""
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from lzero.entry import eval_muzero, train_unizero, train_unizero_segment
from training import call_entry, check_training, read_scalars, small_configs, train
from zoo.classic_control.cartpole.envs.cartpole_lightzero_env import CartPoleEnv

from lzero_kvcache.experiment import Experiment, apply_options
from lzero_kvcache.plugin.evaluator import shares
from lzero_kvcache.plugin.statistics import step_listeners

CARTPOLE, PENDULUM = 'cartpole_unizero_config', 'pendulum_sampled_unizero_config'
MODES = {'managed': {}, 'validate': dict(mode='validate'), 'legacy': dict(mode='legacy'), 'no kv_cache': None}


def evaluation_configs(episodes: int, env_num: int, config: str = CARTPOLE, kv_cache: Any = None, **policy: Any):
    main_config, create_config = small_configs(config, kv_cache, evaluator_env_num=env_num, **policy)
    main_config.env.update(evaluator_env_num=env_num, n_evaluator_episode=episodes)
    # The stock code runs no more rows than that.
    main_config.policy.model.world_model_cfg.env_num = 3
    return main_config, create_config


@pytest.fixture
def ended(monkeypatch) -> list[int]:
    """The environments whose episodes have ended, in this order. The first one's last 2 steps, the others' 5."""
    env_ids, step = [], CartPoleEnv.step

    def step_until(self: CartPoleEnv, action: Any) -> Any:
        timestep = step(self, action)
        # Evaluations begin with seed 0.
        env_id = self._seed
        done = self._timestep == (2 if env_id == 0 else 5)
        if done:
            env_ids.append(env_id)
            timestep.info['eval_episode_return'] = float(self._timestep)
        return timestep._replace(done=done)

    monkeypatch.setattr(CartPoleEnv, 'step', step_until)
    return env_ids


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('episodes, env_num', [(7, 3), (2, 3)])
def test_each_environment_runs_its_share(tmp_path, ended, episodes, env_num, mode):
    """Though the first one is done long before the others."""
    mean, returns = call_entry(eval_muzero, tmp_path, evaluation_configs(episodes, env_num, kv_cache=MODES[mode]))
    assert Counter(ended) == {env_id: share for env_id, share in enumerate(shares(episodes, env_num)) if share}
    assert returns.tolist() == [[2. if env_id == 0 else 5. for env_id in sorted(ended)]]
    assert mean == pytest.approx(returns.mean())


@pytest.mark.parametrize('workers', ['collector', 'evaluator'])
def test_more_environments_than_the_policy_names_are_refused_at_once(tmp_path, workers):
    main_config, create_config = small_configs(CARTPOLE, {})
    main_config.env[f'{workers}_env_num'] = 4
    main_config.policy.update(n_episode=4)
    main_config.policy.model.world_model_cfg.env_num = 4
    with pytest.raises(ValueError, match=rf'^env\.{workers}_env_num is 4, but policy\.{workers}_env_num is [12], and'):
        call_entry(train_unizero, tmp_path, (main_config, create_config))


def test_an_evaluation_of_no_episodes_is_refused(tmp_path):
    with pytest.raises(ValueError, match='env.n_evaluator_episode is 0: allowed is an integer of at least 1'):
        call_entry(eval_muzero, tmp_path, evaluation_configs(0, 2, kv_cache={}))


def evaluation_tags(folder: Path, **numbers: int) -> set[str]:
    folder.mkdir()
    call_entry(train_unizero, folder, evaluation_configs(**numbers), max_env_step=1)
    assert (folder / 'run/ckpt/ckpt_best.pth.tar').exists()
    return {
        tag: points[0][1] for tag, points in read_scalars(folder / 'run/log/serial').items() if 'evaluator' in tag
    }


def test_the_numbers_have_the_stock_names(tmp_path, ended):
    by_the_release = evaluation_tags(tmp_path / 'release', episodes=2, env_num=2)
    mended = evaluation_tags(tmp_path / 'mended', episodes=4, env_num=2)
    assert mended.keys() == by_the_release.keys()
    for name, expected in dict(
            episode_count=4, envstep_count=14, avg_envstep_per_episode=3.5, reward_mean=3.5, reward_std=1.5,
            reward_max=5, reward_min=2, eval_episode_return_mean=3.5
    ).items():
        assert mended[f'evaluator_iter/{name}'] == pytest.approx(expected)
    assert by_the_release['evaluator_iter/reward_std'] == mended['evaluator_iter/reward_std']


@pytest.mark.parametrize('manager', ['base', 'subprocess', 'async_subprocess'])
def test_continuous_actions_evaluate_while_training(tmp_path, manager):
    main_config, create_config = evaluation_configs(3, 2, PENDULUM, {})
    create_config.env_manager.type = manager
    searches = []
    step_listeners.append(lambda phase, env_num, _: searches.append((phase, env_num)))
    try:
        policy = call_entry(train_unizero, tmp_path, (main_config, create_config), max_env_step=1)
    finally:
        step_listeners.pop()
    assert policy is not None
    # Both environments side by side, then the first one alone.
    assert Counter(env_num for phase, env_num in searches if phase == 'eval') == {2: 16, 1: 16}


SEGMENTS = dict(buffer_reanalyze_freq=1, reanalyze_batch_size=4, reanalyze_partition=0.75)


@pytest.mark.parametrize('entry, policy, message', [
    (train_unizero, dict(n_episode=1),
     'policy.n_episode is 1, but env.collector_env_num is 2.*allowed are 2 and more'),
    (train_unizero_segment, dict(num_segments=3, **SEGMENTS),
     'policy.num_segments is 3, but env.collector_env_num is 2.*allowed is 2'),
])
@pytest.mark.parametrize('mode', ['managed', 'legacy'])
def test_rounds_that_the_collectors_cannot_run_are_refused_before_the_first_search(
        tmp_path, entry, policy, message, mode
):
    configs = small_configs(CARTPOLE, MODES[mode], **policy)
    searches = []
    step_listeners.append(lambda *search: searches.append(search))
    try:
        with pytest.raises(ValueError, match=message):
            call_entry(entry, tmp_path, configs, max_env_step=1)
    finally:
        step_listeners.pop()
    assert searches == []


def test_a_run_with_fewer_episodes_than_environments_is_refused_before_it_begins():
    experiment = Experiment(*small_configs(CARTPOLE, {}), entry='train_unizero')
    with pytest.raises(ValueError, match='^policy.n_episode is 1, but env.collector_env_num is 2'):
        apply_options(experiment, ['policy.n_episode=1'])


def test_more_episodes_than_environments_are_collected(tmp_path):
    run = train(CARTPOLE, tmp_path, {}, n_episode=3)
    check_training(run)
