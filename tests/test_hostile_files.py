"""Files and names from others: nothing in a trace, an A/B folder or a checkpoint runs, or leaves its folder."""
import ast
import csv
import io
import json
import os
import pickle
import re
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from test_report import Page, write_run, write_trial
from test_trace_files import COLLECT, FACTS, folder_of, memory_below, nodes_of, packed, write
from test_trace_simulation import CARTPOLE, results_of, searches_of

from lzero_kvcache.ab import trial as trial_module
from lzero_kvcache.ab.changes import changes
from lzero_kvcache.ab.config import _checked_arms, _checked_seeds
from lzero_kvcache.ab.folder import RunFolder, prepare
from lzero_kvcache.ab.results import COLUMNS, means_table
from lzero_kvcache.ab.trial import load_spec
from lzero_kvcache.cli import main
from lzero_kvcache.experiment import check_checkpoint
from lzero_kvcache.experiment.run_folder import check_new_folder
from lzero_kvcache.files import write_atomically
from lzero_kvcache.output import output_to, spinner
from lzero_kvcache.report import write_report
from lzero_kvcache.report.__main__ import main as report
from lzero_kvcache.report.curves import cache_memory, hit_rate, learning_curve, throughput
from lzero_kvcache.report.folder import Trial, read_run
from lzero_kvcache.search.episode import CONTINUES
from lzero_kvcache.trace.folder import check_folder, settings_of
from lzero_kvcache.trace.format import EXPANSION, STRAYS, ManagerFacts
from lzero_kvcache.trace.limits import MOST_BYTES_OF_REPLAY, bytes_of_node
from lzero_kvcache.trace.plot import plot_results
from lzero_kvcache.trace.reader import TraceReader
from lzero_kvcache.trace.replay import Replay
from lzero_kvcache.untrusted import MOST_BYTES, MOST_LEVELS, printable, read_json

ROOT = Path(__file__).parents[1]
REAL = sorted((ROOT / 'tests' / 'traces').iterdir())
ESCAPES = '\x1b]0;owned\x07\x1b[2J\x1b[31mred\u202edetrevni\r\x00'
DEEP = '[' * 100_000


# Texts on a terminal.

@given(st.text(st.characters()))
def test_a_terminal_is_shown_printable_lines_only(text):
    shown = printable(text)
    assert all(line.isprintable() for line in shown.split('\n'))
    assert shown.count('\n') == text.count('\n') or '\x1b' in text
    if text.isprintable():
        assert shown == text


def test_colours_go_and_long_lines_lose_their_middle():
    assert printable('\x1b[31mred\x1b[0m, \x07 and \ud800') == r'red, \x07 and \ud800'
    assert len(printable('x' * 10 ** 6)) < 20_000


def test_json_is_read_within_bounds(tmp_path):
    path = tmp_path / 'file.json'
    for text, words in (
        (DEEP, 'nested deeper'), ('[' * (MOST_LEVELS + 1) + ']' * (MOST_LEVELS + 1), 'nested deeper'),
        (' ' * MOST_BYTES + '{}', 'more than'), ('{', 'Expecting'),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=words):
            read_json(path)
    path.write_text('[' * MOST_LEVELS + ']' * MOST_LEVELS)
    assert read_json(path)
    path.write_bytes(b'\xff')
    with pytest.raises(ValueError, match='decode'):
        read_json(path)
    os.mkfifo(tmp_path / 'pipe')
    for name in ('', 'pipe', 'missing'):
        with pytest.raises(ValueError, match='no regular file'):
            read_json(tmp_path / name)


# Traces.

@given(st.binary(max_size=2000))
def test_random_bytes_are_no_trace(tmp_path_factory, content):
    path = folder_of(tmp_path_factory.getbasetemp() / 'random', content)
    with memory_below(2 ** 26), pytest.raises(ValueError, match=f'^{path}/000000.npz cannot be used: '):
        list(TraceReader(path).searches())
    (path / 'run.json').write_bytes(content)
    with memory_below(2 ** 26), pytest.raises(ValueError, match=f'^{path}/run.json cannot be used: '):
        TraceReader(path)


