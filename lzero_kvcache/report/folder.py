"""The folder of an A/B run, read with suspicion: whatever is missing is left out, whatever is broken is named."""
import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np

from ..ab.results import LARGEST_NUMBER
from ..ab.spec import LARGEST_SEED
from ..checks import choices
from ..untrusted import read_json, read_text
from .metrics import METRICS

# What a page can show, and a few megabytes of JSON or CSV can ask for.
MOST_ARMS = 100
MOST_TRIALS = 10_000
MOST_DIFFERENCES = 100_000
MOST_CELLS = 2 ** 20
MOST_NOTES = 20
LONGEST_ARM = 200
LONGEST_ERROR = 5000
STATUSES = ('done', 'failed')
KINDS = {dict: 'an object', list: 'a list', int: 'a whole number', str: 'a text'}
REQUIRED = object()


@dataclass(frozen=True)
class Trial:
    """
    Overview:
        One arm with one seed.
    Arguments:
        - arm (:obj:`str`): The arm.
        - seed (:obj:`int`): The seed.
        - status (:obj:`str`): 'done', 'failed' or 'unfinished'.
        - error (:obj:`Optional[str]`): The last line of what failed.
        - log (:obj:`Optional[str]`): The path of its output relative to the folder, if there is such a file.
        - threads (:obj:`Optional[int]`): The threads that it ran with, where that is known.
        - results (:obj:`Dict[str, float]`): The columns of ``results.csv`` that have a number; totals per 1,000
            environment steps.
        - series (:obj:`Dict[str, np.ndarray]`): The columns of ``series.csv``, [rows] of float64, nan where empty.
        - returns (:obj:`Dict[str, np.ndarray]`): Those of ``returns.csv``.
    """
    arm: str
    seed: int
    status: str
    error: Optional[str] = None
    log: Optional[str] = None
    threads: Optional[int] = None
    results: dict[str, float] = field(default_factory=dict)
    series: dict[str, np.ndarray] = field(default_factory=dict)
    returns: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class RunRecord:
    """
    Overview:
        Everything that the report is about.
    Arguments:
        - title (:obj:`str`): The run's title.
        - config (:obj:`Optional[str]`): The path of its config file.
        - arms (:obj:`Dict[str, Any]`): The overrides of each arm.
        - baseline (:obj:`str`): The arm that the others are compared to.
        - seeds (:obj:`List[int]`): The seeds.
        - max_env_step (:obj:`Optional[int]`): Environment steps of a trial.
        - differences (:obj:`Dict[str, Dict[str, Any]]`): What differs between the arms' configs, by key path.
        - machine (:obj:`Dict[str, Any]`): Processor and versions.
        - started (:obj:`Optional[str]`): When it began.
        - trials (:obj:`List[Trial]`): One for each arm and seed, in this order.
        - notes (:obj:`List[str]`): What has been left out, and why.
    """
    title: str
    config: Optional[str]
    arms: dict[str, Any]
    baseline: str
    seeds: list[int]
    max_env_step: Optional[int]
    differences: dict[str, dict[str, Any]]
    machine: dict[str, Any]
    started: Optional[str]
    trials: list[Trial]
    notes: list[str]

    @property
    def threads(self) -> list[int]:
        """
        Overview:
            All numbers of threads that trials which are done ran with: with several, times cannot be compared.
        """
        return sorted({trial.threads for trial in self.trials if trial.status == 'done' and trial.threads is not None})

    def done(self, arm: str) -> list[Trial]:
        """
        Overview:
            The trials of an arm that have come to their end.
        Arguments:
            - arm (:obj:`str`): The arm.
        """
        return [trial for trial in self.trials if trial.arm == arm and trial.status == 'done']

    def values(self, key: str) -> dict[str, dict[int, float]]:
        """
        Overview:
            One number of all trials that are done and have it.
        Arguments:
            - key (:obj:`str`): A column of ``results.csv``.
        Returns:
            - values (:obj:`Dict[str, Dict[int, float]]`): For each arm the numbers by seed.
        """
        return {
            arm: {trial.seed: trial.results[key] for trial in self.done(arm) if key in trial.results}
            for arm in self.arms
        }


