"""What LightZero's main branch has and the release has not, with the managed cache."""
import copy
import logging

import numpy as np
import pytest
import torch
from ding.config import compile_config
from ding.utils import POLICY_REGISTRY
from easydict import EasyDict
from lightzeros import IS_MAIN, simulations
from lzero.entry import eval_muzero, train_unizero_segment
from lzero.model.unizero_model import UniZeroModel
from models import build_model, kv_cache, model_config, observations, random_action
from oracle import Oracle
from searches import PREDICTIONS, replay, search
from test_policies import Environments, build_policy
from test_world_model import play_irregularly
from training import call_entry, check_training, small_configs, train

from lzero_kvcache import KVCacheConfig
from lzero_kvcache.lightzero.main_config import cache_config
from lzero_kvcache.world_model import KVCacheWorldModelMixin
from lzero_kvcache.world_model.numbered_inference import NumberedInference

needs_main = pytest.mark.skipif(not IS_MAIN, reason="the installed LightZero is not the main branch's")
MOE = dict(moe_in_transformer=True, num_experts_of_moe_in_transformer=4, num_experts_per_tok=2)
LORA = dict(
    lora_r=4, lora_alpha=2, lora_dropout=0.1, lora_target_modules=['attn', 'feed_forward'], curriculum_stage_num=3,
    lora_scale_init=1.
)


class TestConfig:
    """Keys of the cache that main has itself."""

    @pytest.mark.parametrize('switch', [True, False])
    def test_its_switch_between_two_caches_says_nothing_of_the_mode(self, switch):
        config = cache_config(EasyDict(use_new_cache_manager=switch, kv_cache=dict(strategy='lru')))
        assert (config.mode, config.strategy) == ('managed', 'lru')
        assert cache_config(EasyDict(use_new_cache_manager=switch)) is None

    def test_the_older_spelling_of_validate_stays(self):
        assert cache_config(EasyDict(cache_validation_mode=True)).mode == 'validate'

    @pytest.mark.parametrize('given', [dict(), dict(window='rebuild'), KVCacheConfig()])
    def test_its_exact_window_means_rebuild(self, given):
        config = cache_config(EasyDict(dict(), kv_cache=given, rebuild_kv_window_from_tokens=True))
        assert config.window == 'rebuild'

    def test_two_windows_contradict_each_other(self):
        with pytest.raises(ValueError, match=(
                r"kv_cache\.window is 'shift', but policy\.model\.world_model_cfg\.rebuild_kv_window_from_tokens is "
                r"True, .*allowed is policy\.model\.world_model_cfg\.kv_cache\.window='rebuild'"
        )):
            cache_config(EasyDict(kv_cache=dict(window='shift'), rebuild_kv_window_from_tokens=True))

    def test_a_window_that_forgets_all_but_the_latest_is_refused(self):
        with pytest.raises(ValueError, match=r'world_model_cfg\.exact_kv_window_reset is True, .*allowed is False'):
            cache_config(EasyDict(kv_cache=dict(), exact_kv_window_reset=True))

    @pytest.mark.parametrize('given', [None, dict(mode='legacy')])
    @pytest.mark.parametrize('key', ['rebuild_kv_window_from_tokens', 'exact_kv_window_reset'])
    def test_without_a_managed_cache_they_are_mains_business(self, given, key):
        config = cache_config(EasyDict(dict(), kv_cache=given, **{key: True}))
        assert config is None or config == KVCacheConfig(mode='legacy')


