from abc import ABC, abstractmethod
from typing import Any

from rich.progress import Progress
from rich.table import Table

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
    def measure(self, settings: Settings, progress: Progress) -> list[dict]:
        """
        Overview:
            Measure.
        Arguments:
            - settings (:obj:`Settings`): What and how often.
            - progress (:obj:`Progress`): Shows how far it is.
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


def table_of(title: str, *columns: str) -> Table:
    """
    Overview:
        An empty table: text on the left, numbers on the right.
    Arguments:
        - title (:obj:`str`): Its title.
        - columns (:obj:`str`): Their headings; the first is text.
    """
    table = Table(title=title, box=None, title_justify='left')
    for number, column in enumerate(columns):
        table.add_column(column, justify='right' if number else 'left', no_wrap=number == 0)
    return table


def in_lines(name: str) -> str:
    """
    Overview:
        A model's name as a label below an axis.
    Arguments:
        - name (:obj:`str`): The name.
    """
    return name.replace(', ', '\n')
