"""
The trace file: every cache operation of a run, as far as it does not depend on strategy and pool size.

A file is eight bytes, ``MAGIC``, and then blocks. All numbers are little-endian.

A block is a header of 24 bytes (kind, 4 bytes; manager, u2; zero, u2; length of the payload in the file, u4; length
unpacked, u4; CRC-32 of the payload in the file, u4; CRC-32 of the 20 bytes before, u4) and its payload, packed by zlib.
A reader checks both sums, and that no length exceeds ``MOST_BYTES``, before it unpacks anything.

``HEAD`` (the first block) and ``MNGR`` (before the first events of a manager, numbered from 0) hold a JSON object each:
what was run, and what a manager's world model is like (see ``ManagerFacts``). A run has a manager for its model and,
with reanalysis, another one for the target model. ``DONE``, a JSON object, is the last block of a run that has ended; a
file without it was cut off.

``EVNT`` holds the events of one manager since its last block: three counts (u4), then so many events, roots and nodes,
column by column as in ``EVENT``, ``root_type`` and ``node_type``. An event says what came and how many records of which
kind belong to it:

- SEARCH: a search of ``phase`` begins. Pools of nodes (recur and wm) are cleared.
- ROOTS: ``rows`` roots. Those of environments looked their former root up in its init pool, if ``beginning`` is
  CONTINUES, and were then set there. Those of reanalysis were not cached.
- STRAYS: ``rows`` nodes without a parent, states that the search has not got from the model.
- EXPANSION: ``rows`` nodes. Their parents were looked up together, in the init pools (roots of environments), else in
  the recur pool and then in the wm pool; after that the nodes were set in the recur pool, and the wm pool holds them
  alone.
- DROP: all pools were cleared.

Nodes are numbered within their search, in order of appearance, and so are keys: a node's number is its key. Sizes
(``tokens``) are lengths of contexts in tokens. ``reward`` and ``value`` are in the environment's units; ``reward_bin``
and ``value_bin`` are the means over the model's bins that the scores of strategy 'priority' are. All are float32, as
the model has predicted them: rounded, they would tie where the run had no ties.
"""
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

MAGIC = b'LZKVTRC1'
BLOCK = struct.Struct('<4sHHIII')
CHECKSUM = struct.Struct('<I')
HEADER_BYTES = BLOCK.size + CHECKSUM.size
COUNTS = struct.Struct('<III')
# Of a block, packed or unpacked: what a reader allocates at most.
MOST_BYTES = 2 ** 24
MOST_JSON_BYTES = 2 ** 16
# Fast, and within a tenth of what the highest level makes of these numbers.
COMPRESSION = 1

HEAD, MANAGER, EVENTS, DONE = b'HEAD', b'MNGR', b'EVNT', b'DONE'

SEARCH, ROOTS, STRAYS, EXPANSION, DROP = range(5)
PHASES = ('collect', 'eval', 'reanalyze', 'unknown')
FIRST_STEP, CONTINUES, COLD_START, NO_EPISODE = range(4)

EVENT = np.dtype([('kind', 'u1'), ('phase', 'u1'), ('rows', '<u4')])
MOST_ACTIONS = 4096


def root_type(num_priors: int) -> np.dtype:
    """
    Overview:
        The record of a root.
    Arguments:
        - num_priors (:obj:`int`): Actions whose priors are kept; 0 where they are sampled.
    """
    return np.dtype([
        ('env_id', '<i4'), ('beginning', 'u1'), ('tokens', '<u2'), ('reward_bin', '<f4'), ('value_bin', '<f4'),
        ('priors', '<f4', (num_priors, )),
    ])


def node_type(num_priors: int) -> np.dtype:
    """
    Overview:
        The record of any other node.
    Arguments:
        - num_priors (:obj:`int`): As ``root_type``.
    """
    return np.dtype([
        ('parent', '<i4'), ('depth', '<u2'), ('action', '<i2'), ('tokens', '<u2'), ('reward', '<f4'), ('value', '<f4'),
        ('reward_bin', '<f4'), ('value_bin', '<f4'), ('priors', '<f4', (num_priors, )),
    ])


