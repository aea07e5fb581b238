"""Nothing that a table says is cut, however narrow the screen is."""
import fcntl
import os
import pty
import re
import struct
import sys
import termios
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lzero_kvcache import KVCacheManager
from lzero_kvcache.ab.display import ABDisplay
from lzero_kvcache.ab.folder import RunFolder
from lzero_kvcache.ab.results import SHOWN, means_table
from lzero_kvcache.ab.spec import TrialSpec
from lzero_kvcache.tables import statistics_table
from lzero_kvcache.wide_table import WideTable

TRACE = Path(__file__).parent / 'traces' / 'cartpole.trace'
every_width = pytest.mark.parametrize('width', [60, 80, 100, 120, 200])


def shown(table, width):
    console = Console(width=width, no_color=True)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert '…' not in capture.get() and max(map(len, lines)) <= width
    return lines


def rows_of(lines, *names):
    """What stands in the row of some names, in all parts of a table together."""
    heads = [re.match(r'\s+'.join(map(re.escape, names)) + r'(\s|$)', line) for line in lines]
    return ' '.join(line[head.end():] for line, head in zip(lines, heads) if head).split()


@given(st.integers(1, 9), st.integers(1, 5), st.integers(24, 120), st.data())
@settings(max_examples=50)
def test_every_cell_stands_beside_its_name(columns, rows, width, data):
    cells = st.integers(0, 10 ** 12).map('{:,}'.format)
    table = WideTable('Title', ['name'], [f'column{number}' for number in range(columns)])
    wanted = [data.draw(st.lists(cells, min_size=columns, max_size=columns)) for _ in range(rows)]
    for number, row in enumerate(wanted):
        table.add_row(f'row{number}', *row)
    lines = shown(table, width)
    assert lines[0].strip() == 'Title'
    assert rows_of(lines, 'name') == [f'column{number}' for number in range(columns)]
    for number, row in enumerate(wanted):
        assert rows_of(lines, f'row{number}') == row


@every_width
def test_the_means_of_an_ab_run(width):
    values = dict(
        return_last=137.25, env_steps_per_second=1234.5, search_ms=51.25, hit_rate_recur_pool=1.0, evictions=1234567,
        rebuilds=123456, peak_cache_mb=1234.5, peak_memory_mb=12345
    )
    rows = [{**values, 'arm': arm} for arm in ('fifo', 'priority_predicted_value') for _ in range(3)]
    lines = shown(means_table(rows, 'Strategies: means over the seeds'), width)
    for arm in ('fifo', 'priority_predicted_value'):
        expected = ['3', *(f'{text.format(values[column])} ±{text.format(0)}' for _, column, text in SHOWN)]
        assert rows_of(lines, arm) == ' '.join(expected).split()
    assert rows_of(lines, 'arm') == ' '.join(['seeds', *(heading for heading, *_ in SHOWN)]).split()


@every_width
def test_the_statistics_at_the_end_of_a_run(width):
    manager = KVCacheManager(dict(num_simulations=200), env_num=256)
    stats = manager.recur_pool.stats
    stats.hits, stats.misses, stats.evictions = 123456789, 1234567, 12345678
    lines = shown(statistics_table(manager), width)
    assert rows_of(lines, 'recur_pool') == ['51200', '0', '0', '123,456,789', '1,234,567', '12,345,678', '99.0%']
    assert rows_of(lines, 'init_pools') == ['256', 'x', '400', '0', '0', '0', '0', '0', '-']


def at_a_terminal(columns, *command):
    """What a command shows at a terminal so wide, without the codes that move and colour."""
    process, terminal = pty.fork()
    if process == 0:
        os.environ.pop('COLUMNS', None)
        os.execv(command[0], command)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack('HHHH', 40, columns, 0, 0))
    said = b''
    while True:
        try:
            chunk = os.read(terminal, 2 ** 16)
        except OSError:
            # Linux's way to say that nobody writes any more.
            chunk = b''
        if not chunk:
            break
        said += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0, said.decode()
    os.close(terminal)
    return re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', said.decode())


def test_a_simulation_at_a_narrow_terminal(tmp_path):
    said = at_a_terminal(
        60, sys.executable, '-c', 'from lzero_kvcache.cli import main; main()', 'simulate', str(TRACE), '--strategies',
        'priority', '--sizes', '10%,20%,30%,40%,50%,60%,70%,80%,90%,100%', '--jobs', '1', '--out', str(tmp_path / 'out')
    )
    assert '…' not in said
    lines = said.replace('\r', '\n').splitlines()
    for name in ("Belady's optimum", 'priority:predicted_value', 'priority:predicted_reward', 'priority:search_depth'):
        rates = rows_of(lines, name)
        assert len(rates) == 10 and rates[-1] == '100.0'
    assert rows_of(lines, 'strategy') == [f'{size}%' for size in range(10, 101, 10)]


def test_the_names_of_running_trials_are_not_cut(tmp_path):
    console = Console(width=60, force_terminal=True, no_color=True)
    spec = TrialSpec('priority_predicted_value_small_pool', SimpleNamespace(seed=12345678, max_env_step=100000))
    with console.capture() as capture, ABDisplay(console, RunFolder(tmp_path), [spec]) as display:
        display.started(spec)
        display.refresh()
    said = re.sub(r'\x1b\[[0-9;?]*[A-Za-z]', '', capture.get())
    assert '…' not in said and '0/100000' in said
