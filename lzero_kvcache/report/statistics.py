"""
What a few seeds can tell. Differences are paired by seed and their intervals are Student's: exact for any number of
pairs if the differences are normally distributed, and wide where pairs are few. The percentile bootstrap that
Agarwal et al. (2021, "Deep Reinforcement Learning at the Edge of the Statistical Precipice",
https://arxiv.org/abs/2108.13264) recommend draws its strength from many tasks; over three runs of one task it can only
draw the same three numbers again, and its 95 % intervals come out far too narrow. The number of seeds that would be
needed is a power analysis as in Colas et al. (2018, "How Many Random Seeds?", https://arxiv.org/abs/1806.08295).
What several comparisons do to all that is in ``comparisons``.
"""
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Optional

import numpy as np

CONFIDENCE = 0.95
POWER = 0.8
# Two pairs estimate the spread from one number; no interval makes up for that.
MINIMUM_SEEDS = 3
# With fewer, nobody can see whether the differences are anything like normally distributed.
COMFORTABLE_SEEDS = 5
MOST_SEEDS = 1000


@dataclass(frozen=True)
class Summary:
    """
    Overview:
        One number of one arm over its seeds.
    Arguments:
        - count (:obj:`int`): The seeds.
        - mean (:obj:`float`): Their mean.
        - deviation (:obj:`Optional[float]`): Their sample standard deviation; None for a single seed.
    """
    count: int
    mean: float
    deviation: Optional[float]


@dataclass(frozen=True)
class Difference:
    """
    Overview:
        How much one arm's number is above another's, by the seeds that both have.
    Arguments:
        - count (:obj:`int`): Those seeds.
        - mean (:obj:`Optional[float]`): Mean of the differences; None without such seeds.
        - low, high (:obj:`Optional[float]`): Ends of the 95 % interval of the mean; None with fewer than two seeds.
        - relative (:obj:`Optional[float]`): ``mean`` by the size of the other arm's mean; None where that is 0.
        - deviation (:obj:`Optional[float]`): Their sample standard deviation; None with fewer than two seeds.
        - p_value (:obj:`Optional[float]`): Of Student's paired test, two-sided; None with fewer than two seeds.
    """
    count: int
    mean: Optional[float] = None
    low: Optional[float] = None
    high: Optional[float] = None
    relative: Optional[float] = None
    deviation: Optional[float] = None
    p_value: Optional[float] = None

    def seeds_needed(self, comparisons: int = 1) -> Optional[int]:
        """
        Overview:
            Seeds with which a difference of this size and spread would be told from 0 in four of five runs.
        Arguments:
            - comparisons (:obj:`int`): How many there are, this one included.
        Returns:
            - seeds (:obj:`Optional[int]`): None where that cannot be estimated or is above ``MOST_SEEDS``.
        """
        return None if self.deviation is None else seeds_needed(self.mean, self.deviation, comparisons)

    @property
    def verdict(self) -> str:
        """
        Overview:
            'nothing' (no common seed), 'equal' (in every seed), 'few' (seeds), 'unclear' (the interval includes 0),
            'higher' or 'lower'.
        """
        if self.count == 0:
            return 'nothing'
        if self.mean == self.low == self.high == 0 and self.count >= MINIMUM_SEEDS:
            return 'equal'
        if self.count < MINIMUM_SEEDS:
            return 'few'
        if self.low <= 0 <= self.high:
            return 'unclear'
        return 'higher' if self.mean > 0 else 'lower'


