"""An environment without ``default_config`` under the commands that train."""
from pathlib import Path

import plain_cartpole
import pytest
from click.testing import CliRunner

from lzero_kvcache.ab.config import load_ab_config
from lzero_kvcache.cli import main
from lzero_kvcache.experiment import apply_options, check_environment, load_experiment

CONFIG = '''
from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config
create_config.env = dict(type='plain_cartpole', import_names=['plain_cartpole'])
create_config.env_manager.type = 'base'
main_config.env.update(collector_env_num=2, evaluator_env_num=1, n_evaluator_episode=1)
main_config.policy.update(
    collector_env_num=2, evaluator_env_num=1, n_episode=2, num_simulations=3, batch_size=8, update_per_collect=1
)
'''


@pytest.fixture
def config(tmp_path, monkeypatch):
    assert not hasattr(plain_cartpole.PlainCartPole, 'default_config')
    monkeypatch.chdir(tmp_path)
    Path('my_config.py').write_text(CONFIG)
    Path('my_ab.py').write_text(
        f'{CONFIG}\narms = dict(lru=dict(kv_cache=dict(strategy="lru"), env=dict(stop_value=100)))\nseeds = [0]\n'
        'max_env_step = 10\n'
    )
    return 'my_config.py'


def test_a_change_is_checked_against_the_config_and_what_all_environments_have(config):
    experiment = load_experiment(Path(config))
    apply_options(experiment, ['env.stop_value=150'])
    check_environment(experiment)
    assert experiment.main_config.env.stop_value == 150
    with pytest.raises(ValueError, match="env.stop_valu is 150, .* did you mean 'stop_value'"):
        apply_options(experiment, ['env.stop_valu=150'])


@pytest.mark.parametrize('command', [['run'], ['trace', '--out', 'my.trace']], ids=lambda command: command[0])
def test_run_and_trace_train_and_eval_evaluates(config, command):
    result = CliRunner().invoke(main, [*command, config, '--max-env-step', '10', '--exp-name', 'my_run'])
    assert result.exit_code == 0, result.output
    checkpoint = next(Path('my_run/ckpt').glob('iteration_*'))
    if command[0] == 'run':
        result = CliRunner().invoke(main, ['eval', config, '--checkpoint', str(checkpoint), '--episodes', '1'])
        assert result.exit_code == 0, result.output


def test_an_arm_is_accepted(config):
    assert load_ab_config(Path('my_ab.py')).experiments['lru'].main_config.env.stop_value == 100
