"""Reads a trace, which may come from anywhere: what does not fit the format is a ValueError before it costs memory."""
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Optional

import numpy as np

from .format import (
    BLOCK,
    CHECKSUM,
    DONE,
    DROP,
    EVENTS,
    EXPANSION,
    HEAD,
    HEADER_BYTES,
    MAGIC,
    MANAGER,
    MOST_BYTES,
    MOST_JSON_BYTES,
    NO_EPISODE,
    PHASES,
    ROOTS,
    SEARCH,
    STRAYS,
    EventRecords,
    ManagerFacts,
    node_type,
    root_type,
    unpack_events,
)
from .limits import ReplayMemory

MOST_MANAGERS = 64
# Of a block, which become Python objects at a time.
EVENTS_AT_A_TIME = 4096


@dataclass
class Search:
    """
    Overview:
        One search, and what came after it before the next one began.
    Arguments:
        - manager (:obj:`int`): Whose.
        - phase (:obj:`str`): One of ``PHASES``.
        - roots (:obj:`np.ndarray`): Records, as ``root_type``.
        - nodes (:obj:`np.ndarray`): Records, as ``node_type``.
        - steps (:obj:`List[Tuple[int, int]]`): Kind (ROOTS, STRAYS, EXPANSION or DROP) and records of each event.
    """
    manager: int
    phase: str
    roots: np.ndarray
    nodes: np.ndarray
    steps: list[tuple[int, int]] = field(default_factory=list)


class _OpenSearch:
    # A search that may go on in the manager's next block.

    def __init__(self, manager: int, phase: int, facts: ManagerFacts, memory: ReplayMemory) -> None:
        self.manager = manager
        self.phase = PHASES[phase]
        self.steps: list[tuple[int, int]] = []
        self.num_nodes = 0
        self._memory = memory
        self._roots = [np.zeros(0, dtype=root_type(facts.num_priors))]
        self._nodes = [np.zeros(0, dtype=node_type(facts.num_priors))]

    def add(self, kind: int, records: np.ndarray) -> None:
        if kind == ROOTS and any(kind != DROP for kind, _ in self.steps):
            raise ValueError('a search has roots twice, or after its nodes')
        self.steps.append((kind, len(records)))
        self._memory.search_grows(self.manager, len(self.steps) + self.num_nodes + len(records))
        if kind == ROOTS:
            self._memory.add_roots(self.manager, records)
        if kind in (STRAYS, EXPANSION) and len(records):
            parents = records['parent']
            lowest, highest = (-1, -1) if kind == STRAYS else (0, self.num_nodes - 1)
            if parents.min() < lowest or parents.max() > highest:
                raise ValueError(f'a node has parent {parents.min() if parents.min() < lowest else parents.max()}: '
                                 f'allowed are {lowest} to {highest}')
        (self._roots if kind == ROOTS else self._nodes).append(records)
        self.num_nodes += len(records)

    def finished(self) -> Search:
        nodes = np.concatenate(self._nodes)
        self._memory.search_ends(self.manager, nodes['parent'])
        return Search(self.manager, self.phase, np.concatenate(self._roots), nodes, self.steps)


