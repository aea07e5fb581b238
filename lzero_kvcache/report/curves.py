"""Numbers over the course of training: of one trial, and over an arm's seeds."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np

from .folder import Trial

POOLS = ('init_pools', 'recur_pool', 'wm_pool')
POINTS = 60
# The share of a run that a rate at one point is taken over.
WINDOW = 0.05


@dataclass(frozen=True)
class Curve:
    """
    Overview:
        A number over environment steps or time.
    Arguments:
        - x, y (:obj:`np.ndarray`): [points] of float64, without nan, x ascending.
        - low, high (:obj:`Optional[np.ndarray]`): [points], lowest and highest seed; None for one seed.
    """
    x: np.ndarray
    y: np.ndarray
    low: Optional[np.ndarray] = None
    high: Optional[np.ndarray] = None


def over_seeds(curves: Sequence[Curve]) -> Optional[Curve]:
    """
    Overview:
        Mean and range of several trials, where all of them have data: with trials that drop out on the way the mean
        would jump.
    Arguments:
        - curves (:obj:`Sequence[Curve]`): One per seed.
    Returns:
        - curve (:obj:`Optional[Curve]`): None if there is no such stretch.
    """
    curves = [curve for curve in curves if len(curve.x)]
    if len(curves) < 2:
        return curves[0] if curves else None
    begin, end = max(curve.x[0] for curve in curves), min(curve.x[-1] for curve in curves)
    if begin > end:
        return None
    x = np.linspace(begin, end, POINTS) if begin < end else np.array([begin])
    y = np.stack([np.interp(x, curve.x, curve.y) for curve in curves])
    return Curve(x, y.mean(axis=0), y.min(axis=0), y.max(axis=0))


def learning_curve(trial: Trial, over_time: bool = False) -> Curve:
    """
    Overview:
        The mean return of each evaluation.
    Arguments:
        - trial (:obj:`Trial`): The trial.
        - over_time (:obj:`bool`): Over minutes of wall time in place of environment steps.
    """
    x = _column(trial.returns, 'env_step')
    if over_time:
        steps, seconds = _column(trial.series, 'env_step'), _column(trial.series, 'seconds')
        known = np.isfinite(steps) & np.isfinite(seconds)
        if not known.any():
            return _curve(x[:0], x[:0])
        x = np.interp(x, np.append(0.0, steps[known]), np.append(0.0, seconds[known])) / 60
    return _curve(x, _column(trial.returns, 'return_mean'))


def hit_rate(trial: Trial, pool: str) -> Curve:
    """
    Overview:
        Share of the queries that found their context.
    Arguments:
        - trial (:obj:`Trial`): The trial.
        - pool (:obj:`str`): A kind of ``POOLS``.
    """
    hits = _series(trial, f'{pool}_hits')
    return _rate(trial, hits, hits + _series(trial, f'{pool}_misses'))


def throughput(trial: Trial) -> Curve:
    """
    Overview:
        Environment steps per second of wall time.
    Arguments:
        - trial (:obj:`Trial`): The trial.
    """
    return _rate(trial, _series(trial, 'env_step'), _series(trial, 'seconds'))


def search_time(trial: Trial) -> Curve:
    """
    Overview:
        Milliseconds per collect search.
    Arguments:
        - trial (:obj:`Trial`): The trial.
    """
    return _rate(trial, 1000 * _series(trial, 'search_seconds'), _series(trial, 'searches'))


def rebuilt_tokens(trial: Trial) -> Curve:
    """
    Overview:
        Tokens that were computed again after misses, per environment step.
    Arguments:
        - trial (:obj:`Trial`): The trial.
    """
    return _rate(trial, _series(trial, 'rebuilt_tokens'), _series(trial, 'env_step'))


def cache_entries(trial: Trial) -> Curve:
    """
    Overview:
        Contexts in all pools.
    Arguments:
        - trial (:obj:`Trial`): The trial.
    """
    return _curve(_series(trial, 'env_step'), sum(_series(trial, f'{pool}_entries') for pool in POOLS))


def cache_memory(trial: Trial) -> Curve:
    """
    Overview:
        MiB of keys and values in all pools.
    Arguments:
        - trial (:obj:`Trial`): The trial.
    """
    return _curve(_series(trial, 'env_step'), sum(_series(trial, f'{pool}_bytes') for pool in POOLS) / 2**20)


def process_memory(trial: Trial) -> Curve:
    """
    Overview:
        Peak resident memory of the process so far, in MiB.
    Arguments:
        - trial (:obj:`Trial`): The trial.
    """
    return _curve(_series(trial, 'env_step'), _series(trial, 'rss_mb'))


def _column(columns: dict[str, np.ndarray], name: str) -> np.ndarray:
    """A column that a file does not have has nothing in any of its rows."""
    rows = len(next(iter(columns.values()), ()))
    return columns[name] if name in columns else np.full(rows, np.nan)


def _series(trial: Trial, name: str) -> np.ndarray:
    return _column(trial.series, name)


def _curve(x: np.ndarray, y: np.ndarray) -> Curve:
    known = np.isfinite(x) & np.isfinite(y)
    order = np.argsort(x[known], kind='stable')
    return Curve(x[known][order], y[known][order])


def _rate(trial: Trial, above: np.ndarray, below: np.ndarray) -> Curve:
    """Both are sums since the run began; the rate is that of a moving window."""
    rows = np.arange(1, len(above) + 1)
    before = np.maximum(rows - max(1, round(WINDOW * len(above))), 0)
    above, below = np.append(0.0, above), np.append(0.0, below)
    change, of = above[rows] - above[before], below[rows] - below[before]
    # Less than that is no count of anything, and would make the rate too large to be drawn.
    with np.errstate(invalid='ignore'):
        rate = np.divide(change, of, out=np.full(len(of), np.nan), where=of > 1e-9)
    return _curve(_series(trial, 'env_step'), rate)
