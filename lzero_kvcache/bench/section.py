from abc import ABC, abstractmethod
from typing import Any

from rich.table import Table

from ..wide_table import WideTable
from .clock import Clock
from .settings import Settings

COLORS = {'release': 'tab:orange', 'plugin': 'tab:blue'}


class Section(ABC):
    """One question that the benchmark answers: measured, as a table, as a plot.

    ``name`` is its name on the command line and in the files.
    """
    name: str

    @abstractmethod
    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        """What was measured, in rows that are ready for JSON; the clock says which sizes there is time for."""

    @abstractmethod
    def table(self, rows: list[dict]) -> Table:
        """The rows that ``measure`` has returned as a table."""

    @abstractmethod
    def plot(self, rows: list[dict], figure: Any) -> None:
        """Draw the rows on an empty figure of matplotlib."""


def table_of(title: str, *columns: str, names: int = 1) -> Table:
    """An empty table; ``names`` columns on the left are text that names a row, the others numbers."""
    return WideTable(title, columns[:names], columns[names:])


def in_lines(name: str) -> str:
    """A model's name as a label below an axis."""
    return name.replace(', ', '\n')
