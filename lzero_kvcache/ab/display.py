"""The progress of an A/B run on the screen."""
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Optional

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from ..untrusted import printable
from .folder import RunFolder
from .spec import TrialSpec

SECONDS_BETWEEN_LINES = 15.
TAIL_BYTES = 4096


class ABDisplay:
    """
    Overview:
        One bar for all trials and one for each that is running; lines where there is no terminal.
    Arguments:
        - console (:obj:`Console`): The screen.
        - folder (:obj:`RunFolder`): Where the trials' progress is read.
        - specs (:obj:`Sequence[TrialSpec]`): The trials that will run.
    """

    def __init__(self, console: Console, folder: RunFolder, specs: Sequence[TrialSpec]) -> None:
        self._console = console
        self._folder = folder
        self._progress = Progress(
            TextColumn('{task.description}', table_column=Column(overflow='fold')), BarColumn(), MofNCompleteColumn(),
            TextColumn('{task.fields[unit]}'), TimeElapsedColumn(), console=console,
            disable=not console.is_terminal or not specs,
            # A thread that draws would take a part of a core from the trials.
            auto_refresh=False,
        )
        self._all = self._progress.add_task('all trials', total=len(specs), unit='trials')
        self._running: dict[str, tuple[TrialSpec, TaskID]] = {}
        self._line_shown_at = time.monotonic()

    def __enter__(self) -> 'ABDisplay':
        self._progress.start()
        return self

    def __exit__(
            self, kind: Optional[type], error: Optional[BaseException], traceback: Optional[TracebackType]
    ) -> None:
        for name in list(self._running):
            self._hide(name)
        self._progress.stop()

    def say(self, *lines: str) -> None:
        """
        Overview:
            Print lines above the bars.
        Arguments:
            - lines (:obj:`str`): Plain text.
        """
        for line in lines:
            self._console.print(printable(line), markup=False, highlight=False, soft_wrap=True)

    def started(self, spec: TrialSpec) -> None:
        """
        Overview:
            A trial has started.
        Arguments:
            - spec (:obj:`TrialSpec`): The trial.
        """
        if not self._console.is_terminal:
            self.say(f'{spec.name} has started')
        self._running[spec.name] = spec, self._progress.add_task(spec.name, total=spec.max_env_step, unit='env steps')

    def ended(self, spec: TrialSpec) -> None:
        """
        Overview:
            A trial has ended.
        Arguments:
            - spec (:obj:`TrialSpec`): The trial.
        """
        self._hide(spec.name)
        self._progress.advance(self._all)

    def refresh(self) -> None:
        """
        Overview:
            Show how far the running trials are.
        """
        # Whole episodes are collected, so that the last ones exceed the number.
        steps = {name: min(self._env_step(spec), spec.max_env_step) for name, (spec, _) in self._running.items()}
        for name, (_, task) in self._running.items():
            self._progress.update(task, completed=steps[name])
        self._progress.refresh()
        if self._console.is_terminal or time.monotonic() - self._line_shown_at < SECONDS_BETWEEN_LINES or not steps:
            return
        self._line_shown_at = time.monotonic()
        states = [f'{name} {steps[name]:,} of {spec.max_env_step:,}' for name, (spec, _) in self._running.items()]
        self.say(f"environment steps: {', '.join(states)}")

    def _hide(self, name: str) -> None:
        _, task = self._running.pop(name, (None, None))
        if task is not None:
            self._progress.remove_task(task)

    def _env_step(self, spec: TrialSpec) -> int:
        lines = _tail(self._folder.trial_folder(spec) / 'series.csv')
        cell = lines[-1].split(',')[0] if lines else ''
        return int(cell) if cell.isdigit() else 0


def _tail(path: Path) -> list[str]:
    if not path.exists():
        return []
    with open(path, 'rb') as file:
        file.seek(0, 2)
        file.seek(max(0, file.tell() - TAIL_BYTES))
        # What comes after the last line break is still being written.
        return file.read().decode().rpartition('\n')[0].splitlines()
