"""Simulations: the bound is the optimum, the sentences say what the numbers say, the commands do what they promise."""
import csv
import os
import re
import signal
import subprocess
import sys
import time
from functools import cache
from itertools import combinations
from pathlib import Path
from shutil import copytree

import pytest
from click.testing import CliRunner
from easydict import EasyDict
from hypothesis import given
from hypothesis import strategies as st
from test_trace_files import nodes_of, steps_of, write

from lzero_kvcache import EVICTION_REGISTRY, KVCachePool
from lzero_kvcache.cli import main
from lzero_kvcache.search.episode import CONTINUES, FIRST_STEP
from lzero_kvcache.trace.belady import BeladyPool, Future
from lzero_kvcache.trace.choices import BELADY, as_configured, chosen_strategies
from lzero_kvcache.trace.format import EXPANSION
from lzero_kvcache.trace.results import Results, hit_rates_table, recommendation, write_csv
from lzero_kvcache.trace.simulation import Job, jobs_of, run_job, simulate, survey
from lzero_kvcache.trace.sizes import parse_sizes

INTERRUPTED = 130
ROOT = Path(__file__).parents[1]


def hits_with(pool, requests, future=None):
    for now, key in enumerate(requests):
        if future is not None:
            future.now = now
        if pool.get(key) is None:
            pool.set(key, 'a value')
    return pool.stats.hits


def most_hits(requests, size):
    """By trying every choice of what to keep."""

    @cache
    def most(now, held):
        if now == len(requests):
            return 0
        key = requests[now]
        if key in held:
            return 1 + most(now + 1, held)
        if len(held) < size:
            return most(now + 1, held | {key})
        return max(most(now + 1, frozenset(kept) | {key}) for kept in combinations(sorted(held), size - 1))

    return most(0, frozenset())


@given(st.lists(st.integers(0, 5), max_size=14), st.integers(1, 4))
def test_beladys_hits_are_the_most_that_there_can_be(requests, size):
    future = Future({key: [now for now, other in enumerate(requests) if other == key] for key in requests})
    hits = hits_with(BeladyPool(size, future), requests, future)
    assert hits == most_hits(tuple(requests), size)
    for strategy in chosen_strategies(['all']):
        assert hits_with(KVCachePool(size, as_configured(strategy)), requests) <= hits


def test_the_bound_is_no_strategy_of_a_config():
    assert BELADY not in EVICTION_REGISTRY and 'belady' not in EVICTION_REGISTRY
    with pytest.raises(ValueError, match='no eviction strategy'):
        KVCachePool(3, BELADY)


def searches_of(expanded, num_searches=3):
    """Searches of two environments whose every inference expands the given nodes, one for each environment."""
    steps = []
    for number in range(num_searches):
        steps.append((0, nodes_of(2, env_ids=[0, 1], beginnings=CONTINUES if number else FIRST_STEP)))
        steps += [(EXPANSION, nodes_of(2, parents)) for parents in expanded]
    return steps


def results_of(path, choices, shares):
    unlimited, *others = simulate(path, jobs_of(chosen_strategies(choices), shares), workers=1)
    return Results(survey(path), unlimited, others)


@pytest.fixture
def chain(tmp_path):
    """Each node is expanded once, right after it was made: two entries are enough for any strategy."""
    write(tmp_path / 'chain.trace', searches_of([(2 * step, 2 * step + 1) for step in range(4)]))
    return tmp_path / 'chain.trace'


def test_what_is_counted_of_a_chain(chain):
    outcome = run_job(chain, Job('fifo', 0.25))
    (counts, ) = outcome.counts.values()
    stats = counts.pools['recur_pool']
    # Of 3 searches, 4 expansions, 2 environments: the first expansion asks for roots.
    assert (stats.hits, stats.misses, stats.evictions) == (18, 0, 18)
    assert counts.pools['init_pools'].hits == 3 * 2 + 2 * 2
    assert (counts.expansions, counts.rebuilds.tokens) == (24, 0)


