"""The modules that a create_config names, which DI-engine imports before anything else."""
from collections.abc import Mapping
from importlib import import_module
from typing import Any

PLUGIN = 'lzero_kvcache.plugin'


def named_modules(create_config: Mapping[str, Any], room: str) -> list[str]:
    """
    Overview:
        Read ``import_names``.
    Arguments:
        - create_config (:obj:`Mapping[str, Any]`): LightZero's.
        - room (:obj:`str`): 'policy' or 'env'.
    Returns:
        - names (:obj:`List[str]`): Names of modules.
    Raises:
        - ValueError: If it is no list of names, or names this package, which registers nothing, for its plugin.
    """
    key_path, names = f'create_config.{room}.import_names', create_config.get(room, {}).get('import_names', [])
    if isinstance(names, str):
        raise ValueError(
            f'{key_path} is {names!r}, of which DI-engine would import each letter: allowed is [{names!r}]'
        )
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{key_path} is {names!r}: allowed is a list of modules such as [{PLUGIN!r}]')
    package = PLUGIN.split('.')[0]
    if package in names:
        raise ValueError(
            f'{key_path} has {package!r}, which registers no policy with DI-engine: did you mean {PLUGIN!r}?'
        )
    return list(names)


def import_modules(create_config: Mapping[str, Any], room: str) -> None:
    """
    Overview:
        Import what ``import_names`` names, as DI-engine will.
    Arguments:
        - create_config (:obj:`Mapping[str, Any]`): LightZero's.
        - room (:obj:`str`): 'policy' or 'env'.
    Raises:
        - ValueError: As ``named_modules``, and if one cannot be imported.
    """
    for name in named_modules(create_config, room):
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f'create_config.{room}.import_names has {name!r}, which cannot be imported: {error}'
            ) from error
