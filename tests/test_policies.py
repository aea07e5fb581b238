"""The policies: registered under the stock names, real environment ids, one history per environment and phase."""
from copy import deepcopy

import numpy as np
import pytest
import torch
from ding.policy import create_policy
from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY, deep_merge_dicts
from easydict import EasyDict
from lightzeros import IS_MAIN, simulations
from lzero.model.unizero_model import UniZeroModel
from lzero.model.unizero_world_models.world_model import WorldModel
from models import kv_cache, model_config, observations
from oracle import Oracle

from lzero_kvcache.plugin import SampledUniZeroKVCachePolicy, UniZeroKVCachePolicy
from lzero_kvcache.world_model import KVCacheWorldModelMixin

TOLERANCE = 1e-4
NAMES = {'unizero': UniZeroKVCachePolicy, 'sampled_unizero': SampledUniZeroKVCachePolicy}


def build_policy(name='unizero', model=None, **options):
    """A real policy with a small model whose heads are randomised."""
    torch.manual_seed(0)
    actions = 'continuous' if name == 'sampled_unizero' else 'discrete'
    policy_options = {
        key: options.pop(key) for key in ('collector_env_num', 'evaluator_env_num') if key in options
    }
    policy_options.update(simulations(options.pop('num_simulations', 6)))
    changes = EasyDict(
        type=name, import_names=['lzero_kvcache.plugin'], cuda=False, device='cpu', use_wandb=False,
        collector_env_num=4, evaluator_env_num=3, game_segment_length=50, collect_with_pure_policy=False,
        model=model_config(actions=actions, **options)
    )
    changes.update(policy_options)
    policy = create_policy(deep_merge_dicts(POLICY_REGISTRY.get(name).default_config(), changes), model=model)
    for parameter in policy._model.world_model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    return policy


def fail(*arguments):
    raise RuntimeError('no luck')


class Environments:
    """Feeds a policy observations and compares its root predictions with the oracle."""

    def __init__(self, policy, phase, seed=0, timesteps='counted', reuses_buffers=False):
        self._policy = policy
        self._timesteps = timesteps
        self._buffer = None
        self._reuses_buffers = reuses_buffers
        self._mode = getattr(policy, f'{phase}_mode')
        self._world_model = policy._model.world_model
        self._generator = torch.Generator().manual_seed(seed)
        self._contexts = {}
        self._last = {}
        self._first_timesteps = {}
        self.context_lengths = []

    def step(self, env_ids):
        self._search(env_ids, self._observations(len(env_ids)))

    def step_again(self, env_ids):
        """A step whose search breaks off, and is taken again."""
        data = self._observations(len(env_ids))
        with pytest.MonkeyPatch.context() as patch, pytest.raises(RuntimeError, match='no luck'):
            patch.setattr(self._policy._mcts_collect, 'search', fail)
            self._search(env_ids, data)
        self._search(env_ids, data)

    def begin_anew(self, env_id, timestep):
        """An environment begins an episode at a timestep, and nobody tells the policy."""
        del self._contexts[env_id], self._last[env_id]
        self._first_timesteps[env_id] = timestep

    def _observations(self, rows):
        data = observations(self._policy._model, rows, self._generator)
        if not self._reuses_buffers:
            return data
        self._buffer = data if self._buffer is None else self._buffer.copy_(data)
        return self._buffer

    def _search(self, env_ids, data):
        timesteps = [
            np.array(self._last[env_id][1] + 1 if env_id in self._last else self._first_timesteps.get(env_id, 0))
            for env_id in env_ids
        ]
        given = {
            'counted': dict(timestep=timesteps), 'none': dict(timestep=[np.array(-1)] * len(env_ids)), 'left out': {},
            'standing still': dict(timestep=[np.array(5)] * len(env_ids)),
        }[self._timesteps]
        masks = [np.ones(self._world_model.action_space_size)] * len(env_ids)
        arguments = (data, masks, 1., [-1] * len(env_ids), 0.) if 'collect' in str(self._mode.forward) else (
            data, masks, [-1] * len(env_ids)
        )
        output = self._mode.forward(*arguments, ready_env_id=env_ids, **given)
        assert list(output) == list(env_ids)
        for row, env_id in enumerate(env_ids):
            context = self._contexts.setdefault(env_id, Oracle(self._world_model))
            if env_id in self._last:
                context.add_action(self._last[env_id][0], 2 * timesteps[row] - 1)
            with torch.no_grad():
                context.add_observation(data[row], timesteps[row])
            expected = context.policy_and_value()['policy'][0]
            predicted = torch.tensor(output[env_id]['predicted_policy_logits'])
            torch.testing.assert_close(predicted, expected.float(), atol=TOLERANCE, rtol=0)
            self._last[env_id] = (deepcopy(output[env_id]['action']), int(timesteps[row]))
            if self._reuses_buffers and isinstance(output[env_id]['action'], np.ndarray):
                output[env_id]['action'].fill(0)
            self.context_lengths.append(len(context.tokens))
            self._mode.reset(env_id=env_id, current_steps=self._last[env_id][1] + 1, reset_init_data=False)

    def end(self, env_id):
        del self._contexts[env_id], self._last[env_id]
        self._mode.reset([env_id])


