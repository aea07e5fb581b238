"""'lzero-kvcache bench': every section measures real searches, shows a table and draws a plot."""
import json
import sys
import threading
from dataclasses import replace

import pytest
from click.testing import CliRunner
from rich.console import Console
from rich.progress import Progress

from lzero_kvcache import EVICTION_REGISTRY, cli
from lzero_kvcache.bench.clock import Clock, busy_sentence
from lzero_kvcache.bench.figures import as_text, figure_of
from lzero_kvcache.bench.launches import Launches
from lzero_kvcache.bench.pool_operations import Workload
from lzero_kvcache.bench.report import SECTIONS, draw
from lzero_kvcache.bench.settings import MODELS, QUICK, Settings
from lzero_kvcache.bench.steps import CollectSteps
from lzero_kvcache.cli.bench import SECTIONS as SECTION_NAMES

SETTINGS = Settings(
    steps=2, growth_steps=1, models=('64 wide, window 8', '64 wide, window 8, rotary'), env_num=2, num_simulations=10,
    env_nums=(1, 2), simulations=(3, 6), windows=(8, 40), pool_shares=(0.25, 1.0), pool_sizes=(10, 100), pool_rounds=2,
    operations=20,
)


@pytest.fixture(scope='module')
def measured():
    with Progress(disable=True) as progress:
        return {section.name: section.measure(SETTINGS, Clock(progress)) for section in SECTIONS}


