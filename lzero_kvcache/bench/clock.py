"""The time that a section of the benchmark has, and how busy the machine was meanwhile."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import inf
from time import perf_counter, thread_time
from typing import Callable, Optional, TypeVar

from rich.progress import Progress

# The share of its time for which a measuring thread has a core on a quiet machine.
QUIET = 0.9
Value = TypeVar('Value')


class Clock:
    """What a section may spend, and has spent.

    Where that is too little, it measures fewer sizes, not fewer samples. The screen is drawn between measurements only.
    ``notes`` are sentences that are shown below the section's table.

    Args:
        progress: Shows how far the section is; one that does not draw by itself.
        seconds: What may be spent.
    """

    def __init__(self, progress: Progress, seconds: float = inf) -> None:
        self.left_out: list[str] = []
        self.notes: list[str] = []
        self._progress = progress
        self._end = perf_counter() + seconds
        self._label = ''
        self._is_first = True
        self._values_left = 1
        self.measured = self.computed = 0.

    def each(self, values: Sequence[Value], label: Callable[[Value], str]) -> Iterator[Value]:
        """The sizes that a section measures, each with a label for the screen.

        The first is never left out, the others are where less time is left than half of what the size before has taken.
        """
        task = self._progress.add_task('', total=len(values))
        taken = 0.
        for number, value in enumerate(values):
            self._label, self._is_first, self._values_left = label(value), number == 0, len(values) - number
            self._progress.update(task, description=self._label)
            self._progress.refresh()
            if self.has_time_for(taken / 2):
                began = perf_counter()
                yield value
                taken = perf_counter() - began
            else:
                self.leave_out()
            self._progress.advance(task)
            self._progress.refresh()
        self._progress.remove_task(task)

    def has_time_for(self, seconds: float) -> bool:
        """Whether the section may spend so much on the present size."""
        return self._is_first or self._end - perf_counter() >= seconds

    def leave_out(self) -> None:
        """The present size is not measured."""
        self.left_out.append(self._label)

    def end_of_size(self) -> float:
        """When, by ``perf_counter``, the present size has had its share of what is left."""
        now = perf_counter()
        return now + (self._end - now) / self._values_left

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """What is done within the ``with`` block is measured, by this thread."""
        began, computed = perf_counter(), thread_time()
        yield
        self.add(perf_counter() - began, thread_time() - computed)

    def add(self, measured: float, computed: float) -> None:
        """So many seconds have been measured, and whoever was measured had a core for so many."""
        self.measured += measured
        self.computed += computed


def busy_sentence(measured: float, computed: float, load_before: float, cores: int) -> Optional[str]:
    """A word where a machine was busy, None where it was quiet.

    Args:
        measured, computed: As ``Clock`` has them.
        load_before: Processes that wanted a core in the minute before, on average.
        cores: Cores of the machine.
    """
    if computed >= QUIET * measured and load_before <= cores / 2:
        return None
    share = computed / measured if measured else 1.
    return (
        f'This machine was busy: before, {load_before:.1f} processes wanted its {cores} cores, and what was measured '
        f'had one for {share:.0%} of its time. Times are too long; ratios hold as far as their ± is small.'
    )
