import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any, Optional

from .format import DONE, EVENTS, HEAD, MAGIC, MANAGER, PHASES, EventRecords, ManagerFacts, pack_block, pack_events

logger = logging.getLogger('lzero_kvcache')


class TraceWriter:
    """
    Writes a trace, block by block, so that whatever ends the run leaves a readable file.

    A full disk ends the trace, not the run: ``error`` says so, and the file ends with its last whole block.
    ``searches`` and ``bytes_written`` are what it holds.

    Args:
        path: The file, which must not exist.
        head: What is run, for people; JSON.

    Raises:
        OSError: If the file cannot be made, or exists.
    """

    def __init__(self, path: Path, head: dict[str, Any]) -> None:
        self.error: Optional[OSError] = None
        self.path = path
        self.searches = 0
        self.bytes_written = 0
        self._managers = 0
        # Without a buffer of its own, so that a process that is killed loses nothing that was written.
        self._file = open(path, 'xb', buffering=0)
        self._append(MAGIC + pack_block(HEAD, 0, json.dumps(head).encode()))
        if self.error is not None:
            self.close()
            raise self.error

    def add_manager(self, facts: ManagerFacts) -> int:
        """Let another world model take part; its number."""
        self._append(pack_block(MANAGER, self._managers, json.dumps(asdict(facts)).encode()))
        self._managers += 1
        return self._managers - 1

    def write(self, manager: int, records: EventRecords) -> None:
        """Write a block of a manager's events."""
        self._append(pack_block(EVENTS, manager, pack_events(records)))
        if self.error is None:
            self.searches += int((records.events['kind'] < len(PHASES)).sum())

    def close(self) -> None:
        """The run has ended. A file without a search is removed."""
        self._append(pack_block(DONE, 0, json.dumps(dict(searches=self.searches)).encode()))
        self._file.close()
        if not self.searches:
            self.path.unlink()

    def _append(self, block: bytes) -> None:
        if self.error is not None:
            return
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[self._file.write(rest):]
        except OSError as error:
            self.error = error
            logger.error(f'The trace ends here, the run goes on: {self.path} cannot be written: {error.strerror}')
            self._file.truncate(self.bytes_written)
            return
        self.bytes_written += len(block)
