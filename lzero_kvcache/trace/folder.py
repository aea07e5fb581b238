"""The folder of a simulation, and what its results are of."""
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import write_atomically
from ..untrusted import read_json
from .choices import Choice

RECORD = 'simulation.json'
RESULTS = ('results.csv', 'recommendation.txt', 'hit_rate.png')
CHUNK_BYTES = 2 ** 20


@dataclass(frozen=True)
class Settings:
    """
    What the results depend on.

    Attributes:
        trace: The trace's path.
        sha256: Of its content.
        strategies: Names, as ``Choice`` has them.
        sizes: Of the recur pool, in percent of the nodes of a search.
    """
    trace: str
    sha256: str
    strategies: list[str]
    sizes: list[float]


def settings_of(trace: Path, choices: Sequence[Choice], shares: Sequence[float]) -> Settings:
    """Those of a simulation; an OSError if the trace cannot be read."""
    digest = hashlib.sha256()
    with open(trace, 'rb') as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return Settings(
        str(trace), digest.hexdigest(), sorted(choice.name for choice in choices),
        [round(100 * share, 6) for share in shares]
    )


def check_folder(folder: Path, settings: Settings) -> None:
    """A ValueError if the folder, which need not be there, holds results of another trace or of other options."""
    path = folder / RECORD
    if not path.exists():
        foreign = [name for name in RESULTS if (folder / name).exists()]
        if foreign:
            raise ValueError(f"{folder} has a {foreign[0]} already, but no {RECORD} that says what it is of: choose "
                             'another --out')
        return
    try:
        former = _checked(read_json(path))
    except ValueError as error:
        raise ValueError(f'{path} is not readable ({error}): choose another --out, or remove the folder') from error
    differences = []
    if former.sha256 != settings.sha256:
        differences.append(f'of another trace, {former.trace}')
    if former.strategies != settings.strategies:
        differences.append(f"with --strategies {','.join(former.strategies)}")
    if former.sizes != settings.sizes:
        differences.append(f"with --sizes {','.join(f'{size:g}%' for size in former.sizes)}")
    if differences:
        raise ValueError(f"{folder} holds results {' and '.join(differences)}: choose another --out")


def _checked(given: Any) -> Settings:
    kinds = dict(trace=str, sha256=str, strategies=str, sizes=(int, float))
    if not isinstance(given, dict) or set(given) != set(kinds):
        raise ValueError(f"needed is an object with {', '.join(kinds)}")
    for name, kind in kinds.items():
        entries = given[name] if name in ('strategies', 'sizes') else [given[name]]
        if not isinstance(entries, list) or not all(isinstance(entry, kind) for entry in entries):
            raise ValueError(f'{name} is {given[name]!r}')
    return Settings(**given)


def write_settings(folder: Path, settings: Settings) -> None:
    """Write down what the results are of; a DiskFullError if there is no room."""
    write_atomically(folder / RECORD, json.dumps(asdict(settings), indent=2))
