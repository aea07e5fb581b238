"""Timing in pairs: whoever is compared takes turns, because machines are never quiet."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Optional

from ..store import ContextBatch, TokenStore
from ..world_model.contexts import NodeContexts
from ..world_model.histories import EnvironmentHistories
from ..world_model.managed import ManagedInference
from ..world_model.model_watch import ModelWatch
from ..world_model.window import ContextWindow
from .clock import Clock
from .searcher import Searcher

FEWEST_STEPS = 5
# Everything between the policy and the forward passes, at roots and nodes: histories, names and keys, look-ups and
# gather, masks, scatter, pools, and whether the model is still the same.
CACHE_WORK = (
    (EnvironmentHistories, 'meet'), (EnvironmentHistories, 'resume'), (ManagedInference, '_begin_search'),
    (ManagedInference, 'nodes_of'), (ManagedInference, '_add_nodes'), (NodeContexts, 'of'), (NodeContexts, 'add'),
    (ContextWindow, 'add'), (ContextBatch, 'append'), (ContextBatch, '__exit__'), (TokenStore, 'release'),
    (ModelWatch, 'has_changed'), (ModelWatch, 'may_have_changed'),
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
        searchers: Sequence[Searcher], warm_up: int, steps: int, clock: Clock
) -> Optional[list[list[float]]]:
    """
    Overview:
        Time collect steps, one of each searcher in turn.
    Arguments:
        - searchers (:obj:`Sequence[Searcher]`): Whoever is compared.
        - warm_up (:obj:`int`): Steps before the first that counts, at least 2.
        - steps (:obj:`int`): Steps that count, at most; ``FEWEST_STEPS`` where the time is short.
        - clock (:obj:`Clock`): The section's.
    Returns:
        - seconds (:obj:`Optional[List[List[float]]]`): Of each searcher's steps; None where there is no time for them.
    """
    end, fewest = clock.end_of_size(), min(steps, FEWEST_STEPS)
    rounds = [_round(searchers) for _ in range(2)]
    if not clock.has_time_for((warm_up - 2 + fewest) * min(map(sum, rounds))):
        clock.leave_out()
        return None
    for _ in range(warm_up - 2):
        _round(searchers)
    measured: list[list[float]] = []
    while len(measured) < fewest or (len(measured) < steps and perf_counter() < end):
        with clock.measuring():
            measured.append(_round(searchers))
    return [list(of_searcher) for of_searcher in zip(*measured)]


def _round(searchers: Sequence[Searcher]) -> list[float]:
    return [seconds_of_step(searcher) for searcher in searchers]


def until_the_window_is_full(context_length: int) -> int:
    """
    Overview:
        Collect steps until every root has a full context.
    Arguments:
        - context_length (:obj:`int`): The window in tokens.
    """
    return context_length // 2 + 2


def paired_ratios(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """
    Overview:
        The ratios of steps that were taken in turn.
    Arguments:
        - times (:obj:`Sequence[float]`): Seconds.
        - base (:obj:`Sequence[float]`): Seconds of the other's steps.
    """
    return [time / other for time, other in zip(times, base)]


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
