import json
import logging
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from shutil import rmtree
from typing import Any, Optional

import numpy as np

from ..files import DiskFullError, write_atomically
from .format import BLOCK, PHASES, RUN, ManagerFacts

logger = logging.getLogger('lzero_kvcache')


class TraceWriter:
    """
    Writes a trace into a new folder, each file as a whole, so that whatever ends the run leaves a readable one. A full
    disk ends the trace, not the run: ``error`` says so. From the beginning it is a DiskFullError or an OSError.
    """

    def __init__(self, path: Path, options: dict[str, Any]) -> None:
        self.path = path
        self.error: Optional[str] = None
        self.searches = self.bytes_written = self._num_blocks = 0
        self._run = dict(options=options, managers=[], blocks=None)
        path.mkdir()
        try:
            write_atomically(path / RUN, json.dumps(self._run))
        except BaseException:
            path.rmdir()
            raise

    def add_manager(self, facts: ManagerFacts) -> int:
        self._run['managers'].append(asdict(facts))
        self._write_run()
        return len(self._run['managers']) - 1

    def write(self, manager: int, events: np.ndarray, nodes: np.ndarray) -> None:
        block = BytesIO()
        np.savez_compressed(block, manager=np.int64(manager), events=events, nodes=nodes)
        self._write(BLOCK.format(self._num_blocks), block.getvalue())
        if self.error is None:
            self._num_blocks += 1
            self.bytes_written += len(block.getvalue())
            self.searches += int((events['kind'] < len(PHASES)).sum())

    def close(self) -> None:
        """The run has ended. A trace without a search is removed."""
        if not self.searches:
            rmtree(self.path)
            return
        self._run['blocks'] = self._num_blocks
        self._write_run()

    def _write_run(self) -> None:
        self._write(RUN, json.dumps(self._run).encode())

    def _write(self, name: str, content: bytes) -> None:
        if self.error is not None:
            return
        try:
            write_atomically(self.path / name, content)
        except (OSError, DiskFullError) as error:
            # Of a full disk the cause says it in the system's words.
            self.error = f'{self.path / name} cannot be written: {(error.__cause__ or error).strerror}'
            logger.error(f'The trace ends here, the run goes on: {self.error}')
