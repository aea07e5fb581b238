"""LightZero's searches hand a managed world model the numbers of nodes, read its scalars, and stay as they are."""
import numpy as np
import pytest
import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lightzeros import SCALAR_TRANSFORM, stock_transform, support_options
from lzero.mcts import UniZeroMCTSCtree
from lzero.policy.unizero import UniZeroPolicy
from models import build_model, kv_cache, observations
from searches import PREDICTIONS, logits_of, replay, search
from test_policies import Environments, build_policy
from training import check_training, train

from lzero_kvcache.eviction.search_nodes import unscaled
from lzero_kvcache.plugin import numbered_search
from lzero_kvcache.world_model import KVCacheWorldModelMixin, search_model
from lzero_kvcache.world_model.cached_model import expected_bins
from lzero_kvcache.world_model.managed import ManagedInference
from lzero_kvcache.world_model.search_model import NumberedModel


@pytest.fixture(autouse=True)
def nothing_said():
    numbered_search.number_nodes()
    numbered_search._say_that_latents_are_handed.cache_clear()


@pytest.fixture
def asked(monkeypatch):
    """By what nodes were handed over, and the phase of the search, one pair for each inference."""
    seen = []

    def watch(name, word):
        method = getattr(ManagedInference, name)

        def watched(inference, *arguments):
            seen.append((word, inference.search.phase))
            return method(inference, *arguments)

        monkeypatch.setattr(ManagedInference, name, watched)

    watch('expand', 'numbers')
    watch('recurrent', 'latents')
    return seen


def root_of(model, rows=3):
    generator = torch.Generator().manual_seed(0)
    current = observations(model, rows, generator)
    with torch.no_grad():
        return model.initial_inference(torch.zeros_like(current), [-1] * rows, current, [np.array(0)] * rows)


def tree_for(model, num_simulations=6, support_scale=50):
    return UniZeroMCTSCtree(deep_merge_dicts(UniZeroPolicy.default_config(), EasyDict(
        device='cpu', num_simulations=num_simulations, model=dict(
            action_space_size=model.world_model.action_space_size, **support_options(support_scale)
        )
    )))


def run_search(tree, model, latents=None):
    root = root_of(model)
    rows, num_actions = len(root.latent_state), model.world_model.action_space_size
    roots = UniZeroMCTSCtree.roots(rows, [list(range(num_actions))] * rows)
    roots.prepare_no_noise([0.] * rows, root.policy_logits.tolist(), [-1] * rows)
    handed = root.latent_state.cpu().numpy() if latents is None else latents(root.latent_state.cpu().numpy())
    tree.search(roots, model, handed, [-1] * rows, [np.array(0)] * rows)
    assert [sum(visits) for visits in roots.get_distributions()] == [tree._cfg.num_simulations] * rows


@pytest.mark.parametrize('support_size', [5, 50, 300])
def test_scalars_are_those_of_the_stock_transform(support_size):
    generator = torch.Generator().manual_seed(0)
    stock = stock_transform(support_size)
    for scale in (0., 0.1, 1., 10., 100.):
        logits = scale * torch.randn(8, stock.value_support.shape[-1], generator=generator)
        logits[0] = logits[0].sort().values
        before = logits.clone()
        scalars = torch.from_numpy(unscaled(expected_bins(logits).numpy(), search_model._square_root))
        assert torch.equal(scalars[:, None], stock(logits))
        assert torch.equal(logits, before)


@pytest.mark.parametrize('support_size', [5, 50, 300])
def test_a_search_is_given_the_scalars_of_the_models_own_logits(support_size):
    model = build_model(kv_cache=kv_cache(), support_size=2 * support_size + 1)
    root, stock = root_of(model), stock_transform(support_size)
    inference = model.world_model.kv_cache_inference
    running, expand, predicted = inference.search, inference.expand, []

    def watched(*arguments):
        outputs, children = expand(*arguments)
        predicted.append(logits_of(outputs))
        return outputs, children

    inference.expand = watched
    numbered, nodes = NumberedModel(model, model.world_model, running), np.arange(len(root.latent_state))
    for depth in range(1, 6):
        output = numbered.recurrent_inference([(nodes, torch.tensor([0, 1, 2]))], depth - 1, [depth] * 3, [0] * 3)
        assert torch.equal(output.value, stock(predicted[-1].value))
        assert torch.equal(output.reward, stock(predicted[-1].reward))
        assert torch.equal(output.policy_logits, predicted[-1].policy_logits)
        nodes = output.latent_state.numpy()


@pytest.mark.parametrize('phase', ['collect', 'eval'])
@pytest.mark.parametrize('name', ['unizero', 'sampled_unizero'])
def test_searches_of_managed_policies_hand_numbers(name, phase, asked):
    environments = Environments(build_policy(name, kv_cache=kv_cache()), phase)
    environments.step([0, 1, 2])
    environments.step([2, 0])
    assert asked == [('numbers', phase)] * 2 * 6


@pytest.mark.parametrize('options', [dict(), dict(kv_cache=kv_cache(mode='legacy'))], ids=['no cache', 'legacy'])
@pytest.mark.parametrize('phase', ['collect', 'eval'])
@pytest.mark.parametrize('name', ['unizero', 'sampled_unizero'])
def test_searches_of_the_stock_code_hand_latent_states(name, phase, options, asked):
    policy = build_policy(name, **options)
    world_model, handed = policy._model.world_model, []
    forward = world_model.forward_recurrent_inference

    def watched(history, *arguments, **keywords):
        handed.append(history[-1][0])
        return forward(history, *arguments, **keywords)

    world_model.forward_recurrent_inference = watched
    data = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    masks, timesteps = [np.ones(world_model.action_space_size)] * 3, [np.array(0)] * 3
    if phase == 'collect':
        policy.collect_mode.forward(data, masks, 1., [-1] * 3, 0., ready_env_id=[0, 1, 2], timestep=timesteps)
    else:
        policy.eval_mode.forward(data, masks, [-1] * 3, ready_env_id=[0, 1, 2], timestep=timesteps)
    assert len(handed) == 6 and not asked
    assert all(np.shape(latents) == (3, 1, world_model.embed_dim) for latents in handed)