@given(st.sampled_from(REAL), st.data())
@settings(max_examples=40)
def test_a_real_trace_with_flipped_bytes_or_cut_off_is_refused_or_simulated(tmp_path_factory, real, data):
    path = tmp_path_factory.getbasetemp() / 'flipped'
    path.mkdir(exist_ok=True)
    names = sorted(file.name for file in real.iterdir())
    for name in names:
        content = bytearray((real / name).read_bytes())
        if name == data.draw(st.sampled_from(names)):
            for _ in range(data.draw(st.integers(0, 3))):
                content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
            content = content[:data.draw(st.integers(0, len(content)))]
        (path / name).write_bytes(content)
    with memory_below(2 ** 26), suppress(ValueError):
        list(TraceReader(path).searches())
    result = CliRunner().invoke(main, ['simulate', str(path), '--strategies', 'none of these'])
    assert result.exit_code == 1 and result.output.startswith('Error: ') and result.output.count('\n') == 1


def chain(path, length, **facts):
    """A search whose every node goes on from the one before: the contexts are as long as the window lets them be."""
    root = nodes_of(1, env_ids=0, beginnings=CONTINUES)
    steps = [(COLLECT, root), *((EXPANSION, nodes_of(1, parent)) for parent in range(length))]
    return write(path, steps, per_block=len(steps), **facts)


def family(path):
    """A search all of whose nodes have one parent, which 'tree' would compare with each other."""
    return write(path, [(COLLECT, nodes_of(1)), (EXPANSION, nodes_of(10_000, 0))])


def lasting_roots(path):
    """Roots that no init pool would ever evict."""
    roots = nodes_of(1500, env_ids=0, beginnings=CONTINUES)
    return write(path, [(COLLECT, roots)] * 3, init_size=2 ** 31, context_length=2 ** 15)


def many_managers(path):
    facts = dict(FACTS, env_num=4096, context_length=2 ** 15)
    return folder_of(path, run=dict(options={}, managers=[facts] * 64, blocks=0))


@pytest.mark.parametrize('make', [
    partial(chain, length=5000, context_length=2 ** 15), family, lasting_roots, many_managers
], ids=['long contexts', 'many siblings', 'roots that stay', 'managers'])
def test_what_a_replay_could_not_hold_is_refused_before_it_begins(make, tmp_path):
    assert sum(file.stat().st_size for file in make(tmp_path / 'trace').iterdir()) < 100_000
    result = CliRunner().invoke(main, ['simulate', str(tmp_path / 'trace'), '--jobs', '1'])
    assert result.exit_code == 1
    assert re.match(r'Error: .*trace/.* cannot be used: a replay would take more than 1 GiB of memory', result.output)
    assert not (tmp_path / 'trace_simulated').exists()


def test_the_widest_reanalysis_can_be_replayed():
    facts = ManagerFacts(**dict(FACTS, num_actions=18, context_length=20))
    assert 2816 * 100 * bytes_of_node(facts) < 0.5 * MOST_BYTES_OF_REPLAY


def test_a_replay_takes_no_more_than_it_is_reckoned_to(tmp_path):
    for number, facts in enumerate((
        dict(), dict(context_length=200), dict(context_length=200, num_observations_tokens=60),
        dict(context_length=64, window='rebuild'),
    )):
        reader = TraceReader(chain(tmp_path / f'trace{number}', 1000, **facts))
        (search, ) = reader.searches()
        for strategy in ('lru', 'tree'):
            replay = Replay(reader.managers[0], strategy, 2 ** 31)
            with memory_below(1000 * bytes_of_node(reader.managers[0]) + 2 ** 18):
                replay.run(search)


def test_a_block_of_nothing_but_searches_is_read_one_by_one(tmp_path):
    folder_of(tmp_path / 'trace', packed([(COLLECT, 0)] * 10_000))
    with memory_below(MOST_BYTES + 2 ** 20):
        assert sum(1 for _ in TraceReader(tmp_path / 'trace').searches()) == 10_000


def test_a_search_of_strays_alone_is_simulated(tmp_path):
    write(tmp_path / 'trace', [(COLLECT, nodes_of(0)), (STRAYS, nodes_of(3))])
    result = CliRunner().invoke(main, ['simulate', str(tmp_path / 'trace'), '--jobs', '1', '--sizes', '50%'])
    assert result.exit_code == 0
    assert 'any size and strategy will do' in (tmp_path / 'trace_simulated/recommendation.txt').read_text()


