"""An A/B config: a config file of LightZero's kind with ``arms`` and ``seeds``."""
import pickle
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Optional

from ..checks import check_count, choices, is_integer
from ..config import KEY_PATH
from ..experiment import (
    Experiment,
    apply_overrides,
    check_environment,
    check_runnable,
    run_config_file,
    switch_cache_on,
)
from ..experiment.config_file import POLICY_TYPES, experiment_of
from ..experiment.imports import PLUGIN
from ..lightzero import installed
from .buildable import check_buildable
from .spec import ARM_NAME, LARGEST_SEED, TrialSpec, leaves

NEEDED = ('main_config', 'create_config', 'arms', 'seeds')


@dataclass
class ABConfig:
    """
    Overview:
        A checked A/B config.
    Arguments:
        - path (:obj:`Path`): Its file.
        - title (:obj:`str`): What the report calls it.
        - overrides (:obj:`Dict[str, Mapping]`): Each arm's, as the file has them.
        - experiments (:obj:`Dict[str, Experiment]`): Each arm's experiment, with the overrides.
        - seeds (:obj:`List[int]`): The random seeds.
        - max_env_step (:obj:`int`): Environment steps of each trial.
        - import_path (:obj:`List[str]`): Folders in which modules are found.
        - notes (:obj:`Tuple[str, ...]`): What will not be as the file says, a sentence each.
    """
    path: Path
    title: str
    overrides: dict[str, Mapping[str, Any]]
    experiments: dict[str, Experiment]
    seeds: list[int]
    max_env_step: int
    import_path: list[str]
    notes: tuple[str, ...] = ()

    def specs(self, arms: Optional[Sequence[str]] = None, seeds: Optional[Sequence[int]] = None) -> list[TrialSpec]:
        """
        Overview:
            The trials, in turn by seed, so that every arm has one early.
        Arguments:
            - arms (:obj:`Optional[Sequence[str]]`): Some arms, in any order; None: all.
            - seeds (:obj:`Optional[Sequence[int]]`): Other seeds than the file's; None: those.
        Returns:
            - specs (:obj:`List[TrialSpec]`): One per arm and seed.
        Raises:
            - ValueError: If there is no such arm.
        """
        for arm in arms or ():
            if arm not in self.experiments:
                raise ValueError(f'--arms names {arm!r}, but {self.path} has no such arm: '
                                 f'{choices(arm, self.experiments)}')
        return [
            self._spec(arm, seed) for seed in (self.seeds if seeds is None else seeds) for arm in self.experiments
            if arms is None or arm in arms
        ]

    def _spec(self, arm: str, seed: int) -> TrialSpec:
        experiment = self.experiments[arm]
        return TrialSpec(
            arm, Experiment(experiment.main_config, experiment.create_config, experiment.entry, seed,
                            self.max_env_step, experiment.model_path), self.import_path
        )

    def differences(self, arms: Sequence[str]) -> dict[str, dict[str, Any]]:
        """
        Overview:
            In what the arms differ.
        Arguments:
            - arms (:obj:`Sequence[str]`): The arms that are compared.
        Returns:
            - differences (:obj:`Dict[str, Dict[str, Any]]`): Per arm, full key paths and values of what is not the same
                in all of them; a key that an arm's config does not have is left out there.
        """
        flat = {arm: _flat(self.experiments[arm]) for arm in arms}
        paths = dict.fromkeys(path for values in flat.values() for path in values)
        # A list, because values need not be hashable; the marker stands for a missing key.
        missing = object()
        differing = [
            path for path in paths
            if any(values.get(path, missing) != flat[arms[0]].get(path, missing) for values in flat.values())
        ]
        return {arm: {path: values[path] for path in differing if path in values} for arm, values in flat.items()}


def load_ab_config(path: Path, max_env_step: Optional[int] = None) -> ABConfig:
    """
    Overview:
        Read an A/B config and check all of it: every arm is applied to the config, so that no trial starts before the
        last one is known to be sound.
    Arguments:
        - path (:obj:`Path`): The file. It defines ``main_config`` and ``create_config`` (normally imported from another
            config), ``arms`` (name: overrides, as ``apply_overrides`` takes them), ``seeds`` and, if it likes,
            ``max_env_step`` and ``title``.
        - max_env_step (:obj:`Optional[int]`): In place of the file's.
    Returns:
        - config (:obj:`ABConfig`): The checked config.
    Raises:
        - ValueError: If there is no such file, it fails, or something in it is not allowed.
    """
    path = Path(path)
    names = run_config_file(path)
    import_path = [str(Path(entry).absolute()) for entry in sys.path]
    for name in NEEDED:
        if name not in names:
            raise ValueError(_missing(path, name, names))
    steps = names.get('max_env_step') if max_env_step is None else max_env_step
    if steps is None:
        raise ValueError(
            f'{path} defines no max_env_step: how many environment steps shall each trial collect? Define it there, or '
            'give --max-env-step'
        )
    base = experiment_of(path, names)
    overrides = _checked_arms(path, names['arms'])
    config = ABConfig(
        path, str(names.get('title', path.stem)), overrides,
        {arm: _experiment(base, arm, changes) for arm, changes in overrides.items()},
        _checked_seeds(path, names['seeds']), check_count(steps, 'max_env_step', 'environment steps'), import_path,
        base.notes
    )
    for spec in config.specs():
        _check_travels(path, spec)
    return config


