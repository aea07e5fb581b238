"""
The trace file: every cache operation of a run, as far as it does not depend on strategy and pool size.

A file is eight bytes, ``MAGIC``, and then blocks. All numbers are little-endian.

A block is a header of 18 bytes (kind, 4 bytes; manager, u2; length of the payload in the file, u4; length unpacked, u4;
CRC-32 of the 14 bytes before, u4) and its payload, packed by zlib, which adds a sum of its own. A reader checks the
header's sum, and that no length exceeds ``MOST_BYTES``, before it unpacks anything.

``HEAD`` (the first block) and ``MNGR`` (before the first events of a manager, numbered from 0) hold a JSON object each:
what was run, and what a manager's world model is like (see ``ManagerFacts``). A run has a manager for its model and,
with reanalysis, another one for the target model. ``DONE``, a JSON object, is the last block of a run that has ended; a
file without it was cut off.

``EVNT`` holds the events of one manager since its last block: three counts (u4), then so many events, roots and nodes,
records as in ``EVENT``, ``ROOT_TYPE`` and ``node_type``, of each type first all first bytes, then all second ones, and
so on. An event says what came and how many nodes belong to it:

- One of ``PHASES`` (0 to 3): a search begins, with so many roots. The pools of nodes (recur and wm) are cleared. Roots
  of environments looked their former root up in its init pool, if ``beginning`` is CONTINUES, and were then set there.
  Those of reanalysis were not cached.
- STRAYS: nodes without a parent, states that the search has not got from the model.
- EXPANSION: the nodes of one inference. Their parents were looked up together, in the init pools (roots of
  environments), else in the recur pool and then in the wm pool; after that the nodes were set in the recur pool, and
  the wm pool holds them alone.
- DROP: all pools were cleared.

Nodes are numbered within their search, in order of appearance, and what the file has of them are columns of
``SearchNodes``. A root has a record of its own, too, and so has a stray; ``tokens`` is the length of its context.
"""
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import BinaryIO, NamedTuple, Optional

import numpy as np

MAGIC = b'LZKVTRC2'
BLOCK = struct.Struct('<4sHII')
CHECKSUM = struct.Struct('<I')
HEADER_BYTES = BLOCK.size + CHECKSUM.size
COUNTS = struct.Struct('<III')
# Of a block, packed or unpacked: what a reader allocates at most.
MOST_BYTES = 2 ** 24
MOST_JSON_BYTES = 2 ** 16
# Fast, and within a tenth of what the highest level makes of these numbers.
COMPRESSION = 1

HEAD, MANAGER, EVENTS, DONE = b'HEAD', b'MNGR', b'EVNT', b'DONE'

PHASES = ('collect', 'eval', 'reanalyze', 'unknown')
STRAYS, EXPANSION, DROP = range(len(PHASES), len(PHASES) + 3)

EVENT = np.dtype([('kind', 'u1'), ('rows', '<u4')])
ROOT_TYPE = np.dtype([('env_id', '<i4'), ('beginning', 'u1'), ('tokens', '<u2'), ('depth', '<u2')])


def node_type(num_logits: int) -> np.dtype:
    """The record of a node, as ``SearchNodes.add`` takes it; without logits where actions are sampled."""
    return np.dtype([
        ('parents', '<i4'), ('actions', '<i2'), ('reward_bins', '<f4'), ('value_bins', '<f4'),
        ('policies', '<f4', (num_logits, )),
    ])


@dataclass(frozen=True)
class ManagerFacts:
    """
    What a replay has to know of a world model and its pools.

    Attributes:
        env_num: Environments, each with an init pool.
        num_simulations: Per search.
        init_size, recur_size, wm_size: Entries of the pools in the run.
        strategy: Of the recur pool in the run, for people.
        on_miss, window: See ``KVCacheConfig``.
        context_length: The window in tokens.
        num_observations_tokens: Tokens per observation; an action has one.
        num_actions, samples_actions: See ``SearchNodes``.
        discount_factor: Of the searches, 0 to 1.
    """
    env_num: int
    num_simulations: int
    init_size: int
    recur_size: int
    wm_size: int
    strategy: str
    on_miss: str
    window: str
    context_length: int
    num_observations_tokens: int
    num_actions: int
    samples_actions: bool
    discount_factor: float

    @property
    def node_type(self) -> np.dtype:
        return node_type(0 if self.samples_actions else self.num_actions)

    @property
    def nodes_of_search(self) -> int:
        """What a recur pool that never evicts holds."""
        return self.num_simulations * self.env_num

    @classmethod
    def from_json(cls, given: dict) -> 'ManagerFacts':
        """Check what a file says; a ValueError if an entry is missing, of another type, or out of range."""
        most = dict(env_num=4096, num_observations_tokens=1024, num_actions=4096, context_length=2 ** 15)
        least = dict(context_length=4)
        named = dict(on_miss=('rebuild', 'reset'), window=('shift', 'rebuild'))
        for field in fields(cls):
            name, value = field.name, given.get(field.name)
            if type(value) is not field.type:
                allowed = field.type.__name__
            elif field.type is int and not least.get(name, 1) <= value <= most.get(name, 2 ** 31):
                allowed = f'{least.get(name, 1)} to {most.get(name, 2 ** 31)}'
            elif field.type is float and not 0 <= value <= 1:
                allowed = '0 to 1'
            elif name in named and value not in named[name]:
                allowed = ', '.join(named[name])
            else:
                continue
            raise ValueError(f'{name} of a manager is {value!r}: allowed is {allowed}')
        return cls(**{field.name: given[field.name] for field in fields(cls)})