@pytest.mark.parametrize('config', [
    ESCAPES, '$x^{$', r'\input{/etc/passwd} $\write18{true}$', '\ud800', '\n' * 2000, dict(a=[None]), 'x' * 60_000,
], ids=range(7))
def test_the_options_of_a_trace_are_only_text_in_the_plot(config, tmp_path, monkeypatch):
    from matplotlib import rcParams

    path = tmp_path / 'trace'
    write(path, searches_of([(0, 1), (2, 3)]))
    results = results_of(path, ['lru'], [0.5])
    results.survey.reader.options['config'] = config
    # As a matplotlibrc in the working directory may have it. There need be no LaTeX.
    monkeypatch.setitem(rcParams, 'text.usetex', True)
    plot_results(results, tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')


@pytest.mark.parametrize('text', [
    DEEP, '{"trace": 1, "sha256": "", "strategies": "lru", "sizes": "5%"}',
    '{"trace": "t", "sha256": "", "strategies": [], "sizes": "5%"}', '{"trace": "t"}',
    json.dumps(dict(trace=ESCAPES, sha256='{trace.__class__}', strategies=ESCAPES, sizes='{sizes}')),
], ids=['deep', 'no path', 'a list', 'too little', 'escapes'])
def test_a_folder_of_results_from_elsewhere_is_refused_by_a_sentence(text, tmp_path):
    path, out = tmp_path / 'trace', tmp_path / 'out'
    write(path, searches_of([(0, 1)]))
    out.mkdir()
    (out / 'simulation.json').write_text(text)
    result = CliRunner().invoke(main, ['simulate', str(path), '--out', str(out), '--jobs', '1'])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert 'choose another --out' in result.output
    assert all(line.isprintable() for line in result.output.splitlines())


def test_results_are_not_written_through_links(tmp_path):
    path, out, mine = tmp_path / 'trace', tmp_path / 'out', tmp_path / 'mine'
    write(path, searches_of([(0, 1)]))
    out.mkdir()
    mine.write_text('mine')
    settings = settings_of(path, ['lru'], [0.25])
    (out / 'simulation.json').write_text(json.dumps(settings))
    for name in ('results.csv', 'recommendation.txt', 'hit_rate.png'):
        (out / name).symlink_to(mine)
    check_folder(out, settings)
    result = CliRunner().invoke(main, ['simulate', str(path), '--out', str(out), '--jobs', '1', '--strategies', 'lru',
                                       '--sizes', '25%'])
    assert result.exit_code == 0, result.output
    assert mine.read_text() == 'mine' and not any(each.is_symlink() for each in out.iterdir())


@pytest.mark.parametrize('name', ['.', '/', 'a[/b]c', '...'])
def test_strange_names_of_traces_end_in_a_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ['simulate', name, '--jobs', '1'])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert re.fullmatch(r'Error: .*(is no trace of lzero-kvcache|No such file or directory).*\n', result.output)


# A/B folders.

OUTCOME = dict(
    arm='lru', seed=0, max_env_step=40, spec='0' * 16, status='done', error=None, seconds=2.0, threads=1, settings={},
    result=dict(dict.fromkeys(COLUMNS), arm='lru', seed=0, status='done', env_steps=40, seconds=2.0,
                log='trials/lru_seed0/output.log'),
)


def outcome_with(**changed):
    result = {**OUTCOME['result'], **{name: value for name, value in changed.items() if name in COLUMNS}}
    return json.dumps({**OUTCOME, 'result': result, **changed})


def result_with(**changed):
    return json.dumps({**OUTCOME, 'result': {**OUTCOME['result'], **changed}})


def folder_with(path, text, name='lru_seed0'):
    (path / 'trials' / name).mkdir(parents=True)
    (path / 'trials' / name / 'trial.json').write_text(text)
    return RunFolder(path)


@pytest.mark.parametrize('text', [
    DEEP, outcome_with(arm='=cmd|calc'), outcome_with(arm='../lru'), outcome_with(arm=ESCAPES),
    outcome_with(seed=-1), outcome_with(seed=10 ** 400), outcome_with(status='gone'), outcome_with(log='/etc/passwd'),
    result_with(arm='fifo'), result_with(seed=1), result_with(env_steps=None), result_with(env_steps='=1+1'),
    result_with(seconds=float('nan')), result_with(return_last='@SUM(A1)'), result_with(return_last=10 ** 200),
    result_with(search_ms=[1]), result_with(search_ms=True), result_with(evictions=10 ** 400),
], ids=range(18))
def test_a_trial_from_elsewhere_is_checked(text, tmp_path):
    folder = folder_with(tmp_path, text)
    with pytest.raises(ValueError, match=r'trial\.json is (broken|not readable).*: remove it, or choose another --out'):
        folder.outcomes()