@needs_main
class TestModels:

    def test_what_main_cannot_build_is_mended_and_said_once(self):
        from lzero_kvcache.lightzero import main_models

        main_models._say_that_models_are_mended.cache_clear()
        messages = []
        handler = logging.Handler()
        handler.emit = lambda record: messages.append(record.getMessage())
        logging.getLogger('lzero_kvcache').addHandler(handler)
        try:
            UniZeroModel(**model_config('vector', gru_gating=True))
            UniZeroModel(**model_config('vector'))
        finally:
            logging.getLogger('lzero_kvcache').removeHandler(handler)
        assert [message for message in messages if 'is mended' in message] == [
            "LightZero's main branch is mended: models of vector observations and gated transformers can be built. "
            'Said once.'
        ]

    @pytest.mark.parametrize('method', [
        'hard', 'soft_tanh', 'soft_sigmoid', 'normalize_max', 'normalize_mean', 'adaptive', 'none'
    ])
    def test_clipped_policy_logits(self, method):
        options = dict(
            use_policy_logits_clip=True, policy_logits_clip_method=method, policy_logits_clip_min=-0.3,
            policy_logits_clip_max=0.2, policy_logits_soft_beta=0.7
        )
        model = build_model(observation='image', kv_cache=kv_cache(), **options)
        assert play_irregularly(model, num_simulations=4).compared > 100

    @pytest.mark.parametrize('options', [
        MOE, dict(MOE, n_shared_experts=1), dict(MOE, rotary=True),
        dict(MOE, moe_in_transformer=False, multiplication_moe_in_transformer=True, moe_use_lora=False),
    ], ids=['experts', 'and a shared one', 'rotary', 'multiplied'])
    @pytest.mark.parametrize('window', ['shift', 'rebuild'])
    def test_mixtures_of_experts(self, window, options):
        model = build_model(observation='image', kv_cache=kv_cache(window=window), **options)
        assert play_irregularly(model, num_simulations=4).compared > 100

    @pytest.mark.parametrize('window', ['shift', 'rebuild'])
    @pytest.mark.parametrize('stage', [0, 1, 2])
    def test_lora_adapters(self, stage, window):
        from lzero.model.unizero_world_models.transformer import set_curriculum_stage

        model = build_model(observation='image', kv_cache=kv_cache(window=window), **LORA)
        set_curriculum_stage(model, stage)
        assert play_irregularly(model, num_simulations=4).compared > 100

    def test_rotary_positions_beyond_the_table(self):
        model = build_model(observation='image', rotary=True, kv_cache=kv_cache(), max_seq_len=4)
        assert len(model.world_model.transformer.freqs_cis) == 8
        episodes = play_irregularly(model)
        assert episodes.compared > 200

    def test_root_inferences_are_told_whose_observations_they_are_given(self):
        """By main's own call, without a policy."""
        model = build_model(observation='image', kv_cache=kv_cache())
        generator = torch.Generator().manual_seed(1)
        frames = observations(model, 4, generator)
        model.initial_inference(torch.zeros_like(frames[:2]), [-1, -1], frames[:2], [0, 0], ready_env_id=[3, 1])
        root = model.initial_inference(frames[:2].flip(0), [2, 0], frames[2:], [1, 1], ready_env_id=[1, 3])
        for row, (last, action) in enumerate([(frames[1], 2), (frames[0], 0)]):
            context = Oracle(model.world_model)
            context.add_observation(last, 0)
            context.add_action(action, 1)
            context.add_observation(frames[2 + row], 1)
            expected = context.policy_and_value()['policy'][0]
            torch.testing.assert_close(root.policy_logits[row], expected, atol=1e-4, rtol=0)
        assert model.world_model.kv_cache_inference.root_stats.cold_starts == 0

    @pytest.mark.parametrize('manager', [True, False], ids=["main's new cache", "main's old cache"])
    @pytest.mark.parametrize('given', [dict(), dict(kv_cache=dict(mode='legacy'))], ids=['no key', 'legacy'])
    def test_without_a_managed_cache_mains_own_runs(self, manager, given):
        model = build_model(observation='image', use_new_cache_manager=manager, **given)
        world_model = model.world_model
        assert (world_model.kv_cache_manager is not None) == manager and world_model.kv_cache_inference.manager is None
        frame = observations(model, 1, torch.Generator().manual_seed(0))
        root = model.initial_inference(frame, [-1], frame, [0])
        search(model, root, [np.array(0)], 3)
        model.world_model.clear_caches()

    @pytest.mark.parametrize('manager', [True, False])
    def test_a_managed_cache_takes_the_place_of_either(self, manager):
        model = build_model(observation='image', use_new_cache_manager=manager, kv_cache=kv_cache())
        assert type(model.world_model.kv_cache_manager).__module__ == 'lzero_kvcache.manager'
        assert play_irregularly(model, num_simulations=2).compared > 50
        model.world_model.clear_caches()
        assert copy.deepcopy(model).world_model.kv_cache_manager is not model.world_model.kv_cache_manager

    def test_nothing_is_added_to_a_checkpoint(self):
        stock = UniZeroModel(**model_config('image'))
        assert list(build_model(observation='image', kv_cache=kv_cache()).state_dict()) == list(stock.state_dict())

    def test_losses_with_rollouts_of_their_own_are_the_stock_ones(self):
        options = dict(
            rebuild_kv_window_from_tokens=True, open_loop_diagnostic_freq=1, open_loop_consistency_loss_weight=0.5,
            open_loop_consistency_horizon=4,
        )
        model = build_model(observation='image', kv_cache=kv_cache(), **options)
        stock = build_model(observation='image', **options)
        play_irregularly(model, num_simulations=2)
        generator = torch.Generator().manual_seed(4)
        sequences, steps = 2, 10
        frames = torch.rand(sequences * (steps + 1), 3, 64, 64, generator=generator)
        actions = torch.randint(3, (sequences, steps), generator=generator)
        losses = []
        for world_model in (model.world_model, stock.world_model):
            latents = world_model.tokenizer.encode_to_obs_embeddings(frames).detach()
            mask = torch.ones(sequences, steps + 1, dtype=torch.bool)
            losses.append(world_model.compute_open_loop_latent_diagnostics(latents, latents, actions, mask))
        assert losses[0] == losses[1] and losses[0]['open_loop_latent_mse_last'] > 0