class TraceReader:
    """
    Overview:
        A trace file, read search by search; memory is bounded by the largest search, and that by ``ReplayMemory``.
        ``head`` is what its writer says of the run; ``managers`` are those met so far; ``is_complete`` tells, after the
        last search, whether the run had ended when the file did; ``bytes_read`` is how far it is.
    Arguments:
        - path (:obj:`Path`): The file.
    Raises:
        - ValueError: If it is no trace.
        - OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.managers: list[ManagerFacts] = []
        self.is_complete = False
        self.bytes_read = 0
        self.size = path.stat().st_size
        with open(path, 'rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError(f"{path} is no trace of lzero-kvcache: 'lzero-kvcache trace' writes one")
            block = self._checked(self._next_block, file)
        if block is None or block[0] != HEAD:
            raise ValueError(f'{path} ends before its first block')
        self.head: dict[str, Any] = self._checked(_json_object, block[2])

    def searches(self) -> Iterator[Search]:
        """
        Overview:
            All searches, from the file's beginning; those of one manager in their order.
        Raises:
            - ValueError: If a block is damaged or does not make sense.
        """
        self.managers, self.is_complete = [], False
        self._memory = ReplayMemory()
        open_searches: dict[int, _OpenSearch] = {}
        with open(self.path, 'rb') as file:
            self.bytes_read = len(file.read(len(MAGIC)))
            while True:
                block = self._checked(self._next_block, file)
                if block is None:
                    break
                kind, manager, payload = block
                if kind == EVENTS:
                    searches = self._finish_searches(manager, payload, open_searches)
                    while (finished := self._checked(next, searches, None)) is not None:
                        yield finished
                elif kind == MANAGER:
                    self._checked(self._add_manager, manager, payload)
                elif kind == DONE:
                    self.is_complete = True
        for each in open_searches.values():
            yield self._checked(each.finished)

    def _checked(self, read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ValueError as error:
            raise ValueError(f'{self.path} is damaged near byte {self.bytes_read:,}: {error}') from error

    def _next_block(self, file: BinaryIO) -> Optional[tuple[bytes, int, bytes]]:
        """Kind, manager and payload; None where the file ends, be it within a block."""
        header = file.read(HEADER_BYTES)
        if len(header) < HEADER_BYTES:
            return None
        kind, manager, zero, packed_bytes, payload_bytes, checksum = BLOCK.unpack_from(header)
        if zlib.crc32(header[:BLOCK.size]) != CHECKSUM.unpack_from(header, BLOCK.size)[0]:
            raise ValueError('the header of a block does not have the checksum that it says')
        if kind not in (HEAD, MANAGER, EVENTS, DONE) or zero:
            raise ValueError(f'a block is of kind {kind!r}')
        most = MOST_BYTES if kind == EVENTS else MOST_JSON_BYTES
        if max(packed_bytes, payload_bytes) > most:
            raise ValueError(f'a block has {max(packed_bytes, payload_bytes):,} bytes: allowed are {most:,}')
        packed = file.read(packed_bytes)
        if len(packed) < packed_bytes:
            return None
        if zlib.crc32(packed) != checksum:
            raise ValueError('a block does not have the checksum that its header says')
        self.bytes_read += HEADER_BYTES + packed_bytes
        return kind, manager, _unpacked(packed, payload_bytes)

    def _add_manager(self, manager: int, payload: bytes) -> None:
        if manager != len(self.managers) or manager >= MOST_MANAGERS:
            raise ValueError(f'manager {manager} comes after {len(self.managers)} others')
        facts = ManagerFacts.from_json(_json_object(payload))
        self._memory.add_manager(facts)
        self.managers.append(facts)

    def _finish_searches(
            self, manager: int, payload: bytes, open_searches: dict[int, _OpenSearch]
    ) -> Iterator[Search]:
        """Let the events of a block go on with the manager's open search; those that it ends."""
        if manager >= len(self.managers):
            raise ValueError(f'there are events of manager {manager}, but {len(self.managers)} managers')
        facts = self.managers[manager]
        records = unpack_events(payload, facts.num_priors)
        _check_events(records, facts)
        taken = {ROOTS: 0, STRAYS: 0}
        for kind, phase, rows in _as_tuples(records.events):
            current = open_searches.get(manager)
            if kind == SEARCH:
                if current is not None:
                    yield current.finished()
                open_searches[manager] = _OpenSearch(manager, phase, facts, self._memory)
                continue
            if current is None:
                if kind == DROP:
                    # Nothing has been cached yet.
                    continue
                raise ValueError('there are nodes before the first search')
            source, of_source = (records.roots, ROOTS) if kind == ROOTS else (records.nodes, STRAYS)
            current.add(kind, source[taken[of_source]:taken[of_source] + rows])
            taken[of_source] += rows


def _as_tuples(events: np.ndarray) -> Iterator[tuple[int, int, int]]:
    for begin in range(0, len(events), EVENTS_AT_A_TIME):
        yield from events[begin:begin + EVENTS_AT_A_TIME].tolist()


def _check_events(records: EventRecords, facts: ManagerFacts) -> None:
    events, roots, nodes = records
    kinds, rows = events['kind'], events['rows'].astype(np.int64)
    if (kinds > DROP).any() or (events['phase'] >= len(PHASES)).any():
        raise ValueError('an event is of no kind or phase that there is')
    of_nodes = (kinds == STRAYS) | (kinds == EXPANSION)
    if rows[kinds == ROOTS].sum() != len(roots) or rows[of_nodes].sum() != len(nodes):
        raise ValueError('events and records do not belong to each other')
    if rows[(kinds == SEARCH) | (kinds == DROP)].any():
        raise ValueError('an event has records that it cannot have')
    has_episode = roots['beginning'] != NO_EPISODE
    if (roots['beginning'] > NO_EPISODE).any() or ((roots['env_id'] >= 0) != has_episode).any():
        raise ValueError('a root has a beginning that there is not')
    if (roots['env_id'] < -1).any() or (roots['env_id'] >= facts.env_num).any():
        raise ValueError(f'a root is of an environment that there is not: allowed are 0 to {facts.env_num - 1}')
    if (nodes['action'] < -1).any() or (nodes['action'] >= facts.num_actions).any():
        raise ValueError(f'a node has an action that there is not: allowed are 0 to {facts.num_actions - 1}')


def _unpacked(packed: bytes, length: int) -> bytes:
    decompressor = zlib.decompressobj()
    try:
        payload = decompressor.decompress(packed, length + 1)
    except zlib.error as error:
        raise ValueError(f'a block cannot be unpacked: {error}') from error
    if len(payload) != length or not decompressor.eof or decompressor.unused_data:
        raise ValueError('a block does not have the length that its header says')
    return payload


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        given = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'a block is no JSON: {error}') from error
    if not isinstance(given, dict):
        raise ValueError('a block is no JSON object')
    return given