def test_a_sound_trial_is_read_and_unknown_columns_are_dropped(tmp_path):
    (outcome, ) = folder_with(tmp_path, result_with(of_a_later_release='=1', return_last=float('inf'))).outcomes()
    assert list(outcome['result']) == list(COLUMNS)
    assert means_table([outcome['result']], '[/title] [red]').row_count == 1


def test_tables_show_brackets_of_titles():
    console = Console(file=io.StringIO(), width=200)
    console.print(means_table([OUTCOME['result']], 'x[/b] [red]y'))
    assert 'x[/b] [red]y' in console.file.getvalue()


def test_settings_of_former_trials_may_be_anything():
    spec = SimpleNamespace(settings=lambda: dict(max_env_step=40), max_env_step=40)
    for former in ([], 'x', 3, {'': []}, {ESCAPES: ESCAPES}):
        assert changes(dict(settings=former, max_env_step=30), spec)


@pytest.mark.parametrize('make', [
    lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to('/dev/zero'),
    lambda path: path.symlink_to('nowhere'),
], ids=['folder', 'pipe', 'device', 'dangling'])
def test_what_is_no_file_is_not_read(make, tmp_path):
    folder = folder_with(tmp_path, '{}')
    for path in (tmp_path / 'ab.json', tmp_path / 'trials' / 'lru_seed0' / 'trial.json'):
        path.unlink(missing_ok=True)
        make(path)
    for read in (folder.record, folder.outcomes):
        with pytest.raises(ValueError, match='is not readable .*no regular file'):
            read()


@pytest.fixture
def treasure(tmp_path):
    """A folder that is not the run's, with whatever a run has."""
    folder = tmp_path / 'treasure'
    (folder / 'lru_seed0' / 'run').mkdir(parents=True)
    for name in ('trial.json', 'lru_seed0/trial.json', 'lru_seed0/run/mine', '.lock', 'results.csv'):
        (folder / name).write_text('mine')
    before = {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()}
    yield folder
    assert {path: path.read_bytes() for path in folder.rglob('*') if path.is_file()} == before


@pytest.mark.parametrize('name', ['trials', '.lock'])
def test_an_ab_folder_with_links_is_refused(name, treasure, tmp_path):
    (tmp_path / 'out').mkdir()
    (tmp_path / 'out' / name).symlink_to(treasure if name == 'trials' else treasure / '.lock')
    with pytest.raises(ValueError, match=f'{name} is a symbolic link.*choose another --out'):
        with RunFolder(tmp_path / 'out').locked():
            raise AssertionError


@pytest.mark.parametrize('target', ['', 'lru_seed0', 'lru_seed0/trial.json', 'nowhere'])
def test_a_trial_is_not_removed_through_a_link(target, treasure, tmp_path):
    folder = tmp_path / 'out' / 'trials' / 'lru_seed0'
    folder.parent.mkdir(parents=True)
    folder.symlink_to(treasure / target)
    assert prepare(folder, b'spec').parent == folder
    assert not folder.is_symlink() and [path.name for path in folder.iterdir()] == ['spec.pkl']


def test_links_within_a_trial_are_removed_and_not_followed(treasure, tmp_path):
    folder = tmp_path / 'out' / 'lru_seed0'
    folder.mkdir(parents=True)
    for name in ('run', 'trial.json', 'spec.pkl', 'output.log'):
        (folder / name).symlink_to(treasure / 'lru_seed0' / ('run' if name == 'run' else 'trial.json'))
    prepare(folder, b'spec')
    assert [path.name for path in folder.iterdir()] == ['spec.pkl']


def test_files_are_replaced_and_not_written_through_links(treasure, tmp_path, monkeypatch):
    path = tmp_path / 'out.csv'
    path.symlink_to(treasure / 'results.csv')
    write_atomically(path, 'new')
    assert path.read_text() == 'new' and not path.is_symlink()
    monkeypatch.setattr('lzero_kvcache.files.token_hex', lambda _: 'guessed')
    (tmp_path / '.out.csv.guessed').symlink_to(treasure / 'results.csv')
    with pytest.raises(FileExistsError):
        write_atomically(path, 'newer')
    (tmp_path / 'x.log').symlink_to(treasure / 'results.csv')
    with pytest.raises(OSError), output_to(tmp_path / 'x.log'):
        raise AssertionError


