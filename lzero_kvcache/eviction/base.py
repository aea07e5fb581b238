from abc import ABC, abstractmethod
from collections.abc import Hashable
from typing import Union

from .search_tree import SearchTreeNode

# What a strategy is told of an entry: a number, a node of the running search, or nothing.
Priority = Union[float, SearchTreeNode, None]


class EvictionStrategyError(RuntimeError):
    """
    Overview:
        A strategy has raised an error, or named a victim that it does not hold, while a pool was using it.
    """


class EvictionPolicy(ABC):
    """
    Overview:
        Decides which slot of a full pool makes room. A policy sees slot numbers and priorities, never keys or
        values, so it works for any pool. Register a subclass to make it a legal ``strategy`` of a config:

        >>> @EVICTION_REGISTRY.register('my_strategy')
        ... class MyEviction(EvictionPolicy):
        ...     ...

        The arguments of the subclass's ``__init__`` are the options of its strategy:
        ``strategy=dict(type='my_strategy', option=1)``. A class whose ``follows_search`` is True gets a
        ``SearchTreeNode`` as the priority of each node of the running search.
    """
    follows_search = False

    @abstractmethod
    def insert(self, slot: int, priority: Priority = None) -> None:
        """
        Overview:
            A new entry has taken ``slot``.
        Arguments:
            - slot (:obj:`int`): A slot that the policy does not hold.
            - priority (:obj:`Union[float, SearchTreeNode, None]`): The priority that came with the entry, if any.
        """

    @abstractmethod
    def remove(self, slot: int) -> None:
        """
        Overview:
            The entry of ``slot`` has left the pool.
        Arguments:
            - slot (:obj:`int`): A slot that the policy holds.
        """

    @abstractmethod
    def victim(self) -> int:
        """
        Overview:
            The slot to evict next. The policy keeps holding it until ``remove``.
        Returns:
            - slot (:obj:`int`): One of the slots that the policy holds, of which there is at least one.
        """

    def touch(self, slot: int) -> None:
        """
        Overview:
            The entry of ``slot`` has been read.
        Arguments:
            - slot (:obj:`int`): A slot that the policy holds.
        """

    def update(self, slot: int, priority: Priority = None) -> None:
        """
        Overview:
            The entry of ``slot`` has been overwritten under the same key. By default this counts as a read.
        Arguments:
            - slot (:obj:`int`): A slot that the policy holds.
            - priority (:obj:`Union[float, SearchTreeNode, None]`): The priority that came with the new value, if any.
        """
        self.touch(slot)

    def resize(self, capacity: int) -> None:
        """
        Overview:
            So many entries fit into the pool from now on. Called when the pool is made and each time it is resized or
            cleared, for strategies that divide the pool.
        Arguments:
            - capacity (:obj:`int`): The pool's size, at least 1. The policy may hold more slots at this moment.
        """

    def before_insert(self, cache_key: Hashable) -> None:
        """
        Overview:
            A key that the pool does not hold is about to come in. Called before room is made for it and before
            ``insert``, for strategies that remember what they have evicted.
        Arguments:
            - cache_key (:obj:`Union[int, str]`): The key.
        """
