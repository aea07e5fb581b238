"""Timing in pairs: whoever is compared takes turns, because machines are never quiet."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from time import perf_counter
from typing import Any

from rich.progress import Progress

from ..store import ContextBatch, TokenStore
from ..world_model.contexts import NodeContexts
from ..world_model.histories import EnvironmentHistories
from ..world_model.managed import ManagedInference
from ..world_model.weights import WeightsWatch
from ..world_model.window import ContextWindow
from .searcher import Searcher

# Everything between the policy and the forward passes, at roots and nodes: histories, names and keys, look-ups and
# gather, masks, scatter, pools, and whether the weights are still the same.
CACHE_WORK = (
    (EnvironmentHistories, 'meet'), (EnvironmentHistories, 'resume'), (ManagedInference, '_begin_search'),
    (ManagedInference, 'nodes_of'), (ManagedInference, '_add_nodes'), (NodeContexts, 'of'), (NodeContexts, 'add'),
    (ContextWindow, 'add'), (ContextBatch, 'append'), (ContextBatch, '__exit__'), (TokenStore, 'release'),
    (WeightsWatch, 'have_changed'), (WeightsWatch, 'may_have_changed'),
)


def seconds_of_step(searcher: Searcher) -> float:
    """
    Overview:
        The time of one collect step.
    Arguments:
        - searcher (:obj:`Searcher`): Whose.
    """
    start = perf_counter()
    searcher.collect()
    return perf_counter() - start


def in_turn(
        searchers: Sequence[Searcher], warm_up: int, steps: int, progress: Progress, name: str
) -> list[list[float]]:
    """
    Overview:
        Time collect steps, one of each searcher in turn.
    Arguments:
        - searchers (:obj:`Sequence[Searcher]`): Whoever is compared.
        - warm_up (:obj:`int`): Steps before the first that counts.
        - steps (:obj:`int`): Steps that count.
        - progress (:obj:`Progress`): Shows how far it is.
        - name (:obj:`str`): What it says beside.
    Returns:
        - seconds (:obj:`List[List[float]]`): Of each searcher's steps.
    """
    task = progress.add_task(name, total=warm_up + steps)
    times: list[list[float]] = [[] for _ in searchers]
    for step in range(warm_up + steps):
        for searcher, of_searcher in zip(searchers, times):
            taken = seconds_of_step(searcher)
            if step >= warm_up:
                of_searcher.append(taken)
        progress.advance(task)
    return times


def until_the_window_is_full(context_length: int) -> int:
    """
    Overview:
        Collect steps until every root has a full context.
    Arguments:
        - context_length (:obj:`int`): The window in tokens.
    """
    return context_length // 2 + 2


def paired_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """
    Overview:
        The median of the ratios of steps that were taken in turn.
    Arguments:
        - times (:obj:`Sequence[float]`): Seconds.
        - base (:obj:`Sequence[float]`): Seconds of the other's steps.
    """
    return median(time / other for time, other in zip(times, base))


@contextmanager
def timed_cache_work() -> Iterator[list[float]]:
    """
    Overview:
        Collect the seconds that are spent on the cache within the ``with`` block, forward passes left out.
    """
    spent: list[float] = []
    running: list[str] = []
    originals = [(owner, name, getattr(owner, name)) for owner, name in CACHE_WORK]

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if running:
                # Whoever has called this is timed already.
                return function(*args, **kwargs)
            running.append(function.__name__)
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(perf_counter() - start)
                running.pop()
        return call

    for owner, name, function in originals:
        setattr(owner, name, timed(function))
    try:
        yield spent
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)
