"""'lzero-kvcache bench': every section measures real searches, shows a table and draws a plot."""
import json
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from processes import needs_proc
from rich.console import Console
from rich.progress import Progress

from lzero_kvcache import EVICTION_REGISTRY, cli
from lzero_kvcache.bench.clock import Clock, busy_sentence
from lzero_kvcache.bench.figures import as_text, figure_of
from lzero_kvcache.bench.launches import Launches
from lzero_kvcache.bench.pool_operations import Workload
from lzero_kvcache.bench.report import SECTIONS, draw
from lzero_kvcache.bench.settings import MODELS, QUICK, TRAININGS, Settings
from lzero_kvcache.bench.steps import CollectSteps
from lzero_kvcache.bench.training import Training
from lzero_kvcache.cli.bench import SECTIONS as SECTION_NAMES
from lzero_kvcache.doctor.finding import WARNING, Finding

SETTINGS = Settings(
    compiles=False, steps=2, growth_steps=1, models=('64 wide, window 8', '64 wide, window 8, rotary'), env_num=2,
    num_simulations=10,
    env_nums=(1, 2), simulations=(3, 6), windows=(8, 40), pool_shares=(0.25, 1.0), pool_sizes=(10, 100), pool_rounds=2,
    operations=20, trainings=('CartPole', ), pairs=1,
)
FEW_STEPS = dict(
    TRAININGS['CartPole'], max_env_step=20,
    env=dict(collector_env_num=2, evaluator_env_num=1, n_evaluator_episode=1),
    policy=dict(
        collector_env_num=2, evaluator_env_num=1, n_episode=2, num_simulations=5, batch_size=8, update_per_collect=3,
        model=dict(world_model_cfg=dict(env_num=2)),
    ),
)


@pytest.fixture(scope='module')
def measured():
    with Progress(disable=True) as progress, pytest.MonkeyPatch.context() as patch:
        patch.setitem(TRAININGS, 'CartPole', FEW_STEPS)
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
        assert row['rebuild_to_shift'] > 0 and 0 < row['lean_ms'] < row['plugin_ms']
    assert measured['steps'][0]['goals'] == dict(ratio=0.3, to_lean=1.4, rebuild_to_shift=1.25, cache_share=0.12)


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
        missed = row['last_inference'] + row['restored'] + row['rebuilt']
        assert (row['hit_rate'] == 1) == (missed == 0) == (row['share'] == 1)


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


def test_trainings_are_those_of_a_user(measured):
    release, plugin, ratio = measured['training']
    assert [row['arm'] for row in measured['training']] == ['release', 'plugin', 'plugin / release']
    assert release['policy'] == 'lzero.policy.unizero.UniZeroPolicy'
    assert plugin['policy'] == 'lzero_kvcache.plugin.policies.UniZeroKVCachePolicy'
    for row in (release, plugin):
        parts = [row[part] for part in ('collect', 'learn', 'evaluate', 'rest')]
        assert min(parts) > 0 and sum(parts) == pytest.approx(row['seconds'])
        assert row['env_steps'] >= 20 and row['ms_per_step'] == pytest.approx(1000 * row['seconds'] / row['env_steps'])
    assert ratio['seconds'] == pytest.approx(plugin['seconds'] / release['seconds'])


def test_pong_is_left_out_without_atari(monkeypatch):
    no_roms = Finding('Atari', WARNING, "We're Unable to find the game \"Pong\"", 'make roms')
    monkeypatch.setattr('lzero_kvcache.bench.training.atari', lambda: [no_roms])
    with Progress(disable=True) as progress:
        clock = Clock(progress)
        assert Training().measure(replace(SETTINGS, trainings=('Pong', )), clock) == []
    assert clock.notes == [
        'Pong is left out, because Atari does not work here: We\'re Unable to find the game "Pong" (make roms).'
    ]


@pytest.mark.slow
def test_a_training_that_fails_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(TRAININGS, 'CartPole', dict(FEW_STEPS, policy=dict(batch_size='many')))
    result = CliRunner().invoke(
        cli.main, ['bench', '--section', 'training', '--pairs', '1', '--out', str(tmp_path / 'out')]
    )
    assert result.exit_code == 1
    assert 'the training with release, seed 0, has failed: the process has ended with status 1' in result.output


def children(process, module):
    """The running processes of a module that a process has started."""
    found = []
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            state, parent = stat.read_text().rpartition(')')[2].split()[:2]
            command = stat.with_name('cmdline').read_text()
        except OSError:
            continue
        if int(parent) == process.pid and module in command and state != 'Z':
            found.append(stat.parent)
    return found


@needs_proc
def test_trainings_end_by_ctrl_c(tmp_path):
    command = subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.benchmark_kv_cache', '--section', 'training', '--out', str(tmp_path)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while not (training := children(command, 'training_process')):
            assert command.poll() is None
            time.sleep(0.1)
        command.send_signal(signal.SIGINT)
        said, _ = command.communicate(timeout=60)
    finally:
        command.kill()
    assert command.returncode == 1 and 'Aborted!' in said
    assert not training[0].exists()


def test_a_first_look_has_no_trainings(tmp_path, monkeypatch):
    sections = []
    monkeypatch.setattr('lzero_kvcache.bench.report.run_benchmark', lambda names, *arguments: sections.append(names))
    for arguments in ([], ['--quick'], ['--quick', '--section', 'training']):
        assert CliRunner().invoke(cli.main, ['bench', *arguments]).exit_code == 0
    assert sections == [SECTION_NAMES, SECTION_NAMES[:-1], ('training', )]


@pytest.mark.parametrize('section, name', [
    ('steps', 'release_ms'), ('steps', 'plugin_ms'), ('steps', 'ratio'), ('steps', 'cache_share'),
    ('steps', 'lean_ms'), ('steps', 'to_lean'), ('steps', 'rebuild_to_shift'),
    ('growth', 'release_ms'), ('growth', 'plugin_ms'), ('growth', 'ratio'), ('small_pools', 'throughput'),
    ('pool_operations', 'nanoseconds'), ('pool_operations', 'ratio'), ('training', 'seconds'),
    ('training', 'ms_per_step'),
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
