"""Training on CartPole by ``train_unizero``: vector observations, rotary positions."""
import pytest
from training import (
    ENV_NUM,
    NUM_SIMULATIONS,
    TINY_POOLS,
    Run,
    check_tiny_pools,
    check_training,
    train,
)

from lzero_kvcache import EVICTION_REGISTRY

CARTPOLE = 'cartpole_unizero_config'
STRATEGIES = [*EVICTION_REGISTRY, dict(type='priority', score='predicted_value')]
REPORTED = [
    f'kv_cache/{phase}{pool}/{quantity}'
    for phase in ('', 'collect_', 'eval_')
    for pool in ('init_pools', 'recur_pool', 'wm_pool')
    for quantity in ('hit_rate', 'misses', 'evictions', 'entries')
] + [
    f'kv_cache/{quantity}'
    for quantity in (
        'roots/mean_context_length', 'roots/cold_starts', 'rebuilds/restored', 'rebuilds/contexts', 'rebuilds/tokens'
    )
]


@pytest.fixture(scope='module')
def default_run(tmp_path_factory) -> Run:
    world_model_cfg = dict(num_simulations=50)
    return train(CARTPOLE, tmp_path_factory.mktemp('default'), {}, model=dict(world_model_cfg=world_model_cfg))


def test_default_pools_train(default_run):
    check_training(default_run)
    assert default_run.manager.total_stats()['recur_pool'].misses == 0


@pytest.mark.parametrize('strategy', STRATEGIES, ids=str)
def test_every_strategy_trains_with_tiny_pools(tmp_path, strategy):
    run = train(CARTPOLE, tmp_path, dict(strategy=strategy, **TINY_POOLS))
    check_training(run)
    check_tiny_pools(run)


def test_misses_that_start_over_train(tmp_path):
    run = train(CARTPOLE, tmp_path, dict(on_miss='reset', **TINY_POOLS))
    check_training(run)
    assert run.manager.total_stats()['recur_pool'].misses > 0


@pytest.mark.parametrize('option', [dict(window='rebuild'), dict(rope_positions='release')], ids=str)
def test_other_ways_to_place_tokens_train(tmp_path, option):
    check_training(train(CARTPOLE, tmp_path, dict(option, **TINY_POOLS)))


@pytest.mark.parametrize('kv_cache', [None, dict(mode='legacy')], ids=str)
def test_without_a_managed_cache_the_stock_code_trains(tmp_path, kv_cache):
    run = train(CARTPOLE, tmp_path, kv_cache)
    check_training(run)
    assert run.manager is None
    assert run.world_model.total_query_count > 0
    assert not any(tag.startswith('kv_cache/') for tag in run.scalars())


@pytest.mark.parametrize('cache', [
    {}, dict(rope_positions='release', **TINY_POOLS)
], ids=['defaults', "the release's positions, tiny pools"])
def test_managed_and_stock_predictions_agree_throughout_a_training(tmp_path, cache):
    run = train(CARTPOLE, tmp_path, dict(mode='validate', **cache))
    check_training(run)
    report = run.world_model.kv_cache_inference.report
    assert report.differed == 0
    assert report.agreed > 0


def test_reanalysis_goes_through_the_managed_cache(tmp_path):
    run = train(CARTPOLE, tmp_path, {}, reanalyze_ratio=1.0)
    check_training(run)
    assert run.reanalysis_manager.total_stats()['recur_pool'].total_queries > 0


def test_tensorboard_has_the_statistics_beside_the_runs_other_scalars(default_run):
    scalars = default_run.scalars()
    assert set(REPORTED) == {tag for tag in scalars if tag.startswith('kv_cache/')}
    assert {'learner_iter/weighted_total_loss_avg', 'evaluator_step/reward_mean'} <= set(scalars)
    assert sum(misses for _, misses in scalars['kv_cache/collect_recur_pool/misses']) == 0
    assert all(rate == 1 for _, rate in scalars['kv_cache/collect_recur_pool/hit_rate'])
    assert [hits for _, hits in scalars['kv_cache/recur_pool/hit_rate']] == [1.0] * len(
        scalars['kv_cache/collect_recur_pool/hit_rate'] + scalars['kv_cache/eval_recur_pool/hit_rate']
    )
    # The last search of a phase is often that of the one environment whose episode goes on.
    nodes = {entries for _, entries in scalars['kv_cache/collect_recur_pool/entries']}
    assert nodes <= {env_num * NUM_SIMULATIONS for env_num in range(1, ENV_NUM + 1)}


def test_every_step_but_an_episodes_first_goes_on_from_its_history(default_run):
    scalars = default_run.scalars()
    collected = scalars['kv_cache/collect_init_pools/entries'][-1][0]
    evaluated = sum(steps for _, steps in scalars['evaluator_step/envstep_count'])
    rounds = len(scalars['Buffer/num_of_transitions'])
    episodes = ENV_NUM * rounds + len(scalars['evaluator_step/envstep_count'])
    assert default_run.world_model.root_total_query_cnt == collected + evaluated - episodes
    roots = default_run.world_model.kv_cache_inference.root_stats
    assert (roots.continuing, roots.first_steps, roots.cold_starts) == (collected + evaluated - episodes, episodes, 0)
    # The window of 8 tokens goes down to 5 when it reaches 7, and begins with 1.
    assert 4 < roots.mean_context_length < 5.5
    assert scalars['kv_cache/roots/mean_context_length'][-1][1] == pytest.approx(roots.mean_context_length)


def test_the_policys_simulations_size_the_pool_of_search_nodes(default_run):
    assert default_run.world_model.config.num_simulations == 50
    assert default_run.manager.recur_pool.pool_size == ENV_NUM * NUM_SIMULATIONS


@pytest.mark.parametrize('log_interval', [10, 0])
def test_log_lines_come_at_the_interval_that_the_user_sets(tmp_path, caplog, log_interval):
    train(CARTPOLE, tmp_path, dict(log_interval=log_interval))
    searches = [
        int(message.split(' searches')[0].rsplit(' ', 1)[1])
        for name, _, message in caplog.record_tuples
        if name == 'lzero_kvcache' and message.startswith('kv_cache, collect')
    ]
    if log_interval == 0:
        assert searches == []
    else:
        assert len(searches) >= 2
        assert searches == [log_interval * (line + 1) for line in range(len(searches))]
