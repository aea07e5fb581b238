import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Optional

from ..files import DiskFullError
from .backend import SECONDS_BETWEEN_LOOKS, Backend, Event
from .folder import RunFolder, prepare
from .machine_limits import least_used
from .process import TrialProcess
from .spec import TrialSpec


class LocalBackend(Backend):
    """
    Overview:
        Processes on this machine.
    Arguments:
        - jobs (:obj:`int`): Trials at a time.
        - threads (:obj:`int`): Threads of each.
        - gpus (:obj:`Sequence[str]`): The GPUs, of which each trial sees one, as ``CUDA_VISIBLE_DEVICES`` names them.
    """

    def __init__(self, jobs: int, threads: int, gpus: Sequence[str] = ()) -> None:
        self._jobs = jobs
        self._threads = threads
        self._gpus = gpus

    def describe(self) -> str:
        """
        Overview:
            As ``Backend``.
        """
        at_a_time = 'one at a time' if self._jobs == 1 else f'{self._jobs} at a time'
        gpus = f", GPUs {', '.join(self._gpus)} in turn" if len(self._gpus) > 1 else ''
        return f"{at_a_time}, {self._threads} thread{'s' if self._threads > 1 else ''} each{gpus}"

    def run(self, specs: Sequence[TrialSpec], folder: RunFolder) -> Iterator[Optional[Event]]:
        """
        Overview:
            As ``Backend``.
        """
        waiting = deque(specs)
        running: list[tuple[TrialSpec, TrialProcess]] = []
        try:
            while waiting or running:
                while waiting and len(running) < self._jobs:
                    spec = waiting.popleft()
                    gpu = least_used(self._gpus, [process.gpu for _, process in running])
                    path = prepare(folder.trial_folder(spec), spec.to_bytes())
                    running.append((spec, TrialProcess(path, self._threads, gpu)))
                    yield Event(spec)
                time.sleep(SECONDS_BETWEEN_LOOKS)
                yield None
                for spec, process in [pair for pair in running if pair[1].ended]:
                    running.remove((spec, process))
                    process.stop()
                    if process.disk_is_full:
                        raise DiskFullError(process.folder)
                    yield Event(spec, ended=True, error=process.how_it_ended)
        finally:
            for _, process in running:
                process.stop()
