"""Many strategies and pool sizes over one trace."""
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from time import perf_counter
from typing import Optional

from .choices import BELADY, Choice
from .counts import PhaseCounts
from .format import PHASES, ManagerFacts
from .reader import TraceReader
from .replay import Replay

# More than any search has nodes.
UNLIMITED_ENTRIES = 2 ** 31


@dataclass(frozen=True)
class Job:
    """
    Overview:
        One replay of the whole trace.
    Arguments:
        - choice (:obj:`Choice`): The strategy.
        - share (:obj:`Optional[float]`): The recur pool's size, of the nodes of a search; None: unlimited.
    """
    choice: Choice
    share: Optional[float]

    def recur_size(self, facts: ManagerFacts) -> int:
        """
        Overview:
            The recur pool's entries.
        Arguments:
            - facts (:obj:`ManagerFacts`): The manager's.
        """
        if self.share is None:
            return UNLIMITED_ENTRIES
        return max(1, round(self.share * facts.nodes_of_search))


@dataclass
class Outcome:
    """
    Overview:
        What one replay came to.
    Arguments:
        - job (:obj:`Job`): Strategy and size.
        - counts (:obj:`Dict[Tuple[int, str], PhaseCounts]`): By manager and phase.
        - operations (:obj:`int`): Gets and sets of all pools.
        - seconds (:obj:`float`): What they took, the file's reading included.
    """
    job: Job
    counts: dict[tuple[int, str], PhaseCounts]
    operations: int
    seconds: float

    @property
    def total(self) -> PhaseCounts:
        """
        Overview:
            All managers and phases together.
        """
        return sum(self.counts.values(), PhaseCounts())

    @property
    def hits(self) -> int:
        """
        Overview:
            Of the recur pools.
        """
        return self.total.pools['recur_pool'].hits


@dataclass
class Survey:
    """
    Overview:
        What a trace holds.
    Arguments:
        - reader (:obj:`TraceReader`): The file, read to its end.
        - searches (:obj:`Dict[str, int]`): By phase.
        - expansions (:obj:`int`): Nodes below the roots.
    """
    reader: TraceReader
    searches: dict[str, int] = field(default_factory=dict)
    expansions: int = 0

    @property
    def facts(self) -> ManagerFacts:
        """
        Overview:
            Of the model that has searched first.
        """
        return self.reader.managers[0]

    def describe_searches(self) -> str:
        """
        Overview:
            How many searches of which phase.
        """
        counts = [f'{self.searches[phase]:,} in {phase}' for phase in PHASES if phase in self.searches]
        return f"{sum(self.searches.values()):,} searches, {', '.join(counts)}"


def survey(path: Path) -> Survey:
    """
    Overview:
        Read a trace from its beginning to its end.
    Arguments:
        - path (:obj:`Path`): The file.
    Raises:
        - ValueError: If it is no trace, damaged, or without a search.
        - OSError: If it cannot be read.
    """
    seen = Survey(TraceReader(path))
    for search in seen.reader.searches():
        seen.searches[search.phase] = seen.searches.get(search.phase, 0) + 1
        seen.expansions += len(search.nodes)
    if not seen.expansions:
        raise ValueError(f'{path} has no search: the run ended before its first one')
    return seen


def jobs_of(choices: Sequence[Choice], shares: Sequence[float]) -> list[Job]:
    """
    Overview:
        All replays: Belady's optimum beside the chosen strategies, and one with a pool that never evicts.
    Arguments:
        - choices (:obj:`Sequence[Choice]`): The strategies.
        - shares (:obj:`Sequence[float]`): The recur pool's sizes, of the nodes of a search.
    """
    return [Job(Choice('fifo'), None)] + [Job(choice, share) for choice in (BELADY, *choices) for share in shares]


def simulate(path: Path, jobs: Sequence[Job], workers: int, modules: Sequence[str] = ()) -> Iterator[Outcome]:
    """
    Overview:
        Replay a trace once per job.
    Arguments:
        - path (:obj:`Path`): The file.
        - jobs (:obj:`Sequence[Job]`): Strategies and sizes.
        - workers (:obj:`int`): Processes; 1: this one.
        - modules (:obj:`Sequence[str]`): Modules that register strategies.
    Returns:
        - outcomes (:obj:`Iterator[Outcome]`): As they are ready.
    Raises:
        - ValueError: If the trace is damaged.
    """
    workers = min(workers, len(jobs))
    if workers == 1:
        for job in jobs:
            yield run_job(path, job)
        return
    # A fork would copy the threads' locks of whoever draws a progress bar.
    executor = ProcessPoolExecutor(workers, get_context('spawn'), _import_modules, (tuple(modules), ))
    try:
        futures: list[Future] = [executor.submit(run_job, path, job) for job in jobs]
        for future in as_completed(futures):
            yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def run_job(path: Path, job: Job) -> Outcome:
    """
    Overview:
        Replay a trace.
    Arguments:
        - path (:obj:`Path`): The file.
        - job (:obj:`Job`): Strategy and size.
    """
    start = perf_counter()
    reader = TraceReader(path)
    replays: dict[int, Replay] = {}
    for search in reader.searches():
        if search.manager not in replays:
            facts = reader.managers[search.manager]
            replays[search.manager] = Replay(facts, job.choice, job.recur_size(facts))
        replays[search.manager].run(search)
    counts = {
        (manager, phase): of_phase for manager, replay in replays.items() for phase, of_phase in replay.counts.items()
    }
    operations = sum(replay.operations for replay in replays.values())
    return Outcome(job, counts, operations, perf_counter() - start)


def usable_cores() -> int:
    """
    Overview:
        Processor cores that this process may use.
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _import_modules(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)