@pytest.mark.parametrize('section', SECTIONS, ids=lambda section: section.name)
def test_a_section_has_a_table_and_a_plot(measured, section, tmp_path):
    rows = json.loads(json.dumps(measured[section.name]))
    console = Console(width=200)
    with console.capture() as screen:
        console.print(section.table(rows))
    assert len(screen.get().splitlines()) >= 3
    draw(section, rows, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 10_000


def test_steps(measured):
    assert [row['model'] for row in measured['steps']] == list(SETTINGS.models)
    for row in measured['steps']:
        assert row['ratio'] > 0 and row['release_ms'] > 0 and 0 < row['cache_share'] < 1


def test_growth(measured):
    assert [(row['axis'], row['value']) for row in measured['growth']] == [
        ('env_num', 1), ('env_num', 2), ('num_simulations', 3), ('num_simulations', 6), ('context_length', 8),
        ('context_length', 40),
    ]


def test_small_pools(measured):
    first, other = SETTINGS.models
    seen = [(row['model'], row['share'], row['strategy']) for row in measured['small_pools']]
    assert seen == [
        (model, share, strategy) for model, share in ((first, 0.25), (first, 1.0), (other, 0.25))
        for strategy in sorted(EVICTION_REGISTRY)
    ]
    for row in measured['small_pools']:
        assert row['pool_size'] == {0.25: 5, 1.0: 20}[row['share']]
        found = row['hit_rate'] + row['last_inference']
        assert found + row['restored'] + row['rebuilt'] == pytest.approx(1, abs=0.02)
        assert (row['hit_rate'] == 1) == (row['rebuilt'] == 0) == (row['share'] == 1)


def test_a_node_costs_two_tokens(measured):
    short, long = measured['memory']
    assert (short['release_bytes'], long['release_bytes']) == (8 * 1024, 40 * 1024)
    assert long['ratio'] < 0.2 < short['ratio'] < 0.5


def test_launches_are_counted(measured):
    for row in measured['launches']:
        assert 50 < row['plugin'] < 0.5 * row['release'] < 300


def test_launches_do_not_depend_on_packed_weights():
    settings = replace(SETTINGS, models=('64 wide, window 8', '256 wide, window 32'))
    with Progress(disable=True) as progress:
        small, large = Launches().measure(settings, Clock(progress))
    assert small['plugin'] == large['plugin']


@pytest.mark.parametrize('section, name', [
    ('steps', 'release_ms'), ('steps', 'plugin_ms'), ('steps', 'ratio'), ('steps', 'cache_share'),
    ('growth', 'release_ms'), ('growth', 'plugin_ms'), ('growth', 'ratio'), ('small_pools', 'throughput'),
    ('pool_operations', 'nanoseconds'), ('pool_operations', 'ratio'),
])
def test_whatever_depends_on_time_has_its_spread(measured, section, name):
    for row in measured[section]:
        spread = row[f'{name}_spread']
        lower, upper = spread['quartiles']
        assert spread['least'] <= lower <= row[name] <= upper and spread['samples'] >= 1


def test_a_figure_is_shown_with_half_the_distance_between_its_quartiles():
    row = figure_of('ratio', [0.5, 0.3, 0.4, 9., 0.2])
    assert row == dict(ratio=0.4, ratio_spread=dict(least=0.2, quartiles=[0.3, 0.5], samples=5))
    assert as_text(row, 'ratio', '{:.2f}') == '0.40 ±25%'
    assert as_text(figure_of('ratio', [0.5]), 'ratio', '{:.2f}') == '0.50 ±0%'


def test_short_of_time_there_are_fewer_sizes_but_not_fewer_samples():
    settings = replace(SETTINGS, steps=20, num_simulations=3)
    with Progress(disable=True) as progress:
        clock = Clock(progress, seconds=0)
        (row, ) = CollectSteps().measure(settings, clock)
    assert row['model'] == '64 wide, window 8' and row['ratio_spread']['samples'] == 5
    assert clock.left_out == ['steps: 64 wide, window 8, rotary']
    assert QUICK.seconds < 120


@pytest.mark.parametrize('measured, computed, load_before, words', [
    (10., 9.9, 0.3, None), (10., 3.3, 0.3, 'one for 33% of its time'), (10., 9.9, 5.6, '5.6 processes wanted its 2'),
    (0., 0., 0.3, None), (0., 0., 5.6, '5.6 processes wanted its 2'),
])
def test_a_busy_machine_is_said(measured, computed, load_before, words):
    sentence = busy_sentence(measured, computed, load_before, cores=2)
    assert sentence is None if words is None else words in sentence


def test_the_command_writes_a_folder_and_draws_nothing_while_it_measures(tmp_path, monkeypatch):
    threads = set()
    measure = Workload.nanoseconds

    def measured(*arguments):
        # The spinner's thread has been told to end when loading is done, and draws no more, but may not have ended yet.
        not_told = threading.Event()
        threads.update(
            type(thread).__name__ for thread in threading.enumerate() if not getattr(thread, 'done', not_told).is_set()
        )
        return measure(*arguments)

    monkeypatch.setattr(Workload, 'nanoseconds', measured)
    result = CliRunner().invoke(
        cli.main, ['bench', '--quick', '--section', 'pool_operations', '--out', str(tmp_path / 'out')]
    )
    assert result.exit_code == 0, result.output
    assert '_MainThread' in threads and '_RefreshThread' not in threads
    report = json.loads((tmp_path / 'out' / 'benchmark_kv_cache.json').read_text())
    assert report['measured']['pool_operations']['seconds'] > 0
    assert report['machine']['lightzero'] == '0.2.0' and list(report['sections']) == ['pool_operations']
    assert (tmp_path / 'out' / 'pool_operations.png').stat().st_size > 10_000


def test_the_command_knows_every_section():
    assert SECTION_NAMES == tuple(section.name for section in SECTIONS)
    assert set(SETTINGS.models) <= set(MODELS)


def test_what_is_missing_is_said(monkeypatch):
    for name in [name for name in sys.modules if name.startswith('lzero_kvcache.bench')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'matplotlib.figure', None)
    result = CliRunner().invoke(cli.main, ['bench'])
    assert result.exit_code == 1
    assert "needs matplotlib.figure, which is not installed: pip install 'lzero-kvcache[bench]'" in result.output
