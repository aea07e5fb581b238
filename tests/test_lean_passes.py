"""The forward passes that the benchmark compares collect steps with are the model's own."""
import pytest
import torch
from models import build_model, observations
from oracle import Oracle

from lzero_kvcache.bench.lean_passes import LeanPasses

ROWS = 3


def check(predictions, oracles, method):
    expected = [getattr(oracle, method)().values() for oracle in oracles]
    for prediction, rows in zip(predictions, zip(*expected)):
        torch.testing.assert_close(prediction, torch.stack(rows), atol=1e-4, rtol=0)


@pytest.mark.parametrize('config', [
    dict(), dict(rotary=True), dict(observation='image'), dict(embed_dim=384), dict(context_length=20)
], ids=['learned positions', 'rotary positions', 'images', 'packed weights', 'longer window'])
@torch.no_grad()
def test_lean_passes_equal_a_forward_without_a_cache(config):
    config = dict(dict(context_length=8), **config)
    model = build_model(**config)
    if 'embed_dim' in config:
        for parameter in model.world_model.parameters():
            # Or a wide model saturates.
            parameter.mul_(0.5)
    lean, oracles = LeanPasses(model.world_model, ROWS), [Oracle(model.world_model) for _ in range(ROWS)]
    generator = torch.Generator().manual_seed(0)
    # The contexts that a search goes on from once the window is full.
    steps = config['context_length'] // 2 - 2
    for timestep in range(steps + 1):
        for row, observation in enumerate(observations(model, ROWS, generator)):
            if timestep:
                oracles[row].add_action((row + timestep) % 3, 2 * timestep - 1)
            oracles[row].add_observation(observation, timestep)
    hidden = lean.append(torch.stack([torch.stack(oracle.tokens) for oracle in oracles]), 0)
    torch.testing.assert_close(hidden[:, -1:], torch.cat([oracle.hidden() for oracle in oracles]), atol=1e-4, rtol=0)
    place = 2 * steps + 1
    # The packed products begin after a few calls.
    for call in range(6):
        actions = [(call + row) % 3 for row in range(ROWS)]
        nodes = [oracle.copy() for oracle in oracles]
        reward_and_latent, policy_and_value = lean.recurrent(torch.tensor(actions)[:, None])
        for node, action in zip(nodes, actions):
            node.add_action(action, place)
        check(reward_and_latent, nodes, 'reward_and_next_token')
        for node, latent in zip(nodes, reward_and_latent[1]):
            node.add_latent(latent, place + 1)
        check(policy_and_value, nodes, 'policy_and_value')
    current, roots = observations(model, ROWS, generator), [oracle.copy() for oracle in oracles]
    for root, action, observation in zip(roots, actions, current):
        root.add_action(action, place)
        root.add_observation(observation, steps + 1)
    check(lean.root(torch.tensor(actions)[:, None], current), roots, 'policy_and_value')