@needs_main
class TestPolicies:

    def test_sizes_hold_the_longest_search(self):
        policy = build_policy(observation='image', kv_cache=kv_cache(), num_simulations=6)
        longer = copy.deepcopy(policy._cfg)
        longer.eval_num_simulations = 9
        manager = type(policy)(longer)._model.world_model.kv_cache_manager
        assert manager.recur_pool.pool_size == 4 * 9

    def test_a_policy_that_does_not_learn_can_be_made(self):
        policy = build_policy(kv_cache=kv_cache())
        for fields in (['collect'], ['eval']):
            assert type(policy)(copy.deepcopy(policy._cfg), enable_field=fields).pad_token_id == 0

    @pytest.mark.parametrize('name', ['unizero', 'sampled_unizero'])
    def test_last_steps_keep_their_numbers(self, name):
        """Main keeps vectors as integers."""
        policy = build_policy(name, kv_cache=kv_cache(), context_length=20)
        environments = Environments(policy, 'collect')
        for env_ids in ([0, 1, 2], [2, 0], [1, 3, 0]):
            environments.step(env_ids)
        assert policy._model.world_model.kv_cache_inference.root_stats.cold_starts == 0

    def test_a_task_is_passed_on(self):
        policy = build_policy(observation='image', kv_cache=kv_cache())
        data = torch.rand(2, 3, 64, 64)
        output = policy.eval_mode.forward(
            data, [np.ones(3)] * 2, [-1] * 2, ready_env_id=[0, 1], timestep=[np.array(0)] * 2, task_id=None
        )
        assert set(output) == {0, 1}
        policy.eval_mode.reset(task_id=None)
        assert policy._model.world_model.kv_cache_inference.histories.running('eval') == 0

    def test_a_search_returns_the_latent_states_that_roots_lead_to(self, monkeypatch):
        policy = build_policy(observation='image', kv_cache=kv_cache(), num_simulations=2)
        seen, stock_search = [], policy._mcts_collect.search

        def watched(*args):
            seen.append(stock_search(*args))
            return seen[-1]

        monkeypatch.setattr(policy._mcts_collect, 'search', watched)
        policy.collect_mode.forward(
            torch.rand(2, 3, 64, 64), [np.ones(3)] * 2, 1., [-1] * 2, 0., ready_env_id=[0, 1],
            timestep=[np.array(0)] * 2
        )
        running = policy._model.world_model.kv_cache_inference.search
        for row, latents in seen[0].items():
            untried = set(range(3)) - set(latents)
            assert untried and all(latents[action] is None for action in untried)
            for action, latent in latents.items():
                children = np.flatnonzero(
                    (running.nodes.parents[:running.nodes.num_nodes] == row)
                    & (running.nodes.actions[:running.nodes.num_nodes] == action)
                )
                assert torch.equal(latent, running.tensors.latents[int(children[0])])


@needs_main
class TestOtherPolicies:

    def test_ppo_goes_on_from_cached_contexts(self):
        policy = build_policy('unizero_ppo', observation='image', kv_cache=kv_cache(), context_length=20)
        for phase, seed in (('collect', 1), ('eval', 2)):
            environments = Environments(policy, phase, seed=seed)
            for env_ids in ([0, 1, 2], [2, 0], [1, 2, 0]):
                environments.step(env_ids)
            assert environments.context_lengths[-1] == 5
        inference = policy._model.world_model.kv_cache_inference
        assert inference.root_stats.cold_starts == 0 and inference.root_stats.continuing == 10

    def test_several_tasks_are_refused(self):
        config = dict(policy=dict(type='unizero_multitask', import_names=['lzero_kvcache.plugin']))
        with pytest.raises(ValueError, match=(
                'unizero_multitask, sampled_unizero_multitask, which have no managed cache: .* Leave kv_cache out'
        )):
            compile_config(EasyDict(config), policy=POLICY_REGISTRY.get('unizero_multitask'), save_cfg=False)