def test_the_smallest_sufficient_pool_is_recommended(chain, tmp_path):
    results = results_of(chain, ['lru', 'fifo'], [0.125, 0.25, 1.0])
    assert results.recommended().share == 0.25
    text = recommendation(results)
    assert '25% of the nodes of a search (2 of 8 entries)' in text and 'It keeps 100.0% of the hits' in text
    assert '12.5% of the nodes of a search (1 of 8 entries): at best' in text
    namespace = dict(main_config=recorder(), create_config=recorder())
    cache = namespace['main_config'].policy.model.world_model_cfg.kv_cache = EasyDict(on_miss='reset', strategy='tree')
    exec('\n'.join(line.strip() for line in text.splitlines()[-2:]), namespace)
    assert cache.recur_pool == dict(size=2) and cache.strategy in ('fifo', 'lru') and cache.on_miss == 'reset'
    assert 'without kv_cache takes kv_cache = dict(...)' in text
    assert len(hit_rates_table(results).columns) == 4
    write_csv(results, tmp_path / 'results.csv')
    rows = list(csv.DictReader(open(tmp_path / 'results.csv')))
    assert len(rows) == 1 + 3 * 3
    assert [row['recur_hits'] for row in rows if row['strategy'] == 'no eviction'] == ['18']


class recorder:
    """Takes any attribute."""

    def __getattr__(self, name):
        setattr(self, name, recorder())
        return vars(self)[name]


def test_scores_are_written_into_the_config(chain):
    text = recommendation(results_of(chain, ['priority:predicted_value'], [1.0]))
    assert "strategy=dict(type='priority', score='predicted_value')" in text
    assert 'a smaller one may do' in text


def test_no_pool_may_be_large_enough(tmp_path):
    # Every node is expanded again only after all others have been.
    expanded = [(0, 1), (2, 3), (4, 5), (2, 3)] + [(4, 5), (6, 7)] * 2
    write(tmp_path / 'trace', searches_of(expanded))
    results = results_of(tmp_path / 'trace', ['fifo'], [0.125])
    assert 'None of these pools keeps 99% of the hits' in recommendation(results)


def test_results_may_be_incomplete(chain):
    results = results_of(chain, ['lru'], [0.125, 0.25])
    complete = results.outcomes
    for count in range(1, len(complete)):
        results.outcomes = complete[:count]
        assert recommendation(results) and hit_rates_table(results).row_count
    results.outcomes = complete[:2]
    assert recommendation(results) == 'No strategy has been simulated.'


def test_processes_find_what_one_process_finds(tmp_path):
    write(tmp_path / 'trace', steps_of([[2, 2, 2, 2, 2], [1, 1, 1]] * 3, 1))
    jobs = jobs_of(chosen_strategies(['lru', 'tree']), [0.5])
    alone, together = (
        sorted(((outcome.strategy, outcome.share or 0, outcome.counts) for outcome in simulate(
            tmp_path / 'trace', jobs, workers
        )), key=lambda each: each[:2]) for workers in (1, 2)
    )
    assert alone == together


@pytest.mark.parametrize('text, expected', [
    ('5%,10%,...,100%', [5 * step / 100 for step in range(1, 21)]), ('50%', [0.5]), ('30%, 10%,30%', [0.1, 0.3]),
    ('2.5%,5%,...,9%', [0.025, 0.05, 0.075, 0.09]),
])
def test_sizes_are_percentages(text, expected):
    assert parse_sizes(text) == pytest.approx(expected)


@pytest.mark.parametrize('text', [
    '', '5', '0%', '-5%', 'x%', 'nan%', '...,5%', '5%,...,9%', '5%,6%,...', '9%,8%,...,20%', '1%,1.0001%,...,99%',
])
def test_other_sizes_are_refused(text):
    with pytest.raises(ValueError, match='--sizes'):
        parse_sizes(text)


