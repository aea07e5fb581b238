"""Trace files from anywhere: cut off, damaged, made to hurt."""
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lzero_kvcache.search.episode import NO_EPISODE
from lzero_kvcache.trace import BELADY, Choice, Replay, TraceReader
from lzero_kvcache.trace import format as trace_format
from lzero_kvcache.trace.format import (
    BLOCK,
    CHECKSUM,
    DONE,
    DROP,
    EVENT,
    EVENTS,
    EXPANSION,
    HEAD,
    MAGIC,
    MANAGER,
    PHASES,
    ROOT_TYPE,
    STRAYS,
    EventRecords,
    ManagerFacts,
    in_blocks,
    node_type,
    pack_block,
    pack_events,
    unpack_events,
)
from lzero_kvcache.trace.writer import TraceWriter

FACTS = dict(
    env_num=2, num_simulations=4, init_size=3, recur_size=8, wm_size=2, strategy='lru', on_miss='rebuild',
    window='shift', context_length=8, num_observations_tokens=1, num_actions=3, samples_actions=False,
    discount_factor=0.997,
)


def records_of(searches, seed=0):
    """Events of some searches, each given by its rows: how many roots, and how many nodes each inference made."""
    generator = np.random.default_rng(seed)
    events, roots, nodes = [(DROP, 0)], [], []

    def add(kind, count, parents=-1, **of_roots):
        events.append((kind, count))
        new = np.zeros(count, dtype=node_type(3))
        new['parents'], new['actions'] = parents, generator.integers(3, size=count)
        new['reward_bins'], new['value_bins'] = generator.normal(size=(2, count))
        new['policies'] = generator.normal(size=(count, 3))
        nodes.append(new)
        if kind <= STRAYS:
            roots.append(np.zeros(count, dtype=ROOT_TYPE))
            for name, column in of_roots.items():
                roots[-1][name] = column

    for rows in searches:
        add(int(generator.integers(2)), rows[0], env_id=np.arange(rows[0]) % 2,
            beginning=generator.integers(3, size=rows[0]))
        met = rows[0]
        for count in rows[1:]:
            if met:
                add(EXPANSION, count, generator.integers(met, size=count))
            else:
                add(STRAYS, count, env_id=-1, beginning=NO_EPISODE, depth=generator.integers(9, size=count))
            met += count
            if generator.random() < 0.1:
                events.append((DROP, 0))
    return EventRecords(np.array(events, dtype=EVENT), np.concatenate(roots), np.concatenate(nodes))


def write(path, records, most_bytes=2 ** 22):
    path.unlink(missing_ok=True)
    writer = TraceWriter(path, dict(config='x'))
    manager = writer.add_manager(ManagerFacts(**FACTS))
    for block in in_blocks(records, most_bytes):
        writer.write(manager, block)
    writer.close()
    return path.read_bytes()


def read(path):
    reader = TraceReader(path)
    found = [
        (each.phase, [(kind, roots.tobytes(), nodes.tobytes()) for kind, roots, nodes in each.steps])
        for each in reader.searches()
    ]
    return reader, found


SEARCHES = st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=6), min_size=1, max_size=5)


@given(SEARCHES, st.integers(0, 100), st.integers(1, 500))
def test_what_is_written_is_read(tmp_path_factory, searches, seed, most_bytes):
    path = tmp_path_factory.getbasetemp() / 'written'
    records = records_of(searches, seed)
    write(path, records, most_bytes)
    reader, found = read(path)
    assert reader.is_complete and reader.head == dict(config='x')
    assert b''.join(roots for _, steps in found for _, roots, _ in steps) == records.roots.tobytes()
    assert b''.join(nodes for _, steps in found for _, _, nodes in steps) == records.nodes.tobytes()
    assert [rows[0] for rows in searches] == [len(steps[0][1]) // ROOT_TYPE.itemsize for _, steps in found]
    assert [kind for _, steps in found for kind, _, _ in steps] == records.events['kind'].tolist()[1:]


@given(st.data())
def test_a_file_that_was_cut_off_is_read_up_to_its_last_block(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'cut'
    whole = write(path, records_of([[2, 2, 2, 2]] * 6), 100)
    _, expected = read(path)
    length = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:length])
    try:
        reader, found = read(path)
    except ValueError as error:
        # Not even the first block is there.
        assert str(path) in str(error) and length < 100
        return
    assert not reader.is_complete
    assert found[:-1] == expected[:len(found[:-1])]


