"""The process of a trial."""
import hashlib
import subprocess
from pathlib import Path
from typing import Optional

from ..child_process import ChildProcess
from .trial import DISK_FULL_STATUS


class TrialProcess(ChildProcess):
    """Runs the trial of a spec's file; what it prints goes to ``output.log`` beside the file.

    ``gpu`` is the one that it sees, as ``CUDA_VISIBLE_DEVICES`` names it; None: those that this process sees.
    """

    def __init__(self, spec_path: Path, threads: int, gpu: Optional[str] = None) -> None:
        self.folder = spec_path.parent
        self.gpu = gpu
        with open(self.folder / 'output.log', 'wb') as log:
            super().__init__(
                ['-m', 'lzero_kvcache.ab.trial', '--end-with-stdin', str(spec_path),
                 '--sha256', hashlib.sha256(spec_path.read_bytes()).hexdigest()],
                threads, {} if gpu is None else dict(CUDA_VISIBLE_DEVICES=gpu), stdout=log, stderr=subprocess.STDOUT
            )

    @property
    def ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    @property
    def disk_is_full(self) -> bool:
        """Whether it has ended for want of room on the disk."""
        return self.process.returncode == DISK_FULL_STATUS
