"""The folder of an A/B run: what is in it, and which of its trials are done."""
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from ..files import DiskFullError, disk_full_named, not_through_a_link, write_atomically
from ..untrusted import read_json
from .changes import changes
from .results import checked_row
from .spec import TrialSpec

ALMOST_NOTHING = 2 ** 20
LINES_OF_A_FAILURE = 15


class RunFolder:
    """
    Overview:
        ``ab.json``, ``results.csv``, ``report.html`` and ``trials/<arm>_seed<seed>/``.
    Arguments:
        - path (:obj:`Path`): The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.results_path = self.path / 'results.csv'
        self.record_path = self.path / 'ab.json'

    @contextmanager
    def locked(self) -> Iterator[None]:
        """
        Overview:
            Keep other A/B runs away within the ``with`` block.
        Raises:
            - ValueError: If one is running in the folder, or it cannot be made.
        """
        try:
            with disk_full_named(self.path):
                (self.path / 'trials').mkdir(parents=True, exist_ok=True)
                for name in ('trials', '.lock'):
                    if (self.path / name).is_symlink():
                        raise ValueError(
                            f'{self.path / name} is a symbolic link, through which an A/B run would write and remove '
                            'elsewhere: remove it, or choose another --out'
                        )
                lock = open(self.path / '.lock', 'w', opener=not_through_a_link)
        except OSError as error:
            raise ValueError(f'{self.path} cannot be written to: {error.strerror}') from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise ValueError(
                    f'another A/B run is writing to {self.path}: wait for it, or choose another --out'
                ) from error
            yield

    def record(self) -> Optional[dict[str, Any]]:
        """
        Overview:
            What ``ab.json`` says, None if there is none.
        Raises:
            - ValueError: If it is not readable.
        """
        return _read_json(self.record_path, dict(config=str))

    def write_record(self, record: Mapping[str, Any]) -> None:
        """
        Overview:
            Write ``ab.json``.
        Arguments:
            - record (:obj:`Mapping`): Its content.
        """
        write_atomically(self.record_path, json.dumps(record, indent=2))

    def trial_folder(self, spec: TrialSpec) -> Path:
        """
        Overview:
            The folder of a trial.
        Arguments:
            - spec (:obj:`TrialSpec`): The trial.
        """
        return self.path / 'trials' / spec.name

    def outcome(self, spec: TrialSpec) -> Optional[dict[str, Any]]:
        """
        Overview:
            What the trial's ``trial.json`` says.
        Arguments:
            - spec (:obj:`TrialSpec`): The trial.
        Returns:
            - outcome (:obj:`Optional[Dict[str, Any]]`): None where the trial has not ended, or was another one.
        """
        outcome = _read_outcome(self.trial_folder(spec))
        return outcome if outcome and outcome['spec'] == spec.fingerprint() else None

    def outcomes(self) -> list[dict[str, Any]]:
        """
        Overview:
            What the ``trial.json`` of all trials say that have ended, whatever their settings were.
        """
        outcomes = map(_read_outcome, sorted(self.path.glob('trials/*')))
        return [outcome for outcome in outcomes if outcome is not None]

    def state(self, spec: TrialSpec) -> str:
        """
        Overview:
            How far a trial is: 'new', 'done', 'failed', 'changed' (it is done, with other settings) or 'interrupted'.
        Arguments:
            - spec (:obj:`TrialSpec`): The trial.
        """
        folder = self.trial_folder(spec)
        if not folder.exists():
            return 'new'
        outcome = _read_outcome(folder)
        if outcome is None:
            return 'interrupted'
        if outcome['status'] == 'failed':
            return 'failed'
        return 'done' if outcome['spec'] == spec.fingerprint() else 'changed'

    def changes(self, spec: TrialSpec) -> list[str]:
        """
        Overview:
            What has changed since a trial ended.
        Arguments:
            - spec (:obj:`TrialSpec`): The trial as it is asked for now; its folder holds one that has ended.
        """
        return changes(_read_outcome(self.trial_folder(spec)), spec)

    def check_room(self) -> None:
        """
        Overview:
            Make sure that the disk is not full.
        Raises:
            - DiskFullError: If it is.
        """
        if shutil.disk_usage(self.path).free < ALMOST_NOTHING:
            raise DiskFullError(self.path)


def prepare(folder: Path, spec: bytes) -> Path:
    """
    Overview:
        An empty folder for a trial: DI-engine would write beside a run that is there already.
    Arguments:
        - folder (:obj:`Path`): The trial's; what an earlier one has left there goes.
        - spec (:obj:`bytes`): As ``TrialSpec.to_bytes``.
    Returns:
        - spec_path (:obj:`Path`): The file to run.
    """
    if folder.is_symlink() or folder.is_file():
        # What a link leads to is not ours.
        folder.unlink()
    if folder.exists():
        # First of all, so that a folder that is half removed does not pass for a trial that has ended.
        (folder / 'trial.json').unlink(missing_ok=True)
        shutil.rmtree(folder)
    with disk_full_named(folder):
        folder.mkdir(parents=True)
        spec_path = folder / 'spec.pkl'
        spec_path.write_bytes(spec)
    return spec_path


def last_lines(log_path: Path) -> list[str]:
    """
    Overview:
        The end of a trial's output.
    Arguments:
        - log_path (:obj:`Path`): ``output.log``.
    """
    if not log_path.exists():
        return []
    return log_path.read_text(errors='replace').splitlines()[-LINES_OF_A_FAILURE:]


def _read_outcome(folder: Path) -> Optional[dict[str, Any]]:
    path = folder / 'trial.json'
    outcome = _read_json(path, dict(arm=str, seed=int, spec=str, status=str, result=dict))
    if outcome is None:
        return None
    try:
        return dict(outcome, result=checked_row(outcome))
    except ValueError as error:
        raise ValueError(f'{path} is broken, {error}: remove it, or choose another --out') from error


def _read_json(path: Path, needed: Mapping[str, type]) -> Optional[dict[str, Any]]:
    if not os.path.lexists(path):
        return None
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f'{path} is not readable ({error}): remove it, or choose another --out') from error
    for name, kind in needed.items():
        if not isinstance(content, dict) or not isinstance(content.get(name), kind):
            raise ValueError(
                f'{path} is broken, {name!r} is missing or no {kind.__name__}: remove it, or choose another --out'
            )
    return content