@pytest.mark.parametrize('options, message', [
    (['--strategies', 'lruu'], "--strategies has 'lruu'.*did you mean 'lru'"),
    (['--strategies', 'priority:value'], "--strategies has 'priority:value'.*predicted_value"),
    (['--strategies', 'lru:predicted_value'], "'lru' goes by no score"),
    (['--strategies', 'slru:3'], "--strategies has 'slru:3'.*allowed is 'slru'"),
    (['--sizes', '5'], "--sizes has '5': allowed is a percentage"),
    (['--import', 'no_such_module'], '--import: No module named'),
])
def test_wrong_options_are_refused_by_a_sentence(chain, options, message):
    result = CliRunner().invoke(main, ['simulate', str(chain), *options])
    assert result.exit_code == 1 and re.search(message, result.output.replace('\n', ' '))


def test_the_nearest_file_is_named(chain):
    result = CliRunner().invoke(main, ['simulate', str(chain.with_name('chan.trace'))])
    assert result.exit_code == 1 and f'No such file or directory; did you mean {chain}?' in result.output
    result = CliRunner().invoke(main, ['simulate', str(chain.with_name('of_another_kind'))])
    assert result.exit_code == 1 and 'No such file' in result.output and 'did you mean' not in result.output


def simulated(trace, *options):
    return CliRunner().invoke(main, ['simulate', str(trace), '--sizes', '25%', '--jobs', '1', *options])


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_results_of_something_else_are_not_overwritten(chain, tmp_path):
    folder = tmp_path / 'chain_simulated'
    assert simulated(chain, '--strategies', 'lru').exit_code == 0
    former = contents(folder)
    assert simulated(chain, '--strategies', 'lru').exit_code == 0
    # The same once more, from a copy of the same trace.
    copytree(chain, tmp_path / 'copy.trace')
    assert simulated(tmp_path / 'copy.trace', '--strategies', 'lru', '--out', str(folder)).exit_code == 0
    write(tmp_path / 'other.trace', searches_of([(0, 1)]))
    for trace, options, words in (
        (chain, ['--strategies', 'fifo'], 'with --strategies lru:'),
        (chain, ['--strategies', 'lru', '--sizes', '50%'], 'with --sizes 25%:'),
        (tmp_path / 'other.trace', ['--strategies', 'lru', '--out', str(folder)], 'of another trace'),
    ):
        result = simulated(trace, *options)
        assert result.exit_code == 1 and words in result.output and 'another --out' in result.output
    kept = contents(folder)
    assert kept['results.csv'] == former['results.csv'] and set(kept) == set(former)


@pytest.mark.parametrize('files, words', [
    ({'results.csv': 'arm,seed'}, 'has a results.csv already'), ({'simulation.json': '{"x": 1}'}, 'is not readable'),
    ({'simulation.json': '[]'}, 'is not readable'), ({'simulation.json': '{'}, 'is not readable'),
])
def test_a_folder_of_another_kind_is_left_alone(chain, tmp_path, files, words):
    (tmp_path / 'out').mkdir()
    for name, text in files.items():
        (tmp_path / 'out' / name).write_text(text)
    result = simulated(chain, '--strategies', 'lru', '--out', str(tmp_path / 'out'))
    assert result.exit_code == 1 and words in result.output and 'another --out' in result.output
    assert {name: (tmp_path / 'out' / name).read_text() for name in os.listdir(tmp_path / 'out')} == files


