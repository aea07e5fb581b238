"""Reads a trace, which may come from anywhere: what does not fit the format is a ValueError before it costs memory."""
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
from numpy.lib.format import read_array_header_1_0, read_magic

from ..search.episode import NO_EPISODE
from ..untrusted import read_json
from .format import BLOCK, DROP, EVENT, EXPANSION, PHASES, RUN, ManagerFacts
from .limits import ReplayMemory

# Of a block, packed or unpacked: some twenty times what a recorder writes.
MOST_BYTES = 2 ** 23


@dataclass
class Search:
    """One search, and what came before the manager's next one: of each event its kind and its nodes."""
    manager: int
    phase: str
    num_nodes: int = 0
    steps: list[tuple[int, np.ndarray]] = field(default_factory=list)

    def add(self, kind: int, nodes: np.ndarray) -> None:
        """The next event; a ValueError if its nodes have other parents than there are."""
        _check_range(nodes, 'parents', *((0, self.num_nodes - 1) if kind == EXPANSION else (-1, -1)))
        self.steps.append((kind, nodes))
        self.num_nodes += len(nodes)


class TraceReader:
    """
    A trace, read search by search; memory is bounded by the largest search, and that by ``ReplayMemory``.
    ``is_complete`` tells whether the run had ended when the trace did. A ValueError if it is no trace.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / RUN).exists():
            # What is not there at all is a FileNotFoundError.
            path.stat()
            raise ValueError(f"{path} is no trace of lzero-kvcache: 'lzero-kvcache trace' writes one")
        with _refused(path / RUN):
            run = read_json(path / RUN)
            if not isinstance(run, dict) or [type(run.get(name)) for name in ('options', 'managers')] != [dict, list]:
                raise ValueError('needed is an object with the options of a run and a list of managers')
            self.options, self.is_complete = run['options'], run.get('blocks') is not None
            self.managers = [ManagerFacts.from_json(given) for given in run['managers']]
        self._blocks = sorted(path.glob('*.npz'))
        wanted = [path / BLOCK.format(number) for number in range(len(self._blocks))]
        if self._blocks != wanted or self.is_complete and run['blocks'] != len(wanted):
            raise ValueError(f'{path} cannot be used: blocks are missing, or not of this run')

    def searches(self) -> Iterator[Search]:
        """All searches, from the beginning, of each manager in their order; a ValueError at a bad block."""
        with _refused(self.path / RUN):
            memory = ReplayMemory(self.managers)
        running: dict[int, Search] = {}
        for path in self._blocks:
            with _refused(path):
                manager, events, nodes = _read_block(path, self.managers)
                for event in events:
                    kind, rows = event.item()
                    if kind < len(PHASES):
                        if manager in running:
                            yield running[manager]
                        running[manager] = Search(manager, PHASES[kind])
                    memory.add(manager, kind, nodes['parents'][:rows].tolist())
                    if manager in running:
                        running[manager].add(kind, nodes[:rows])
                    elif kind != DROP:
                        raise ValueError('there are nodes before the first search')
                    nodes = nodes[rows:]
        yield from running.values()


def _read_block(path: Path, managers: list[ManagerFacts]) -> tuple[int, np.ndarray, np.ndarray]:
    """Manager, events and nodes."""
    if not path.is_file() or path.stat().st_size > MOST_BYTES:
        raise ValueError(f'it is no file of {MOST_BYTES:,} bytes at most')
    with ZipFile(path) as archive:
        manager = int(_array(archive, 'manager', np.dtype('<i8'), 0))
        if not 0 <= manager < len(managers):
            raise ValueError(f'it is of manager {manager}: allowed are 0 to {len(managers) - 1}')
        events = _array(archive, 'events', EVENT)
        nodes = _array(archive, 'nodes', managers[manager].node_type)
    _check_range(events, 'kind', 0, DROP)
    if events['rows'].sum(dtype=np.int64) != len(nodes) or events['rows'][events['kind'] == DROP].any():
        raise ValueError('its events and nodes do not belong to each other')
    _check_range(nodes, 'actions', -1, managers[manager].num_actions - 1)
    _check_range(nodes, 'env_ids', -1, managers[manager].env_num - 1)
    _check_range(nodes, 'beginnings', 0, NO_EPISODE)
    return manager, events, nodes


def _array(archive: ZipFile, name: str, dtype: np.dtype, dimensions: int = 1) -> np.ndarray:
    """One array. ``numpy.load`` would allocate what a header says before it sees whether there is so much."""
    info = archive.getinfo(f'{name}.npy')
    with archive.open(info) as member:
        if info.compress_type != ZIP_DEFLATED or info.file_size > MOST_BYTES or read_magic(member) != (1, 0):
            raise ValueError(f'{name} has more than {MOST_BYTES:,} bytes, or numpy.savez_compressed has not written it')
        shape, _, given = read_array_header_1_0(member)
        size = prod(shape) * dtype.itemsize
        if given != dtype or len(shape) != dimensions or member.tell() + size != info.file_size:
            raise ValueError(f'{name} is {given} of shape {shape}: allowed is {dtype} in {dimensions} dimensions')
        return np.ndarray(shape, dtype, member.read(size))


def _check_range(records: np.ndarray, name: str, least: int, most: int) -> None:
    for value in (records[name].min(), records[name].max()) if len(records) else ():
        if not least <= value <= most:
            raise ValueError(f'there are {name} of {value}: allowed are {least} to {most}')


@contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Name the file in whatever is wrong: there is no end of what zipfile and NumPy raise at bytes of others."""
    try:
        yield
    except Exception as error:
        raise ValueError(f'{path} cannot be used: {error or type(error).__name__}') from error
