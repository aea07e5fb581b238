from abc import ABC, abstractmethod
from typing import Any

from rich.table import Table

from ..wide_table import WideTable
from .clock import Clock
from .settings import Settings

COLORS = {'release': 'tab:orange', 'plugin': 'tab:blue'}


class Section(ABC):
    """
    Overview:
        One question that the benchmark answers: measured, as a table, as a plot. ``name`` is its name on the command
        line and in the files.
    """
    name: str

    @abstractmethod
    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        """
        Overview:
            Measure.
        Arguments:
            - settings (:obj:`Settings`): What and how often.
            - clock (:obj:`Clock`): Says which sizes there is time for.
        Returns:
            - rows (:obj:`List[Dict]`): What was measured, ready for JSON.
        """

    @abstractmethod
    def table(self, rows: list[dict]) -> Table:
        """
        Overview:
            The rows as a table.
        Arguments:
            - rows (:obj:`List[Dict]`): What ``measure`` has returned.
        """

    @abstractmethod
    def plot(self, rows: list[dict], figure: Any) -> None:
        """
        Overview:
            Draw the rows.
        Arguments:
            - rows (:obj:`List[Dict]`): What ``measure`` has returned.
            - figure (:obj:`Figure`): Matplotlib's, empty.
        """


def table_of(title: str, *columns: str, names: int = 1) -> Table:
    """
    Overview:
        An empty table: text on the left, numbers on the right.
    Arguments:
        - title (:obj:`str`): Its title.
        - columns (:obj:`str`): Their headings.
        - names (:obj:`int`): How many of them, from the left, name a row.
    """
    return WideTable(title, columns[:names], columns[names:])


def in_lines(name: str) -> str:
    """
    Overview:
        A model's name as a label below an axis.
    Arguments:
        - name (:obj:`str`): The name.
    """
    return name.replace(', ', '\n')