def own_model(tree, model):
    stock = type(model)

    class OwnModel(stock):

        def recurrent_inference(self, *arguments, **keywords):
            return stock.recurrent_inference(self, *arguments, **keywords)

    model.__class__ = OwnModel


def own_world_model(tree, model):
    stock = type(model.world_model)

    class OwnWorldModel(stock):

        def forward_recurrent_inference(self, *arguments, **keywords):
            return stock.forward_recurrent_inference(self, *arguments, **keywords)

    model.world_model.__class__ = OwnWorldModel


def own_transform(tree, model):
    stock = getattr(tree, SCALAR_TRANSFORM)
    setattr(tree, SCALAR_TRANSFORM, lambda logits: stock(logits))


@pytest.mark.parametrize('change, reason', [
    (own_transform, f'for its {SCALAR_TRANSFORM} is not the stock one'),
    (own_model, 'for recurrent_inference of OwnModel is not the stock one'),
    (own_world_model, 'for OwnWorldModel has a forward_recurrent_inference of its own'),
])
def test_where_something_is_not_the_stock_one_latent_states_are_handed_which_is_said_once(
        change, reason, asked, caplog
):
    model = build_model(kv_cache=kv_cache())
    run_search(tree_for(model), model)
    assert asked == [('numbers', 'collect')] * 6
    tree = tree_for(model)
    change(tree, model)
    transform = getattr(tree, SCALAR_TRANSFORM)
    for _ in range(2):
        del asked[:]
        run_search(tree, model)
        assert asked == [('latents', 'collect')] * 6
    assert caplog.text.count('hands its nodes over as latent states') == caplog.text.count(reason) == 1
    assert getattr(tree, SCALAR_TRANSFORM) is transform


def test_a_transform_of_another_support_is_not_passed_by(asked, caplog):
    model = build_model(kv_cache=kv_cache())
    tree = tree_for(model, support_scale=30)
    with pytest.raises(RuntimeError, match='size'):
        run_search(tree, model)
    assert asked == [('latents', 'collect')]
    assert 'for its support has 61 bins, but the world model 101' in caplog.text


def test_other_roots_than_those_of_the_last_root_inference_are_handed_as_they_are(asked, caplog):
    model = build_model(kv_cache=kv_cache())
    tree = tree_for(model)
    for _ in range(2):
        run_search(tree, model, lambda latents: latents + 1)
    assert {word for word, _ in asked} == {'latents'}
    assert caplog.text.count('for its roots are not those of the last root inference') == 1


def test_the_search_itself_is_not_changed(asked):
    model = build_model(kv_cache=kv_cache())
    tree = tree_for(model)
    before, config = dict(vars(tree)), dict(tree._cfg)
    run_search(tree, model)
    assert asked == [('numbers', 'collect')] * 6
    assert vars(tree) == before and tree._cfg == config
    assert all(vars(tree)[name] is value for name, value in before.items())


@pytest.mark.slow
def test_reanalysis_by_the_replay_buffer_hands_numbers(tmp_path, asked, caplog):
    run = train('cartpole_unizero_config', tmp_path, {}, reanalyze_ratio=0.5)
    check_training(run)
    assert {word for word, _ in asked} == {'numbers'}
    assert {phase for _, phase in asked} == {'collect', 'eval', 'reanalyze'}
    assert 'latent states' not in caplog.text


@pytest.mark.parametrize('options', [
    dict(), dict(rotary=True), dict(actions='continuous'), dict(randomise=False),
    dict(randomise=False, actions='continuous'), dict(randomise=False, context_length=8),
], ids=str)
@pytest.mark.parametrize('cache', [
    dict(), dict(window='rebuild', recur_pool=dict(size=3), wm_pool=dict(size=1)),
], ids=['default pools', 'tiny pools'])
def test_a_loop_by_latent_states_is_given_what_numbers_are_given(cache, options):
    models = [build_model(kv_cache=kv_cache(**cache), **options) for _ in range(2)]
    timesteps = [np.array(0)] * 3
    # A real search, which asserts that it is given no latent state of a tree twice.
    by_latents = search(models[0], root_of(models[0]), timesteps, 12, by_latents=True)
    root = root_of(models[1])
    by_numbers = replay(models[1], root, timesteps, by_latents.expansions, range(3))
    if not options.get('randomise', True):
        running = models[1].world_model.kv_cache_inference.search
        latents = running.tensors.latents[running.nodes.ends[0]:running.nodes.num_nodes]
        assert torch.equal(latents, latents[:1].expand_as(latents))
    for numbered, named in zip(by_numbers, by_latents.outputs):
        for name in PREDICTIONS:
            torch.testing.assert_close(named[name], numbered[name], atol=1e-5, rtol=1e-5)


def test_only_managed_world_models_are_numbered():
    assert numbered_search._managed_world_model(build_model(kv_cache=kv_cache(mode='legacy'))) is None
    world_model = numbered_search._managed_world_model(build_model(kv_cache=kv_cache()))
    assert isinstance(world_model, KVCacheWorldModelMixin)