@needs_main
class TestReanalysis:
    """Roots of the replay buffer whose contexts are given."""

    sequences, steps = 3, 4

    def begin(self, model, seed=0):
        generator = torch.Generator().manual_seed(seed)
        world_model = model.world_model
        world_model.reanalyze_phase = True
        count = self.sequences * (self.steps + 1)
        latents = world_model.tokenizer.encode_to_obs_embeddings(observations(model, count, generator))
        actions = np.array([
            [random_action(model, generator) for _ in range(self.steps)] for _ in range(self.sequences)
        ])
        before = world_model.tokenizer.encode_to_obs_embeddings(observations(model, self.sequences, generator))
        contexts = world_model.build_reanalysis_root_token_contexts(
            latents, actions, self.steps + 1, [[latent] for latent in before],
            [[random_action(model, generator)] for _ in range(self.sequences)]
        )
        return latents, contexts

    @torch.no_grad()
    @pytest.mark.parametrize('pools', [{}, dict(recur_pool=dict(size=3), wm_pool=dict(size=1))], ids=['all', 'tiny'])
    @pytest.mark.parametrize('window', ['shift', 'rebuild'])
    @pytest.mark.parametrize('options', [
        dict(observation='image'), dict(), dict(rotary=True), dict(actions='continuous')
    ], ids=str)
    def test_nodes_go_on_from_what_is_given(self, options, window, pools):
        model = build_model(kv_cache=kv_cache(window=window, **pools), **options)
        world_model = model.world_model
        latents, contexts = self.begin(model)
        policy = world_model.seed_reanalysis_root_caches(latents.numpy(), contexts)
        assert len(latents) > world_model.env_num
        roots, nodes = [], []
        for row, tokens in enumerate(contexts):
            context = Oracle(world_model)
            for place, token in enumerate(tokens):
                context.add_latent(token[None], place)
            roots.append(context)
            expected = context.policy_and_value()['policy'][0]
            torch.testing.assert_close(torch.tensor(policy[row]), expected, atol=1e-4, rtol=0)
        nodes.append(roots)
        largest = 0.

        def compare(expansion, output):
            nonlocal largest
            children = []
            for row, parent in enumerate(expansion.parents):
                context = nodes[parent][row].copy()
                last = context.positions[-1]
                context.add_action(expansion.actions[row].numpy(), last + 1)
                expected = [context.reward_and_next_token()['reward']]
                context.add_latent(output.latent_state[row], last + 2)
                expected += context.policy_and_value().values()
                for mine, name in zip(expected, ('reward', 'policy_logits', 'value')):
                    largest = max(largest, float((getattr(output, name)[row] - mine.reshape(-1)).abs().max()))
                if len(context) >= world_model.context_length - 1:
                    kept = world_model.context_length - 3
                    context.shift(kept) if window == 'shift' else context.encode_again(kept)
                children.append(context)
            nodes.append(children)

        root = EasyDict()
        root.latent_state, root.policy_logits = latents, torch.tensor(policy)
        search(model, root, [np.array(step) for step in range(len(latents))], 8, compare)
        assert largest < 1e-4
        if pools:
            assert world_model.kv_cache_inference.rebuild_stats.rebuilds > 0
        assert world_model.reanalysis_root_seed_count == world_model.reanalysis_root_seed_hit_count == len(latents)

    @torch.no_grad()
    def test_they_are_those_of_main(self):
        """In parts, as main has room for few, and inside its window."""
        options = dict(observation='image', context_length=20, env_num=4)
        model, stock = build_model(kv_cache=kv_cache(), **options), build_model(**options)
        latents, contexts = self.begin(model)
        stock.world_model.reanalyze_phase = True
        # Which main deletes before it sets it.
        stock.world_model.latent_state = None
        for first in range(0, len(latents), 4):
            part = slice(first, min(first + 4, len(latents)))
            count = part.stop - first
            stock.world_model.clear_caches()
            policies = [
                twin.world_model.seed_reanalysis_root_caches(latents[part].numpy(), contexts[part])
                for twin in (model, stock)
            ]
            np.testing.assert_allclose(*policies, atol=1e-5)
            root = EasyDict()
            root.latent_state, root.policy_logits = latents[part], torch.tensor(policies[0])
            timesteps = [np.array(step) for step in range(count)]
            watched = search(model, root, timesteps, 8)
            nodes = replay(stock, root, timesteps, watched.expansions, range(count))
            for mine, theirs in zip(watched.outputs, nodes):
                for name in PREDICTIONS:
                    torch.testing.assert_close(mine[name], theirs[name], atol=1e-4, rtol=0)

    def test_what_does_not_fit_together_is_refused(self):
        model = build_model(observation='image', kv_cache=kv_cache())
        latents, contexts = self.begin(model)
        with pytest.raises(ValueError, match='14 contexts came with 15 roots: needed is one for each'):
            model.world_model.seed_reanalysis_root_caches(latents.detach(), contexts[:-1])
        with pytest.raises(ValueError, match='the context of root 0 has 7 tokens: allowed are 1 to 6'):
            model.world_model.seed_reanalysis_root_caches(latents.detach()[:1], [torch.zeros(7, 64)])


