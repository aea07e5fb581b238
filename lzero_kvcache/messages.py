"""The second half of an error sentence: what would have been allowed, and the nearest valid choice."""
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any


def choices(given: Any, allowed: Iterable[str]) -> str:
    """
    Overview:
        Say what is allowed in place of ``given``.
    Arguments:
        - given (:obj:`Any`): The value that was refused.
        - allowed (:obj:`Iterable[str]`): The names that are valid.
    Returns:
        - text (:obj:`str`): E.g. "allowed are fifo, lru; did you mean 'lru'?".
    """
    allowed = sorted(allowed)
    text = f"allowed are {', '.join(allowed)}" if allowed else 'there are none'
    nearest = get_close_matches(str(given).lower(), allowed, n=1, cutoff=0.5)
    return f'{text}; did you mean {nearest[0]!r}?' if nearest else text
