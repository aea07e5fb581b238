"""What may come from others: files that are read within bounds, and texts that a terminal shows but does not obey."""
import json
from pathlib import Path
from typing import Any

from click import unstyle

# A hundred times what an A/B run writes into the largest of its small files.
MOST_BYTES = 2 ** 23
# Configs have a dozen levels.
MOST_LEVELS = 100
LONGEST_LINE = 10_000


def read_text(path: Path) -> str:
    """
    Overview:
        The content of a small file.
    Arguments:
        - path (:obj:`Path`): The file.
    Raises:
        - ValueError: If it cannot be read, is no regular file, has more than ``MOST_BYTES``, or is not UTF-8. What
            its path is the caller says.
    """
    try:
        if not path.is_file():
            raise ValueError('it is no regular file')
        with open(path, 'rb') as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ValueError(error.strerror) from error
    if len(content) > MOST_BYTES:
        raise ValueError(f'it has more than {MOST_BYTES:,} bytes')
    return content.decode()


def read_json(path: Path) -> Any:
    """
    Overview:
        The content of a small JSON file.
    Arguments:
        - path (:obj:`Path`): The file.
    Raises:
        - ValueError: As ``read_text``, and if it is no JSON, or nested deeper than ``MOST_LEVELS``.
    """
    try:
        content = json.loads(read_text(path))
    except RecursionError as error:
        raise ValueError(f'it is nested deeper than {MOST_LEVELS} levels') from error
    level = [content]
    for _ in range(MOST_LEVELS):
        level = [
            inner for value in level if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
    if level:
        raise ValueError(f'it is nested deeper than {MOST_LEVELS} levels')
    return content


def printable(text: str) -> str:
    """
    Overview:
        A text as it can be shown on any terminal: without colours, with other control characters written out, and
        without the middle of lines that nobody could read.
    Arguments:
        - text (:obj:`str`): One or several lines.
    """
    return '\n'.join(_shortened(_written_out(line)) for line in unstyle(text).split('\n'))


def _written_out(line: str) -> str:
    if line.isprintable():
        return line
    return ''.join(
        character if character.isprintable() else ascii(character)[1:-1] for character in line.expandtabs()
    )


def _shortened(line: str) -> str:
    if len(line) <= LONGEST_LINE:
        return line
    end = LONGEST_LINE // 2
    return f'{line[:end]} ... {line[-end:]}'
