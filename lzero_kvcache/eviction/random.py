from random import Random

from ..checks import is_integer
from .base import EvictionPolicy, Priority


class RandomEviction(EvictionPolicy):
    """
    Overview:
        Any entry goes, all with the same probability: what a strategy must beat. Every operation costs O(1).
    Arguments:
        - seed (:obj:`int`): Of the random numbers. A pool that is cleared begins with it again.
    Raises:
        - ValueError: On a seed that is no integer.
    """

    def __init__(self, seed: int = 0) -> None:
        if not is_integer(seed):
            raise ValueError(f'seed is {seed!r}: allowed is an integer')
        self._random = Random(seed)
        self._slots: list[int] = []
        self._places: dict[int, int] = {}

    def insert(self, slot: int, priority: Priority = None) -> None:
        self._places[slot] = len(self._slots)
        self._slots.append(slot)

    def remove(self, slot: int) -> None:
        # The last one takes the place of the one that leaves.
        place, last = self._places.pop(slot), self._slots.pop()
        if last != slot:
            self._slots[place] = last
            self._places[last] = place

    def victim(self) -> int:
        return self._random.choice(self._slots)
