"""Several arms and numbers are several chances of a false alarm: what is claimed is corrected for all of them."""
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from .folder import RunRecord
from .metrics import Metric
from .statistics import MINIMUM_SEEDS, difference


class Correction(NamedTuple):
    """
    Overview:
        What becomes of one comparison among several.
    Arguments:
        - p_value (:obj:`float`): Corrected, from 0 to 1.
        - count (:obj:`int`): How many comparisons it is corrected for, itself included.
    """
    p_value: float
    count: int


class Comparisons:
    """
    Overview:
        All comparisons by some numbers, each arm against the baseline, or, where the baseline has no such number, every
        two arms: so whichever arm turns out to be the best, the comparison that it is named for is among them. Without
        any real difference, the probability that one of the corrected p-values is below 5 % is 5 % at most. Pairs with
        too few seeds for a verdict do not count.
    Arguments:
        - run (:obj:`RunRecord`): The run.
        - metrics (:obj:`Iterable[Metric]`): The numbers.
    """

    def __init__(self, run: RunRecord, metrics: Iterable[Metric]) -> None:
        p_values = {}
        for metric in metrics:
            values = {arm: numbers for arm, numbers in run.values(metric.key).items() if numbers}
            for one, other in combinations(values, 2):
                compared = difference(values[one], values[other])
                # Arms without the baseline, where it has the number, too, are never compared.
                wanted = run.baseline not in values or run.baseline in (one, other)
                if wanted and compared.count >= MINIMUM_SEEDS:
                    p_values[metric.key, frozenset((one, other))] = compared.p_value
        self.count = len(p_values)
        self._corrected = dict(zip(p_values, holm(list(p_values.values()))))

    def correction(self, key: str, one: str, other: str) -> Correction:
        """
        Overview:
            That of one comparison.
        Arguments:
            - key (:obj:`str`): The metric's.
            - one, other (:obj:`str`): The arms, in any order.
        """
        return Correction(self._corrected.get((key, frozenset((one, other))), 1.0), self.count)


def holm(p_values: Sequence[float]) -> list[float]:
    """
    Overview:
        Correct p-values for their number by the step-down procedure of Holm (1979, "A Simple Sequentially Rejective
        Multiple Test Procedure", Scandinavian Journal of Statistics 6), which holds however they depend on each other.
    Arguments:
        - p_values (:obj:`Sequence[float]`): Of all comparisons.
    Returns:
        - corrected (:obj:`List[float]`): In the same order.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = largest
    return corrected
