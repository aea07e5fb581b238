import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Optional
from uuid import uuid4

# Ray otherwise reports to its makers how it is used.
os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')

import ray  # noqa: E402

from ..files import DiskFullError, disk_full_named  # noqa: E402
from .backend import SECONDS_BETWEEN_LOOKS, Backend, Event  # noqa: E402
from .folder import RunFolder, prepare  # noqa: E402
from .process import TrialProcess  # noqa: E402
from .spec import TrialSpec  # noqa: E402

SECONDS_TO_CANCEL = 15
SECONDS_TO_ANSWER = 10
# Checkpoints of large models stay where they are.
LARGEST_FILE_BROUGHT_HOME = 2 ** 26


@dataclass
class RemoteOutcome:
    """
    Overview:
        What a task tells the one who has sent it.
    Arguments:
        - error (:obj:`Optional[str]`): Why the trial's process has ended, if not by itself.
        - disk_is_full (:obj:`bool`): Whether that was for want of room.
        - files (:obj:`Optional[Dict[str, bytes]]`): The trial's files by their relative paths; None where they lie in
            place, because the machines share the file system.
        - left_out (:obj:`List[str]`): Files that are too large to be sent.
        - host (:obj:`str`): Where it ran.
    """
    error: Optional[str]
    disk_is_full: bool
    files: Optional[dict[str, bytes]] = None
    left_out: list[str] = field(default_factory=list)
    host: str = field(default_factory=socket.gethostname)


class RayBackend(Backend):
    """
    Overview:
        Tasks of Ray Core, on this machine or a cluster; which runs when and where is up to Ray. Every machine needs
        this package, in the same version.
    Arguments:
        - address (:obj:`Optional[str]`): The cluster's, as ``ray.init`` takes it; None: Ray is started here.
        - jobs (:obj:`int`): Trials at a time where it is started here.
        - threads (:obj:`int`): Threads, and for Ray cores, of each trial.
        - gpus (:obj:`float`): GPUs of each trial.
    """

    def __init__(self, address: Optional[str], jobs: int, threads: int, gpus: float) -> None:
        self._address = address
        self._jobs = jobs
        self._threads = threads
        self._gpus = gpus

    def describe(self) -> str:
        """
        Overview:
            As ``Backend``.
        """
        where = f'at {self._address}' if self._address else 'on this machine'
        gpus = f' and {self._gpus:g} GPUs' if self._gpus else ''
        return f"by Ray {where}, {self._threads} core{'s' if self._threads > 1 else ''}{gpus} each"

    def run(self, specs: Sequence[TrialSpec], folder: RunFolder) -> Iterator[Optional[Event]]:
        """
        Overview:
            As ``Backend``.
        Raises:
            - ValueError: If the cluster cannot be reached.
        """
        self._connect()
        marker = marker_in(folder)
        try:
            with disk_full_named(marker):
                marker.touch()
            yield from self._run(specs, folder, marker)
        finally:
            marker.unlink(missing_ok=True)
            ray.shutdown()

    def _connect(self) -> None:
        size = {} if self._address else dict(num_cpus=self._jobs * self._threads, include_dashboard=False)
        try:
            if self._address:
                _check_answers(self._address)
            # 'local': a cluster of its own, even where another one runs on this machine.
            with _sigterm_kept():
                ray.init(address=self._address or 'local', log_to_driver=False, logging_level='ERROR', **size)
        except (OSError, RuntimeError, ValueError) as error:
            if not self._address:
                raise ValueError(f'Ray cannot be started: {error}') from error
            raise ValueError(
                f'Ray cannot be reached at {self._address}: {error}. Is it running, in the same version, and is its '
                'token, if it asks for one, in RAY_AUTH_TOKEN?'
            ) from error

    def _run(self, specs: Sequence[TrialSpec], folder: RunFolder, marker: Path) -> Iterator[Optional[Event]]:
        # A worker that dies is reported as a failed trial: the next call of the command runs it again.
        task = ray.remote(_run_trial).options(num_cpus=self._threads, num_gpus=self._gpus, max_retries=0)
        running = {
            task.remote(spec.to_bytes(), str(folder.trial_folder(spec).resolve()), str(marker), self._threads): spec
            for spec in specs
        }
        former_logs = {spec.name: _log_time(folder, spec) for spec in specs}
        not_started = {spec.name: spec for spec in specs}
        try:
            while running:
                ended, _ = ray.wait(list(running), num_returns=1, timeout=SECONDS_BETWEEN_LOOKS)
                # A trial that runs elsewhere is only seen when it comes home.
                for spec in [spec for spec in not_started.values()
                             if _log_time(folder, spec) != former_logs[spec.name]]:
                    del not_started[spec.name]
                    yield Event(spec)
                yield None
                for reference in ended:
                    spec = running.pop(reference)
                    if not_started.pop(spec.name, None):
                        yield Event(spec)
                    yield _bring_home(reference, spec, folder)
        finally:
            _cancel(list(running))


