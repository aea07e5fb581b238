"""Changes as a command line writes them: ``policy.num_simulations=25``."""
import ast
import re
from collections.abc import Iterable, Mapping
from typing import Any

# Written in another language; as a word, each would be a string, which counts as true.
LITERALS_OF_OTHERS = {'true': 'True', 'false': 'False', 'none': 'None', 'null': 'None'}


def parse_assignment(text: str) -> tuple[str, Any]:
    """
    Overview:
        Read one assignment.
    Arguments:
        - text (:obj:`str`): A key path, '=', and a Python literal. A plain word is a string; a shell removes quotes.
    Returns:
        - key_path, value (:obj:`Tuple[str, Any]`): E.g. ``('policy.num_simulations', 25)``.
    Raises:
        - ValueError: If it is no such text.
    """
    key_path, sign, literal = text.partition('=')
    key_path, literal = key_path.strip(), literal.strip()
    if not sign or not all(re.fullmatch(r'\w+', key) for key in key_path.split('.')):
        raise ValueError(f'{text!r} is no assignment: allowed is a key path, = and a value: policy.num_simulations=25')
    try:
        return key_path, ast.literal_eval(literal)
    except (ValueError, SyntaxError):
        if literal.lower() in LITERALS_OF_OTHERS:
            raise ValueError(
                f'{key_path} is {literal}, which is no Python: did you mean {LITERALS_OF_OTHERS[literal.lower()]}?'
            ) from None
        if re.fullmatch(r'[A-Za-z_][\w./-]*', literal):
            return key_path, literal
        raise ValueError(
            f"{key_path} is {literal or 'nothing'}: allowed is a word or a Python literal such as 25, True, "
            "'two words', [1, 2] or {'size': 10}"
        ) from None


def nested(assignments: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """
    Overview:
        The dict that some assignments amount to, in their order.
    Arguments:
        - assignments (:obj:`Iterable[Tuple[str, Any]]`): Key paths and values.
    Returns:
        - changes (:obj:`Dict[str, Any]`): E.g. ``{'policy': {'num_simulations': 25}}``.
    Raises:
        - ValueError: If one lies within the value of another that is no dict.
    """
    changes: dict[str, Any] = {}
    for key_path, value in assignments:
        *rooms, key = key_path.split('.')
        inner = changes
        for depth, room in enumerate(rooms, start=1):
            inner = inner.setdefault(room, {})
            if not isinstance(inner, Mapping):
                raise ValueError(f"{key_path} is set, but {'.'.join(rooms[:depth])} is {inner!r}, which is no dict")
        inner[key] = value
    return changes
