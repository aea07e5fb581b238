"""Many strategies and pool sizes over one trace."""
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Optional

from ..stats import CacheStats
from .choices import BELADY
from .format import PHASES, ManagerFacts
from .reader import TraceReader
from .replay import PhaseCounts, Replay

# More than any search has nodes.
UNLIMITED_ENTRIES = 2 ** 31


@dataclass(frozen=True)
class Job:
    """One replay of the whole trace; ``share``: the recur pool's size, of the nodes of a search; None: unlimited."""
    strategy: str
    share: Optional[float]

    def recur_size(self, facts: ManagerFacts) -> int:
        return UNLIMITED_ENTRIES if self.share is None else max(1, round(self.share * facts.nodes_of_search))


@dataclass(frozen=True)
class Outcome(Job):
    """What a replay came to, by manager and phase."""
    counts: dict[tuple[int, str], PhaseCounts]

    @property
    def total(self) -> PhaseCounts:
        return sum(self.counts.values(), PhaseCounts())

    @property
    def recur_pool(self) -> CacheStats:
        return self.total.recur_pool


@dataclass
class Survey:
    """What a trace holds: its searches by phase, and the nodes below their roots."""
    reader: TraceReader
    searches: Counter = field(default_factory=Counter)
    expansions: int = 0

    @property
    def facts(self) -> ManagerFacts:
        """Of the model that has searched first."""
        return self.reader.managers[0]

    def describe_searches(self) -> str:
        counts = [f'{self.searches[phase]:,} in {phase}' for phase in PHASES if phase in self.searches]
        return f"{sum(self.searches.values()):,} searches, {', '.join(counts)}"


def survey(path: Path) -> Survey:
    """Read a trace to its end; a ValueError if it is none, damaged or without a search, an OSError if unreadable."""
    seen = Survey(TraceReader(path))
    for search in seen.reader.searches():
        seen.searches[search.phase] += 1
        seen.expansions += search.num_nodes - len(search.steps[0][1])
    if not seen.expansions:
        raise ValueError(f'{path} has no search: the run ended before its first one')
    return seen


def jobs_of(strategies: Sequence[str], shares: Sequence[float]) -> list[Job]:
    """All replays: Belady's optimum beside the strategies, and one with a pool that never evicts."""
    return [Job('fifo', None)] + [Job(strategy, share) for strategy in (BELADY, *strategies) for share in shares]


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
    reader = TraceReader(path)
    replays: dict[int, Replay] = {}
    for search in reader.searches():
        if search.manager not in replays:
            facts = reader.managers[search.manager]
            replays[search.manager] = Replay(facts, job.strategy, job.recur_size(facts))
        replays[search.manager].run(search)
    return Outcome(job.strategy, job.share, {
        (manager, phase): counts for manager, replay in replays.items() for phase, counts in replay.counts.items()
    })


def _import_modules(modules: Sequence[str]) -> None:
    for module in modules:
        import_module(module)