@needs_main
@pytest.mark.slow
class TestTraining:
    """Stock entries, two edited lines."""

    @pytest.mark.parametrize('config, options', [
        ('cartpole_unizero_config', dict(reanalyze_ratio=0.5)),
        ('pendulum_sampled_unizero_config', simulations(30)),
        ('atari_unizero_config', dict(reanalyze_ratio=0.5)),
    ], ids=['CartPole', 'Pendulum', 'Pong'])
    def test_train_unizero(self, config, options, tmp_path):
        run = train(config, tmp_path, dict(strategy='lru', log_interval=1), **options)
        check_training(run)
        assert isinstance(run.world_model, KVCacheWorldModelMixin)
        assert run.world_model.kv_cache_inference.root_stats.cold_starts == 0

    @pytest.mark.parametrize('contextual', [False, True], ids=['plain', 'contextual'])
    def test_segments_with_reanalysis(self, contextual, tmp_path, monkeypatch):
        phases, begin = [], NumberedInference._begin_search

        def watched(self, forward, phase, *args):
            phases.append(phase)
            return begin(self, forward, phase, *args)

        monkeypatch.setattr(NumberedInference, '_begin_search', watched)
        run = train(
            'atari_unizero_segment_config', tmp_path, dict(strategy='tree'), entry=train_unizero_segment,
            reanalyze_ratio=0.5, contextual_reanalysis=contextual, bootstrap_value_context=contextual
        )
        check_training(run)
        assert 'reanalyze' in phases
        seeded = run.policy._target_model.world_model.reanalysis_root_seed_count
        assert (seeded > 0) == contextual

    def test_collectors_beside_the_learner(self, tmp_path, capfd):
        """In processes of their own, to which new weights come between searches."""
        pytest.importorskip('ray')
        from lzero.entry import train_unizero_segment_async

        configs = small_configs(
            'atari_unizero_segment_config', dict(strategy='lru', log_interval=1), buffer_reanalyze_freq=0
        )
        call_entry(train_unizero_segment_async, tmp_path, configs, max_env_step=80, max_train_iter=8)
        assert (tmp_path / 'run/ckpt/iteration_8.pth.tar').exists()
        shown = ''.join(capfd.readouterr())
        assert shown.count('kv_cache, collect') > 10 and shown.count('kv_cache, eval') > 10

    def test_eval_muzero_and_checkpoints_both_ways(self, tmp_path):
        """Trained with the plugin, evaluated with and without it, and trained on by main alone."""
        run = train('cartpole_unizero_config', tmp_path, dict())
        for stock in (False, True):
            folder = tmp_path / f'eval_{stock}'
            folder.mkdir()
            configs = small_configs('cartpole_unizero_config', None if stock else dict(), stock)
            returns, _ = call_entry(
                eval_muzero, folder, configs, stock, model_path=run.checkpoint, num_episodes_each_seed=1
            )
            assert np.isfinite(returns).all()
        folder = tmp_path / 'stock'
        folder.mkdir()
        trained_on = train('cartpole_unizero_config', folder, None, stock=True, model_path=run.checkpoint)
        folder = tmp_path / 'back'
        folder.mkdir()
        check_training(train('cartpole_unizero_config', folder, dict(), model_path=trained_on.checkpoint))