def _missing(path: Path, name: str, names: Mapping[str, Any]) -> str:
    near = get_close_matches(name, [own for own in names if not own.startswith('_')], n=1, cutoff=0.7)
    hint = f' ({near[0]!r} is not the same)' if near else ''
    return (
        f"{path} defines no {name}{hint}: an A/B config defines {', '.join(NEEDED[:-1])} and {NEEDED[-1]}, like "
        'configs/ab_cartpole_strategies.py'
    )


def _checked_arms(path: Path, arms: Any) -> dict[str, Mapping[str, Any]]:
    if not isinstance(arms, Mapping) or not arms:
        raise ValueError(f"{path}: arms is {arms!r}: allowed is a dict such as "
                         "dict(lru=dict(kv_cache=dict(strategy='lru')), release=dict(kv_cache=None))")
    folders: dict[str, str] = {}
    for arm in arms:
        if not isinstance(arm, str) or not ARM_NAME.fullmatch(arm):
            raise ValueError(f"{path}: arms has the name {arm!r}, which becomes a part of a folder's name: allowed are "
                             'letters, digits, _, - and ., a letter or digit first, 100 at most')
        # Some file systems do not tell them apart.
        other = folders.setdefault(arm.lower(), arm)
        if other != arm:
            raise ValueError(f'{path}: arms has {other!r} and {arm!r}, which differ by case alone: rename one')
    return dict(arms)


def _checked_seeds(path: Path, seeds: Any) -> list[int]:
    if isinstance(seeds, (str, bytes)) or not isinstance(seeds, Sequence) or not seeds:
        raise ValueError(f'{path}: seeds is {seeds!r}: allowed is a list such as [0, 1, 2]')
    for number, seed in enumerate(seeds):
        if not is_integer(seed) or not 0 <= seed <= LARGEST_SEED:
            raise ValueError(
                f'{path}: seeds[{number}] is {seed!r}: allowed is an integer of at least 0 and below 2 ** 32'
            )
        if seed in seeds[:number]:
            raise ValueError(f'{path}: seeds has {seed!r} twice: each seed is one trial per arm')
    return [int(seed) for seed in seeds]


def _experiment(base: Experiment, arm: str, overrides: Mapping[str, Any]) -> Experiment:
    key_path = f'arms[{arm!r}]'
    experiment = deepcopy(base)
    try:
        apply_overrides(experiment, overrides, key_path)
        policy_type = experiment.create_config.policy.type
        if policy_type not in POLICY_TYPES:
            raise ValueError(f'create_config.policy.type is {policy_type!r}: '
                             f'{choices(policy_type, POLICY_TYPES)}')
        _use_plugin(experiment)
        check_runnable(experiment)
        check_environment(experiment)
        check_buildable(experiment, key_path)
    except ValueError as error:
        # The cache's own checks name the place in the config, which an arm's author has not written.
        text = str(error).replace(KEY_PATH, f'{key_path}.kv_cache')
        raise ValueError(text if text.startswith(key_path) else f'{key_path}: {text}') from error
    return experiment


def _use_plugin(experiment: Experiment) -> None:
    world_model_cfg = experiment.main_config.policy.model.world_model_cfg
    if PLUGIN not in experiment.create_config.policy.get('import_names', []):
        # The plugin measures the arm, as the stock code runs by its mode 'legacy'.
        switch_cache_on(experiment, None)
        return
    config = installed().cache_config(world_model_cfg)
    if config is not None and config.mode != 'legacy':
        # For the list of differences: the release's arms have a mode, too.
        world_model_cfg.kv_cache = {'mode': config.mode, **(world_model_cfg.get('kv_cache') or {})}


def _check_travels(path: Path, spec: TrialSpec) -> None:
    try:
        pickle.loads(spec.to_bytes())
    except Exception as error:
        raise ValueError(
            f'{path}: arms[{spec.arm!r}] holds something that cannot be handed to another process '
            f'({type(error).__name__}: {error}): name it by its dotted path instead, or define it in a module'
        ) from error


def _flat(experiment: Experiment) -> dict[str, Any]:
    flat = dict(leaves(experiment.main_config))
    flat.update(leaves(experiment.create_config, 'create_config.'))
    return flat
