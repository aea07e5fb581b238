from collections.abc import Iterator
from typing import Callable

from .environments import atari, dm_control, rendering
from .finding import PROBLEM, Finding
from .hardware import gpu
from .requirements import optional_packages, pins_of_others, python_version, required_packages
from .self_test import plugin, self_test

Check = Callable[[], list[Finding]]

# In this order: whoever reads the first problem reads the cause of the others.
CHECKS: dict[str, Check] = {
    'Python': python_version,
    'packages': required_packages,
    'pins': pins_of_others,
    'extras': optional_packages,
    'GPU': gpu,
    'plugin': plugin,
    'self-test': self_test,
    'Atari': atari,
    'dm-control': dm_control,
    'rendering': rendering,
}


def examine(checks: dict[str, Check]) -> Iterator[tuple[str, list[Finding]]]:
    """
    Overview:
        Do one check after the other. One that breaks down is a problem, and the others go on.
    Arguments:
        - checks (:obj:`Dict[str, Check]`): Names and functions.
    Returns:
        - results (:obj:`Iterator[Tuple[str, List[Finding]]]`): Each check's name, with no findings before it begins,
            with its findings afterwards.
    """
    for name, check in checks.items():
        yield name, []
        try:
            findings = check()
        except Exception as error:
            findings = [Finding(name, PROBLEM, f'{type(error).__name__}: {error}')]
        yield name, findings