@pytest.mark.parametrize('strategy, jobs, message', [
    ('wrong_victim', '2', r'victim\(\) has returned 99: allowed is one of the 2 slots'),
    ('no_victim', '1', r'ValueError: .*empty.*own_strategies\.py, line \d+\)'),
], ids=['wrong victim', 'no victim'])
def test_a_strategy_that_fails_is_a_sentence(chain, strategy, jobs, message, tmp_path):
    (tmp_path / 'own_strategies.py').write_text(
        'from lzero_kvcache import EVICTION_REGISTRY\n'
        'from lzero_kvcache.eviction import FIFOEviction\n'
        "@EVICTION_REGISTRY.register('wrong_victim')\n"
        'class WrongVictim(FIFOEviction):\n'
        '    def victim(self):\n'
        '        return 99\n'
        "@EVICTION_REGISTRY.register('no_victim')\n"
        'class NoVictim(FIFOEviction):\n'
        '    def victim(self):\n'
        '        return min([])\n'
    )
    completed = subprocess.run(
        command('simulate', chain, '--import', 'own_strategies', '--strategies', strategy, '--sizes', '25%',
                '--jobs', jobs),
        env=dict(ENVIRONMENT, PYTHONPATH=f'{tmp_path}{os.pathsep}{ROOT}'), capture_output=True, text=True,
    )
    assert completed.returncode == 1 and 'This has failed' not in completed.stdout
    assert re.fullmatch(rf"Error: the eviction strategy \w+ of pool 'recur_pool' has failed: {message}.*\n",
                        completed.stderr)


def test_a_module_that_fails_is_a_sentence(chain, tmp_path, monkeypatch):
    (tmp_path / 'unfinished.py').write_text('class Unfinished(Nothing):\n    pass\n')
    monkeypatch.syspath_prepend(tmp_path)
    result = CliRunner().invoke(main, ['simulate', str(chain), '--import', 'unfinished'])
    assert result.exit_code == 1
    assert "--import: unfinished cannot be imported (NameError: name 'Nothing' is not defined)" in result.output


def test_a_full_disk_leaves_no_halves_and_is_named(chain, tiny_disk):
    (tiny_disk / 'full').write_bytes(bytes(2 ** 15))
    # The plot is larger than what is left.
    result = simulated(chain, '--strategies', 'lru', '--out', str(tiny_disk / 'out'))
    assert result.exit_code == 1 and 'Traceback' not in result.output
    assert re.search(r'no room is left on the disk of .*out/hit_rate\.png', result.output.replace('\n', ''))
    assert all((tiny_disk / 'out' / name).stat().st_size for name in os.listdir(tiny_disk / 'out'))


def test_wrong_files_are_refused_by_a_sentence(tmp_path):
    write(tmp_path / 'empty', [(0, nodes_of(0))])
    (tmp_path / 'other').write_text('not a trace')
    for name, message in (
        ('missing', 'missing: No such file'), ('other', "other is no trace of lzero-kvcache: 'lzero-kvcache trace'"),
        ('empty', 'empty has no search'), ('', "is no trace of lzero-kvcache: 'lzero-kvcache trace' writes one")
    ):
        result = CliRunner().invoke(main, ['simulate', str(tmp_path / name)])
        assert result.exit_code == 1 and message in result.output


def command(*arguments):
    return [sys.executable, '-c', 'from lzero_kvcache.cli import main; main()', *map(str, arguments)]


ENVIRONMENT = dict(os.environ, OMP_NUM_THREADS='1', WANDB_MODE='offline')


