"""Files that are written as a whole, and disks that are full."""
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex
from typing import Union


class DiskFullError(Exception):
    """There is no room for what a run has to write."""

    def __init__(self, path: Path) -> None:
        super().__init__(f'no room is left on the disk of {path}')


@contextmanager
def disk_full_named(path: Path) -> Iterator[None]:
    """
    Overview:
        Tell a full disk, or a used-up quota, from other errors within the ``with`` block.
    Arguments:
        - path (:obj:`Path`): What is being written, for the error message.
    Raises:
        - DiskFullError: In place of the system's error.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFullError(path) from error


def not_through_a_link(path: str, flags: int) -> int:
    """
    Overview:
        An ``opener`` for files that are written in place: what a symbolic link leads to lies elsewhere.
    Raises:
        - OSError: If the file is a link.
    """
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def write_atomically(path: Path, content: Union[str, bytes]) -> None:
    """
    Overview:
        Write a file as a whole or not at all: whoever reads it sees the former content or the new one.
    Arguments:
        - path (:obj:`Path`): The file.
        - content (:obj:`Union[str, bytes]`): What it shall hold.
    Raises:
        - DiskFullError: If there is no room; the former content stays.
    """
    temporary = path.with_name(f'.{path.name}.{token_hex(8)}')
    try:
        with disk_full_named(path):
            # Never through a link that lies there: 'x'.
            with open(temporary, 'xb') as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
