"""Mode 'validate': what it compares, what it cannot compare and why, and what it does at a difference."""
import numpy as np
import pytest
import torch
from lightzeros import IS_MAIN, of_release
from models import build_model, kv_cache, observations, random_action, two_tokens_per_observation
from searches import search
from test_world_model import MODELS

from lzero_kvcache.world_model import release_limits, stock_caches, validated
from lzero_kvcache.world_model.managed import ManagedInference
from lzero_kvcache.world_model.validation_report import KVCacheMismatchError, StockInferenceError


class Player:
    """Plays environments in batches whose rows the caller picks."""

    def __init__(self, seed=0, first_timestep=0, has_timesteps=True, **options):
        self.model = build_model(seed=seed, **options)
        self._first_timestep = first_timestep
        self._has_timesteps = has_timesteps
        self.report = self.model.world_model.kv_cache_inference.report
        self._generator = torch.Generator().manual_seed(seed)
        self._last = {}

    @torch.no_grad()
    def step(self, env_ids, num_simulations=0):
        current = observations(self.model, len(env_ids), self._generator)
        beginning = (torch.zeros_like(current[0]), -1, self._first_timestep - 1)
        last = [self._last.get(env_id, beginning) for env_id in env_ids]
        timesteps = [np.array(step + 1 if self._has_timesteps else -1) for _, _, step in last]
        with self.model.world_model.kv_cache_roots('collect', env_ids):
            root = self.model.initial_inference(
                torch.stack([observation for observation, _, _ in last]), [action for _, action, _ in last], current,
                timesteps
            )
        if num_simulations:
            search(self.model, root, timesteps, num_simulations)
        for row, env_id in enumerate(env_ids):
            self._last[env_id] = (current[row], random_action(self.model, self._generator), int(timesteps[row]))
        return root

    def end(self, env_id):
        del self._last[env_id]
        self.model.world_model.kv_cache_inference.forget('collect', [env_id])


@pytest.fixture(params=MODELS, ids=str)
def model_options(request):
    return MODELS[request.param]


def test_everything_agrees_for_one_environment(model_options):
    """In a batch of one all lengths are equal, so every row can be compared, inside the window and past it."""
    cache = kv_cache(mode='validate', rope_positions='release')
    player = Player(kv_cache=cache, context_length=8, **model_options)
    for _ in range(5):
        player.step([0], 10)
    assert player.report.agreed == 5 * 11
    assert player.report.differed == 0 and not player.report.not_compared


@torch.no_grad()
def expand_root_and_child(player):
    """One row expands a root, the other a root's child: contexts of one and of three tokens."""
    root = player.step([0, 1])
    child = player.model.recurrent_inference(
        [(root.latent_state.numpy(), torch.tensor([1, 1]))], 0, [1, 1], [np.array(0)] * 2
    )
    mixed = torch.stack([root.latent_state[0], child.latent_state[1]]).numpy()
    player.model.recurrent_inference([(mixed, torch.tensor([2, 2]))], 1, [1, 2], [np.array(0)] * 2)


@of_release('it pads without a mask')
def test_unequal_lengths_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20)
    expand_root_and_child(player)
    assert player.report.not_compared == {stock_caches.PADDED: 1}
    assert player.report.agreed == 5


@of_release('it takes no mixed batch')
def test_first_steps_beside_running_episodes_crash_the_release_and_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20)
    player.step([0, 1])
    player.end(1)
    player.step([0, 1], 4)
    assert player.report.not_compared == {validated.MIXED: 2 * 5}


def test_a_history_that_changes_owner_is_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20)
    player.step([0, 1])
    player.step([1, 0])
    assert player.report.not_compared == {stock_caches.NO_HISTORY: 2}


def test_keys_that_collide_in_the_release_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20, randomise=False)
    player.step([0, 1], 10)
    assert player.report.not_compared[stock_caches.WRONG_ENTRY] > 0
    assert player.report.agreed > 0


@of_release('its keys outlive their entries')
def test_searches_longer_than_the_release_knows_of_are_not_compared_where_it_overwrites():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20, env_num=1, num_simulations=5)
    for _ in range(3):
        player.step([0], 40)
    assert player.report.not_compared[stock_caches.WRONG_ENTRY] > 0
    assert set(player.report.not_compared) <= {stock_caches.WRONG_ENTRY, validated.MISS}


def test_position_tables_of_other_weights_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=8)
    torch.nn.init.normal_(player.model.world_model.pos_emb.weight, std=0.5)
    for _ in range(5):
        player.step([0])
    assert player.report.agreed == 4
    assert player.report.not_compared == {validated.STALE_TABLES: 1}


