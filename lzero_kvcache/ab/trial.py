"""One trial, in a process of its own: ``python -m lzero_kvcache.ab.trial SPEC --sha256 DIGEST``."""
import hashlib
import json
import os
import pickle
import signal
import sys
import threading
import traceback
from copy import deepcopy
from pathlib import Path
from typing import Optional

import click

from ..files import DiskFullError, disk_full_named, write_atomically
from .spec import TrialSpec, as_json

DISK_FULL_STATUS = 74


def load_spec(path: Path, sha256: str) -> TrialSpec:
    """
    Overview:
        Read a spec, with the modules that it needs. It can execute anything, as the config that it has been made from.
    Arguments:
        - path (:obj:`Path`): A file that holds ``TrialSpec.to_bytes``.
        - sha256 (:obj:`str`): Its digest, by which whoever has written it vouches for it.
    Raises:
        - ValueError: If it has another digest. Nothing of it is executed then.
    """
    written = path.read_bytes()
    if hashlib.sha256(written).hexdigest() != sha256:
        raise ValueError(f'{path} is not what the command that starts the trial has written: it is not read')
    import_path, content = pickle.loads(written)
    sys.path += [entry for entry in import_path if entry not in sys.path]
    return pickle.loads(content)


def run_trial(spec: TrialSpec, folder: Path) -> None:
    """
    Overview:
        Train by the experiment's stock entry, evaluate, and leave ``series.csv``, ``returns.csv``, ``run/`` and, last
        of all, ``trial.json``.
    Arguments:
        - spec (:obj:`TrialSpec`): The trial.
        - folder (:obj:`Path`): The trial's own.
    Raises:
        - DiskFullError: If there is no room.
    """
    from .evaluations import read_evaluations, write_evaluations
    from .last_evaluation import last_evaluation
    from .results import result_row
    from .series import SeriesRecorder

    experiment = deepcopy(spec.experiment)
    recorder = SeriesRecorder(folder / 'series.csv', spec.max_env_step)
    with recorder.recording(), last_evaluation(experiment.main_config, recorder):
        experiment.run(str(folder / 'run'))
    evaluations = read_evaluations(folder / 'run')
    write_evaluations(evaluations, folder / 'returns.csv')
    row = result_row(spec, recorder.rows, evaluations)
    write_outcome(spec, folder, seconds=row['seconds'], result=row)


def write_outcome(
        spec: TrialSpec, folder: Path, error: Optional[str] = None, seconds: Optional[float] = None,
        result: Optional[dict] = None
) -> None:
    """
    Overview:
        Write ``trial.json``, whose presence means that the trial has ended.
    Arguments:
        - spec (:obj:`TrialSpec`): The trial.
        - folder (:obj:`Path`): The trial's own.
        - error (:obj:`Optional[str]`): Why it has failed; None: it has not.
        - seconds (:obj:`Optional[float]`): Wall time.
        - result (:obj:`Optional[dict]`): Its row of ``results.csv``; None: one that says that it has failed.
    """
    from .results import failed_row

    outcome = dict(
        arm=spec.arm, seed=spec.seed, max_env_step=spec.max_env_step, spec=spec.fingerprint(),
        status='done' if error is None else 'failed', error=error, seconds=seconds, result=result or failed_row(spec),
        threads=int(os.environ.get('OMP_NUM_THREADS', 0)) or None, settings=as_json(spec.settings()),
    )
    write_atomically(folder / 'trial.json', json.dumps(outcome, indent=2))


def _end_with_stdin() -> None:
    def wait() -> None:
        # Not by sys.stdin, which the interpreter could not close while this thread reads.
        while os.read(0, 1):
            pass
        # Environments may run in processes of the trial's own, which belong to its group.
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


@click.command()
@click.argument('spec_path', metavar='SPEC', type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option('--sha256', required=True, help='The digest of SPEC, from the command that has written it.')
@click.option('--end-with-stdin', is_flag=True, help='End when the standard input does, as it will with the parent.')
def main(spec_path: Path, sha256: str, end_with_stdin: bool) -> None:
    """
    Run the trial of the file SPEC in the folder that it lies in.

    'lzero-kvcache ab' calls this. A SPEC from elsewhere is refused, because reading one can execute anything.
    """
    if end_with_stdin:
        _end_with_stdin()
    folder = spec_path.parent
    try:
        spec = load_spec(spec_path, sha256)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    try:
        try:
            with disk_full_named(folder):
                run_trial(spec, folder)
        except DiskFullError:
            raise
        except Exception as error:
            traceback.print_exc()
            write_outcome(spec, folder, error=f'{type(error).__name__}: {error}')
            sys.exit(1)
    except DiskFullError as error:
        traceback.print_exc()
        print(error, file=sys.stderr)
        sys.exit(DISK_FULL_STATUS)


if __name__ == '__main__':
    main()
