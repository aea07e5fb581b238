"""'lzero-kvcache eval' on checkpoints of short runs: UniZero and Sampled UniZero."""
import json
import re
import statistics
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable

import gymnasium
import imageio.v3 as imageio
import pytest
import torch
from click.testing import CliRunner, Result
from rendering import needs_rendering
from training import MAX_EPISODE_STEPS, Run, train
from zoo.classic_control.cartpole.envs.cartpole_lightzero_env import CartPoleEnv
from zoo.classic_control.pendulum.envs.pendulum_lightzero_env import PendulumEnv

from lzero_kvcache.cli import main

CONFIGS = Path(__file__).parents[1] / 'configs'
CARTPOLE, PENDULUM, DMC = (
    'cartpole_unizero_config', 'pendulum_sampled_unizero_config', 'dmc_state_sampled_unizero_config'
)
ENVIRONMENTS = {CARTPOLE: CartPoleEnv, PENDULUM: PendulumEnv}
TWO_ENVIRONMENTS = [
    '--set', 'policy.num_simulations=3', '--set', 'env.evaluator_env_num=2', '--set', 'policy.evaluator_env_num=2',
]
has_pygame = find_spec('pygame') is not None


@pytest.fixture(scope='module')
def checkpoint_of(tmp_path_factory) -> Callable[[str], str]:
    runs: dict[str, Run] = {}

    def checkpoint(config: str) -> str:
        if config not in runs:
            runs[config] = train(config, tmp_path_factory.mktemp(config), {}, max_env_step=1)
        return runs[config].checkpoint

    return checkpoint


@pytest.fixture
def evaluate(tmp_path, monkeypatch) -> Callable[..., Result]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gymnasium.spec('Pendulum-v1'), 'max_episode_steps', MAX_EPISODE_STEPS)

    def call(config: str, checkpoint: Any, *arguments: str) -> Result:
        return CliRunner().invoke(
            main, ['eval', str(CONFIGS / f'{config}.py'), '--checkpoint', str(checkpoint), *arguments]
        )

    return call


@pytest.fixture
def ended(monkeypatch) -> list[tuple[int, float]]:
    """Seed and return of each episode, as the environments say."""
    seen = []
    for environment in ENVIRONMENTS.values():

        def step(self, action, stock_step=environment.step):
            timestep = stock_step(self, action)
            if timestep.done:
                seen.append((self._seed, pytest.approx(float(timestep.info['eval_episode_return']))))
            return timestep

        monkeypatch.setattr(environment, 'step', step)
    return seen


@pytest.mark.parametrize('config, mode', [
    (CARTPOLE, 'managed'), (PENDULUM, 'managed'), (CARTPOLE, 'legacy'), (PENDULUM, 'validate')
])
def test_each_episode_has_a_seed_and_a_return(evaluate, checkpoint_of, ended, capfd, config, mode):
    checkpoint = checkpoint_of(config)
    ended.clear()
    result = evaluate(
        config, checkpoint, '--episodes', '3', '--seed', '5', '--mode', mode, '--json', 'out/results.json',
        *TWO_ENVIRONMENTS
    )
    assert result.exit_code == 0, result.output
    results = json.loads(Path('out/results.json').read_text())
    episodes = [(episode['seed'], episode['episode_return']) for episode in results['episodes']]
    assert [seed for seed, _ in episodes] == [5, 6, 7]
    # Two environments side by side, and another one for the last episode.
    assert episodes == sorted(ended, key=lambda episode: episode[0])
    returns = [episode_return for _, episode_return in episodes]
    assert results['return'] == pytest.approx(dict(
        mean=statistics.mean(returns), std=statistics.stdev(returns), min=min(returns), max=max(returns)
    ))
    screen = capfd.readouterr().out
    for seed, episode_return in episodes:
        assert re.search(rf'^ *{seed} +{re.escape(format(episode_return, ".6g"))} *$', screen, re.MULTILINE)
    mean, deviation = results['return']['mean'], results['return']['std']
    assert f'Mean return of 3: {mean:.6g}, standard deviation {deviation:.3g}, ' in screen
    assert '3/3 episodes' in screen
    assert (results['kv_cache'] is None) == (mode == 'legacy')
    if mode != 'legacy':
        assert results['kv_cache']['init_pools']['hits'] > 0
        assert re.search(r'^recur_pool +\d', screen, re.MULTILINE)
    # LightZero's own folders and lines go elsewhere.
    assert sorted(path.name for path in Path().iterdir()) == ['out']
    assert 'EVALUATOR' not in screen


