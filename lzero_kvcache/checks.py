"""What all checks of a user's values share: the error sentences, and the nearest valid choice."""
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


def check_pool_size(size: Any, key_path: str) -> int:
    """
    Overview:
        Check the size of a pool as users write it.
    Arguments:
        - size (:obj:`Any`): The number of entries.
        - key_path (:obj:`str`): Where the value stands in the user's config, for the error message.
    Returns:
        - size (:obj:`int`): The same number.
    Raises:
        - ValueError: If it is no integer of at least 1.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f'{key_path} is {size!r}: allowed is an integer of at least 1 (entries)')
    return size
