"""Watches the searches of this process from outside."""
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional
from weakref import WeakSet

from ..eviction.search_nodes import SearchNodes
from ..search.episode import NO_EPISODE


class SearchObserver(ABC):
    """Is told of everything that a world model's pools are asked and given."""

    @abstractmethod
    def begin(self, phase: str) -> None:
        """A search begins, 'collect', 'eval', 'reanalyze' or 'unknown'; its nodes' pools are empty."""

    @abstractmethod
    def roots(
            self, nodes: SearchNodes, env_ids: Sequence[Optional[int]], beginnings: Sequence[int],
            lengths: Sequence[int]
    ) -> None:
        """The search has its roots, the first of ``nodes``, cached in the init pools of their environments (None: not
        cached, as in reanalysis). ``beginnings``: see ``search.episode``; ``lengths``: tokens of their contexts.
        """

    @abstractmethod
    def strays(self, nodes: SearchNodes) -> None:
        """The search expands states that the model has not predicted: the latest nodes."""

    @abstractmethod
    def expand(self, nodes: SearchNodes) -> None:
        """The parents of the latest nodes were looked up together; these nodes have been cached."""

    @abstractmethod
    def drop_contexts(self) -> None:
        """All contexts are dropped, because the weights have changed, say."""


def observe_uncached_roots(observer: Optional[SearchObserver], nodes: SearchNodes) -> None:
    """Tell an observer, if there is one, of the roots of a search that reanalyses, which are not cached."""
    if observer is not None:
        rows = nodes.num_nodes
        observer.roots(nodes, [None] * rows, [NO_EPISODE] * rows, [0] * rows)


NewObserver = Callable[[Any, Any], SearchObserver]

_new_observer: Optional[NewObserver] = None
_observed: WeakSet = WeakSet()


@contextmanager
def observe_searches(new_observer: NewObserver) -> Iterator[None]:
    """Give an observer to each world model that searches within the ``with`` block, and to each copy made within it.
    ``new_observer`` gets the ``ManagedInference`` and its world model. A second such block raises a RuntimeError.
    """
    global _new_observer
    if _new_observer is not None:
        raise RuntimeError('the searches of this process are observed already')
    _new_observer = new_observer
    try:
        yield
    finally:
        _new_observer = None
        for inference in list(_observed):
            inference.observer = None
        _observed.clear()


def observer_of(inference: Any, world_model: Any) -> Optional[SearchObserver]:
    """A new observer for a world model; None outside of ``observe_searches``."""
    if _new_observer is None:
        return None
    _observed.add(inference)
    return _new_observer(inference, world_model)
