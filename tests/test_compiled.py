"""The compiled step: it predicts what the eager one does, follows the weights, and says where it cannot be had."""
import logging

import numpy as np
import pytest
import torch
from models import build_model, kv_cache, random_action
from test_cached_model import OtherBlock, add_hook, filled_store, no_gradients, step_inputs  # noqa: F401

from lzero_kvcache.config import KVCacheConfig
from lzero_kvcache.world_model import frozen_weights
from lzero_kvcache.world_model.cached_model import CachedModel
from lzero_kvcache.world_model.compiled import CompiledStep, step_of

pytestmark = pytest.mark.usefixtures('no_gradients')
SMALL = dict(embed_dim=32, num_heads=2, num_layers=1)
MODELS = {
    'learned positions': SMALL, 'rotary positions, two tokens': dict(rotary=True, tokens_per_block=3, **SMALL),
    'continuous actions, packed weights': dict(actions='continuous', embed_dim=256, num_layers=1),
}


def small_model(seed=0, **config):
    return build_model(kv_cache=kv_cache(), seed=seed, **(config or SMALL))


def logged(caplog):
    return [record.message for record in caplog.records if record.name == 'lzero_kvcache']


class Searches:
    """Batches as searches have them, each through the eager step and another one."""

    def __init__(self, model):
        self.model = model
        self._generator = torch.Generator().manual_seed(0)
        self.cached, self._store, self._contexts = filled_store(model, [1, 3, 4, 4, 2, 5, 4, 1, 3], self._generator)

    def made_anew(self):
        self.cached = CachedModel(self.model.world_model, self.cached.num_places, True)
        return self.cached

    def inputs(self, rows):
        contexts = [self._contexts[row] for row in rows]
        tokens = 1 + self.cached.num_observations_tokens
        new = self._store.reserve(len(rows) * tokens).reshape(len(rows), tokens)
        self._store._free.extend(new.flatten().tolist())
        positions = 7 + np.arange(len(rows))[:, None] + np.arange(tokens)
        actions = np.array([random_action(self.model, self._generator) for _ in rows])
        actions = torch.from_numpy(actions).to(self.cached.like.device)
        index, *others = step_inputs(self.cached, contexts, new, positions)
        return index, actions, *others

    def compare(self, step, rows):
        inputs = self.inputs(rows)
        slab = self._store.slab.tensor(self._store.size, self.cached.like)
        slabs = [slab.clone(), torch.cat([slab, slab])]
        expected, outputs = self.cached.step(slabs[0], *inputs), step(slabs[1], *inputs)
        for output, other in zip(outputs, expected):
            torch.testing.assert_close(output, other, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(slabs[1][:len(slabs[0])], slabs[0], atol=1e-4, rtol=1e-4)
        return outputs


@pytest.mark.parametrize('config', MODELS.values(), ids=MODELS)
def test_a_compiled_step_predicts_what_the_eager_one_does_before_and_after_learning(config, caplog):
    searches = Searches(small_model(**config))
    step = step_of(searches.cached, KVCacheConfig(compile=True))
    with caplog.at_level(logging.INFO, 'lzero_kvcache'):
        for rows in ([0, 1, 2, 3], [2, 3, 6], [0], [5, 4, 3, 2], [5, 4, 3, 2]):
            searches.compare(step, rows)
    begins, ends = logged(caplog)
    assert begins.startswith('Compiling the search step for 4 rows')
    assert ends.startswith('The search step for 4 rows has been compiled in ')
    (size, ) = step._sizes.values()
    assert size.is_compared
    before = searches.compare(step, [0, 1, 2, 3])
    for parameter in searches.model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    assert step_of(searches.made_anew(), KVCacheConfig(compile=True), step) is step
    after = searches.compare(step, [0, 1, 2, 3])
    assert not torch.allclose(after.value, before.value, atol=1e-2)
    assert list(step._sizes.values()) == [size] and size.is_compared


@pytest.mark.skipif(not torch.cuda.is_available(), reason='there is no GPU')
@pytest.mark.parametrize('config', MODELS.values(), ids=MODELS)
def test_a_captured_step_predicts_what_the_eager_one_does_before_and_after_learning(config):
    searches = Searches(small_model(**config).cuda())
    step = CompiledStep(searches.cached, compares_always=False)
    for rows in ([0, 1, 2, 3], [2, 3, 6], [0], [5, 4, 3, 2]):
        searches.compare(step, rows)
    for parameter in searches.model.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    step.renew(searches.made_anew())
    searches.compare(step, [0, 1, 2, 3])
    assert len(step._sizes) == 1


def test_two_models_do_not_share_a_compiled_step():
    first, second = (Searches(small_model(seed)) for seed in (0, 1))
    steps = [CompiledStep(searches.cached, compares_always=False) for searches in (first, second)]
    for _ in range(3):
        outputs = [searches.compare(step, [0, 1, 2, 3]) for searches, step in zip((first, second), steps)]
    assert all(size.is_compared for step in steps for size in step._sizes.values())
    assert not torch.allclose(outputs[0].value, outputs[1].value, atol=1e-2)


def test_a_compiled_step_that_predicts_something_else_is_not_used(caplog):
    searches = Searches(small_model())
    step = CompiledStep(searches.cached, compares_always=True)
    for _ in range(2):
        searches.compare(step, [0, 1, 2, 3])
    (size, ) = step._sizes.values()
    step.renew(searches.made_anew())
    size.write(step._parts)
    size.run.write([torch.zeros_like(weight) for weight in size.run.weights])
    with caplog.at_level(logging.WARNING, 'lzero_kvcache'):
        for _ in range(2):
            searches.compare(step, [0, 1, 2, 3])
    assert 'kv_cache.compile is True, but the search step runs as without: its predictions were' in logged(caplog)[-1]


def test_more_threads_compile_anew():
    searches = Searches(small_model())
    step = CompiledStep(searches.cached, compares_always=False)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 1):
            torch.set_num_threads(threads)
            for _ in range(2):
                searches.compare(step, [0, 1, 2, 3])
    finally:
        torch.set_num_threads(before)
    assert len(step._sizes) == 2