@given(st.data())
def test_a_damaged_file_is_refused_or_says_the_same(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'damaged'
    whole = bytearray(write(path, records_of([[2, 2, 2, 2]] * 3), 200))
    _, expected = read(path)
    for _ in range(data.draw(st.integers(1, 3))):
        whole[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(whole)
    try:
        _, found = read(path)
    except ValueError as error:
        assert str(path) in str(error)
        return
    assert found == expected


@given(st.data())
def test_a_file_with_true_checksums_and_false_numbers_is_refused_or_replayed(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / 'false'
    payload = bytearray(pack_events(records_of([[2, 2, 2, 2], [1, 1, 1]])))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(file_of((EVENTS, 0, bytes(payload))))
    try:
        reader, searches = TraceReader(path), []
        searches = list(reader.searches())
    except ValueError as error:
        assert str(path) in str(error)
        return
    for choice in (Choice('lru'), Choice('tree'), Choice('priority:predicted_value'), BELADY):
        simulated = Replay(reader.managers[0], choice, 3)
        for each in searches:
            simulated.run(each)


def file_of(*blocks, facts=FACTS):
    given = [(HEAD, 0, b'{}'), (MANAGER, 0, json.dumps(facts).encode()), *blocks]
    return MAGIC + b''.join(pack_block(*block) for block in given)


def raw_block(kind, packed, length):
    header = BLOCK.pack(kind, 0, len(packed), length)
    return header + CHECKSUM.pack(zlib.crc32(header)) + packed


def events(*rows):
    return np.array(list(rows), dtype=EVENT)


NO_ROOTS, NO_NODES = np.zeros(0, dtype=ROOT_TYPE), np.zeros(0, dtype=node_type(3))
COLLECT = PHASES.index('collect')


def one_node(**values):
    nodes = np.zeros(1, dtype=node_type(3))
    for name, value in values.items():
        nodes[name] = value
    return nodes


def nodes_of(*values):
    return np.concatenate([one_node(**each) for each in values])


def one_root(**values):
    roots = np.zeros(1, dtype=ROOT_TYPE)
    for name, value in values.items():
        roots[name] = value
    return roots


def block_of(rows, roots=NO_ROOTS, nodes=NO_NODES):
    return EVENTS, 0, pack_events(EventRecords(events(*rows), roots, nodes))


HOSTILE = {
    'empty': b'',
    'another file': b'\x80\x04\x95 a pickle, say',
    'a bomb': file_of() + raw_block(EVENTS, zlib.compress(bytes(2 ** 24)), 100),
    'a bomb that says so': file_of() + raw_block(EVENTS, zlib.compress(bytes(2 ** 25)), 2 ** 25),
    'a length of 4 GiB': file_of() + raw_block(EVENTS, b'', 2 ** 32 - 1),
    'counts of 4 billion': file_of((EVENTS, 0, struct.pack('<III', *[2 ** 32 - 1] * 3))),
    'no zlib': file_of() + raw_block(EVENTS, b'not packed', 10),
    'more than it says': file_of() + raw_block(EVENTS, zlib.compress(bytes(12)) + b'more', 12),
    'a kind that there is not': file_of() + raw_block(b'EVIL', zlib.compress(b''), 0),
    'deep JSON': MAGIC + pack_block(HEAD, 0, b'[' * 60000),
    'no object': MAGIC + pack_block(HEAD, 0, b'7'),
    'no text': MAGIC + pack_block(HEAD, 0, b'\xff\xfe'),
    'no manager': MAGIC + pack_block(HEAD, 0, b'{}') + pack_block(*block_of([(COLLECT, 0)])),
    'a manager twice': file_of((MANAGER, 0, json.dumps(FACTS).encode())),
    'a billion environments': file_of(facts=dict(FACTS, env_num=10 ** 9)),
    'a pool of nothing': file_of(facts=dict(FACTS, recur_size=0)),
    'a size that is a bool': file_of(facts=dict(FACTS, wm_size=True)),
    'a size that is missing': file_of(facts={}),
    'a path for a mode': file_of(facts=dict(FACTS, on_miss='../../etc')),
    'a window of nothing': file_of(facts=dict(FACTS, context_length=1)),
    'nodes before a search': file_of(block_of([(EXPANSION, 1)], nodes=one_node())),
    'an event of no kind': file_of(block_of([(77, 0)])),
    'rows without records': file_of(block_of([(COLLECT, 0), (EXPANSION, 1)])),
    'records without rows': file_of(block_of([(COLLECT, 0)], nodes=one_node())),
    'a search with roots that are not there': file_of(block_of([(COLLECT, 5)])),
    'a drop with rows': file_of(block_of([(COLLECT, 0), (DROP, 5)])),
    'a parent from nowhere': file_of(block_of([(COLLECT, 0), (EXPANSION, 1)], nodes=one_node(parents=7))),
    'a parent below 0': file_of(block_of([(COLLECT, 0), (EXPANSION, 1)], nodes=one_node(parents=-1))),
    'an action from nowhere': file_of(block_of(
        [(COLLECT, 1), (EXPANSION, 1)], one_root(), nodes_of(dict(parents=-1), dict(actions=3))
    )),
    'an environment from nowhere': file_of(block_of([(COLLECT, 1)], one_root(env_id=2), one_node(parents=-1))),
    'a beginning from nowhere': file_of(block_of([(COLLECT, 1)], one_root(beginning=9), one_node(parents=-1))),
    'a root with a parent': file_of(block_of([(COLLECT, 1)], one_root(), one_node(parents=0))),
    'a stray with a parent': file_of(block_of(
        [(COLLECT, 1), (STRAYS, 1)], np.repeat(one_root(), 2), nodes_of(dict(parents=-1), dict(parents=0))
    )),
}


@pytest.mark.parametrize('content', HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_file_is_refused_by_a_sentence_and_costs_no_memory(content, tmp_path):
    (tmp_path / 'trace').write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=r'trace (is|ends)'):
            list(TraceReader(tmp_path / 'trace').searches())
        assert tracemalloc.get_traced_memory()[1] < 2 ** 23
    finally:
        tracemalloc.stop()


def test_a_search_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr('lzero_kvcache.trace.limits.MOST_BYTES_OF_REPLAY', 100_000)
    write(tmp_path / 'trace', records_of([[2] + [2] * 60]))
    with pytest.raises(ValueError, match='a replay would take'):
        list(TraceReader(tmp_path / 'trace').searches())


@given(SEARCHES, st.integers(0, 20), st.integers(40, 400))
def test_blocks_are_cut_between_events(searches, seed, most_bytes):
    records = records_of(searches, seed)
    blocks = [unpack_events(pack_events(block), node_type(3)) for block in in_blocks(records, most_bytes)]
    for joined, whole in zip(map(np.concatenate, zip(*blocks)), records):
        assert joined.tobytes() == whole.tobytes()


def test_a_writer_does_not_overwrite(tmp_path):
    (tmp_path / 'trace').write_text('mine')
    with pytest.raises(FileExistsError):
        TraceWriter(tmp_path / 'trace', {})
    assert (tmp_path / 'trace').read_text() == 'mine'


def test_the_format_is_what_its_docstring_says():
    assert BLOCK.size + CHECKSUM.size == 18 and len(MAGIC) == 8
    assert EVENT.itemsize == 5 and DONE == b'DONE'
    assert all(name in trace_format.__doc__ for name in ('HEAD', 'MNGR', 'EVNT', 'DONE', 'PHASES', 'STRAYS', 'DROP'))