@pytest.mark.parametrize('name', NAMES)
def test_the_registries_resolve_the_plugin(name):
    assert POLICY_REGISTRY.get(name) is NAMES[name]
    policy = build_policy(name, kv_cache=kv_cache())
    model_name, import_names = policy.default_model()
    assert import_names == ['lzero_kvcache.plugin']
    # What torch.compile has wrapped, where LightZero lets it.
    model = getattr(policy._model, '_orig_mod', policy._model)
    assert isinstance(model, MODEL_REGISTRY.get(model_name))


@pytest.mark.parametrize('rotary', [False, True])
@pytest.mark.parametrize('name', NAMES)
def test_histories_belong_to_environments(name, rotary):
    policy = build_policy(name, rotary=rotary, context_length=20, kv_cache=kv_cache())
    collect, evaluation = Environments(policy, 'collect', seed=1), Environments(policy, 'eval', seed=2)
    collect.step([0, 1, 2, 3])
    evaluation.step([0, 1, 2])
    collect.step([3, 1])
    evaluation.step([2, 0, 1])
    collect.end(1)
    collect.step([2, 1, 0, 3])
    collect.end(3)
    evaluation.end(0)
    collect.step([3])
    evaluation.step([1, 0])
    collect.step([1, 0, 3, 2])
    evaluation.step([0, 1, 2])
    assert max(collect.context_lengths) == 5
    assert max(evaluation.context_lengths) == 7


@pytest.mark.parametrize('phase', ['collect', 'eval'])
@pytest.mark.parametrize('name', NAMES)
def test_a_loop_may_reuse_its_buffers(name, phase):
    policy = build_policy(name, context_length=20, kv_cache=kv_cache())
    environments = Environments(policy, phase, reuses_buffers=True)
    for _ in range(4):
        environments.step([0, 1, 2])
    policy._model.world_model.clear_caches()
    environments.step([0, 1, 2])
    assert environments.context_lengths[-1] == 9
    assert policy._model.world_model.kv_cache_inference.root_stats.cold_starts == 0


def test_a_full_reset_forgets_its_own_phase_only():
    policy = build_policy(kv_cache=kv_cache(), context_length=20)
    collect, evaluation = Environments(policy, 'collect', seed=1), Environments(policy, 'eval', seed=2)
    collect.step([0, 1])
    evaluation.step([0, 1])
    policy.eval_mode.reset()
    evaluation._contexts.clear()
    evaluation._last.clear()
    evaluation.step([0, 1])
    collect.step([0, 1])
    assert collect.context_lengths[-1] == 3


