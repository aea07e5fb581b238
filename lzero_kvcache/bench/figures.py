"""What is said of several samples: the median and how far they spread."""
from collections.abc import Mapping, Sequence
from statistics import median, quantiles
from typing import Any


def figure_of(name: str, samples: Sequence[float]) -> dict[str, Any]:
    """
    Overview:
        A row's entries for one figure.
    Arguments:
        - name (:obj:`str`): Its key.
        - samples (:obj:`Sequence[float]`): What was measured.
    Returns:
        - entries (:obj:`Dict[str, Any]`): The median as ``<name>``, and ``<name>_spread`` with the smallest, both
            quartiles and the number of samples.
    """
    lower, _, upper = quantiles(samples, method='inclusive') if len(samples) > 1 else 3 * list(samples)
    return {
        name: median(samples),
        f'{name}_spread': dict(least=min(samples), quartiles=[lower, upper], samples=len(samples)),
    }


def as_text(row: Mapping[str, Any], name: str, text: str) -> str:
    """
    Overview:
        A figure as a table shows it: the median and half the distance between the quartiles, in percent of it.
    Arguments:
        - row (:obj:`Mapping[str, Any]`): With the entries of ``figure_of``.
        - name (:obj:`str`): The figure's key.
        - text (:obj:`str`): The median's format, such as '{:.2f}'.
    """
    lower, upper = row[f'{name}_spread']['quartiles']
    return f'{text.format(row[name])} ±{(upper - lower) / 2 / row[name]:.0%}'


def error_bars(rows: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    """
    Overview:
        The quartiles of several rows' figures, as matplotlib's ``yerr`` takes them.
    Arguments:
        - rows (:obj:`Sequence[Mapping]`): With the entries of ``figure_of``.
        - name (:obj:`str`): The figure's key.
    """
    quartiles = [row[f'{name}_spread']['quartiles'] for row in rows]
    return [[row[name] - lower for row, (lower, _) in zip(rows, quartiles)],
            [upper - row[name] for row, (_, upper) in zip(rows, quartiles)]]
