"""Half and double precision, as a model's dtype and by ``torch.autocast``, through real searches."""
from contextlib import nullcontext

import episodes
import numpy as np
import pytest
import torch
from episodes import Episodes
from lightzeros import IS_MAIN
from models import build_model, kv_cache, observations
from searches import PREDICTIONS, replay, search
from test_policies import Environments, build_policy
from test_world_model import TINY_POOLS, play_irregularly

from lzero_kvcache.world_model import linear

# What numbers of about 1, computed in another order, may differ by: some of their last bits.
# Main's heads have one more norm, which magnifies them.
MAGNIFIED = 4 if IS_MAIN else 1
TOLERANCES = {torch.float16: 5e-3 * MAGNIFIED, torch.bfloat16: 4e-2 * MAGNIFIED, torch.float64: 1e-6}
PRECISIONS = {
    'float16 by autocast': (torch.float16, True), 'bfloat16 by autocast': (torch.bfloat16, True),
    'bfloat16': (torch.bfloat16, False), 'float16': (torch.float16, False), 'float64': (torch.float64, False),
}


@pytest.fixture(params=PRECISIONS, ids=str)
def precision(request, monkeypatch):
    """How to bring a model to a precision, and the surroundings that it computes in."""
    dtype, by_autocast = PRECISIONS[request.param]
    monkeypatch.setattr(episodes, 'TOLERANCE', TOLERANCES[dtype])
    monkeypatch.setattr('test_policies.TOLERANCE', TOLERANCES[dtype])
    if by_autocast:
        return (lambda model: model), lambda: torch.autocast('cpu', dtype)
    return (lambda model: model.to(dtype)), nullcontext


@pytest.mark.parametrize('cache, options', [
    (dict(), dict()), (dict(), dict(actions='continuous', rotary=True)),
    (dict(window='rebuild', **TINY_POOLS), dict(rotary=True)), (dict(on_miss='reset', **TINY_POOLS), dict()),
    (dict(**TINY_POOLS), dict(gru_gating=True)),
], ids=['learned positions', 'continuous actions', 'encoded again', 'reset on a miss', 'gated transformer'])
def test_predictions_equal_the_oracle(precision, cache, options):
    cast, surroundings = precision
    model = cast(build_model(kv_cache=kv_cache(**cache), context_length=8, **options))
    with surroundings():
        assert play_irregularly(model, num_simulations=3).compared > 100


def test_wide_models_equal_the_oracle(precision):
    cast, surroundings = precision
    model = cast(narrowed(build_model(kv_cache=kv_cache(), context_length=8, embed_dim=512)))
    with surroundings():
        played = Episodes(model)
        for _ in range(2):
            played.step([0, 1], 4)


@pytest.mark.parametrize('is_packed', [True, False], ids=['packed weights', 'plain weights'])
def test_wide_models_go_in_and_out_of_autocast(is_packed, monkeypatch):
    if not is_packed:
        monkeypatch.setattr(linear, 'packed_linear', lambda: None)
    played = Episodes(narrowed(build_model(kv_cache=kv_cache(), context_length=8, embed_dim=512)))
    for _ in range(2):
        monkeypatch.setattr(episodes, 'TOLERANCE', 1e-4)
        played.step([0], 6)
        played.weights_have_changed()
        monkeypatch.setattr(episodes, 'TOLERANCE', TOLERANCES[torch.bfloat16])
        with torch.autocast('cpu', torch.bfloat16):
            played.step([0], 6)
        played.weights_have_changed()


def narrowed(model):
    for parameter in model.world_model.parameters():
        parameter.data.mul_(0.4)
    return model


def test_images(precision):
    cast, surroundings = precision
    model = cast(build_model(kv_cache=kv_cache(), context_length=8, observation='image'))
    with surroundings():
        played = Episodes(model)
        for _ in range(2):
            played.step([0], 1)


@pytest.mark.parametrize('name, rotary', [('unizero', False), ('sampled_unizero', True)])
def test_policies_search(precision, name, rotary):
    cast, surroundings = precision
    policy = build_policy(name, rotary=rotary, context_length=8, kv_cache=kv_cache())
    cast(policy._model)
    with surroundings():
        for phase in ('collect', 'eval'):
            environments = Environments(policy, phase)
            for env_ids in ([0, 1, 2], [2, 0], [1, 0]):
                environments.step(env_ids)


