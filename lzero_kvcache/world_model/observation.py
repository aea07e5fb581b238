"""Whoever watches the searches of this process from outside."""
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional
from weakref import WeakSet

from .cached_model import Predictions
from .lineage import SearchNode


class SearchObserver(ABC):
    """
    Overview:
        Is told of everything that a world model's pools are asked and given. It must not keep the nodes: their latent
        states are large.
    """

    @abstractmethod
    def begin(self, phase: str) -> None:
        """
        Overview:
            A search begins; its nodes' pools are empty.
        Arguments:
            - phase (:obj:`str`): 'collect', 'eval', 'reanalyze' or 'unknown'.
        """

    @abstractmethod
    def roots(self, nodes: Sequence[SearchNode], went_on: Sequence[bool], predictions: Optional[Predictions]) -> None:
        """
        Overview:
            The search has its roots.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): One per row. Those of environments have been cached.
            - went_on (:obj:`Sequence[bool]`): Whether the environment's former root was looked up before.
            - predictions (:obj:`Optional[Predictions]`): What the model says of them; None in reanalysis, whose roots
                are not cached.
        """

    @abstractmethod
    def expand(self, nodes: Sequence[SearchNode], predictions: Predictions) -> None:
        """
        Overview:
            The contexts of some nodes' parents were looked up together, and the nodes have been cached.
        Arguments:
            - nodes (:obj:`Sequence[SearchNode]`): The new nodes, one per row.
            - predictions (:obj:`Predictions`): What the model says of them.
        """

    @abstractmethod
    def drop_contexts(self) -> None:
        """
        Overview:
            All contexts are dropped, because the weights have changed, say.
        """


NewObserver = Callable[[Any, Any], SearchObserver]

_new_observer: Optional[NewObserver] = None
_observed: WeakSet = WeakSet()


@contextmanager
def observe_searches(new_observer: NewObserver) -> Iterator[None]:
    """
    Overview:
        Let each world model that searches within the ``with`` block, copies made within it included, have an observer.
    Arguments:
        - new_observer (:obj:`Callable`): Called with the ``ManagedInference`` and its world model before the first
            search.
    Raises:
        - RuntimeError: If there is such a block already.
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
    """
    Overview:
        A new observer for a world model that has none, if somebody wants to observe.
    Arguments:
        - inference (:obj:`ManagedInference`): The world model's.
        - world_model (:obj:`WorldModel`): The world model.
    """
    if _new_observer is None:
        return None
    _observed.add(inference)
    return _new_observer(inference, world_model)
