"""The folder that a run writes to."""
import os
import shutil
from pathlib import Path
from zipfile import is_zipfile

ALMOST_NOTHING = 2 ** 20


def check_new_folder(folder: Path) -> None:
    """
    Overview:
        Make sure that a run can have a folder of its own.
    Arguments:
        - folder (:obj:`Path`): It and its log file, ``<folder>.log``, must not be there yet, be it as a link that leads
            nowhere: DI-engine would write elsewhere.
    Raises:
        - ValueError: If one is, or if nothing can be written there.
    """
    if '\0' in str(folder):
        raise ValueError(f'{str(folder)!r} cannot be the name of a folder: choose another one')
    for path in (folder, log_file(folder)):
        if os.path.lexists(path):
            raise _is_there(path)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            # Of two runs that begin at once one is refused.
            log_file(folder).touch(exist_ok=False)
        except FileExistsError as error:
            raise _is_there(log_file(folder)) from error
    except OSError as error:
        raise ValueError(f'{folder} cannot be written: {error.strerror}: {error.filename}') from error


def _is_there(path: Path) -> ValueError:
    return ValueError(f'{path} is there already, perhaps from a former run: choose another folder')


def log_file(folder: Path) -> Path:
    """
    Overview:
        Where the output of LightZero goes.
    Arguments:
        - folder (:obj:`Path`): The run's.
    """
    return Path(f'{folder}.log')


def newest_checkpoint(folder: Path) -> Path:
    """
    Overview:
        The checkpoint of a run that was written last, and to its end.
    Arguments:
        - folder (:obj:`Path`): The run's.
    Raises:
        - FileNotFoundError: If there is none.
    """
    # PyTorch's files are zip archives, whose directory is written last.
    checkpoints = [path for path in folder.glob('ckpt/*.pth.tar') if is_zipfile(path)]
    if not checkpoints:
        raise FileNotFoundError(f'{folder}/ckpt has no complete checkpoint')
    return max(checkpoints, key=lambda path: path.stat().st_mtime)


def disk_is_full(folder: Path) -> bool:
    """
    Overview:
        Whether less than a mebibyte can be written beside a run.
    Arguments:
        - folder (:obj:`Path`): The run's.
    """
    return shutil.disk_usage(folder.parent).free < ALMOST_NOTHING