def test_keys_and_values_of_other_weights_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20)
    player.step([0], 5)
    with torch.no_grad():
        for block in player.model.world_model.transformer.blocks:
            block.attn.key.weight.mul_(1.5)
    player.step([0], 5)
    assert player.report.agreed == 6
    assert player.report.not_compared == {stock_caches.OLD_WEIGHTS: 6}


def test_tokens_that_the_release_misplaces_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), rotary=True)
    player.step([0], 5)
    assert (player.report.agreed, dict(player.report.not_compared)) == (1, {validated.MISPLACED: 5})
    assert validated.MISPLACED.startswith('stock fault: ')


def test_what_differs_by_design_is_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate', window='rebuild'), context_length=8)
    for _ in range(5):
        player.step([0])
    assert (player.report.agreed, dict(player.report.not_compared)) == (4, {validated.PAST_WINDOW: 1})


@pytest.mark.parametrize('depth', [0, 1, 3])
def test_a_difference_names_environment_depth_and_size(depth, monkeypatch):
    """A defect is planted in the managed value prediction, at one depth of one environment."""
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20)
    hook = 'initial' if depth == 0 else 'recurrent'
    original = getattr(ManagedInference, hook)
    at_depth = {'now': 0}

    def with_a_defect(*arguments):
        outputs = original(*arguments)
        at_depth['now'] = 0 if hook == 'initial' else at_depth['now'] + 1
        if at_depth['now'] == depth:
            outputs[4][0, 0, 7] += 0.25
        return outputs

    monkeypatch.setattr(ManagedInference, hook, with_a_defect)
    message = (
        rf'environment 2, depth {depth}: the managed value prediction differs from the stock one by 0\.25, '
        r'more than validation_tolerance 0\.0001'
    )
    with pytest.raises(KVCacheMismatchError, match=message):
        with torch.no_grad():
            current = observations(player.model, 1, torch.Generator())
            with player.model.world_model.kv_cache_roots('collect', [2]):
                output = player.model.initial_inference(current, [-1], current, [0])
            for level in range(1, 4):
                output = player.model.recurrent_inference(
                    [(output.latent_state.numpy(), torch.tensor([1]))], level - 1, [level], [0]
                )
    assert player.report.differed == 1


def test_the_tolerance_is_the_users():
    assert Player(kv_cache=kv_cache(mode='validate', validation_tolerance=0.5)).model is not None
    strict = Player(kv_cache=kv_cache(mode='validate', validation_tolerance=0.0), context_length=20)
    with pytest.raises(KVCacheMismatchError, match='more than validation_tolerance 0'):
        for _ in range(5):
            strict.step([0], 20)


def test_a_nan_never_agrees():
    player = Player(kv_cache=kv_cache(mode='validate'))
    with torch.no_grad():
        player.model.world_model.head_value.head_module[-1].bias[3] = float('nan')
    with pytest.raises(KVCacheMismatchError, match='differs from the stock one by nan'):
        player.step([0])


@of_release('it pads without a mask')
def test_the_report_reads_as_sentences():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=20)
    expand_root_and_child(player)
    text = str(player.report)
    assert text.startswith(f'{player.report.agreed} predictions agreed with the stock ones (largest difference ')
    assert 'not compared: stock fault: of unequal lengths' in text


def test_contexts_that_begin_anew_by_configuration_are_not_compared():
    player = Player(
        kv_cache=kv_cache(mode='validate', on_miss='reset', recur_pool=dict(size=2), wm_pool=dict(size=1)),
        context_length=20
    )
    for _ in range(4):
        player.step([0], 20)
    assert player.report.differed == 0 and player.report.agreed > 0
    assert player.report.not_compared[validated.BEGUN_ANEW] > 0


def test_observations_of_two_tokens_are_not_compared():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=14, tokens_per_block=3)
    two_tokens_per_observation(player.model)
    for _ in range(3):
        player.step([0], 5)
    assert player.report.not_compared == {validated.MANY_TOKENS: 3 * 6}


def what_the_release_cannot_run(steps=6, num_simulations=6, **options):
    player = Player(kv_cache=kv_cache(mode='validate'), **options)
    for _ in range(steps):
        player.step([0, 1], num_simulations)
    report = player.report
    assert report.differed == 0
    assert report.agreed + sum(report.not_compared.values()) == 2 * steps * (num_simulations + 1)
    return report


