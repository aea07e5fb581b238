"""Traces from anywhere: cut off, damaged, made to hurt."""
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lzero_kvcache.search.episode import NO_EPISODE
from lzero_kvcache.trace.choices import BELADY
from lzero_kvcache.trace.format import BLOCK, DROP, EVENT, EXPANSION, PHASES, RUN, STRAYS, ManagerFacts
from lzero_kvcache.trace.reader import MOST_BYTES, TraceReader
from lzero_kvcache.trace.replay import Replay
from lzero_kvcache.trace.writer import TraceWriter

DOCUMENT = Path(__file__).parents[1] / 'docs' / 'traces.md'
CARTPOLE = Path(__file__).parent / 'traces' / 'cartpole.trace'
FACTS = dict(
    env_num=2, num_simulations=4, init_size=3, wm_size=2, on_miss='rebuild', window='shift', context_length=8,
    num_observations_tokens=1, num_actions=3, samples_actions=False, discount_factor=0.997,
)
NODE = ManagerFacts(**FACTS).node_type
COLLECT = PHASES.index('collect')
ONE_SEARCH = [(COLLECT, 0)]


@contextmanager
def memory_below(limit):
    tracemalloc.start()
    try:
        yield
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < limit


def nodes_of(count, parents=-1, **columns):
    nodes = np.zeros(count, dtype=NODE)
    nodes['parents'], nodes['env_ids'], nodes['beginnings'] = parents, -1, NO_EPISODE
    for name, column in columns.items():
        nodes[name] = column
    return nodes


def steps_of(searches, seed=0):
    """Kind and nodes of all events of searches, each given by its rows: the roots, and what each inference made."""
    generator, steps = np.random.default_rng(seed), [(DROP, nodes_of(0))]
    for rows in searches:
        met = 0
        for place, count in enumerate(rows):
            columns = dict(actions=generator.integers(3, size=count), policies=generator.normal(size=(count, 3)))
            columns['value_bins'], columns['reward_bins'] = generator.normal(size=(2, count))
            if place == 0:
                kind = int(generator.integers(2))
                columns.update(env_ids=np.arange(count) % 2, beginnings=generator.integers(3, size=count))
            elif met:
                kind, columns['parents'] = EXPANSION, generator.integers(met, size=count)
            else:
                kind, columns['depths'] = STRAYS, generator.integers(9, size=count)
            steps.append((kind, nodes_of(count, **columns)))
            met += count
            if generator.random() < 0.1:
                steps.append((DROP, nodes_of(0)))
    return steps


def write(path, steps, per_block=100, **facts):
    """A trace of so many events per block."""
    if path.exists():
        rmtree(path)
    writer = TraceWriter(path, dict(config='x'))
    manager = writer.add_manager(ManagerFacts(**{**FACTS, **facts}))
    for first in range(0, len(steps), per_block):
        some = steps[first:first + per_block]
        writer.write(manager, events_of(some), np.concatenate([nodes for _, nodes in some]))
    writer.close()
    return path


NO_NODES = nodes_of(0)


def events_of(steps):
    return np.array([(kind, len(nodes)) for kind, nodes in steps], dtype=EVENT)


def read(path):
    reader = TraceReader(path)
    return reader, [
        (search.phase, [(kind, nodes.tobytes()) for kind, nodes in search.steps]) for search in reader.searches()
    ]


def packed(events=ONE_SEARCH, nodes=NO_NODES, manager=0):
    block = io.BytesIO()
    np.savez_compressed(block, manager=np.int64(manager), events=np.array(events, EVENT), nodes=nodes)
    return block.getvalue()