def read_run(folder: Path) -> RunRecord:
    """
    Overview:
        Read what ``lzero-kvcache ab`` has written, whether or not it has come to its end.
    Arguments:
        - folder (:obj:`Path`): Its folder.
    Returns:
        - run (:obj:`RunRecord`): The run.
    Raises:
        - ValueError: If it is no such folder, or a file in it is broken: which, where, and what is needed.
    """
    path = folder / 'ab.json'
    if not path.is_file():
        raise ValueError(f"{folder} has no ab.json: needed is a folder that 'lzero-kvcache ab' has written")
    content = _read_json(path)
    arms, seeds = _entry(path, content, 'arms', dict), _entry(path, content, 'seeds', list)
    if not arms or not all(isinstance(seed, int) and 0 <= seed <= LARGEST_SEED for seed in seeds):
        raise ValueError(f'{path}: needed are at least one arm and whole numbers as seeds, from 0 to {LARGEST_SEED}; '
                         f'there are {len(arms)} arms and the seeds {seeds!r}')
    if len(arms) > MOST_ARMS or len(arms) * len(seeds) > MOST_TRIALS:
        raise ValueError(f'{path}: there are {len(arms):,} arms with {len(seeds):,} seeds each: allowed are '
                         f'{MOST_ARMS} arms, and {MOST_TRIALS:,} trials')
    for arm in arms:
        if '/' in arm or '\0' in arm or len(arm.encode(errors='replace')) > LONGEST_ARM:
            raise ValueError(f'{path}: arms has the name {arm!r}, which cannot be a part of the name of a folder')
    baseline = _entry(path, content, 'baseline', str, next(iter(arms)))
    if baseline not in arms:
        raise ValueError(f'{path}: baseline is {baseline!r}: {choices(baseline, arms)}')
    trials = {
        (arm, seed): Trial(arm, seed, 'unfinished', log=_log(folder, _trial_folder(folder, arm, seed)))
        for arm in arms for seed in seeds
    }
    notes = []
    for row in _read_rows(folder / 'results.csv'):
        arm, seed = row.get('arm', ''), _seed(folder / 'results.csv', row)
        if (arm, seed) not in trials:
            notes.append(f'results.csv has arm {arm!r} with seed {seed}, which is no part of the run as ab.json '
                         'describes it.')
        elif trials[arm, seed].status != 'unfinished':
            raise ValueError(f"{folder / 'results.csv'} has arm {arm!r} with seed {seed} twice")
        else:
            trials[arm, seed] = _read_trial(folder, row, arm, seed)
    if len(notes) > MOST_NOTES:
        notes = [*notes[:MOST_NOTES], f'So it is with {len(notes) - MOST_NOTES:,} more of its rows.']
    given = _entry(path, content, 'differences', dict, {})
    differences = {arm: _entry(path, given, arm, dict, {}) for arm in arms}
    if len(arms) * len(set().union(*differences.values())) > MOST_DIFFERENCES:
        raise ValueError(f'{path}: differences has more than {MOST_DIFFERENCES:,} entries for all arms together')
    return RunRecord(
        title=_entry(path, content, 'title', str, folder.name), config=_entry(path, content, 'config', str, None),
        arms=arms, baseline=baseline, seeds=seeds, max_env_step=_entry(path, content, 'max_env_step', int, None),
        differences=differences,
        machine=_entry(path, content, 'machine', dict, {}), started=_entry(path, content, 'started', str, None),
        trials=list(trials.values()), notes=notes
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f'{path} cannot be read as JSON: {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'{path} holds a {type(content).__name__}: needed is an object with named entries')
    return content


def _entry(path: Path, content: Mapping[str, Any], name: str, kind: type, default: Any = REQUIRED) -> Any:
    value = content.get(name)
    if value is None and default is not REQUIRED:
        return default
    if not isinstance(value, kind):
        raise ValueError(f'{path}: {name} is {value!r}: needed is {KINDS[kind]}')
    return value


def _trial_folder(folder: Path, arm: str, seed: int) -> Path:
    return folder / 'trials' / f'{arm}_seed{seed}'


def _log(folder: Path, trial_folder: Path) -> Optional[str]:
    log = trial_folder / 'output.log'
    return log.relative_to(folder).as_posix() if log.is_file() else None


def _seed(path: Path, row: Mapping[str, str]) -> int:
    place = f"seed of {row.get('arm', '')}"
    seed = _number(path, place, row.get('seed'))
    if not seed.is_integer():
        raise ValueError(f"{path}: {place} is {row.get('seed')!r}: needed is a whole number")
    return int(seed)


def _read_trial(folder: Path, row: Mapping[str, str], arm: str, seed: int) -> Trial:
    path, status = folder / 'results.csv', row.get('status', '')
    if status not in STATUSES:
        raise ValueError(f'{path}: status of a row of {arm} is {status!r}: {choices(status, STATUSES)}')
    trial_folder = _trial_folder(folder, arm, seed)
    outcome_path = trial_folder / 'trial.json'
    outcome = _read_json(outcome_path) if outcome_path.is_file() else {}
    error = _entry(outcome_path, outcome, 'error', str, None)
    numbers = {
        metric.key: _number(path, f'{metric.key} of {arm} with seed {seed}', row.get(metric.key)) for metric in METRICS
    }
    for metric in METRICS:
        if metric.total:
            numbers[metric.key] *= 1000 / numbers['env_steps'] if numbers['env_steps'] >= 1 else float('nan')
    return Trial(
        arm, seed, status, error=error if error is None else error[-LONGEST_ERROR:],
        log=_log(folder, trial_folder), threads=_entry(outcome_path, outcome, 'threads', int, None),
        results={key: number for key, number in numbers.items() if np.isfinite(number)},
        series=_read_columns(trial_folder / 'series.csv'), returns=_read_columns(trial_folder / 'returns.csv')
    )


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    rows, cells = [], 0
    try:
        for row in csv.DictReader(io.StringIO(read_text(path), newline=''), restval=''):
            cells += len(row)
            if cells > MOST_CELLS:
                raise ValueError(f'it has more than {MOST_CELLS:,} cells')
            rows.append(row)
    except (csv.Error, ValueError) as error:
        raise ValueError(f'{path} cannot be read as CSV: {error}') from error
    return rows


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    rows = _read_rows(path)
    return {
        name: np.array([_number(path, f'{name}, row {index}', row[name]) for index, row in enumerate(rows, start=1)])
        for name in (rows[0] if rows else ()) if name is not None
    }


def _number(path: Path, place: str, value: Any) -> float:
    if value is None or value == '':
        return float('nan')
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f'{path}: {place} is {value!r}: needed is a number or nothing') from error
    if LARGEST_NUMBER < abs(number) < float('inf'):
        raise ValueError(f'{path}: {place} is {value!r}: needed is a number up to {LARGEST_NUMBER:g}')
    return number
