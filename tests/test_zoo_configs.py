"""Every UniZero config in LightZero's wheel, as 'run' runs it, as far as its packages are there."""
import re
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import zoo
from ding.utils import POLICY_REGISTRY, deep_merge_dicts

from lzero_kvcache.experiment import apply_options, check_environment, check_runnable, load_experiment
from lzero_kvcache.experiment.defaults import policy_defaults
from lzero_kvcache.plugin.statistics import step_listeners

ZOO = Path(zoo.__path__[0])
CONFIGS = {path.relative_to(ZOO).as_posix(): path for path in ZOO.rglob('*unizero*config.py')}
SMALL = [
    'create_config.env_manager.type=base', 'env.collector_env_num=2', 'env.evaluator_env_num=1',
    'env.n_evaluator_episode=1', 'policy.collector_env_num=2', 'policy.evaluator_env_num=1', 'policy.num_simulations=3',
    'policy.batch_size=4', 'policy.update_per_collect=2', 'policy.replay_buffer_size=500',
    'policy.train_start_after_envsteps=0',
    'policy.model.world_model_cfg.env_num=2', 'policy.model.world_model_cfg.embed_dim=64',
    'policy.model.world_model_cfg.num_heads=4', 'policy.model.world_model_cfg.device=cpu', 'policy.cuda=False',
]
SHORT_EPISODES = ['env.collect_max_episode_steps=20', 'env.eval_max_episode_steps=10']
EPISODES, SEGMENTS = ['policy.n_episode=2'], ['policy.num_segments=2', 'policy.reanalyze_batch_size=2']
# What makes each of them small, beside the above.
TRAINED = {
    'atari/config/atari_unizero_config.py': [*EPISODES, *SHORT_EPISODES],
    'atari/config/atari_unizero_ddp_config.py': [*EPISODES, *SHORT_EPISODES],
    'atari/config/atari_unizero_segment_config.py': [*SEGMENTS, *SHORT_EPISODES],
    'atari/config/atari_unizero_segment_ddp_config.py': [*SEGMENTS, *SHORT_EPISODES],
    'classic_control/cartpole/config/cartpole_unizero_config.py': EPISODES,
    'classic_control/pendulum/config/pendulum_cont_disc_unizero_config.py': EPISODES,
    'classic_control/pendulum/config/pendulum_cont_sampled_unizero_config.py': EPISODES,
}
VALIDATED = ['atari/config/atari_unizero_segment_config.py', *list(TRAINED)[-3:-1]]
BOX2D = {
    'box2d/bipedalwalker/config/bipedalwalker_cont_sampled_unizero_config.py': 24,
    'box2d/lunarlander/config/lunarlander_cont_sampled_unizero_config.py': 8,
    'box2d/lunarlander/config/lunarlander_disc_unizero_config.py': 8,
}
BROKEN = {
    'atari/config/atari_unizero_segment_ddp_config.py': 'policy.num_segments is 16, but env.collector_env_num is 8',
    'atari/config/atari_unizero_stack4_config.py': 'cannot be executed: ImportError: cannot import name',
    'memory/config/memory_unizero_config.py': "obs_type is 'image_memory', which LightZero 0.2.0 cannot run",
}


def test_each_config_is_of_one_kind_and_documented():
    assert {*TRAINED, *BOX2D, *BROKEN} == {*CONFIGS}
    text = (Path(__file__).parents[1] / 'docs' / 'troubleshooting.md').read_text()
    table = text.split("## Configs of LightZero's zoo\n")[1].split('\n## ')[0]
    assert re.findall(r'^\| `([^`]*)`', table, re.MULTILINE) == sorted(CONFIGS)
    for name in CONFIGS:
        row = re.search(rf'^\| `{name}` \| (.*) \|$', table, re.MULTILINE).group(1)
        kinds = {name in BROKEN: 'broken in the release', name in BOX2D: 'needs Box2D'}
        assert row.startswith(kinds.get(True, 'yes'))


@pytest.mark.slow
@pytest.mark.parametrize('name', TRAINED)
def test_trains(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    experiment = load_experiment(CONFIGS[name])
    apply_options(experiment, [*SMALL, *TRAINED[name]], mode='validate' if name in VALIDATED else 'managed')
    check_runnable(experiment)
    try:
        check_environment(experiment)
    except ValueError as error:
        assert re.search('ROM|cv2', str(error))
        pytest.skip(str(error))
    experiment.max_env_step = 30
    seen = {}
    # Laying the config out takes longer than the rest of a short run.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda code: (code, False))
    step_listeners.append(lambda phase, rows, inference: seen.update({phase: inference}))
    try:
        experiment.run('run')
    finally:
        step_listeners.pop()
    assert {'collect', 'learn'} <= {*seen}
    inference = seen['collect']
    assert inference.manager.total_stats()['init_pools'].hits > 0
    if name in VALIDATED:
        assert inference.report.differed == 0
        assert inference.report.agreed > 0


@pytest.mark.parametrize('name', BOX2D)
def test_box2d_is_named_where_it_is_missing_and_the_rest_searches(name):
    experiment = load_experiment(CONFIGS[name])
    apply_options(experiment, SMALL)
    check_runnable(experiment)
    if find_spec('Box2D') is None:
        with pytest.raises(ValueError, match=r'cannot begin: Box2D is not installed, run .*gymnasium\[box2d\]'):
            check_environment(experiment)
    else:
        check_environment(experiment)
    config = deep_merge_dicts(policy_defaults(experiment), experiment.main_config.policy)
    config.device = 'cpu'
    policy = POLICY_REGISTRY.get(experiment.create_config.policy.type)(config, enable_field=['learn', 'collect'])
    masks = [np.ones(config.model.action_space_size)] * 2
    for step in range(2):
        output = policy.collect_mode.forward(
            torch.randn(2, BOX2D[name]), masks, 1., [-1] * 2, 0., ready_env_id={0, 1}, timestep=[np.array(step)] * 2
        )
    assert set(output) == {0, 1}
    assert policy._collect_model.world_model.kv_cache_manager.total_stats()['init_pools'].hits > 0


@pytest.mark.parametrize('name', BROKEN)
def test_what_is_broken_in_the_release_is_refused(name):
    with pytest.raises(ValueError, match=re.escape(BROKEN[name])):
        experiment = load_experiment(CONFIGS[name])
        apply_options(experiment)
        check_runnable(experiment)
