"""The folder of a simulation, and what its results are of."""
import hashlib
from collections.abc import Sequence
from pathlib import Path

from ..untrusted import read_json
from .format import RUN

RECORD = 'simulation.json'
RESULTS = ('results.csv', 'recommendation.txt', 'hit_rate.png')
DIFFERENCES = dict(
    sha256='of another trace, {trace}', strategies='with --strategies {strategies}', sizes='with --sizes {sizes}'
)


def settings_of(trace: Path, strategies: Sequence[str], shares: Sequence[float]) -> dict[str, str]:
    """What the results of a simulation depend on; an OSError if the trace cannot be read."""
    digest = hashlib.sha256()
    for file in (trace / RUN, *sorted(trace.glob('*.npz'))):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    sizes = [f'{100 * share:g}%' for share in shares]
    return dict(
        trace=str(trace), sha256=digest.hexdigest(), strategies=','.join(sorted(strategies)), sizes=','.join(sizes)
    )


def check_folder(folder: Path, settings: dict[str, str]) -> None:
    """A ValueError if the folder, which need not be there, holds results of another trace or of other options."""
    path = folder / RECORD
    if not path.exists():
        foreign = [name for name in RESULTS if (folder / name).exists()]
        if foreign:
            raise ValueError(f"{folder} has a {foreign[0]} already, but no {RECORD} that says what it is of: choose "
                             'another --out')
        return
    try:
        former = read_json(path)
        types = {name: type(value) for name, value in former.items()} if isinstance(former, dict) else {}
        if types != dict.fromkeys(settings, str):
            raise ValueError(f"needed is an object of texts: {', '.join(settings)}")
    except ValueError as error:
        raise ValueError(f'{path} is not readable ({error}): choose another --out, or remove the folder') from error
    differences = [text.format(**former) for name, text in DIFFERENCES.items() if former[name] != settings[name]]
    if differences:
        raise ValueError(f"{folder} holds results {' and '.join(differences)}: choose another --out")