@pytest.mark.parametrize('of_world_model', [4, 8])
def test_sizes_come_from_the_policy_whatever_the_world_model_config_says(of_world_model):
    manager = build_policy(
        kv_cache=kv_cache(), num_simulations=70, collector_env_num=6, env_num=of_world_model
    )._model.world_model.kv_cache_manager
    assert manager.env_num == len(manager.init_pools) == 6
    assert manager.recur_pool.pool_size == 70 * 6
    assert manager.init_pools[0].pool_size == 50
    assert manager.wm_pool.pool_size == 6


@pytest.mark.parametrize('options', [dict(), dict(kv_cache=kv_cache(mode='legacy'))])
def test_without_a_managed_cache_the_stock_policy_runs(options):
    policy = build_policy(**options)
    assert policy._model.world_model.kv_cache_manager is None
    data = torch.zeros(4, 5)
    output = policy.collect_mode.forward(
        data, [np.ones(3)] * 4, 1., [-1] * 4, 0., ready_env_id={0, 1, 2, 3}, timestep=[np.array(0)] * 4
    )
    assert set(output) == {0, 1, 2, 3}
    policy.collect_mode.reset([0])
    if IS_MAIN:
        assert policy.last_batch_action_collect[0] == -1 and -1 not in policy.last_batch_action_collect[1:]
    else:
        assert policy.last_batch_action == [-1] * 4


def test_a_stock_model_given_to_the_policy_gets_the_cache():
    model = UniZeroModel(**model_config(kv_cache=kv_cache()))
    policy = build_policy(model=model, kv_cache=kv_cache())
    assert isinstance(policy._model.world_model, KVCacheWorldModelMixin)
    assert policy._model.world_model.kv_cache_manager is not None


def test_a_world_model_that_the_cache_does_not_know_is_refused():

    class CustomWorldModel(WorldModel):
        pass

    def model(**options):
        model = UniZeroModel(**model_config(**options))
        model.world_model.__class__ = CustomWorldModel
        return model

    with pytest.raises(ValueError, match='kv_cache is set, but the world model is a CustomWorldModel'):
        build_policy(model=model(kv_cache=kv_cache()))
    assert type(build_policy(model=model())._model.world_model) is CustomWorldModel


@pytest.mark.parametrize('wrong, message', [
    (dict(stratgy='lru'), r"kv_cache\.stratgy is 'lru', .* did you mean 'strategy'\?"),
    (dict(strategy='lruu'), r"kv_cache\.strategy is 'lruu', .* did you mean 'lru'\?"),
    (dict(recur_pool=dict(size=0)), r'kv_cache\.recur_pool\.size is 0: allowed is an integer of at least 1'),
    (dict(strategy=dict(type='priority', score='depht')), r"kv_cache\.strategy\.score is 'depht', .* allowed are "),
    (dict(strategy=dict(type='priority', score='os.nothing')), r"kv_cache\.strategy\.score is 'os.nothing'"),
    (dict(strategy=dict(type='priority', score=None)), r'kv_cache\.strategy\.score is None, which is no score'),
    (dict(wm_pool=dict(strategy=dict(type='priority', score='x'))), r"kv_cache\.wm_pool\.strategy\.score is 'x'"),
    (dict(mode='legacy', init_pool=dict(strategy=dict(type='priority', score='x'))), r'kv_cache\.init_pool\.strategy'),
])
def test_a_wrong_config_is_refused_when_the_policy_is_made(wrong, message):
    with pytest.raises(ValueError, match=message):
        build_policy(kv_cache=EasyDict(wrong))


@pytest.mark.parametrize('multi_gpu', [False, True])
def test_several_processes_need_no_context_of_their_own(multi_gpu, monkeypatch):
    mended = []
    monkeypatch.setattr('lzero_kvcache.plugin.policy_hook.mend_release', lambda: mended.append(True))
    config = deep_merge_dicts(UniZeroKVCachePolicy.default_config(), EasyDict(
        type='unizero', cuda=False, device='cpu', collector_env_num=1, evaluator_env_num=1, use_wandb=False,
        game_segment_length=50, model=model_config(kv_cache=kv_cache()), multi_gpu=multi_gpu
    ))
    UniZeroKVCachePolicy(config, enable_field=['collect'])
    assert mended == [True] * multi_gpu
