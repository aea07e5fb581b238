from dataclasses import dataclass, fields
from typing import Optional, TypeVar

CountsType = TypeVar('CountsType', bound='Counts')


class Counts:
    """Numbers that add up, field by field; for dataclasses."""

    def __add__(self: CountsType, other: CountsType) -> CountsType:
        names = [each.name for each in fields(self)]
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in names})

    def __sub__(self: CountsType, earlier: CountsType) -> CountsType:
        names = [each.name for each in fields(self)]
        return type(self)(**{name: getattr(self, name) - getattr(earlier, name) for name in names})


@dataclass(init=False)
class CacheStats(Counts):
    """
    Overview:
        What a pool has been asked for and what it found.
    Arguments:
        - hits (:obj:`int`): Queries that found an entry.
        - misses (:obj:`int`): Queries that found none.
        - evictions (:obj:`int`): Entries that left because the pool was full or shrank.
        - total_queries (:obj:`Optional[int]`): ``hits + misses``, and may as well be left out.
    Raises:
        - ValueError: If ``total_queries`` is another number than that.
    """
    hits: int = 0
    misses: int = 0
    evictions: int = 0

    def __init__(
            self, hits: int = 0, misses: int = 0, evictions: int = 0, total_queries: Optional[int] = None
    ) -> None:
        if total_queries is not None and total_queries != hits + misses:
            raise ValueError(
                f'total_queries is {total_queries!r}, but {hits} hits and {misses} misses are {hits + misses} queries: '
                'leave total_queries out'
            )
        self.hits = hits
        self.misses = misses
        self.evictions = evictions

    @property
    def total_queries(self) -> int:
        """
        Overview:
            All queries, ``hits + misses``.
        """
        return self.hits + self.misses

    @property
    def hit_rate(self) -> float:
        """
        Overview:
            The share of queries that found an entry, 0.0 with no query.
        """
        return self.hits / self.total_queries if self.total_queries else 0.0

    @property
    def miss_rate(self) -> float:
        """
        Overview:
            The share of queries that found no entry, 1.0 with no query.
        """
        return 1.0 - self.hit_rate

    def reset(self) -> None:
        """
        Overview:
            Count from zero again.
        """
        self.hits = self.misses = self.evictions = 0

    def count_queries(self, hits: int, misses: int) -> None:
        """
        Overview:
            Count some queries.
        Arguments:
            - hits (:obj:`int`): How many found an entry.
            - misses (:obj:`int`): How many did not.
        """
        self.hits += hits
        self.misses += misses

    def __str__(self) -> str:
        return (
            f'CacheStats(hits={self.hits}, misses={self.misses}, evictions={self.evictions}, '
            f'total_queries={self.total_queries}, hit_rate={self.hit_rate:.2%})'
        )


@dataclass
class RebuildStats(Counts):
    """
    Overview:
        What misses have cost.
    Arguments:
        - rebuilds (:obj:`int`): Contexts that were computed again.
        - tokens (:obj:`int`): Tokens that went through the transformer for them.
        - restored (:obj:`int`): Contexts that needed no computation, because all their tokens were still in the store.
    """
    rebuilds: int = 0
    tokens: int = 0
    restored: int = 0
