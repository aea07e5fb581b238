"""Reads a trace, which may come from anywhere: what does not fit the format is a ValueError before it costs memory."""
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..search.episode import NO_EPISODE
from .format import (
    DONE,
    DROP,
    EVENTS,
    EXPANSION,
    HEAD,
    MAGIC,
    MANAGER,
    PHASES,
    STRAYS,
    EventRecords,
    ManagerFacts,
    read_block,
    rows_of,
    unpack_events,
)
from .limits import ReplayMemory

MOST_MANAGERS = 64


@dataclass
class Search:
    """
    One search, and what came after it before the next one began.

    Attributes:
        manager: Whose.
        phase: One of ``PHASES``.
        num_nodes: The roots included.
        steps: Of each event its kind, the records of roots or strays, as ``ROOT_TYPE``, and those of all its nodes, as
            ``node_type``: what ``SearchNodes.add`` takes. The first are the search's roots; others are STRAYS,
            EXPANSION and DROP.
    """
    manager: int
    phase: str
    num_nodes: int = 0
    steps: list[tuple[int, np.ndarray, np.ndarray]] = field(default_factory=list)


class TraceReader:
    """
    A trace file, read search by search; memory is bounded by the largest search, and that by ``ReplayMemory``.

    ``head`` is what its writer says of the run; ``managers`` are those met so far; ``is_complete`` tells, after the
    last search, whether the run had ended when the file did; ``bytes_read`` is how far it is.

    Args:
        path: The file.

    Raises:
        ValueError: If it is no trace.
        OSError: If it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.managers: list[ManagerFacts] = []
        self.is_complete = False
        self.bytes_read = 0
        with open(path, 'rb') as file:
            if file.read(len(MAGIC)) != MAGIC:
                raise ValueError(f"{path} is no trace of lzero-kvcache: 'lzero-kvcache trace' writes one")
            block = self._checked(read_block, file)
        if block is None or block[0] != HEAD:
            raise ValueError(f'{path} ends before its first block')
        self.head: dict[str, Any] = self._checked(_json_object, block[2])

    def searches(self) -> Iterator[Search]:
        """All searches, from the file's beginning, of each manager in their order; a ValueError at a bad block."""
        self.managers, self.is_complete = [], False
        self._memory = ReplayMemory()
        open_searches: dict[int, Search] = {}
        with open(self.path, 'rb') as file:
            file.seek(len(MAGIC))
            while (block := self._checked(read_block, file)) is not None:
                self.bytes_read = file.tell()
                kind, manager, payload = block
                if kind == EVENTS:
                    searches = self._finish_searches(manager, payload, open_searches)
                    while (finished := self._checked(next, searches, None)) is not None:
                        yield finished
                elif kind == MANAGER:
                    self._checked(self._add_manager, manager, payload)
                self.is_complete = kind == DONE
        for each in open_searches.values():
            yield self._checked(self._ended, each)

    def _checked(self, read: Any, *arguments: Any) -> Any:
        try:
            return read(*arguments)
        except ValueError as error:
            raise ValueError(f'{self.path} is damaged near byte {self.bytes_read:,}: {error}') from error

    def _add_manager(self, manager: int, payload: bytes) -> None:
        if manager != len(self.managers) or manager >= MOST_MANAGERS:
            raise ValueError(f'manager {manager} comes after {len(self.managers)} others')
        facts = ManagerFacts.from_json(_json_object(payload))
        self._memory.add_manager(facts)
        self.managers.append(facts)

    def _finish_searches(self, manager: int, payload: bytes, open_searches: dict[int, Search]) -> Iterator[Search]:
        """Let the events of a block go on with the manager's open search; those that it ends."""
        if manager >= len(self.managers):
            raise ValueError(f'there are events of manager {manager}, but {len(self.managers)} managers')
        facts = self.managers[manager]
        events, roots, nodes = records = unpack_events(payload, facts.node_type)
        _check_events(records, facts)
        # One at a time, because millions of tuples would take their memory.
        for kind, rows in zip(map(int, events['kind']), map(int, events['rows'])):
            own_roots = rows if kind <= STRAYS else 0
            step, roots, nodes = (kind, roots[:own_roots], nodes[:rows]), roots[own_roots:], nodes[rows:]
            if kind < len(PHASES):
                if manager in open_searches:
                    yield self._ended(open_searches[manager])
                open_searches[manager] = Search(manager, PHASES[kind])
                self._memory.add_roots(manager, step[1])
            if manager in open_searches:
                self._go_on(open_searches[manager], step)
            elif kind != DROP:
                raise ValueError('there are nodes before the first search')

    def _go_on(self, search: Search, step: tuple[int, np.ndarray, np.ndarray]) -> None:
        kind, _, nodes = step
        lowest, highest = (0, search.num_nodes - 1) if kind == EXPANSION else (-1, -1)
        for parent in (nodes['parents'].min(), nodes['parents'].max()) if len(nodes) else ():
            if not lowest <= parent <= highest:
                raise ValueError(f'a node has parent {parent}: allowed are {lowest} to {highest}')
        search.steps.append(step)
        search.num_nodes += len(nodes)
        self._memory.search_grows(search.manager, len(search.steps) + search.num_nodes)

    def _ended(self, search: Search) -> Search:
        self._memory.search_ends(search.manager, np.concatenate([nodes['parents'] for _, _, nodes in search.steps]))
        return search


def _check_events(records: EventRecords, facts: ManagerFacts) -> None:
    events, roots, nodes = records
    if (events['kind'] > DROP).any():
        raise ValueError('an event is of no kind or phase that there is')
    if rows_of(events) != (len(roots), len(nodes)) or events['rows'][events['kind'] == DROP].any():
        raise ValueError('events and records do not belong to each other')
    has_episode = roots['beginning'] != NO_EPISODE
    if (roots['beginning'] > NO_EPISODE).any() or ((roots['env_id'] >= 0) != has_episode).any():
        raise ValueError('a root has a beginning that there is not')
    if (roots['env_id'] < -1).any() or (roots['env_id'] >= facts.env_num).any():
        raise ValueError(f'a root is of an environment that there is not: allowed are 0 to {facts.env_num - 1}')
    if (nodes['actions'] < -1).any() or (nodes['actions'] >= facts.num_actions).any():
        raise ValueError(f'a node has an action that there is not: allowed are 0 to {facts.num_actions - 1}')


def _json_object(payload: bytes) -> dict[str, Any]:
    try:
        given = json.loads(payload.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f'a block is no JSON: {error}') from error
    if not isinstance(given, dict):
        raise ValueError('a block is no JSON object')
    return given
