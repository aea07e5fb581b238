"""The process of a trial."""
import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Optional

from ..threads import VARIABLES
from .trial import DISK_FULL_STATUS

SECONDS_TO_END = 5.


class TrialProcess:
    """
    Overview:
        Runs a trial; what it prints goes to ``output.log`` beside its spec.
    Arguments:
        - spec_path (:obj:`Path`): The spec's file.
        - threads (:obj:`int`): Threads that its numerical libraries may use.
        - gpu (:obj:`Optional[str]`): The GPU that it sees; None: those that this process sees.
    """

    def __init__(self, spec_path: Path, threads: int, gpu: Optional[str] = None) -> None:
        self.folder = spec_path.parent
        self.gpu = gpu
        gpus = {} if gpu is None else dict(CUDA_VISIBLE_DEVICES=gpu)
        of_threads = dict.fromkeys(VARIABLES, str(threads))
        with open(self.folder / 'output.log', 'wb') as log:
            self._process = subprocess.Popen(
                [sys.executable, '-m', 'lzero_kvcache.ab.trial', '--end-with-stdin', str(spec_path),
                 '--sha256', hashlib.sha256(spec_path.read_bytes()).hexdigest()],
                stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT,
                env=dict(os.environ, PYTHONUNBUFFERED='1', **of_threads, **gpus),
                # A group of its own: Ctrl-C is for the parent, which then ends the trial with all its processes.
                start_new_session=True,
            )

    @property
    def ended(self) -> bool:
        """
        Overview:
            Whether it has.
        """
        return self._process.poll() is not None

    @property
    def disk_is_full(self) -> bool:
        """
        Overview:
            Whether it has ended for want of room on the disk.
        """
        return self._process.returncode == DISK_FULL_STATUS

    @property
    def how_it_ended(self) -> Optional[str]:
        """
        Overview:
            Its exit status in words, None if it was 0.
        """
        status = self._process.returncode
        if not status:
            return None
        if status > 0:
            return f'the process has ended with status {status}'
        reason = ' (perhaps by the system, for want of memory)' if -status == signal.SIGKILL else ''
        return f'the process was ended by {signal.Signals(-status).name}{reason}'

    def stop(self) -> None:
        """
        Overview:
            End it, and the processes that it has started.
        """
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()
        self._process.stdin.close()