# Configs and what is derived from their names.

@pytest.mark.parametrize('name', ['=cmd', '+1', '-1', '@x', '..', '../x', '/x', 'a b', 'x' * 101, 'x\n', '', '<b>'])
def test_names_of_arms_are_parts_of_folders_and_no_formulas(name):
    with pytest.raises(ValueError, match='letters, digits'):
        _checked_arms(Path('x.py'), {name: {}})


@pytest.mark.parametrize('seeds', [[2 ** 32], [10 ** 400], [-1]])
def test_seeds_are_those_of_a_generator(seeds):
    with pytest.raises(ValueError, match='below 2'):
        _checked_seeds(Path('x.py'), seeds)
    result = CliRunner().invoke(main, ['ab', 'x.py', '--seeds', str(seeds[0])])
    assert result.exit_code == 2 and 'no list of integers' in result.output


@pytest.mark.parametrize('name, folder', [('...py', 'data_ab/ab'), ('....py', 'data_ab/ab'), ('a.py', 'data_ab/a')])
def test_the_name_of_a_config_does_not_lead_out_of_the_folder(name, folder, tmp_path, monkeypatch):
    ab, seen = sys.modules['lzero_kvcache.cli.ab'], []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ab, '_checked', lambda *_: SimpleNamespace(notes=()))

    def stop(path):
        seen.append(str(path))
        raise KeyboardInterrupt

    monkeypatch.setattr('lzero_kvcache.ab.folder.RunFolder', stop)
    CliRunner().invoke(main, ['ab', name])
    assert seen == [folder]


def test_brackets_and_escapes_in_names_are_text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('my[').mkdir()
    for name in ('my[/b]config.py', f'{ESCAPES[:-1]}.py'):
        Path(name).write_text('raise SystemExit(3)')
        result = CliRunner().invoke(main, ['run', name])
        assert result.exit_code == 1 and 'ended by itself, with status 3' in result.output
        assert all(line.isprintable() for line in result.output.splitlines())
    with output_to(tmp_path / 'log') as screen, spinner(screen, '[/b]'):
        pass


