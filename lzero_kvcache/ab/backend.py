"""What runs trials: this machine, or Ray."""
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Optional

from .folder import RunFolder
from .spec import TrialSpec

SECONDS_BETWEEN_LOOKS = 0.5


@dataclass
class Event:
    """
    Overview:
        A trial has started or ended.
    Arguments:
        - spec (:obj:`TrialSpec`): The trial.
        - ended (:obj:`bool`): Whether it has ended; else it has started.
        - error (:obj:`Optional[str]`): Why it has ended, if not by itself.
        - notes (:obj:`Tuple[str, ...]`): What the user should know.
    """
    spec: TrialSpec
    ended: bool = False
    error: Optional[str] = None
    notes: tuple[str, ...] = ()


class Backend(ABC):
    """
    Overview:
        Runs trials, several at a time.
    """

    @abstractmethod
    def describe(self) -> str:
        """
        Overview:
            Where the trials run, for the screen.
        """

    @abstractmethod
    def run(self, specs: Sequence[TrialSpec], folder: RunFolder) -> Iterator[Optional[Event]]:
        """
        Overview:
            Run trials. Whoever stops asking for events ends those that are running.
        Arguments:
            - specs (:obj:`Sequence[TrialSpec]`): The trials.
            - folder (:obj:`RunFolder`): Where they leave what they find.
        Returns:
            - events (:obj:`Iterator[Optional[Event]]`): None, several times a second, while nothing happens.
        Raises:
            - DiskFullError: If there is no room.
        """