def test_the_number_of_episodes_is_the_configs_by_default(evaluate, checkpoint_of, capfd):
    result = evaluate(PENDULUM, checkpoint_of(PENDULUM), '--set', 'policy.num_simulations=2')
    assert result.exit_code == 0, result.output
    screen = capfd.readouterr().out
    assert '1/1 episodes' in screen
    # Of a single episode there is no spread.
    assert 'Mean return' not in screen


@pytest.mark.parametrize('config, shape', [
    pytest.param(DMC, (84, 84, 3), marks=needs_rendering),
    pytest.param(CARTPOLE, (400, 600, 3), marks=pytest.mark.skipif(not has_pygame, reason='CartPole needs pygame')),
    pytest.param(PENDULUM, (500, 500, 3), marks=pytest.mark.skipif(not has_pygame, reason='Pendulum needs pygame')),
])
def test_episodes_are_kept_as_gifs(evaluate, checkpoint_of, config, shape):
    arguments = ['--seed', '3', '--set', 'policy.num_simulations=1', '--replay', 'gifs', '--json', 'results.json']
    result = evaluate(config, checkpoint_of(config), '--episodes', '1', *arguments)
    assert result.exit_code == 0, result.output
    assert json.loads(Path('results.json').read_text())['episodes'][0]['replay'] == 'gifs/seed3.gif'
    assert imageio.imread('gifs/seed3.gif', index=None).shape[1:] == shape
    again = evaluate(config, checkpoint_of(config), '--episodes', '2', *arguments[:-2])
    assert again.exit_code == 1
    assert 'gifs/seed3.gif is there already' in again.output


@pytest.mark.skipif(has_pygame, reason='pygame draws it')
def test_what_cannot_be_drawn_is_a_sentence(evaluate, checkpoint_of):
    result = evaluate(PENDULUM, checkpoint_of(PENDULUM), '--replay', 'gifs')
    assert result.exit_code == 1
    assert re.search('the environment .* cannot be kept as a GIF: pygame is not installed', result.output)
    assert list(Path().iterdir()) == []


def test_a_failure_is_a_sentence_and_its_traceback_is_shown(evaluate, checkpoint_of, monkeypatch):
    checkpoint = checkpoint_of(PENDULUM)

    def step(self, action):
        raise RuntimeError('the pole is broken')

    monkeypatch.setattr(PendulumEnv, 'step', step)
    result = evaluate(PENDULUM, checkpoint, '--json', 'results.json')
    assert result.exit_code == 1
    assert re.search('Error: the evaluation has failed: RuntimeError: .*the pole is broken', result.output)
    assert 'Traceback' in result.output
    assert list(Path().iterdir()) == []


def test_mistakes_are_sentences(evaluate, checkpoint_of):
    Path('there.json').write_text('{}')
    Path('text.pth.tar').write_text('no checkpoint')
    torch.save(dict(model={}), 'empty.pth.tar')
    cartpole = checkpoint_of(CARTPOLE)
    for status, message, config, checkpoint, *arguments in [
            (1, 'is a checkpoint of another model', PENDULUM, cartpole),
            (1, 'is a checkpoint of another model', CARTPOLE, 'empty.pth.tar'),
            (1, 'text.pth.tar is not loaded', CARTPOLE, 'text.pth.tar'),
            (2, 'nowhere.pth.tar', CARTPOLE, 'nowhere.pth.tar'),
            (1, 'there.json is there already', CARTPOLE, cartpole, '--json', 'there.json'),
            (1, "did you mean 'num_simulations'", CARTPOLE, cartpole, '--set', 'policy.num_simulation=3'),
            (2, '0 is not in the range', CARTPOLE, cartpole, '--episodes', '0'),
    ]:
        result = evaluate(config, checkpoint, *arguments)
        assert result.exit_code == status, result.output
        assert message in result.output
        assert 'Traceback' not in result.output
    assert sorted(path.name for path in Path().iterdir()) == ['empty.pth.tar', 'text.pth.tar', 'there.json']