@pytest.mark.parametrize('rotary', [False, True], ids=['learned positions', 'rotary positions'])
@pytest.mark.parametrize('context_length', [5, 7])
def test_windows_of_odd_length_are_not_compared_once_they_are_full(context_length, rotary):
    report = what_the_release_cannot_run(context_length=context_length, rotary=rotary)
    assert report.agreed > 0
    assert set(report.not_compared) <= {release_limits.ODD_WINDOW, stock_caches.PADDED, validated.MISPLACED}
    assert report.not_compared[release_limits.ODD_WINDOW] > 20


@of_release('its attention ends at max_tokens')
def test_contexts_longer_than_the_releases_attention_are_not_compared():
    report = what_the_release_cannot_run(context_length=20, max_tokens=6, max_blocks=3, rotary=True)
    assert report.agreed > 0
    assert set(report.not_compared) <= {release_limits.TOO_LONG, stock_caches.PADDED, validated.MISPLACED}
    assert report.not_compared[release_limits.TOO_LONG] > 20


def test_an_episode_that_begins_anew_is_compared_again():
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=7)
    for _ in range(5):
        player.step([0])
    agreed = player.report.agreed
    assert player.report.not_compared
    player.end(0)
    player.step([0], 3)
    assert player.report.agreed > agreed


@pytest.mark.parametrize('dtype, reason', [
    (torch.bfloat16, release_limits.BFLOAT16), (torch.float16, release_limits.ROUNDED)
], ids=str)
def test_autocast(dtype, reason):
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=8)
    with torch.autocast('cpu', dtype):
        for _ in range(4):
            player.step([0], 6)
    assert player.report.not_compared == {reason: 4 * 7}


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_parameters_of_another_dtype_are_not_compared(dtype):
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=8)
    player.model.to(dtype)
    player.step([0], 4)
    player.step([0], 4)
    assert player.report.not_compared == {release_limits.NOT_FLOAT32: 2 * 5}


def test_what_the_release_fails_at_for_no_known_reason_is_not_counted_but_said(monkeypatch):
    player = Player(kv_cache=kv_cache(mode='validate'), context_length=8)
    player.step([0], 4)

    def fail(*arguments, **keywords):
        raise KeyError('a bug')

    monkeypatch.setattr(player.model.world_model, 'update_cache_context', fail)
    with pytest.raises(StockInferenceError, match=r"the stock code has failed \(KeyError: 'a bug'\)"):
        player.step([0])
    assert not player.report.not_compared


@pytest.mark.skipif(not IS_MAIN, reason="the installed LightZero is not the main branch's")
class TestOnMain:
    """What main does right is compared, what it does wrong is named."""

    @pytest.mark.parametrize('new_manager', [False, True], ids=['old cache', 'new manager'])
    def test_any_batch_of_any_lengths_is_compared(self, new_manager):
        player = Player(
            kv_cache=kv_cache(mode='validate'), context_length=20, observation='image',
            use_new_cache_manager=new_manager
        )
        expand_root_and_child(player)
        player.step([0, 1, 2], 6)
        player.end(1)
        player.step([2, 1], 6)
        player.step([1, 3, 0], 6)
        report = player.report
        assert report.differed == 0 and not report.not_compared
        assert report.agreed == 2 + 2 + 2 + 3 * 7 + 2 * 7 + 3 * 7

    def test_its_exact_window_is_compared_past_the_window(self):
        player = Player(
            kv_cache=kv_cache(mode='validate'), context_length=8, observation='image',
            rebuild_kv_window_from_tokens=True
        )
        for _ in range(5):
            player.step([0, 1], 8)
        assert player.report.agreed == 5 * 2 * 9 and not player.report.not_compared

    def test_nodes_whose_entries_it_has_overwritten_start_over(self):
        player = Player(kv_cache=kv_cache(mode='validate'), context_length=20, env_num=1, num_simulations=5)
        for _ in range(3):
            player.step([0], 40)
        assert set(player.report.not_compared) == {validated.STARTS_OVER} and player.report.agreed > 20

    def test_negative_timesteps_are_not_compared_with_rotary_positions(self):
        player = Player(
            kv_cache=kv_cache(mode='validate'), context_length=20, observation='image', rotary=True,
            has_timesteps=False
        )
        for _ in range(2):
            player.step([0, 1], 3)
        assert player.report.not_compared == {validated.NEGATIVE: 2 * 2 * 4}

    def test_in_sampled_unizero_mixed_batches_are_not_compared(self):
        player = Player(kv_cache=kv_cache(mode='validate'), context_length=20, actions='continuous')
        player.step([0, 1])
        player.end(1)
        player.step([0, 1], 4)
        assert player.report.not_compared == {validated.MIXED: 2 * 5}
