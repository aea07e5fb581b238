"""Timing in pairs: whoever is compared takes turns, because machines are never quiet."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Callable, Optional

from ..search.contexts import SearchContexts
from ..store import ContextBatch, TokenStore
from ..world_model.forward import Forward
from ..world_model.histories import EnvironmentHistories
from ..world_model.managed import ManagedInference
from ..world_model.model_watch import ModelWatch
from .clock import Clock

Step = Callable[[], Any]

FEWEST_STEPS = 5
# Everything between the policy and the forward passes, at roots and nodes: histories, look-ups, gather, block tables,
# pools, the nodes of the search, and whether the model is still the same.
CACHE_WORK = (
    (EnvironmentHistories, 'meet'), (SearchContexts, 'resume'), (SearchContexts, 'begin'), (SearchContexts, 'expand'),
    (SearchContexts, 'cache'), (SearchContexts, 'keep_last_inference'), (ManagedInference, '_begin_search'),
    (ManagedInference, '_nodes_of'), (ManagedInference, '_add_nodes'), (TokenStore, 'add'), (TokenStore, 'release'),
    (ContextBatch, 'append'), (ContextBatch, '__exit__'), (ModelWatch, 'has_changed'), (ModelWatch, 'may_have_changed'),
)
# What these do, and what they call of the above, is the model's.
FORWARDS = tuple((Forward, name) for name in (
    'step', 'predict', 'append_episodes', 'append_latents', 'append_raw', 'append_steps', 'preceding_tokens'
))


def seconds_of(step: Step) -> float:
    """The time of one collect step."""
    start = perf_counter()
    step()
    return perf_counter() - start


def in_turn(collect: Sequence[Step], warm_up: int, steps: int, clock: Clock) -> Optional[list[list[float]]]:
    """Time collect steps, one of each arm in turn.

    Args:
        collect: One call for each arm that is compared, which takes a step.
        warm_up: Steps before the first that counts, at least 2.
        steps: Steps that count, at most; ``FEWEST_STEPS`` where the time is short.
        clock: The section's.

    Returns:
        The seconds of each arm's steps; None where there is no time for them.
    """
    end, fewest = clock.end_of_size(), min(steps, FEWEST_STEPS)
    rounds = [_round(collect) for _ in range(2)]
    if not clock.has_time_for((warm_up - 2 + fewest) * min(map(sum, rounds))):
        clock.leave_out()
        return None
    for _ in range(warm_up - 2):
        _round(collect)
    measured: list[list[float]] = []
    while len(measured) < fewest or (len(measured) < steps and perf_counter() < end):
        with clock.measuring():
            measured.append(_round(collect))
    return [list(of_arm) for of_arm in zip(*measured)]


def _round(collect: Sequence[Step]) -> list[float]:
    return [seconds_of(step) for step in collect]


def until_the_window_is_full(context_length: int) -> int:
    """Collect steps until every root has a full context; the window is in tokens."""
    return context_length // 2 + 2


def paired_ratios(times: Sequence[float], base: Sequence[float]) -> list[float]:
    """The ratios of what was measured in turn."""
    return [time / other for time, other in zip(times, base)]


@contextmanager
def timed_cache_work() -> Iterator[list[float]]:
    """Collect the seconds that are spent on the cache within the ``with`` block, forward passes left out."""
    spent: list[float] = []
    # Whether a clock runs, innermost last.
    running: list[bool] = [False]
    since = 0.

    def switch() -> None:
        nonlocal since
        now = perf_counter()
        if running[-1]:
            spent.append(now - since)
        since = now

    def timed(function: Any, counts: bool) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            if running[-1] == counts or (counts and len(running) > 1):
                return function(*args, **kwargs)
            switch()
            running.append(counts)
            try:
                return function(*args, **kwargs)
            finally:
                switch()
                running.pop()
        return call

    originals = [
        (owner, name, getattr(owner, name), counts)
        for counts, methods in ((True, CACHE_WORK), (False, FORWARDS)) for owner, name in methods
    ]
    for owner, name, function, counts in originals:
        setattr(owner, name, timed(function, counts))
    try:
        yield spent
    finally:
        for owner, name, function, _ in originals:
            setattr(owner, name, function)
