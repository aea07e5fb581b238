"""Config files by their paths, and those that may have been meant."""
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Optional

EXAMPLE = 'configs/cartpole_unizero_config.py'


def existing_config(path: Path) -> Path:
    """
    Overview:
        Find a config file. A path such as ``zoo/atari/config/atari_unizero_config.py`` is one of LightZero's own where
        the working directory has no such file.
    Arguments:
        - path (:obj:`Path`): The file.
    Returns:
        - path (:obj:`Path`): A file that is there.
    Raises:
        - ValueError: If there is none, or it is no Python file.
    """
    if path.is_file():
        if path.suffix != '.py':
            raise ValueError(
                f'{path} is no Python file: needed is a config file, whose name ends in .py, e.g. {EXAMPLE}'
            )
        return path
    zoo = installed_zoo()
    if zoo is not None and path.parts[:1] == ('zoo', ) and (zoo.parent / path).is_file():
        return zoo.parent / path
    candidates = {candidate.name: candidate for candidate in zoo.rglob('*unizero*config.py')} if zoo else {}
    if path.parent.is_dir():
        candidates.update({candidate.name: candidate for candidate in path.parent.glob('*.py')})
    nearest = get_close_matches(path.name, candidates, n=1, cutoff=0.5)
    kind = 'a folder' if path.is_dir() else 'no file'
    raise ValueError(
        f'{path} is {kind}: needed is the path of a config file, '
        + (f'did you mean {candidates[nearest[0]]}?' if nearest else f'e.g. {EXAMPLE}')
    )


def unizero_neighbours(path: Path) -> str:
    """
    Overview:
        The UniZero configs that lie beside another algorithm's, as the end of a sentence.
    Arguments:
        - path (:obj:`Path`): The other algorithm's.
    """
    folder = existing_config(path).parent
    names = sorted(neighbour.name for neighbour in folder.glob('*unizero*config.py') if neighbour.name != path.name)
    return f"; beside it lie {', '.join(names)}" if names else ''


def installed_zoo() -> Optional[Path]:
    """
    Overview:
        The folder of LightZero's configs, if LightZero is installed.
    """
    spec = find_spec('zoo')
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) if locations else None