@pytest.mark.parametrize('name', ['x\0y', 'x' * 300, 'x' * 300 + '/y', 'link', 'linked'])
def test_a_run_takes_no_folder_that_is_none_of_its_own(name, treasure, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('link').symlink_to('nowhere')
    Path('linked.log').symlink_to(treasure / 'new')
    with pytest.raises(ValueError, match='choose another|cannot be written'):
        check_new_folder(Path(name))
    assert not (treasure / 'new').exists() and not Path('nowhere').exists()


# Pickles.

class Trap:
    """Whoever unpickles it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path, )


def test_a_spec_from_elsewhere_is_not_unpickled(tmp_path):
    trap, spec = tmp_path / 'sprung', tmp_path / 'spec.pkl'
    spec.write_bytes(pickle.dumps(Trap(trap)))
    for options in ([], ['--sha256', '0' * 64], ['--sha256', '']):
        result = CliRunner().invoke(trial_module.main, [str(spec), *options])
        assert result.exit_code and not trap.exists() and isinstance(result.exception, SystemExit)
    with pytest.raises(ValueError, match='it is not read'):
        load_spec(spec, '0' * 64)
    # The trap works.
    pickle.loads(spec.read_bytes())
    assert trap.exists()


@pytest.mark.parametrize('save', [
    lambda trap, path: path.write_bytes(pickle.dumps(trap)), lambda trap, path: torch.save(dict(model=trap), path),
    lambda trap, path: path.write_bytes(b'PK\3\4 no archive'), lambda trap, path: path.write_bytes(b''),
], ids=['pickle', 'checkpoint', 'broken', 'empty'])
def test_a_checkpoint_from_elsewhere_executes_nothing(save, tmp_path):
    trap, path = tmp_path / 'sprung', tmp_path / 'x.pth.tar'
    save(Trap(trap), path)
    with pytest.raises(ValueError, match='no checkpoint of weights alone'):
        check_checkpoint(str(path))
    assert not trap.exists()


def test_a_run_refuses_such_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save(dict(model=Trap(tmp_path / 'sprung')), 'x.pth.tar')
    result = CliRunner().invoke(main, ['run', CARTPOLE, '--checkpoint', 'x.pth.tar', '--exp-name', 'run'])
    assert result.exit_code == 1 and 'no checkpoint of weights alone' in result.output
    assert [path.name for path in tmp_path.iterdir()] == ['x.pth.tar']


def test_a_checkpoint_of_weights_is_accepted(tmp_path):
    weights = torch.nn.Linear(2, 2)
    torch.save(dict(model=weights.state_dict(), optimizer=torch.optim.Adam(weights.parameters()).state_dict(),
                    last_iter=3, last_step=0), tmp_path / 'x.pth.tar')
    check_checkpoint(str(tmp_path / 'x.pth.tar'))


# Calls that run what a file says. All else reads data.
RUNS_A_CONFIG = {('lzero_kvcache/experiment/config_file.py', 'runpy.run_path')}
ITS_OWN_BYTES = {('lzero_kvcache/ab/config.py', 'pickle.loads'), ('lzero_kvcache/ab/trial.py', 'pickle.loads')}
RUNNING = re.compile(
    r'(.*\.)?(loads?|Unpickler|eval|exec|compile|run_path|run_module|system|popen|read_pickle|load_module|'
    r'unpack_archive|extractall|full_load|unsafe_load)'
)
HARMLESS = re.compile(r'json\.loads|suite\.load|[\w.]*\.eval|re\.compile|torch\.compile|platform\.system')


def test_nothing_else_executes_what_a_file_says():
    found = set()
    for folder in ('lzero_kvcache', 'zoo_examples', 'benchmarks', 'configs'):
        for path in (ROOT / folder).rglob('*.py'):
            for node in ast.walk(ast.parse(path.read_text())):
                if not isinstance(node, ast.Call):
                    continue
                name = ast.unparse(node.func)
                keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert 'shell' not in keywords and keywords.get('allow_pickle') is None, f'{path}: {ast.unparse(node)}'
                if not RUNNING.fullmatch(name) or HARMLESS.fullmatch(name):
                    continue
                if name == 'torch.load':
                    assert keywords.get('weights_only') == 'True', f'{path}: {ast.unparse(node)}'
                    continue
                found.add((path.relative_to(ROOT).as_posix(), name))
    # A function of its own, which calls torch.load.
    found.remove(('zoo_examples/classic_control/cartpole_imagine.py', 'load'))
    assert found == RUNS_A_CONFIG | ITS_OWN_BYTES


# Reports.

def record_with(folder, **changed):
    """A run of one trial that is done, and one that is not."""
    write_run(folder, seeds=(0, ))
    write_trial(folder, 'fifo', 0, rows=3)
    record = json.loads((folder / 'ab.json').read_text())
    (folder / 'ab.json').write_text(json.dumps({**record, **changed}))
    return folder


@pytest.mark.parametrize('changed', [
    dict(arms={'../../x': {}}, baseline='../../x'), dict(arms={'/etc/x': {}}, baseline='/etc/x'),
    dict(arms={'a\0b': {}}, baseline='a\0b'), dict(arms={'x' * 300: {}}, baseline='x' * 300),
    dict(arms={str(number): {} for number in range(101)}, baseline='0'), dict(seeds=list(range(6000))),
    dict(seeds=[10 ** 400]), dict(seeds=[-1]), dict(seeds=[float('nan')]),
    dict(differences={'fifo': {str(number): 0 for number in range(60_000)}}),
    dict(title=ESCAPES, baseline=ESCAPES),
], ids=range(11))
def test_a_record_from_elsewhere_is_checked(changed, tmp_path):
    folder = record_with(tmp_path / 'run', **changed)
    result = CliRunner().invoke(report, [str(folder)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit)
    assert result.output.startswith(f"Error: {folder / 'ab.json'}: ") and len(result.output) < 50_000
    assert all(line.isprintable() for line in result.output.splitlines())
    assert not (folder / 'report.html').exists()


@pytest.mark.parametrize('name, text', [
    ('ab.json', DEEP), ('trials/fifo_seed0/trial.json', DEEP), ('results.csv', 'arm,seed,status\nfifo,1e300,done\n'),
    ('results.csv', 'arm,seed,status\n' + 'fifo,0,done\n' * 2), ('results.csv', 'a\n' + 'x\n' * (2 ** 20 + 1)),
    ('results.csv', 'arm,seed,status,return_last\nfifo,0,done,1e300\n'), ('results.csv', 'x' * 200_000),
    ('results.csv', f'arm,seed,status\n{ESCAPES[:-2]},x,done\n'),
    ('trials/fifo_seed0/series.csv', ','.join(['env_step', ESCAPES[:-2]]) + '\n1,x\n'),
    ('trials/fifo_seed0/returns.csv', 'env_step,return_mean\n1e301,1\n'),
], ids=range(10))
def test_files_from_elsewhere_are_refused_by_a_sentence(name, text, tmp_path):
    folder = record_with(tmp_path / 'run')
    (folder / name).write_text(text)
    result = CliRunner().invoke(report, [str(folder)])
    assert result.exit_code == 1 and isinstance(result.exception, SystemExit), result.output
    assert result.output.startswith(f'Error: {folder}')
    assert all(line.isprintable() for line in result.output.splitlines())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3), max_leaves=8
)
CELLS = st.sampled_from(['fifo', 'lru', '0', '1', 'done', 'failed', '-1', '1e30', '1e-300', 'inf', 'nan', '', '\0'])
HEADER = st.lists(
    st.sampled_from(['arm', 'seed', 'status', 'env_steps', 'return_last', 'evictions', 'env_step', 'x', '']), max_size=9
)


@given(st.dictionaries(st.sampled_from(['arms', 'seeds', 'baseline', 'title', 'differences', 'machine']), JSON),
       HEADER, st.lists(st.lists(CELLS, max_size=10), max_size=4))
@settings(max_examples=150)
def test_whatever_a_folder_holds_is_read_or_refused(tmp_path_factory, changed, header, rows):
    folder = tmp_path_factory.getbasetemp() / 'any'
    (folder / 'trials' / 'fifo_seed0').mkdir(parents=True, exist_ok=True)
    sound = dict(arms={'fifo': {}, 'lru': {}}, seeds=[0, 1])
    (folder / 'ab.json').write_text(json.dumps({**sound, **changed}))
    # By hand: the csv module of Python 3.10 writes no NUL.
    lines = [','.join(row) for row in [['arm', 'seed', 'status', *header], *rows]]
    for name in ('results.csv', 'trials/fifo_seed0/series.csv'):
        (folder / name).write_text('\n'.join(lines))
    try:
        read_run(folder)
    except ValueError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize('columns', [['x'], ['env_step'], ['seconds', 'x'], ['searches', 'recur_pool_hits'], []])
def test_curves_need_no_column(columns):
    table = {name: np.arange(3.0) for name in columns}
    trial = Trial('fifo', 0, 'done', series=table, returns=dict(table))
    for curve in (learning_curve(trial), learning_curve(trial, over_time=True), throughput(trial),
                  hit_rate(trial, 'recur_pool'), cache_memory(trial)):
        assert not len(curve.x) and not len(curve.y)


@pytest.mark.parametrize('numbers', [(1e30, -1e30), (1e-300, float('inf'))], ids=str)
def test_whatever_is_believed_is_drawn_and_only_text(numbers, tmp_path):
    write_run(tmp_path, seeds=(0, 1, 2))
    for arm, number in zip(('fifo', 'lru'), numbers):
        for seed in range(3):
            write_trial(tmp_path, arm, seed, rows=3, returns=numbers, return_last=number, env_steps=number,
                        seconds=number, evictions=numbers[0], hit_rate_recur_pool=number, peak_cache_mb=number)
            path = tmp_path / 'trials' / f'{arm}_seed{seed}' / 'series.csv'
            path.write_text(path.read_text() + ','.join([str(numbers[0])] * 24) + '\n')
    hostile = '<script>alert(1)</script><img src=x onerror=alert(2)>'
    with open(tmp_path / 'results.csv', 'a', newline='') as file:
        csv.writer(file).writerows([[f'../{number}{hostile}', '0', 'done'] for number in range(50)])
    (tmp_path / 'report.html').symlink_to(tmp_path / 'results.csv')
    page = Page(write_report(tmp_path).read_text(encoding='utf-8'))
    assert not {'script', 'img'} & set(page.elements)
    assert 'So it is with 30 more of its rows.' in page.text
    assert all(link.startswith(('trials/', 'https://', '#', 'data:')) for link in page.values('href'))
    assert (tmp_path / 'results.csv').read_text().startswith('arm,') and not (tmp_path / 'report.html').is_symlink()