class EventRecords(NamedTuple):
    """What one block holds: records, in order."""
    events: np.ndarray
    roots: np.ndarray
    nodes: np.ndarray


def rows_of(events: np.ndarray) -> tuple[int, int]:
    """How many records of roots, and of nodes, belong to some events."""
    rows = events['rows'].astype(np.int64)
    return int(rows[events['kind'] <= STRAYS].sum()), int(rows[events['kind'] < DROP].sum())


def pack_block(kind: bytes, manager: int, payload: bytes) -> bytes:
    """A block as it is written."""
    packed = zlib.compress(payload, COMPRESSION)
    header = BLOCK.pack(kind, manager, len(packed), len(payload))
    return header + CHECKSUM.pack(zlib.crc32(header)) + packed


def read_block(file: BinaryIO) -> Optional[tuple[bytes, int, bytes]]:
    """Kind, manager and payload of the next block; None where the file ends, be it within a block."""
    header = file.read(HEADER_BYTES)
    if len(header) < HEADER_BYTES:
        return None
    kind, manager, packed_bytes, payload_bytes = BLOCK.unpack_from(header)
    if zlib.crc32(header[:BLOCK.size]) != CHECKSUM.unpack_from(header, BLOCK.size)[0]:
        raise ValueError('the header of a block does not have the checksum that it says')
    if kind not in (HEAD, MANAGER, EVENTS, DONE):
        raise ValueError(f'a block is of kind {kind!r}')
    most = MOST_BYTES if kind == EVENTS else MOST_JSON_BYTES
    if max(packed_bytes, payload_bytes) > most:
        raise ValueError(f'a block has {max(packed_bytes, payload_bytes):,} bytes: allowed are {most:,}')
    packed = file.read(packed_bytes)
    if len(packed) < packed_bytes:
        return None
    decompressor = zlib.decompressobj()
    try:
        payload = decompressor.decompress(packed, payload_bytes + 1)
    except zlib.error as error:
        raise ValueError(f'a block cannot be unpacked: {error}') from error
    if len(payload) != payload_bytes or not decompressor.eof or decompressor.unused_data:
        raise ValueError('a block does not have the length that its header says')
    return kind, manager, payload


def pack_events(records: EventRecords) -> bytes:
    """The payload of a block of events."""
    return COUNTS.pack(*map(len, records)) + b''.join(
        np.ascontiguousarray(array).view(np.uint8).reshape(len(array), array.itemsize).T.tobytes() for array in records
    )


def in_blocks(records: EventRecords, most_bytes: int = MOST_BYTES // 4) -> Iterator[EventRecords]:
    """Halve events until what is left fits into a block of so many bytes, or is a single one."""
    half = len(records.events) // 2
    if not half or sum(array.nbytes for array in records) <= most_bytes:
        yield records
        return
    cuts = (half, *rows_of(records.events[:half]))
    yield from in_blocks(EventRecords(*(array[:cut] for array, cut in zip(records, cuts))), most_bytes)
    yield from in_blocks(EventRecords(*(array[cut:] for array, cut in zip(records, cuts))), most_bytes)


def unpack_events(payload: bytes, nodes: np.dtype) -> EventRecords:
    """The reverse of ``pack_events``; a ValueError if the counts do not fit the payload."""
    counts = COUNTS.unpack_from(payload) if len(payload) >= COUNTS.size else ()
    lengths = [count * record.itemsize for count, record in zip(counts, (EVENT, ROOT_TYPE, nodes))]
    if not counts or COUNTS.size + sum(lengths) != len(payload):
        raise ValueError(f'a block of events has {len(payload)} bytes: its counts need {COUNTS.size + sum(lengths)}')
    arrays, offset = [], COUNTS.size
    for record, length in zip((EVENT, ROOT_TYPE, nodes), lengths):
        planes = np.frombuffer(payload, np.uint8, length, offset).reshape(record.itemsize, -1)
        arrays.append(np.ascontiguousarray(planes.T).reshape(-1).view(record))
        offset += length
    return EventRecords(*arrays)
