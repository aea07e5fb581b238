"""On a GPU: predictions are those of the CPU, contexts lie on the GPU, and a simulation waits for the GPU once."""
import copy
import warnings
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from models import build_model, kv_cache, observations, random_action
from searches import PREDICTIONS, replay, search, search_of

from lzero_kvcache.world_model.compiled import CompiledStep
from lzero_kvcache.world_model.search_model import NumberedModel

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


def first_root_on(device, model, batch_size):
    current, timesteps = observations(model, batch_size, torch.Generator().manual_seed(0)), [np.array(0)] * batch_size
    return roots_on(device, model, torch.zeros_like(current), [-1] * batch_size, current, timesteps), timesteps


@pytest.mark.parametrize('by_latents', [False, True], ids=['by numbers', 'by latent states'])
@pytest.mark.parametrize('pools', [{}, dict(init_pool=dict(size=1), recur_pool=dict(size=5), wm_pool=dict(size=1))],
                         ids=['default pools', 'tiny pools'])
@pytest.mark.parametrize('window', ['shift', 'rebuild'])
@pytest.mark.parametrize('options', [dict(), dict(rotary=True), dict(observation='image')], ids=str)
def test_predictions_are_those_of_the_cpu(options, window, pools, by_latents):
    model = build_model(kv_cache=kv_cache(strategy='lru', window=window, **pools), **options)
    on_gpu = copy.deepcopy(model).to('cuda')
    generator = torch.Generator().manual_seed(0)
    last, actions = torch.zeros_like(observations(model, 4, generator)), [-1] * 4
    for step in range(6):
        current, timesteps = observations(model, 4, generator), [np.array(step)] * 4
        root = roots_on('cpu', model, last, actions, current, timesteps)
        root_on_gpu = roots_on('cuda', on_gpu, last, actions, current, timesteps)
        expected = search(model, root, timesteps, 12)
        outputs = replay(on_gpu, root_on_gpu, timesteps, expected.expansions, range(4), by_latents)
        for output, on_cpu in zip(outputs, expected.outputs):
            for name in PREDICTIONS:
                assert output[name].is_cuda
                assert (output[name].cpu() - on_cpu[name]).abs().max() < TOLERANCE
        last, actions = current, [step % 3] * 4
    store = on_gpu.world_model.kv_cache_inference.store
    assert store.slab.tensor(store.size, root_on_gpu.latent_state).is_cuda and len(store) > 0


@contextmanager
def counted_waits():
    """How often the host waits for the GPU within the ``with`` block: the one number of a list."""
    waits = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        torch.cuda.set_sync_debug_mode('warn')
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode('default')
    waits.append(sum('synchronizing CUDA operation' in str(warning.message) for warning in caught))


@pytest.mark.parametrize('pools', [{}, dict(recur_pool=dict(size=1), wm_pool=dict(size=1))],
                         ids=['default pools', 'rebuilt contexts'])
@pytest.mark.parametrize('strategy', ['lru', 'tree'])
@pytest.mark.parametrize('options', [
    dict(), dict(rotary=True), dict(actions='continuous'), dict(window='rebuild', context_length=8),
    dict(window='rebuild', context_length=8, rotary=True),
], ids=str)
@pytest.mark.parametrize('batch_size', [2, 4])
def test_a_simulation_waits_for_the_gpu_once(batch_size, options, strategy, pools):
    options = dict(options)
    cache = dict(strategy=strategy, **pools)
    if 'window' in options:
        cache['window'] = options.pop('window')
    model = build_model(kv_cache=kv_cache(**cache), **options).to('cuda')
    generator = torch.Generator().manual_seed(0)
    root, timesteps = first_root_on('cuda', model, batch_size)
    running = search_of(model, root)
    numbered = NumberedModel(model, model.world_model, running)
    for simulation in range(10):
        # Along a chain, and from where many contexts are missing.
        parents = np.arange(batch_size) + batch_size * (simulation if simulation % 3 else simulation // 2)
        actions = torch.as_tensor(np.array([random_action(model, generator) for _ in range(batch_size)]))
        depths = (running.nodes.depths[parents] + 1).tolist()
        with counted_waits() as waits, torch.no_grad():
            output = numbered.recurrent_inference([(parents, actions)], simulation, depths, timesteps)
        assert waits == [1]
        assert not output.value.is_cuda and not output.latent_state.is_cuda
    assert not pools or model.world_model.kv_cache_inference.rebuild_stats.rebuilds > 0


def test_contexts_leave_the_gpu_with_the_model():
    model = build_model(kv_cache=kv_cache()).to('cuda')
    root, timesteps = first_root_on('cuda', model, 4)
    search(model, root, timesteps, 5)
    model.to('cpu')
    assert len(model.world_model.kv_cache_inference.store) == 0
    root, _ = first_root_on('cpu', model, 4)
    assert not root.value.is_cuda


@pytest.mark.parametrize('options', [dict(), dict(rotary=True), dict(actions='continuous')], ids=str)
def test_a_compiled_step_is_one_graph_that_predicts_what_the_eager_one_does(options):
    models = [
        build_model(kv_cache=kv_cache(compile=compile), context_length=20, **options).to('cuda')
        for compile in (False, True)
    ]
    for learnt in range(2):
        roots = [first_root_on('cuda', model, 4) for model in models]
        expected = search(models[0], *roots[0], 12)
        outputs = replay(models[1], *roots[1], expected.expansions, range(4))
        for output, eager in zip(outputs, expected.outputs):
            for name in PREDICTIONS:
                assert (output[name] - eager[name]).abs().max() < TOLERANCE
        step = models[1].world_model.kv_cache_inference._model._step
        assert isinstance(step, CompiledStep) and not step._runs_eager
        (size, ) = step._sizes.values()
        assert isinstance(size.run._graph, torch.cuda.CUDAGraph) and size.is_compared
        for model in models:
            generator = torch.Generator('cuda').manual_seed(learnt)
            for parameter in model.world_model.parameters():
                parameter.data.add_(torch.randn(parameter.shape, generator=generator, device='cuda'), alpha=0.01)
