"""In what a trial of the past differs from the one of the same name that is asked for now."""
from collections.abc import Mapping, Sequence
from typing import Any

from .spec import TrialSpec, as_json, leaves

MOST_SHOWN = 5
LONGEST_VALUE = 60
UNSET = 'not set'


def changes(outcome: Mapping[str, Any], spec: TrialSpec) -> list[str]:
    """
    Overview:
        What has changed since a trial ended.
    Arguments:
        - outcome (:obj:`Mapping[str, Any]`): What its ``trial.json`` says.
        - spec (:obj:`TrialSpec`): The trial as it is asked for now.
    Returns:
        - changes (:obj:`List[str]`): E.g. 'max_env_step 3000 -> 300', the first few; at least one.
    """
    settings = outcome.get('settings')
    # Not so in a folder from elsewhere.
    former = _flat(settings) if isinstance(settings, Mapping) else {}
    present = _flat(as_json(spec.settings()))
    if not former:
        # A trial.json of an earlier release.
        former = dict(max_env_step=outcome.get('max_env_step'))
        present = dict(max_env_step=spec.max_env_step)
    texts = [
        f'{path} {_text(former, path)} -> {_text(present, path)}' for path in dict.fromkeys([*present, *former])
        if _text(former, path) != _text(present, path)
    ]
    rest = len(texts) - MOST_SHOWN
    return [*texts[:MOST_SHOWN], *([f'and {rest} more'] if rest > 0 else [])] or ['the config, or versions of packages']


def by_changes(changed: Mapping[str, Sequence[str]]) -> list[str]:
    """
    Overview:
        One line for all trials with the same changes.
    Arguments:
        - changed (:obj:`Mapping[str, Sequence[str]]`): The changes by the trials' names.
    """
    names: dict[str, list[str]] = {}
    for name, texts in changed.items():
        names.setdefault(', '.join(texts), []).append(name)
    return [f"{', '.join(of_text)}: {text}" for text, of_text in names.items()]


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    # As users write them: the sections are for the hash.
    return {
        path.partition('.')[2] if path.startswith(('main_config.', 'packages.')) else path: value
        for path, value in leaves(settings)
    }


def _text(values: Mapping[str, Any], path: str) -> str:
    text = repr(values[path]) if path in values else UNSET
    return text if len(text) <= LONGEST_VALUE else f'{text[:LONGEST_VALUE]}...'