def members_of(block):
    with zipfile.ZipFile(io.BytesIO(block)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def archive_of(members, compression=zipfile.ZIP_DEFLATED):
    block = io.BytesIO()
    with zipfile.ZipFile(block, 'w', compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return block.getvalue()


def folder_of(path, *blocks, run=None, **facts):
    """A trace of these bytes."""
    path.mkdir(exist_ok=True)
    run = dict(options={}, managers=[{**FACTS, **facts}], blocks=len(blocks)) if run is None else run
    (path / RUN).write_text(run if isinstance(run, str) else json.dumps(run))
    for number, block in enumerate(blocks):
        (path / BLOCK.format(number)).write_bytes(block)
    return path


SEARCHES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5)


@given(SEARCHES, st.integers(0, 100), st.integers(1, 9))
def test_what_is_written_is_read(tmp_path_factory, searches, seed, per_block):
    steps = steps_of(searches, seed)
    reader, found = read(write(tmp_path_factory.getbasetemp() / 'written', steps, per_block))
    assert reader.is_complete and reader.options == dict(config='x')
    assert [(kind, nodes.tobytes()) for kind, nodes in steps[1:]] == [step for _, steps in found for step in steps]
    assert [len(rows) for rows in searches] == [sum(kind != DROP for kind, _ in steps) for _, steps in found]


WRITE_FOR_EVER = """
import sys
from pathlib import Path
from test_trace_files import FACTS, events_of, steps_of
from lzero_kvcache.trace.format import ManagerFacts
from lzero_kvcache.trace.writer import TraceWriter
writer = TraceWriter(Path(sys.argv[1]), {})
writer.add_manager(ManagerFacts(**FACTS))
while True:
    for kind, nodes in steps_of([[2, 2, 2]])[1:]:
        writer.write(0, events_of([(kind, nodes)]), nodes)
"""


def test_a_run_that_is_killed_leaves_what_it_had_written(tmp_path):
    process = subprocess.Popen([sys.executable, '-c', WRITE_FOR_EVER, tmp_path / 'trace'], cwd=Path(__file__).parent)
    while process.poll() is None and not (tmp_path / 'trace' / BLOCK.format(20)).exists():
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reader, found = read(tmp_path / 'trace')
    assert not reader.is_complete and len(found) >= 20 // 4
    assert all(steps == found[0][1] for _, steps in found[:-1])


@given(st.data())
def test_a_damaged_trace_is_refused_or_says_the_same(tmp_path_factory, data):
    path = write(tmp_path_factory.getbasetemp() / 'damaged', steps_of([[2, 2, 2, 2]] * 3), 4)
    _, expected = read(path)
    block = path / BLOCK.format(data.draw(st.integers(0, 2)))
    content = bytearray(block.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    block.write_bytes(content[:data.draw(st.integers(len(content) // 2, len(content)))])
    try:
        _, found = read(path)
    except ValueError as error:
        assert str(block) in str(error)
        return
    assert found == expected


@given(st.data())
def test_true_checksums_and_false_numbers_are_refused_or_replayed(tmp_path_factory, data):
    steps = steps_of([[2, 2, 2, 2], [1, 1, 1]])
    members = members_of(packed(events_of(steps), np.concatenate([nodes for _, nodes in steps])))
    name = data.draw(st.sampled_from(sorted(members)))
    content = bytearray(members[name])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder_of(tmp_path_factory.getbasetemp() / 'false', archive_of({**members, name: bytes(content)}))
    try:
        reader, searches = TraceReader(path), list(TraceReader(path).searches())
    except ValueError as error:
        assert str(path) in str(error)
        return
    for strategy in ('lru', 'tree', 'priority:predicted_value', BELADY):
        simulated = Replay(reader.managers[0], strategy, 3)
        for search in searches:
            simulated.run(search)


def claiming(shape, descr=NODE.descr, content=b''):
    """A block whose nodes have another header than they should."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, dict(descr=descr, fortran_order=False, shape=shape))
    return archive_of({**members_of(packed()), 'nodes.npy': header.getvalue() + content})


def pickled():
    block = io.BytesIO()
    np.savez_compressed(block, manager=np.int64(0), events=np.zeros(0, EVENT), nodes=np.array([print], dtype=object))
    return block.getvalue()


def bomb():
    """Zeros without end, of which the directory and the array's header say that there are few."""
    nodes = members_of(packed(nodes=nodes_of(5)))['nodes.npy']
    block = archive_of({**members_of(packed()), 'nodes.npy': nodes + bytes(2 ** 26)})
    sizes = [size.to_bytes(4, 'little') for size in (len(nodes) + 2 ** 26, len(nodes))]
    assert block.count(sizes[0]) == 2
    return block.replace(*sizes)


ROOT = nodes_of(1, env_ids=0, beginnings=1)
EXPANDED = [(COLLECT, 0), (EXPANSION, 1)]
HOSTILE = {
    'empty': b'', 'a pickle': b'\x80\x04\x95 a pickle, say', 'pickled nodes': pickled(),
    'an array alone': members_of(packed())['nodes.npy'], 'a member missing': archive_of({'manager.npy': b''}),
    'a bomb': bomb(), 'a bomb that says so': packed(nodes=nodes_of(2 ** 21)),
    'lzma': archive_of(members_of(packed()), zipfile.ZIP_LZMA), 'more than it may have': bytes(MOST_BYTES + 1),
    'a billion nodes': claiming((10 ** 9, )), 'a negative shape': claiming((-1, )), 'a matrix': claiming((0, 3)),
    'too many nodes': claiming((0, ), content=bytes(NODE.itemsize)), 'other columns': claiming((0, ), EVENT.descr),
    'deep': archive_of({**members_of(packed()), 'nodes.npy': b'\x93NUMPY\1\0\x28\x23' + b'[' * 9000}),
    'a version': archive_of({**members_of(packed()), 'nodes.npy': b'\x93NUMPY\3\0' + bytes(99)}),
    'a manager from nowhere': packed(manager=1), 'a manager below 0': packed(manager=-1),
    'nodes before a search': packed([(EXPANSION, 1)], nodes_of(1)), 'an event of no kind': packed([(77, 0)]),
    'rows without nodes': packed(EXPANDED), 'nodes without rows': packed(nodes=ROOT),
    'a drop with rows': packed([(COLLECT, 0), (DROP, 1)], nodes_of(1)),
    'four billion rows': packed([(COLLECT, 2 ** 32 - 1)]),
    'a parent from nowhere': packed(EXPANDED, nodes_of(1, 7)), 'a parent below 0': packed(EXPANDED, nodes_of(1, -1)),
    'an action from nowhere': packed([(COLLECT, 1)], nodes_of(1, actions=3)),
    'an environment from nowhere': packed([(COLLECT, 1)], nodes_of(1, env_ids=2)),
    'a beginning from nowhere': packed([(COLLECT, 1)], nodes_of(1, beginnings=9)),
    'a root with a parent': packed([(COLLECT, 1)], nodes_of(1, 0)),
    'a stray with a parent': packed([(COLLECT, 1), (STRAYS, 1)], nodes_of(2, [-1, 0])),
}
HOSTILE_RUNS = {
    'deep JSON': '[' * 60_000, 'no object': '7', 'no JSON': '{', 'no managers': dict(options={}, blocks=1),
    'options of text': dict(options='x', managers=[FACTS], blocks=1),
    'a list of texts': dict(options={}, managers=['x'], blocks=1),
    **{f'{name} of {value!r}': dict(options={}, managers=[{**FACTS, name: value}], blocks=1) for name, value in dict(
        env_num=10 ** 9, init_size=0, wm_size=True, num_simulations=None, on_miss='../../etc', context_length=1,
        num_actions=10 ** 9, discount_factor=float('nan')
    ).items()},
    'a block more': dict(options={}, managers=[FACTS], blocks=2),
    'a block less': dict(options={}, managers=[FACTS], blocks=0),
    'blocks without end': dict(options={}, managers=[FACTS], blocks=10 ** 18),
}


@pytest.mark.parametrize('block, run', [
    *((block, None) for block in HOSTILE.values()), *((packed(), run) for run in HOSTILE_RUNS.values())
], ids=[*HOSTILE, *HOSTILE_RUNS])
def test_a_hostile_trace_is_refused_by_a_sentence_and_costs_no_memory(block, run, tmp_path):
    folder_of(tmp_path / 'trace', block, run=run)
    with memory_below(2 ** 24), pytest.raises(ValueError, match=r'trace(/run.json|/000000.npz)? cannot be used: .{9}'):
        list(TraceReader(tmp_path / 'trace').searches())


@pytest.mark.parametrize('make', [
    lambda path: path.mkdir(), os.mkfifo, lambda path: path.symlink_to('/dev/zero'), lambda path: path.symlink_to('no'),
], ids=['folder', 'pipe', 'device', 'dangling'])
def test_a_block_that_is_no_file_is_not_read(make, tmp_path):
    make(folder_of(tmp_path / 'trace', packed(), packed()) / BLOCK.format(2))
    with pytest.raises(ValueError, match='blocks are missing, or not of this run'):
        TraceReader(tmp_path / 'trace')
    (tmp_path / 'trace' / BLOCK.format(1)).unlink()
    (tmp_path / 'trace' / BLOCK.format(2)).rename(tmp_path / 'trace' / BLOCK.format(1))
    with pytest.raises(ValueError, match='000001.npz cannot be used: it is no file'):
        list(TraceReader(tmp_path / 'trace').searches())


def test_a_search_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('lzero_kvcache.trace.limits.MOST_BYTES_OF_REPLAY', 200_000)
    write(tmp_path / 'trace', steps_of([[2] + [2] * 60]))
    with pytest.raises(ValueError, match='a replay would take'):
        list(TraceReader(tmp_path / 'trace').searches())


@pytest.mark.parametrize('make', [
    lambda path: path.write_text('mine'), lambda path: path.mkdir(), lambda path: path.symlink_to('nowhere')
], ids=['file', 'folder', 'link'])
def test_a_writer_does_not_overwrite(make, tmp_path):
    make(tmp_path / 'trace')
    with pytest.raises(FileExistsError):
        TraceWriter(tmp_path / 'trace', {})
    assert [path.name for path in tmp_path.iterdir()] == ['trace'] and not list((tmp_path / 'trace').glob('*'))


def test_the_documented_lines_open_a_trace():
    _, lines, _ = re.split(r'^```(?:python)?\n', DOCUMENT.read_text(), flags=re.MULTILINE)
    namespace = dict(numpy=np, pandas=pandas)
    exec(lines.replace('my.trace', str(CARTPOLE)), namespace)
    search = next(TraceReader(CARTPOLE).searches())
    for name, column in namespace['nodes'].items():
        assert (column[:search.num_nodes] == np.concatenate([nodes[name] for _, nodes in search.steps])).all()
    assert len(lines.splitlines()) == 2 and len(namespace['nodes'].columns) == 5


def test_the_document_has_every_member_kind_and_column():
    text = DOCUMENT.read_text()
    names = {'manager', 'events', 'nodes', 'options', 'managers', 'blocks', *EVENT.names, *NODE.names}
    assert names <= set(re.findall(r'`(\w+)`', text))
    for kind, meaning in (
        (f'0 to {len(PHASES) - 1}', f"a search begins: {', '.join(PHASES)};"), (STRAYS, 'nodes without a parent'),
        (EXPANSION, 'the nodes of one inference'), (DROP, 'all pools were cleared'),
    ):
        assert f'| {kind} | {meaning}' in text
