import hashlib
import json
import pickle
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    # Ray's workers, which only pass a spec on, need not load LightZero.
    from ..experiment import Experiment

# A part of a folder's name; a hundred characters leave room for the rest, and none begins a formula of a spreadsheet.
ARM_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9_.-]{0,99}')
# Of numpy's generator.
LARGEST_SEED = 2 ** 32 - 1
# A trial that other versions of these have run is not the same trial.
PACKAGES = ('lightzero', 'lzero-kvcache', 'torch')


@dataclass
class TrialSpec:
    """
    Overview:
        Everything that one trial depends on: one arm with one seed.
    Arguments:
        - arm (:obj:`str`): The arm's name.
        - experiment (:obj:`Experiment`): With the arm's overrides, the seed and the number of environment steps.
        - import_path (:obj:`List[str]`): Folders in which the modules that it names are found.
    """
    arm: str
    experiment: 'Experiment'
    import_path: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """
        Overview:
            The name of the trial's folder.
        """
        return f'{self.arm}_seed{self.seed}'

    @property
    def seed(self) -> int:
        """
        Overview:
            The random seed.
        """
        return self.experiment.seed

    @property
    def max_env_step(self) -> int:
        """
        Overview:
            The environment steps that the trial collects.
        """
        return self.experiment.max_env_step

    def settings(self) -> dict[str, Any]:
        """
        Overview:
            What makes the trial the one that it is: the configs, the entry, the seed, the steps and the versions of the
            packages. Where a config's folder lies is not part of it.
        """
        experiment = self.experiment
        return dict(
            arm=self.arm, seed=self.seed, max_env_step=self.max_env_step, entry=experiment.entry,
            model_path=experiment.model_path, create_config=experiment.create_config,
            main_config={key: value for key, value in experiment.main_config.items() if key != 'exp_name'},
            packages={name: version(name) for name in PACKAGES},
        )

    def fingerprint(self) -> str:
        """
        Overview:
            A hash of ``settings``.
        """
        return hashlib.sha256(json.dumps(as_json(self.settings()), sort_keys=True).encode()).hexdigest()[:16]

    def to_bytes(self) -> bytes:
        """
        Overview:
            The spec as ``python -m lzero_kvcache.ab.trial`` reads it from a file.
        """
        # The paths come first, because the rest may need them.
        return pickle.dumps((self.import_path, pickle.dumps(self)))


def leaves(config: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """
    Overview:
        The entries of nested configs.
    Arguments:
        - config (:obj:`Mapping[str, Any]`): The outermost.
        - prefix (:obj:`str`): What each path begins with.
    Returns:
        - leaves (:obj:`Iterator[Tuple[str, Any]]`): Full key paths and values.
    """
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f'{prefix}{key}.')
        else:
            yield f'{prefix}{key}', value


def as_json(value: Any) -> Any:
    """
    Overview:
        A config's value in JSON's types, the same in every process.
    Arguments:
        - value (:obj:`Any`): Anything; tuples become lists, and what JSON does not know its name or its text.
    """
    if isinstance(value, Mapping):
        return {str(key): as_json(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(entry) for entry in value]
    if isinstance(value, (set, frozenset)):
        return sorted(map(str, value))
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if callable(value) and hasattr(value, '__qualname__'):
        return f'{value.__module__}.{value.__qualname__}'
    return as_json(value.tolist()) if hasattr(value, 'tolist') else str(value)