def unknown_block(world_model):
    world_model.transformer.blocks[0].__class__ = OtherBlock


@pytest.mark.parametrize('change, reason', [
    (lambda world_model: add_hook(world_model.transformer.ln_f), 'a layer (LayerNorm) has hooks'),
    (unknown_block, 'a block of the transformer is not built like the stock one'),
    (lambda world_model: world_model.bfloat16(), 'the model does not compute in float32'),
], ids=['hook', 'block', 'bfloat16'])
def test_what_cannot_be_compiled_runs_eager_and_says_why(change, reason, caplog):
    searches = Searches(small_model())
    change(searches.model.world_model)
    with caplog.at_level(logging.WARNING, 'lzero_kvcache'):
        CompiledStep(searches.made_anew(), compares_always=False)
    assert f'the search step runs as without: it cannot be compiled, for {reason}' in logged(caplog)[-1]


def test_without_a_compiler_the_step_runs_eager_and_says_why(monkeypatch, tmp_path, caplog):
    import torch._inductor.config as settings
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    searches = Searches(small_model())
    step = CompiledStep(searches.cached, compares_always=False)
    with settings.patch({'cpp.cxx': (None, '/no/compiler')}), caplog.at_level(logging.WARNING, 'lzero_kvcache'):
        for _ in range(2):
            searches.compare(step, [0, 1, 2, 3])
    assert 'the search step runs as without: it cannot be compiled (' in logged(caplog)[-1]


def test_a_constant_in_an_order_that_is_not_known_is_refused():
    value = torch.randn(4, 10)
    with pytest.raises(LookupError, match='a constant of shape .10, 4. is 0 of its weights'):
        frozen_weights._plan([value], [value.t().contiguous()])