def test_a_trace_is_simulated_beside_itself_and_nowhere_else(chain):
    result = subprocess.run(
        command('simulate', chain, '--strategies', 'lru,tree', '--sizes', '25%,50%', '--jobs', 1), env=ENVIRONMENT,
        capture_output=True, text=True, cwd=chain.parent
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert 'Smallest pool that keeps 99% of the hits: 25%' in result.stdout
    assert result.stderr == ''
    assert {path.name for path in chain.parent.iterdir()} == {'chain.trace', 'chain_simulated'}
    written = {path.name for path in (chain.parent / 'chain_simulated').iterdir()}
    assert written == {'results.csv', 'recommendation.txt', 'hit_rate.png', 'simulation.json'}
    assert (chain.parent / 'chain_simulated/hit_rate.png').read_bytes().startswith(b'\x89PNG')


CARTPOLE = 'zoo/classic_control/cartpole/config/cartpole_unizero_config.py'
SMALL = [
    option for change in (
        'policy.num_simulations=5', 'policy.batch_size=8', 'policy.update_per_collect=2', 'policy.n_episode=2',
        'policy.collector_env_num=2', 'env.collector_env_num=2', 'policy.evaluator_env_num=1',
        'env.evaluator_env_num=1', 'env.n_evaluator_episode=1', 'create_config.env_manager.type=base',
    ) for option in ('--set', change)
]


@pytest.mark.slow
def test_a_real_run_is_recorded_and_simulated(tmp_path):
    trace = tmp_path / 'traces/cartpole.trace'
    run = command('trace', CARTPOLE, '--max-env-step', 20, '--exp-name', 'run', '--out', trace, '--strategy', 'tree',
                  '--recur-pool-size', 4, *SMALL)
    result = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f'Next: lzero-kvcache simulate {trace}' in result.stdout
    seen = survey(trace)
    assert set(seen.searches) == {'collect', 'eval'} and seen.reader.is_complete
    assert seen.facts.num_simulations == 5 and seen.reader.options['recur_pool_size'] == '4'

    total = run_job(trace, Job('tree', 4 / seen.facts.nodes_of_search)).total
    for kind, stats in total.pools.items():
        counted = re.search(rf'^{kind} .* ([\d,]+) +([\d,]+) +([\d,]+) +\S+ *$', result.stdout, re.MULTILINE).groups()
        assert counted == (f'{stats.hits:,}', f'{stats.misses:,}', f'{stats.evictions:,}'), kind
    said = ' '.join(result.stdout.split())
    assert f'{total.rebuilds.restored:,} contexts restored' in said
    assert f'{total.rebuilds.rebuilds:,} rebuilt, by {total.rebuilds.tokens:,} tokens' in said
    assert total.rebuilds.tokens and total.pools['recur_pool'].misses

    again = subprocess.run(run, env=ENVIRONMENT, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 1 and 'is there already' in again.stderr
    assert survey(trace).searches == seen.searches


@pytest.mark.slow
def test_an_interrupted_run_says_what_is_there(tmp_path):
    process = subprocess.Popen(
        command('trace', CARTPOLE, '--exp-name', 'run', '--out', 'cartpole.trace', *SMALL), env=ENVIRONMENT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path
    )
    trace = tmp_path / 'cartpole.trace'
    # A block after five seconds, so that a search is there for certain.
    while process.poll() is None and not (trace / '000000.npz').exists():
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    assert process.returncode == INTERRUPTED, output
    assert 'Next: lzero-kvcache simulate cartpole.trace' in output
    assert survey(trace).reader.is_complete


@pytest.mark.parametrize('arguments, message', [
    (['no_such_config.py', '--out', 'x.trace'], 'no_such_config.py is no file'),
    ([CARTPOLE, '--out', 'x.trace', '--set', 'policy.num_simulation=3'], 'did you mean'),
    ([CARTPOLE, '--out', '/proc/x.trace'], '/proc/x.trace cannot be written'),
])
def test_a_wrong_run_leaves_no_trace(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ['trace', *arguments])
    assert result.exit_code == 1 and message in result.output.replace('\n', ' ')
    assert 'No trace is kept' not in result.output
    assert not (tmp_path / 'x.trace').exists()


def test_a_run_that_fails_says_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(
        main, ['trace', CARTPOLE, '--out', 'x.trace', '--exp-name', 'run', *SMALL,
               '--set', 'policy.grad_clip_value=many']
    )
    assert result.exit_code == 1 and 'the run has failed' in result.output
    assert re.search(r'Trace: x\.trace, \d+ searches, [\d.]+ KiB', result.output)
