"""Every config in configs/: loaded by its path, compiled, and searches with it in its own environment."""
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.policy import create_policy
from ding.utils import ENV_REGISTRY
from rendering import CANNOT_RENDER

from lzero_kvcache.experiment import load_experiment

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'configs').rglob('*_config.py'))


def test_every_laptop_config_has_its_research_scale():
    laptop, research = (
        [path.name for path in CONFIGS if path.parent.name == folder] for folder in ('configs', 'research')
    )
    assert laptop == research


@pytest.mark.slow
@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_compiles_and_searches(path):
    if 'dmc_pixels' in path.name and CANNOT_RENDER:
        pytest.skip(CANNOT_RENDER)
    experiment = load_experiment(path)
    config = deepcopy(experiment.main_config)
    config.policy.update(device='cpu', cuda=False, num_simulations=3)
    config = compile_config(
        config, seed=0, auto=True, create_cfg=deepcopy(experiment.create_config), save_cfg=False
    )
    env_type = ENV_REGISTRY.get(experiment.create_config.env.type)
    env = env_type(cfg=env_type.create_evaluator_env_cfg(config.env)[0])
    env.seed(0, dynamic_seed=False)
    policy = create_policy(config.policy, enable_field=['learn', 'eval'])
    policy.eval_mode.reset([0])
    observation = env.reset()
    for _ in range(2):
        output = policy.eval_mode.forward(
            torch.as_tensor(observation['observation'])[None].float(), [observation['action_mask']],
            [observation['to_play']], ready_env_id=[0], timestep=[np.array(observation['timestep'])]
        )
        observation = env.step(output[0]['action']).obs
    env.close()
    totals = policy._eval_model.world_model.kv_cache_manager.total_stats()
    assert totals['init_pools'].total_queries > 0