@dataclass(frozen=True)
class ManagerFacts:
    """
    Overview:
        What a replay has to know of a world model and its pools.
    Arguments:
        - env_num (:obj:`int`): Environments, each with an init pool.
        - num_simulations (:obj:`int`): Per search.
        - init_size, recur_size, wm_size (:obj:`int`): Entries of the pools in the run.
        - strategy (:obj:`str`): Of the recur pool in the run, for people.
        - on_miss, window (:obj:`str`): See ``KVCacheConfig``.
        - context_length (:obj:`int`): The window in tokens.
        - num_observations_tokens (:obj:`int`): Tokens per observation; an action has one.
        - most_tokens (:obj:`int`): Missing tokens that one forward computes at most.
        - num_actions (:obj:`int`): Actions that a search tries at a node.
        - samples_actions (:obj:`bool`): Whether these are drawn, so that they have no priors.
        - discount_factor (:obj:`float`): Of the searches, 0 to 1.
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
    most_tokens: int
    num_actions: int
    samples_actions: bool
    discount_factor: float

    @property
    def num_priors(self) -> int:
        return 0 if self.samples_actions else self.num_actions

    @property
    def nodes_of_search(self) -> int:
        """
        Overview:
            What a recur pool that never evicts holds.
        """
        return self.num_simulations * self.env_num

    @classmethod
    def from_json(cls, given: dict) -> 'ManagerFacts':
        """
        Overview:
            Check what a file says.
        Arguments:
            - given (:obj:`dict`): The JSON object.
        Raises:
            - ValueError: If an entry is missing, of another type, or out of range.
        """
        values: dict[str, Any] = {}
        for field in fields(cls):
            value = given.get(field.name)
            if type(value) is not field.type:
                raise ValueError(f'{field.name} of a manager is {value!r}: allowed is {field.type.__name__}')
            values[field.name] = value
        most = dict(env_num=4096, num_observations_tokens=1024, num_actions=MOST_ACTIONS, context_length=2 ** 15)
        for name, value in values.items():
            if type(value) is int and not 1 <= value <= most.get(name, 2 ** 31):
                raise ValueError(f'{name} of a manager is {value}: allowed are 1 to {most.get(name, 2 ** 31)}')
        for name, allowed in (('on_miss', ('rebuild', 'reset')), ('window', ('shift', 'rebuild'))):
            if values[name] not in allowed:
                raise ValueError(f"{name} of a manager is {values[name]!r}: allowed are {', '.join(allowed)}")
        if not 0 <= values['discount_factor'] <= 1:
            raise ValueError(f"discount_factor of a manager is {values['discount_factor']}: allowed are 0 to 1")
        if values['context_length'] < 4:
            raise ValueError(f"context_length of a manager is {values['context_length']}: allowed are 4 and more")
        return cls(**values)


class EventRecords(NamedTuple):
    """
    Overview:
        What one block holds.
    Arguments:
        - events, roots, nodes (:obj:`np.ndarray`): Records, in order.
    """
    events: np.ndarray
    roots: np.ndarray
    nodes: np.ndarray


def pack_block(kind: bytes, manager: int, payload: bytes) -> bytes:
    """
    Overview:
        A block as it is written.
    Arguments:
        - kind (:obj:`bytes`): One of the four.
        - manager (:obj:`int`): Whose.
        - payload (:obj:`bytes`): Not packed yet.
    """
    packed = zlib.compress(payload, COMPRESSION)
    header = BLOCK.pack(kind, manager, 0, len(packed), len(payload), zlib.crc32(packed))
    return header + CHECKSUM.pack(zlib.crc32(header)) + packed


def pack_events(records: EventRecords) -> bytes:
    """
    Overview:
        The payload of a block of events.
    Arguments:
        - records (:obj:`EventRecords`): The events.
    """
    columns = [
        np.ascontiguousarray(array[name]).tobytes() for array in records for name in array.dtype.names
    ]
    return COUNTS.pack(*map(len, records)) + b''.join(columns)


def in_blocks(records: EventRecords, most_bytes: int = MOST_BYTES // 4) -> Iterator[EventRecords]:
    """
    Overview:
        Cut events into what fits into a block each.
    Arguments:
        - records (:obj:`EventRecords`): Any number of events.
        - most_bytes (:obj:`int`): After how many bytes, roughly, a block ends.
    Returns:
        - blocks (:obj:`Iterator[EventRecords]`): At least one event each.
    """
    events, roots, nodes = records
    of_roots = np.where(events['kind'] == ROOTS, events['rows'], 0).cumsum()
    of_nodes = np.where(np.isin(events['kind'], (STRAYS, EXPANSION)), events['rows'], 0).cumsum()
    written = of_roots * roots.itemsize + of_nodes * nodes.itemsize + np.arange(len(events)) * EVENT.itemsize
    cuts = np.flatnonzero(np.diff(written // most_bytes)) + 1
    root_cuts, node_cuts = of_roots[cuts - 1], of_nodes[cuts - 1]
    pieces = zip(np.split(events, cuts), np.split(roots, root_cuts), np.split(nodes, node_cuts))
    return (EventRecords(*piece) for piece in pieces)


def unpack_events(payload: bytes, num_priors: int) -> EventRecords:
    """
    Overview:
        The reverse of ``pack_events``.
    Arguments:
        - payload (:obj:`bytes`): What a block holds.
        - num_priors (:obj:`int`): Of its manager.
    Raises:
        - ValueError: If the counts do not fit the payload.
    """
    types = (EVENT, root_type(num_priors), node_type(num_priors))
    counts = COUNTS.unpack_from(payload) if len(payload) >= COUNTS.size else ()
    needed = COUNTS.size + sum(count * record.itemsize for count, record in zip(counts, types))
    if not counts or needed != len(payload):
        raise ValueError(f'a block of events has {len(payload)} bytes: its counts need {needed}')
    offset, arrays = COUNTS.size, []
    for count, record in zip(counts, types):
        array = np.zeros(count, dtype=record)
        for name in record.names:
            length = count * record[name].itemsize
            if length:
                column, shape = record[name].subdtype or (record[name], ())
                array[name] = np.frombuffer(payload, column, length // column.itemsize, offset).reshape(count, *shape)
            offset += length
        arrays.append(array)
    return EventRecords(*arrays)
