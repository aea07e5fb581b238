"""Training that goes on from a checkpoint: nothing of the cache is in it, and nothing of the cache is missed."""
import os
import signal
import subprocess
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.worker import BaseLearner
from episodes import Episodes
from models import kv_cache
from test_cli_run import CARTPOLE as CARTPOLE_FILE
from test_cli_run import SMALL
from test_cli_run import command as run_command
from test_policies import NAMES, build_policy
from training import Run, small_configs, stock_policies, train

from lzero_kvcache.experiment.run_folder import newest_checkpoint

# As ``train`` takes them.
SIDES: dict[str, dict[str, Any]] = {
    'stock': dict(kv_cache=None, stock=True),
    'plugin': dict(kv_cache=dict(strategy='lru', recur_pool=dict(size=3))),
}
CONFIGS = ('cartpole_unizero_config', 'pendulum_sampled_unizero_config')
NEVER = 10 ** 6


def check_equal(actual: Any, expected: Any, path: str = '') -> None:
    """To the last bit, whatever a checkpoint is made of."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys(), path
        for key in expected:
            check_equal(actual[key], expected[key], f'{path}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected), path
        for index, (one, other) in enumerate(zip(actual, expected)):
            check_equal(one, other, f'{path}[{index}]')
    elif isinstance(expected, torch.Tensor):
        assert actual.equal(expected), path
    else:
        assert actual == expected, path


class Recorded:
    """A run of the plugin, its checkpoint, and the batches that it has learned from."""

    def __init__(self, config: str, folder: Path) -> None:
        self.config = config
        self.batches: list[Any] = []
        learn = BaseLearner.train

        def recorded(learner: BaseLearner, data: Any, *args: Any, **kwargs: Any) -> Any:
            self.batches.append(deepcopy(data))
            return learn(learner, data, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(BaseLearner, 'train', recorded)
            self.run: Run = train(config, folder, **SIDES['plugin'])
        self.checkpoint = torch.load(self.run.checkpoint, map_location='cpu')

    def resumed(self, side: str) -> Any:
        """A new policy of one side, with what the checkpoint holds."""
        main_config, create_config = small_configs(self.config, **SIDES[side])
        main_config.policy.update(cuda=False, device='cpu')
        with stock_policies() if side == 'stock' else nullcontext():
            config = compile_config(main_config, seed=0, auto=True, create_cfg=create_config, save_cfg=False)
            policy = create_policy(config.policy, enable_field=['learn', 'collect', 'eval'])
        policy.learn_mode.load_state_dict(deepcopy(self.checkpoint))
        return policy


@pytest.fixture(scope='module', params=CONFIGS, ids=lambda config: config.split('_')[0])
def recorded(request, tmp_path_factory) -> Recorded:
    return Recorded(request.param, tmp_path_factory.mktemp('recorded'))


def search_once(policy: Any) -> None:
    config = policy._cfg
    observations = torch.rand(2, config.model.observation_shape)
    masks = [np.ones(config.model.action_space_size)] * 2
    policy.collect_mode.forward(observations, masks, 1., [-1, -1], 0., ready_env_id=[0, 1], timestep=[np.array(0)] * 2)


def learn(policy: Any, batch: Any) -> dict[str, Any]:
    # Dropout draws.
    torch.manual_seed(0)
    return policy.learn_mode.forward(deepcopy(batch))


def test_learner_steps_after_resuming_are_those_of_the_stock_policy(recorded):
    """Weights, target network and optimiser, to the last bit, though the plugin searches in between."""
    stock, plugin = recorded.resumed('stock'), recorded.resumed('plugin')
    for policy in (stock, plugin):
        check_equal(policy.learn_mode.state_dict(), {
            name: recorded.checkpoint[name] for name in ('model', 'target_model', 'optimizer_world_model')
        })
    manager = plugin._learn_model.world_model.kv_cache_manager
    assert not any(len(pool) for pools in manager.pools().values() for pool in pools)
    for batch in recorded.batches[-3:]:
        search_once(plugin)
        losses = [
            {name: loss for name, loss in learn(policy, batch).items() if 'loss' in name} for policy in (stock, plugin)
        ]
        check_equal(*losses)
        check_equal(plugin.learn_mode.state_dict(), stock.learn_mode.state_dict())
    assert manager.total_stats()['init_pools'].total_queries > 0
    assert len(manager.recur_pool) > 0
    before = recorded.checkpoint['model']
    assert any(not before[name].equal(weights) for name, weights in stock.learn_mode.state_dict()['model'].items())


@pytest.mark.parametrize('pools', [{}, dict(init_pool=dict(size=1), recur_pool=dict(size=3))], ids=['default', 'tiny'])
@pytest.mark.parametrize('rotary', [False, True], ids=['learned', 'rotary'])
@pytest.mark.parametrize('name', NAMES)
def test_predictions_after_resuming_equal_a_forward_without_a_cache(tmp_path, name, rotary, pools):
    options = dict(name=name, rotary=rotary, kv_cache=kv_cache(**pools), env_num=3)
    writer = build_policy(**options)
    with torch.no_grad():
        for parameter in writer._model.parameters():
            parameter.mul_(0.9)
    Episodes(writer._model.eval()).step([0, 1, 2], num_simulations=6)
    torch.save(writer.learn_mode.state_dict(), tmp_path / 'checkpoint')

    cold, warm = build_policy(**options), build_policy(**options)
    former = Episodes(warm._model.eval())
    former.step([0, 1, 2], num_simulations=6)
    former.step([0, 1, 2], num_simulations=6)
    for policy in (cold, warm):
        policy.learn_mode.load_state_dict(torch.load(tmp_path / 'checkpoint', map_location='cpu'))
    # Its episodes go on, with the other weights.
    former.weights_have_changed()
    for episodes in (Episodes(cold._model.eval()), former):
        compared = episodes.compared
        episodes.step([0, 1, 2], num_simulations=6)
        episodes.step([2, 0], num_simulations=6)
        assert episodes.compared - compared > 100


def optimizer_steps(checkpoint: dict[str, Any]) -> set[int]:
    return {int(state['step']) for state in checkpoint['optimizer_world_model']['state'].values()}


def check_goes_on(run: Run, saved: dict[str, Any]) -> None:
    """A run that evaluates but once, before it learns, has begun with a checkpoint and has learned from there on."""
    # LightZero saves it when an evaluation is the best so far.
    first = torch.load(run.folder / 'ckpt' / 'ckpt_best.pth.tar', map_location='cpu')
    for name in ('model', 'target_model', 'optimizer_world_model'):
        check_equal(first[name], saved[name], name)
    last = torch.load(run.checkpoint, map_location='cpu')
    assert last.keys() == saved.keys()
    # LightZero counts its learner steps from zero again.
    assert first['last_iter'] == 0 < last['last_iter']
    (before, ), (after, ) = optimizer_steps(saved), optimizer_steps(last)
    assert after == before + last['last_iter']


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> dict[str, Run]:
    return {side: train(CONFIGS[0], tmp_path_factory.mktemp(side), **kwargs) for side, kwargs in SIDES.items()}


@pytest.mark.slow
@pytest.mark.parametrize('reader', SIDES)
@pytest.mark.parametrize('writer', SIDES)
def test_training_goes_on_with_all_that_was_saved(tmp_path, runs, writer, reader):
    saved = torch.load(runs[writer].checkpoint, map_location='cpu')
    run = train(CONFIGS[0], tmp_path, model_path=runs[writer].checkpoint, eval_freq=NEVER, **SIDES[reader])
    check_goes_on(run, saved)


@pytest.mark.slow
@pytest.mark.parametrize('side', SIDES)
def test_the_learners_own_hook_goes_on_counting(tmp_path, runs, side):
    saved = torch.load(runs['plugin'].checkpoint, map_location='cpu')
    hook = dict(load_ckpt_before_run=runs['plugin'].checkpoint)
    run = train(CONFIGS[0], tmp_path, learn=dict(learner=dict(hook=hook)), **SIDES[side])
    last = torch.load(run.checkpoint, map_location='cpu')
    assert last['last_iter'] > saved['last_iter'] > 0
    assert optimizer_steps(last) == {last['last_iter']}


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_from_its_last_checkpoint(tmp_path):
    process = subprocess.Popen(
        run_command(CARTPOLE_FILE, '--exp-name', 'killed', *SMALL,
                    '--set', 'policy.learn.learner.hook.save_ckpt_after_iter=1'),
        cwd=tmp_path, env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True
    )
    seen = ''
    for line in process.stdout:
        seen += line
        if 'environment steps, learner step' in line:
            break
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, seen
    process.stdout.close()
    checkpoint = newest_checkpoint(tmp_path / 'killed')
    saved = torch.load(checkpoint, map_location='cpu')
    assert saved['last_iter'] > 0
    check_goes_on(train(CONFIGS[0], tmp_path, {}, model_path=str(checkpoint), eval_freq=NEVER), saved)