def summarize(values: Iterable[float]) -> Optional[Summary]:
    """
    Overview:
        Mean and spread.
    Arguments:
        - values (:obj:`Iterable[float]`): One number per seed.
    Returns:
        - summary (:obj:`Optional[Summary]`): None without any.
    """
    values = np.array(list(values), dtype=np.float64)
    if not len(values):
        return None
    return Summary(len(values), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else None)


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Difference:
    """
    Overview:
        Compare two arms, seed by seed.
    Arguments:
        - values (:obj:`Mapping[int, float]`): One arm's numbers by seed.
        - reference (:obj:`Mapping[int, float]`): The other arm's.
    Returns:
        - difference (:obj:`Difference`): ``values - reference``.
    """
    seeds = sorted(values.keys() & reference.keys())
    if not seeds:
        return Difference(0)
    others = np.array([reference[seed] for seed in seeds], dtype=np.float64)
    differences = np.array([values[seed] for seed in seeds], dtype=np.float64) - others
    mean, size = float(differences.mean()), abs(float(others.mean()))
    relative = mean / size if size else None
    if len(seeds) == 1:
        return Difference(1, mean, relative=relative)
    deviation = float(differences.std(ddof=1))
    error = deviation / len(seeds) ** 0.5
    half = student_t_quantile((1 + CONFIDENCE) / 2, len(seeds) - 1) * error
    if error:
        p_value = student_t_p_value(mean / error, len(seeds) - 1)
    else:
        p_value = 0.0 if mean else 1.0
    return Difference(len(seeds), mean, mean - half, mean + half, relative, deviation, p_value)


def seeds_needed(mean: float, deviation: float, comparisons: int = 1) -> Optional[int]:
    """
    Overview:
        The fewest seeds with which a paired comparison finds a difference with probability ``POWER``: the power
        analysis of Colas et al. (2018), with Student's quantiles in place of the noncentral distribution.
    Arguments:
        - mean (:obj:`float`): The true difference, taken to be the one that was seen.
        - deviation (:obj:`float`): The standard deviation of the differences, likewise.
        - comparisons (:obj:`int`): How many there are, this one included: each must be the surer (Bonferroni's bound).
    Returns:
        - seeds (:obj:`Optional[int]`): At least 2; None if there is no difference, or more than ``MOST_SEEDS`` are
            needed.
    """
    def enough(seeds: int) -> bool:
        sure = 1 - (1 - CONFIDENCE) / 2 / comparisons
        quantiles = student_t_quantile(sure, seeds - 1) + student_t_quantile(POWER, seeds - 1)
        return quantiles * deviation <= abs(mean) * seeds ** 0.5

    if mean == 0 or not enough(MOST_SEEDS):
        return None
    too_few, seeds = 1, MOST_SEEDS
    while seeds - too_few > 1:
        middle = (too_few + seeds) // 2
        too_few, seeds = (too_few, middle) if enough(middle) else (middle, seeds)
    return seeds


@cache
def student_t_quantile(probability: float, degrees: int) -> float:
    """
    Overview:
        Quantile of Student's t distribution.
    Arguments:
        - probability (:obj:`float`): Between 0.5 and 1.
        - degrees (:obj:`int`): Degrees of freedom, at least 1.
    Returns:
        - quantile (:obj:`float`): To at least five digits, up to 1000 degrees.
    """
    angles, tails = _tails(degrees)
    return float(np.sqrt(degrees) * np.tan(np.interp(-2 * (1 - probability), -tails, angles)))


def student_t_p_value(statistic: float, degrees: int) -> float:
    """
    Overview:
        The probability of a value that is at least as far from 0, by Student's t distribution.
    Arguments:
        - statistic (:obj:`float`): The value.
        - degrees (:obj:`int`): Degrees of freedom, at least 1.
    Returns:
        - p_value (:obj:`float`): From 0 to 1.
    """
    angles, tails = _tails(degrees)
    return float(np.interp(np.arctan(abs(statistic) / np.sqrt(degrees)), angles, tails))


@lru_cache(maxsize=16)
def _tails(degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Angles from 0 to 90 degrees, and the share of the distribution beyond each on both sides. With
    ``t = sqrt(degrees) * tan(angle)`` its density is that of ``cos(angle) ** (degrees - 1)``.
    """
    angles = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angles) ** (degrees - 1)
    # Summed from the far end, where the small ones are.
    tails = np.concatenate((np.cumsum((density[1:] + density[:-1])[::-1])[::-1], [0.0]))
    return angles, tails / tails[0]
