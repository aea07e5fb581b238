"""A process that ends with all the processes it has started."""
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any, Optional

from .threads import VARIABLES

SECONDS_TO_END = 5.


class ChildProcess:
    """A Python process in a group of its own: Ctrl-C is for the parent, which then ends the whole group.

    Args:
        arguments: Python's, such as ``['-m', 'module']``.
        threads: Threads that its numerical libraries may use.
        environment: Variables on top of this process's.
        options: Of ``subprocess.Popen``.
    """

    def __init__(self, arguments: Sequence[str], threads: int, environment: dict[str, str], **options: Any) -> None:
        of_threads = dict.fromkeys(VARIABLES, str(threads))
        self.process = subprocess.Popen(
            [sys.executable, *arguments], stdin=subprocess.PIPE,
            env=dict(os.environ, PYTHONUNBUFFERED='1', **of_threads, **environment), start_new_session=True, **options
        )

    @property
    def how_it_ended(self) -> Optional[str]:
        """Its exit status in words, None if it was 0."""
        status = self.process.returncode
        if not status:
            return None
        if status > 0:
            return f'the process has ended with status {status}'
        reason = ' (perhaps by the system, for want of memory)' if -status == signal.SIGKILL else ''
        return f'the process was ended by {signal.Signals(-status).name}{reason}'

    def stop(self) -> None:
        """End it, and the processes that it has started."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self.process.pid, number)
            except ProcessLookupError:
                break
            try:
                self.process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                continue
        self.process.wait()
        self.process.stdin.close()