@torch.no_grad()
@pytest.mark.parametrize('width', [64, 512])
def test_float16_by_autocast_is_as_near_to_float32_as_in_the_release(width):
    """The same expansions in float32, in float16, and in float16 by the release."""
    models = {
        mode: narrowed(build_model(kv_cache=kv_cache(mode=mode), context_length=20, embed_dim=width))
        for mode in ('managed', 'legacy')
    }
    observation, timesteps = observations(models['managed'], 1, torch.Generator().manual_seed(0)), [np.array(0)]

    def root_of(model):
        return model.initial_inference(observation, [-1], observation, timesteps)

    root = root_of(models['managed'])
    expected = search(models['managed'], root, timesteps, 20)
    differences = {}
    for mode, model in models.items():
        with torch.autocast('cpu', torch.float16):
            outputs = replay(model, root_of(model), timesteps, expected.expansions, [0])
        differences[mode] = max(
            (output[name].float() - exact[name]).abs().max().item()
            for output, exact in zip(outputs, expected.outputs) for name in PREDICTIONS
        )
    assert 0 < differences['managed'] < 1.25 * differences['legacy'] < 1e-3 * MAGNIFIED


def test_a_model_may_change_its_precision(monkeypatch):
    """Between searches: as a whole, one part of it alone, and by autocast."""
    monkeypatch.setattr(episodes, 'TOLERANCE', TOLERANCES[torch.bfloat16])
    model = build_model(kv_cache=kv_cache(), context_length=8, rotary=True)
    played = Episodes(model)
    played.step([0, 1], 4)
    for cast in (torch.nn.Module.double, lambda model: model.to(torch.bfloat16), torch.nn.Module.float):
        cast(model)
        played.weights_have_changed()
        played.step([1, 0], 4)
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast('cpu', dtype):
            played.weights_have_changed()
            played.step([1, 0], 4)
    played.weights_have_changed()
    monkeypatch.setattr(episodes, 'TOLERANCE', 1e-4)
    # The rotary table has come through, with its imaginary part.
    reference = build_model(kv_cache=kv_cache(), rotary=True).world_model.transformer.freqs_cis
    assert torch.equal(model.world_model.transformer.freqs_cis, reference)
    played.step([0, 1], 4)


@torch.no_grad()
def test_contexts_of_another_dtype_are_not_gone_on_from():
    """Weights that are assigned bring their dtype along without the model's being cast."""
    model = build_model(kv_cache=kv_cache(), context_length=20)
    played = Episodes(model)
    played.step([0, 1], 4)
    model.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()}, assign=True)
    played.weights_have_changed()
    played.step([0, 1], 4)


def test_autocast_that_begins_within_a_search(monkeypatch):
    model = build_model(kv_cache=kv_cache(), context_length=20)
    root = Episodes(model).step([0, 1])
    generation = model.world_model.kv_cache_inference.weights_generation
    with torch.autocast('cpu', torch.bfloat16):
        output = model.recurrent_inference([(root.latent_state.numpy(), torch.tensor([0, 1]))], 0, [1, 1], [0, 0])
    assert output.latent_state.dtype == torch.float32
    assert model.world_model.kv_cache_inference.weights_generation == generation + 1


@torch.no_grad()
@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
def test_rollouts(precision, rotary):
    cast, surroundings = precision
    model = cast(build_model(kv_cache=kv_cache(), context_length=20, rotary=rotary, rope_theta=100))
    actions = torch.tensor([[0, 1, 2], [2, 2, 1]])
    with surroundings():
        played = Episodes(model)
        root = played.step([0, 1], 3)
        nodes = model.recurrent_inference([(root.latent_state.numpy(), actions[:, 0])], 3, [1, 1], [0, 0])
        rollout = model.world_model.imagine(root.latent_state, actions)
    assert rollout.actions.dtype == torch.long
    tolerance = episodes.TOLERANCE
    torch.testing.assert_close(rollout.latents[:, 0], nodes.latent_state, atol=tolerance, rtol=0)
    torch.testing.assert_close(rollout.policy_logits[:, 0], nodes.policy_logits, atol=tolerance, rtol=0)


def test_a_rotary_table_without_its_imaginary_part_is_refused():
    model = build_model(kv_cache=kv_cache(), rotary=True)
    model.world_model.transformer.to(torch.bfloat16)
    with pytest.raises(ValueError, match=r'freqs_cis of this world model is of torch.bfloat16, .*: cast .* by \.half'):
        Episodes(model).step([0])


def test_memory_is_counted_in_the_dtype_of_the_model():
    bytes_of = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        model = build_model(kv_cache=kv_cache(), context_length=20).to(dtype)
        current = observations(model, 2, torch.Generator().manual_seed(0))
        with torch.no_grad():
            model.initial_inference(current, [-1, -1], current, [0, 0])
        bytes_of[dtype] = model.world_model.kv_cache_manager.memory_bytes()['init_pools']
    assert bytes_of[torch.float64] == 2 * bytes_of[torch.float32] == 4 * bytes_of[torch.bfloat16] > 0
