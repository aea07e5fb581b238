"""What all checks of a user's values share: the error sentences, and the nearest valid choice."""
from collections.abc import Iterable
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

# More names than this nobody reads.
LISTED = 20
NEAREST = 5


def choices(given: Any, allowed: Iterable[str]) -> str:
    """
    Overview:
        Say what is allowed in place of ``given``.
    Arguments:
        - given (:obj:`Any`): The value that was refused.
        - allowed (:obj:`Iterable[str]`): The names that are valid.
    Returns:
        - text (:obj:`str`): E.g. "allowed are fifo, lru; did you mean 'lru'?"; of many names the nearest alone.
    """
    allowed = sorted(allowed)
    nearest = get_close_matches(str(given).lower(), allowed, n=1, cutoff=0.5)
    guess = f'did you mean {nearest[0]!r}?' if nearest else ''
    if len(allowed) > LISTED:
        names = get_close_matches(str(given).lower(), allowed, n=NEAREST, cutoff=0.)
        text = f"{len(allowed)} names are allowed, the nearest are {', '.join(names)}"
        return f'{guess} {text}' if guess else text
    text = f"allowed are {', '.join(allowed)}" if allowed else 'there are none'
    return f'{text}; {guess}' if guess else text


def is_number(value: Any) -> bool:
    """
    Overview:
        Whether a value can be compared as a number; nan cannot.
    Arguments:
        - value (:obj:`Any`): Anything.
    """
    return isinstance(value, Real) and value == value


def is_integer(value: Any) -> bool:
    """
    Overview:
        Whether a value is an integer, NumPy's included; a bool is none.
    Arguments:
        - value (:obj:`Any`): Anything.
    """
    return isinstance(value, Integral) and not isinstance(value, bool)


def check_count(count: Any, key_path: str, unit: str = 'entries') -> int:
    """
    Overview:
        Check a number of things as users write it.
    Arguments:
        - count (:obj:`Any`): The number.
        - key_path (:obj:`str`): Where it stands in the user's config, for the error message.
        - unit (:obj:`str`): What is counted, for the error message.
    Returns:
        - count (:obj:`int`): The same number.
    Raises:
        - ValueError: If it is no integer of at least 1.
    """
    if not is_integer(count) or count < 1:
        raise ValueError(f'{key_path} is {count!r}: allowed is an integer of at least 1 ({unit})')
    return int(count)
