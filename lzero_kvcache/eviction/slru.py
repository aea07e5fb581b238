from collections import OrderedDict

from ..checks import check_count
from .base import EvictionPolicy, Priority


class SLRUEviction(EvictionPolicy):
    """
    Overview:
        Segmented LRU (Karedla, Love and Wherry 1994, "Caching strategies to improve disk system performance"): an entry
        moves up one segment with each use, and down again where its segment overflows; the least recently used entry of
        the lowest segment goes first. Every operation costs O(1).
    Arguments:
        - segments (:obj:`int`): Their number. They are of equal size, the lowest takes the remainder.
    Raises:
        - ValueError: On a number below 1.
    """

    def __init__(self, segments: int = 4) -> None:
        check_count(segments, 'segments', 'of a pool')
        self._segments: list[OrderedDict[int, None]] = [OrderedDict() for _ in range(segments)]
        self._limits = [0] * segments
        self._segment_of: dict[int, int] = {}

    def resize(self, capacity: int) -> None:
        size, remainder = divmod(capacity, len(self._segments))
        self._limits = [size] * len(self._segments)
        self._limits[0] += remainder
        self._move_overflows_down(len(self._segments) - 1)

    def insert(self, slot: int, priority: Priority = None) -> None:
        sizes = map(len, self._segments)
        with_room = (number for number, size in enumerate(sizes) if size < self._limits[number])
        self._put(slot, next(with_room, 0))

    def remove(self, slot: int) -> None:
        del self._segments[self._segment_of.pop(slot)][slot]

    def victim(self) -> int:
        return next(next(iter(segment)) for segment in self._segments if segment)

    def touch(self, slot: int) -> None:
        above = min(self._segment_of[slot] + 1, len(self._segments) - 1)
        self.remove(slot)
        self._put(slot, above)
        self._move_overflows_down(above)

    def _put(self, slot: int, segment: int) -> None:
        self._segment_of[slot] = segment
        self._segments[segment][slot] = None

    def _move_overflows_down(self, segment: int) -> None:
        for number in range(segment, 0, -1):
            while len(self._segments[number]) > self._limits[number]:
                slot = next(iter(self._segments[number]))
                self.remove(slot)
                self._put(slot, number - 1)
