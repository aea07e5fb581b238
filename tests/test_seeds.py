"""What two runs with one seed have in common, and what not: the README and the A/B report say it."""
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from models import kv_cache, observations
from test_policies import build_policy
from training import train
from zoo.classic_control.cartpole.envs.cartpole_lightzero_env import CartPoleEnv

from lzero_kvcache.plugin import SampledUniZeroKVCachePolicy


@pytest.fixture
def first_searches(monkeypatch) -> dict[str, tuple]:
    """Weights, observations and predictions at the roots of a run's first search in each phase."""
    seen: dict[str, tuple] = {}

    def recorded(phase: str, forward: Any) -> Any:

        def record(self, data: torch.Tensor, *args: Any, **kwargs: Any) -> dict:
            weights = [parameter.detach().clone() for parameter in self._model.parameters()]
            output = forward(self, data, *args, **kwargs)
            predictions = [
                torch.as_tensor(np.asarray(row[name])) for row in output.values()
                for name in ('predicted_value', 'predicted_policy_logits')
            ]
            seen.setdefault(phase, (weights, [data.clone()], predictions))
            return output

        return record

    for phase in ('collect', 'eval'):
        name = f'_forward_{phase}'
        monkeypatch.setattr(
            SampledUniZeroKVCachePolicy, name, recorded(phase, getattr(SampledUniZeroKVCachePolicy, name))
        )
    return seen


def test_a_seed_fixes_weights_and_initial_states(tmp_path, first_searches):
    runs = []
    for number, seed in enumerate((3, 3, 4)):
        folder: Path = tmp_path / str(number)
        folder.mkdir()
        first_searches.clear()
        train('pendulum_sampled_unizero_config', folder, {}, seed=seed, max_env_step=1, num_simulations=1)
        runs.append(dict(first_searches))
    one, again, other = runs
    for phase in ('collect', 'eval'):
        for of_one, of_again, of_other in zip(one[phase], again[phase], other[phase]):
            assert all(map(torch.equal, of_one, of_again))
            assert not all(map(torch.equal, of_one, of_other))


@pytest.mark.parametrize('managed', [True, False], ids=['managed', 'release'])
@pytest.mark.parametrize('name, drawn', [
    ('unizero', 'visit_count_distributions'), ('sampled_unizero', 'root_sampled_actions')
])
def test_no_seed_fixes_a_search(name, drawn, managed):
    """Scores that are equal, and actions that are sampled, are drawn by the clock."""
    policy = build_policy(name, num_simulations=25, **(dict(kv_cache=kv_cache()) if managed else {}))
    world_model = policy._model.world_model
    data = observations(policy._model, 3, torch.Generator().manual_seed(0))
    masks = [np.ones(world_model.action_space_size)] * 3
    searches = []
    for _ in range(10):
        np.random.seed(0)
        torch.manual_seed(0)
        policy.eval_mode.reset()
        output = policy.eval_mode.forward(data, masks, [-1] * 3, ready_env_id=[0, 1, 2], timestep=[np.array(0)] * 3)
        searches.append([output[env_id] for env_id in range(3)])
    predictions, drawings = (
        {np.asarray([row[key] for row in search], np.float32).tobytes() for search in searches}
        for key in ('predicted_value', drawn)
    )
    assert len(predictions) == 1
    assert len(drawings) > 1


def test_lightzeros_cartpole_takes_no_seed():
    environment = CartPoleEnv(dict(env_id='CartPole-v0'))
    begun = []
    for _ in range(2):
        environment.seed(0, dynamic_seed=False)
        begun.append(environment.reset()['observation'])
    environment.close()
    assert not np.array_equal(*begun)