def marker_in(folder: RunFolder) -> Path:
    """
    Overview:
        A file by whose presence a worker knows that it shares the file system.
    Arguments:
        - folder (:obj:`RunFolder`): The run's.
    """
    return folder.path.resolve() / f'.marker-{uuid4().hex}'


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Ray takes SIGTERM for itself, and would abort the process."""
    former = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if former is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, former)


def _check_answers(address: str) -> None:
    """Ray itself would try for minutes."""
    host, _, port = address.rpartition('://')[2].rpartition(':')
    if port.isdecimal():
        socket.create_connection((host, int(port)), SECONDS_TO_ANSWER).close()


def _log_time(folder: RunFolder, spec: TrialSpec) -> Optional[int]:
    log = folder.trial_folder(spec) / 'output.log'
    return log.stat().st_ctime_ns if log.exists() else None


def _cancel(references: Sequence[Any]) -> None:
    for reference in references:
        ray.cancel(reference)
    if references:
        # The tasks end their processes.
        ray.wait(list(references), num_returns=len(references), timeout=SECONDS_TO_CANCEL)


def _bring_home(reference: Any, spec: TrialSpec, folder: RunFolder) -> Event:
    trial_folder = folder.trial_folder(spec)
    try:
        outcome: RemoteOutcome = ray.get(reference)
    except ray.exceptions.RayError as error:
        prepare(trial_folder, spec.to_bytes())
        lines = str(error).strip().splitlines()
        return Event(spec, ended=True, error=f'{type(error).__name__}: {lines[-1] if lines else "no reason given"}')
    if outcome.disk_is_full:
        raise DiskFullError(Path(f'{outcome.host}:{trial_folder}'))
    notes = ()
    if outcome.files is not None:
        _write_files(outcome.files, spec, trial_folder)
        if outcome.left_out:
            notes = (f"{spec.name} ran on {outcome.host}. Too large to be brought here: {', '.join(outcome.left_out)}",)
    return Event(spec, ended=True, error=outcome.error, notes=notes)


def _write_files(files: dict[str, bytes], spec: TrialSpec, trial_folder: Path) -> None:
    prepare(trial_folder, spec.to_bytes())
    # It says that the rest is there.
    for name in sorted(files, key=lambda name: name == 'trial.json'):
        path = trial_folder / name
        with disk_full_named(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])


def _run_trial(spec: bytes, trial_folder: str, marker: str, threads: int) -> RemoteOutcome:
    """The task: a process like those of ``LocalBackend``, beside Ray's worker."""
    in_place = Path(marker).exists()
    folder = Path(trial_folder) if in_place else Path(mkdtemp(prefix='lzero_kvcache_ab_')) / Path(trial_folder).name
    try:
        try:
            process = TrialProcess(prepare(folder, spec), threads)
        except DiskFullError as error:
            return RemoteOutcome(str(error), disk_is_full=True)
        try:
            while not process.ended:
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            process.stop()
        outcome = RemoteOutcome(process.how_it_ended, process.disk_is_full)
        if not in_place:
            outcome.files, outcome.left_out = _contents(folder)
        return outcome
    finally:
        if not in_place:
            shutil.rmtree(folder.parent, ignore_errors=True)


def _contents(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    files, left_out = {}, []
    for path in sorted(folder.rglob('*')):
        if not path.is_file():
            continue
        name = path.relative_to(folder).as_posix()
        if path.stat().st_size > LARGEST_FILE_BROUGHT_HOME:
            left_out.append(name)
        else:
            files[name] = path.read_bytes()
    return files, left_out
