"""On a GPU: predictions are those of the CPU, contexts lie on the GPU, no row makes the host wait for itself."""
import copy
import warnings

import numpy as np
import pytest
import torch
from models import build_model, kv_cache, observations
from searches import PREDICTIONS, replay, search

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='PyTorch finds no GPU on this machine')

# Sums in another order.
TOLERANCE = 1e-3


@pytest.fixture(autouse=True)
def exact_products():
    allowed = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = allowed


def roots_on(device, model, last, actions, current, timesteps):
    with torch.no_grad():
        return model.initial_inference(last.to(device), actions, current.to(device), timesteps)


@pytest.mark.parametrize('pools', [{}, dict(init_pool=dict(size=1), recur_pool=dict(size=5), wm_pool=dict(size=1))],
                         ids=['default pools', 'tiny pools'])
@pytest.mark.parametrize('window', ['shift', 'rebuild'])
@pytest.mark.parametrize('options', [dict(), dict(rotary=True), dict(observation='image')], ids=str)
def test_predictions_are_those_of_the_cpu(options, window, pools):
    model = build_model(kv_cache=kv_cache(strategy='lru', window=window, **pools), **options)
    on_gpu = copy.deepcopy(model).to('cuda')
    generator = torch.Generator().manual_seed(0)
    last, actions = torch.zeros_like(observations(model, 4, generator)), [-1] * 4
    for step in range(6):
        current, timesteps = observations(model, 4, generator), [np.array(step)] * 4
        root = roots_on('cpu', model, last, actions, current, timesteps)
        root_on_gpu = roots_on('cuda', on_gpu, last, actions, current, timesteps)
        expected = search(model, root, timesteps, 12)
        outputs = replay(on_gpu, root_on_gpu, timesteps, expected.expansions, range(4))
        for output, on_cpu in zip(outputs, expected.outputs):
            for name in PREDICTIONS:
                assert output[name].is_cuda
                assert (output[name].cpu() - on_cpu[name]).abs().max() < TOLERANCE
        last, actions = current, [step % 3] * 4
    store = on_gpu.world_model.kv_cache_inference.store
    assert store._kv.is_cuda and len(store) > 0


def test_the_host_waits_as_often_for_many_rows_as_for_few():
    waits = []
    for batch_size in (2, 4):
        model = build_model(kv_cache=kv_cache(strategy='lru')).to('cuda')
        generator = torch.Generator().manual_seed(0)
        current, timesteps = observations(model, batch_size, generator), [np.array(0)] * batch_size
        root = roots_on('cuda', model, torch.zeros_like(current), [-1] * batch_size, current, timesteps)
        nodes, actions = root.latent_state.cpu().numpy(), torch.zeros(batch_size, dtype=torch.long, device='cuda')
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter('always')
            torch.cuda.set_sync_debug_mode('warn')
            try:
                model.recurrent_inference([(nodes, actions)], 0, [1] * batch_size, timesteps)
            finally:
                torch.cuda.set_sync_debug_mode('default')
        waits.append(sum('synchronizing CUDA operation' in str(warning.message) for warning in caught))
    assert waits[0] == waits[1] <= 2


def test_contexts_leave_the_gpu_with_the_model():
    model = build_model(kv_cache=kv_cache()).to('cuda')
    generator = torch.Generator().manual_seed(0)
    current, timesteps = observations(model, 4, generator), [np.array(0)] * 4
    root = roots_on('cuda', model, torch.zeros_like(current), [-1] * 4, current, timesteps)
    search(model, root, timesteps, 5)
    model.to('cpu')
    assert len(model.world_model.kv_cache_inference.store) == 0
    root = roots_on('cpu', model, torch.zeros_like(current), [-1] * 4, current, timesteps)
    assert not root.value.is_cuda
