"""LightZero prints and logs a lot: to a file, so that the screen says what matters."""
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Optional, TextIO

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.text import Text

from .files import not_through_a_link
from .untrusted import printable

LINES_SHOWN_ON_FAILURE = 30
COLUMNS_OF_A_FILE = 120


@contextmanager
def output_to(log_path: Optional[Path] = None) -> Iterator[Console]:
    """
    Overview:
        Whatever is printed within the ``with`` block, by C code, too, goes to a file. If the block fails, the file's
        last lines are shown; not so where the user interrupts it.
    Arguments:
        - log_path (:obj:`Optional[Path]`): The file; None: one that is gone when the block has ended.
    Returns:
        - screen (:obj:`Console`): The screen.
    """
    saved = [os.dup(1), os.dup(2)]
    try:
        with _redirected(saved, log_path) as screen:
            yield screen
    finally:
        for copy in saved:
            os.close(copy)


@contextmanager
def _redirected(saved: list[int], log_path: Optional[Path]) -> Iterator[Console]:
    with open(saved[0], 'w', closefd=False) as descriptor, _opened(log_path) as log:
        screen = console_of(descriptor)
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            yield screen
            _flush()
        except KeyboardInterrupt:
            raise
        except BaseException:
            _flush(disk_may_be_full=True)
            _show_tail(screen, Path(log.name), 'its output' if log_path is None else str(log_path))
            raise
        finally:
            _flush(disk_may_be_full=True)
            for number, copy in enumerate(saved, start=1):
                os.dup2(copy, number)


def _opened(log_path: Optional[Path]) -> TextIO:
    return NamedTemporaryFile('w') if log_path is None else open(log_path, 'w', opener=not_through_a_link)


def console_of(file: TextIO) -> Console:
    """
    Overview:
        A file as a screen, 120 columns wide where nothing says how wide it is.
    Arguments:
        - file (:obj:`TextIO`): The file.
    """
    return Console(file=file, width=None if file.isatty() or os.environ.get('COLUMNS') else COLUMNS_OF_A_FILE)


@contextmanager
def loading(what: str) -> Iterator[None]:
    """
    Overview:
        Import LightZero, and what needs it, within the ``with`` block. What other packages say of themselves meanwhile
        is of no use, and is shown only if the block fails.
    Arguments:
        - what (:obj:`str`): What is loaded, for the screen.
    """
    with output_to() as screen, spinner(screen, f'Loading {what} ...'):
        yield
    # LightZero lets every logger of the process speak, and matplotlib tells of each font that it looks at.
    logging.getLogger('matplotlib').setLevel(logging.WARNING)


def spinner(screen: Console, text: str) -> Live:
    """
    Overview:
        Show that something goes on within the ``with`` block. Unlike ``screen.status`` it leaves alone what is printed
        meanwhile, so that this goes where ``output_to`` says.
    Arguments:
        - screen (:obj:`Console`): The screen, as ``output_to`` returns it.
        - text (:obj:`str`): What goes on.
    """
    # A path with brackets is no markup.
    shown = Spinner('dots', Text(text))
    return Live(shown, console=screen, transient=True, redirect_stdout=False, redirect_stderr=False)


def _flush(disk_may_be_full: bool = False) -> None:
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            if not disk_may_be_full:
                raise


def _show_tail(screen: Console, log_path: Path, name: str) -> None:
    lines = log_path.read_text(errors='replace').splitlines()[-LINES_SHOWN_ON_FAILURE:]
    if not lines:
        return
    for line in (f'This has failed. The last lines of {name}:', *map(printable, lines)):
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
