"""``results.csv``: a row per arm and seed, and what is shown of it."""
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Optional

from rich.markup import escape

from ..files import write_atomically
from ..wide_table import WideTable
from .spec import ARM_NAME, LARGEST_SEED, TrialSpec

POOLS = ('init_pools', 'recur_pool', 'wm_pool')
COLUMNS = (
    'arm', 'seed', 'status', 'return_last', 'return_best', 'env_steps', 'seconds', 'env_steps_per_second',
    'evaluation_seconds', 'search_ms',
    *(f'hit_rate_{kind}' for kind in POOLS), 'evictions', 'rebuilds', 'rebuilt_tokens', 'peak_cache_mb',
    'peak_memory_mb', 'peak_gpu_memory_mb', 'log',
)
MIB = 2 ** 20
# Beyond any result; sums and squares of such numbers are still numbers.
LARGEST_NUMBER = 1e30
# Trials end with whole episodes; where steps differ by more than this, totals do so, too.
MOST_UNEQUAL = 1.05
# What the table shows: heading, column, format.
SHOWN = (
    ('return', 'return_last', '{:,.1f}'), ('env steps/s', 'env_steps_per_second', '{:,.1f}'),
    ('search ms', 'search_ms', '{:,.1f}'), ('hit rate recur', 'hit_rate_recur_pool', '{:.1%}'),
    ('evictions', 'evictions', '{:,.0f}'), ('rebuilds', 'rebuilds', '{:,.0f}'),
    ('cache MiB', 'peak_cache_mb', '{:,.2f}'), ('process MiB', 'peak_memory_mb', '{:,.0f}'),
)


def result_row(spec: TrialSpec, series: Sequence[Mapping[str, Any]], evaluations: Sequence[Any]) -> dict[str, Any]:
    """
    Overview:
        The results of a trial that is done.
    Arguments:
        - spec (:obj:`TrialSpec`): The trial.
        - series (:obj:`Sequence[Mapping]`): The rows of its ``series.csv``.
        - evaluations (:obj:`Sequence[Evaluation]`): Its evaluations.
    Returns:
        - row (:obj:`Dict[str, Any]`): The ``COLUMNS``; None where there is nothing to say.
    """
    from .evaluations import return_last

    last = series[-1]
    row: dict[str, Any] = dict(
        _row(spec, 'done'), env_steps=last['env_step'], seconds=last['seconds'], peak_memory_mb=last['rss_mb'],
        peak_gpu_memory_mb=last.get('peak_gpu_memory_mb'),
        return_last=return_last(evaluations, last['env_step']),
        return_best=max((evaluation.return_mean for evaluation in evaluations), default=None),
        env_steps_per_second=_ratio(last['env_step'], last['seconds']),
        evaluation_seconds=sum(evaluation.seconds for evaluation in evaluations),
        search_ms=_ratio(1000 * last['search_seconds'], last['searches']),
    )
    if 'rebuilds' in last:
        for kind in POOLS:
            row[f'hit_rate_{kind}'] = _ratio(last[f'{kind}_hits'], last[f'{kind}_hits'] + last[f'{kind}_misses'])
        row.update(
            evictions=sum(last[f'{kind}_evictions'] for kind in POOLS), rebuilds=last['rebuilds'],
            rebuilt_tokens=last['rebuilt_tokens'],
            peak_cache_mb=round(max(sum(of[f'{kind}_bytes'] for kind in POOLS) for of in series if 'rebuilds' in of)
                                / MIB, 4),
        )
    return {
        column: round(value, 5) if isinstance(value, float) else value for column, value in row.items()
    }


def failed_row(spec: TrialSpec) -> dict[str, Any]:
    """
    Overview:
        The row of a trial that has failed.
    Arguments:
        - spec (:obj:`TrialSpec`): The trial.
    """
    return _row(spec, 'failed')


def checked_row(outcome: Mapping[str, Any]) -> dict[str, Any]:
    """
    Overview:
        The results of a trial that has ended, as they stand in a ``trial.json`` that may come from anywhere.
    Arguments:
        - outcome (:obj:`Mapping[str, Any]`): What the file says; arm, seed and status are of the right types.
    Returns:
        - row (:obj:`Dict[str, Any]`): The ``COLUMNS``; None where the file has nothing to say.
    Raises:
        - ValueError: If a result is none, or does not belong to the trial.
    """
    arm, seed, status, result = outcome['arm'], outcome['seed'], outcome['status'], outcome['result']
    if status not in ('done', 'failed') or not ARM_NAME.fullmatch(arm) or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f'{status!r} is no status, {arm!r} no arm, or {seed!r} no seed of a trial')
    own = dict(arm=arm, seed=seed, status=status, log=log_path(arm, seed))
    for name, value in own.items():
        if result.get(name) != value:
            raise ValueError(f'{name!r} of its result is {result.get(name)!r} instead of {value!r}')
    numbers = {column: result.get(column) for column in COLUMNS if column not in own}
    for column, number in numbers.items():
        needed = status == 'done' and column in ('env_steps', 'seconds')
        if number is None and not needed:
            continue
        # A return of a model that has diverged may be infinite, or nan.
        may_diverge = isinstance(number, float) and not isfinite(number) and not needed
        if type(number) not in (int, float) or not (abs(number) <= LARGEST_NUMBER or may_diverge):
            raise ValueError(f'{column!r} of its result is {number!r}: allowed are numbers up to {LARGEST_NUMBER:g}')
    return {column: own[column] if column in own else numbers[column] for column in COLUMNS}


def log_path(arm: str, seed: int) -> str:
    """
    Overview:
        Where the output of a trial lies, relative to the run's folder.
    Arguments:
        - arm (:obj:`str`): Its arm.
        - seed (:obj:`int`): Its seed.
    """
    return f'trials/{arm}_seed{seed}/output.log'


def _row(spec: TrialSpec, status: str) -> dict[str, Any]:
    return dict(dict.fromkeys(COLUMNS), arm=spec.arm, seed=spec.seed, status=status,
                log=log_path(spec.arm, spec.seed))


def _ratio(number: float, of: float) -> Optional[float]:
    return number / of if of else None


def write_results(rows: Iterable[Mapping[str, Any]], path: Path) -> None:
    """
    Overview:
        Write ``results.csv``.
    Arguments:
        - rows (:obj:`Iterable[Mapping]`): As ``result_row``.
        - path (:obj:`Path`): The file.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def means_table(rows: Sequence[Mapping[str, Any]], title: str) -> WideTable:
    """
    Overview:
        Each arm's means over its seeds, with the standard deviation where there are several, and the number of seeds
        that have a value where not all do.
    Arguments:
        - rows (:obj:`Sequence[Mapping]`): As ``result_row``, those of trials that are done.
        - title (:obj:`str`): The table's.
    """
    table = WideTable(escape(title), ['arm'], ['seeds', *(heading for heading, *_ in SHOWN)])
    for arm in dict.fromkeys(row['arm'] for row in rows):
        of_arm = [row for row in rows if row['arm'] == arm]
        cells = []
        for _, column, text in SHOWN:
            values = [row[column] for row in of_arm if row[column] is not None and isfinite(row[column])]
            spread = f' ±{text.format(stdev(values))}' if len(values) > 1 else ''
            missing = f' (of {len(values)})' if len(values) < len(of_arm) else ''
            cells.append(text.format(mean(values)) + spread + missing if values else '-')
        table.add_row(arm, str(len(of_arm)), *cells)
    return table
