"""The oracle's two ways agree where both are defined."""
import pytest
import torch
from models import build_model, observations, random_action
from oracle import Oracle
from test_world_model import MODELS


@pytest.mark.parametrize('name', MODELS)
def test_a_window_that_sees_everything_is_the_stock_forward(name):
    model = build_model(context_length=20, **MODELS[name])
    generator = torch.Generator().manual_seed(0)
    oracle = Oracle(model.world_model)
    with torch.no_grad():
        for step in range(5):
            if step:
                oracle.add_action(random_action(model, generator), 2 * step - 1)
            oracle.add_observation(observations(model, 1, generator)[0], step)
    torch.testing.assert_close(oracle.through_moving_window(), oracle.through_stock_blocks(), atol=1e-5, rtol=0)


def test_a_window_that_has_moved_on_is_another_forward():
    model = build_model(context_length=20)
    oracle = Oracle(model.world_model)
    with torch.no_grad():
        for step, observation in enumerate(observations(model, 4, torch.Generator().manual_seed(0))):
            if step == 3:
                whole = oracle.copy()
                oracle.shift(1)
                whole.add_observation(observation, step)
            oracle.add_observation(observation, step)
    assert (oracle.hidden() - whole.hidden()).abs().max() > 0.01
