"""Many strategies and pool sizes over one trace."""
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
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
    """One replay of the whole trace; ``share``: the recur pool's size, of the nodes of a search; None: unlimited."""
    choice: Choice
    share: Optional[float]

    def recur_size(self, facts: ManagerFacts) -> int:
        """The recur pool's entries."""
        if self.share is None:
            return UNLIMITED_ENTRIES
        return max(1, round(self.share * facts.nodes_of_search))


@dataclass
class Outcome:
    """What one replay came to: counts by manager and phase; gets and sets of all pools, and their time with reading."""
    job: Job
    counts: dict[tuple[int, str], PhaseCounts]
    operations: int
    seconds: float

    @property
    def total(self) -> PhaseCounts:
        """All managers and phases together."""
        return sum(self.counts.values(), PhaseCounts())

    @property
    def hits(self) -> int:
        """Of the recur pools."""
        return self.total.recur_pool.hits

    @property
    def hit_rate(self) -> float:
        """Of the recur pools."""
        return self.total.recur_pool.hit_rate


@dataclass
class Survey:
    """What a trace holds: the file, read to its end, its searches by phase, and the nodes below their roots."""
    reader: TraceReader
    searches: dict[str, int] = field(default_factory=dict)
    expansions: int = 0

    @property
    def facts(self) -> ManagerFacts:
        """Of the model that has searched first."""
        return self.reader.managers[0]

    def describe_searches(self) -> str:
        """How many searches of which phase."""
        counts = [f'{self.searches[phase]:,} in {phase}' for phase in PHASES if phase in self.searches]
        return f"{sum(self.searches.values()):,} searches, {', '.join(counts)}"


def survey(path: Path) -> Survey:
    """Read a trace to its end; a ValueError if it is none, damaged or without a search, an OSError if unreadable."""
    seen = Survey(TraceReader(path))
    for search in seen.reader.searches():
        seen.searches[search.phase] = seen.searches.get(search.phase, 0) + 1
        seen.expansions += search.num_nodes - len(search.steps[0][2])
    if not seen.expansions:
        raise ValueError(f'{path} has no search: the run ended before its first one')
    return seen


def jobs_of(choices: Sequence[Choice], shares: Sequence[float]) -> list[Job]:
    """All replays: Belady's optimum beside the chosen strategies, and one with a pool that never evicts."""
    return [Job(Choice('fifo'), None)] + [Job(choice, share) for choice in (BELADY, *choices) for share in shares]


def simulate(path: Path, jobs: Sequence[Job], workers: int, modules: Sequence[str] = ()) -> Iterator[Outcome]:
    """
    Replay a trace once per job, in so many processes (1: this one), in which ``modules`` register strategies; the
    outcomes, as they are ready. A ValueError if the trace is damaged.
    """
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from (run_job(path, job) for job in jobs)
        return
    # A fork would copy the threads' locks of whoever draws a progress bar.
    executor = ProcessPoolExecutor(workers, get_context('spawn'), _import_modules, (tuple(modules), ))
    try:
        for future in as_completed([executor.submit(run_job, path, job) for job in jobs]):
            yield future.result()
    finally:
        executor.shutdown(cancel_futures=True)


def run_job(path: Path, job: Job) -> Outcome:
    """Replay a trace."""
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


def _import_modules(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)
