from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, Callable, Optional

from .checks import check_count
from .eviction import EVICTION_REGISTRY, EvictionStrategy, parse_strategy
from .eviction.strategy import StrategyLike
from .stats import CacheStats


class KVCachePool:
    """
    Overview:
        A bounded map from keys to cached values. A full pool evicts by its strategy. The pool keeps what it is given
        by reference and never looks inside. ``stats`` counts, ``peak_entries`` is the most it has ever held. Get, set
        and eviction cost O(1) (O(log n) with 'priority') at any size.
    Arguments:
        - pool_size (:obj:`int`): The number of entries that fit.
        - eviction_strategy (:obj:`Union[EvictionStrategy, str, dict]`): A member of ``EvictionStrategy``, a name in
            ``EVICTION_REGISTRY``, or ``dict(type=name, **options)``.
        - enable_stats (:obj:`bool`): Whether ``stats`` counts.
        - name (:obj:`str`): The pool's name, for error messages.
        - on_release (:obj:`Optional[Callable]`): Called with a list of the values that leave the pool by eviction, by
            being overwritten, or by ``clear``.
    Raises:
        - ValueError: On a size below 1 or a strategy that is not registered.
    """

    def __init__(
            self,
            pool_size: int,
            eviction_strategy: StrategyLike = EvictionStrategy.FIFO,
            enable_stats: bool = True,
            name: str = 'default',
            on_release: Optional[Callable[[Sequence[Any]], None]] = None,
    ) -> None:
        self.name = name
        self.pool_size = check_count(pool_size, f"pool_size of pool '{name}'")
        self.enable_stats = enable_stats
        self.stats = CacheStats()
        self.peak_entries = 0
        strategy, options = parse_strategy(eviction_strategy, f"eviction_strategy of pool '{name}'")
        # A pool is emptied at every step of a search, where checking the strategy again would show.
        self._new_eviction_policy = partial(EVICTION_REGISTRY.get(strategy), **options)
        self._on_release = on_release
        self._reset_index()

    def _reset_index(self) -> None:
        self.eviction_policy = self._new_eviction_policy()
        self._slot_of_key: dict[Hashable, int] = {}
        self._key_of_slot: dict[int, Hashable] = {}
        self._value_of_slot: dict[int, Any] = {}
        self._free_slots: list[int] = []

    def set(self, key: Hashable, kv: Any, priority: Optional[float] = None) -> int:
        """
        Overview:
            Store ``kv`` under ``key``, overwriting what the key had, else evicting an entry if the pool is full.
        Arguments:
            - key (:obj:`Union[int, str]`): The key.
            - kv (:obj:`Any`): The value, kept by reference.
            - priority (:obj:`Optional[float]`): For the strategies that look at it; None keeps a key's former priority.
        Returns:
            - slot (:obj:`int`): The slot of the entry. The same key keeps its slot.
        Raises:
            - ValueError: If the key is neither an int nor a string, or the priority is no number.
        """
        if type(key) is not str and (isinstance(key, bool) or not isinstance(key, (Integral, str))):
            raise ValueError(f"key of pool '{self.name}' is {key!r}: allowed are ints and strings")
        if priority is not None and (not isinstance(priority, Real) or priority != priority):
            raise ValueError(f"priority of key {key!r} in pool '{self.name}' is {priority!r}: allowed is a number")
        slot = self._slot_of_key.get(key)
        if slot is not None:
            replaced = self._value_of_slot[slot]
            self._value_of_slot[slot] = kv
            self.eviction_policy.update(slot, priority)
            if replaced is not kv:
                self._release([replaced])
            return slot
        if len(self) >= self.pool_size:
            self._evict()
        slot = self._free_slots.pop() if self._free_slots else len(self._slot_of_key)
        self._slot_of_key[key] = slot
        self._key_of_slot[slot] = key
        self._value_of_slot[slot] = kv
        self.eviction_policy.insert(slot, priority)
        self.peak_entries = max(self.peak_entries, len(self._slot_of_key))
        return slot

    def get(self, key: Hashable) -> Optional[Any]:
        """
        Overview:
            Look ``key`` up. This counts as a query and as a use of the entry.
        Arguments:
            - key (:obj:`Union[int, str]`): The key.
        Returns:
            - kv (:obj:`Optional[Any]`): The very object that was set, or None.
        """
        slot = self._slot_of_key.get(key)
        if self.enable_stats:
            self.stats.count_query(slot is not None)
        if slot is None:
            return None
        self.eviction_policy.touch(slot)
        return self._value_of_slot[slot]

    def peek(self, key: Hashable) -> Optional[Any]:
        """
        Overview:
            Look ``key`` up without counting a query or a use.
        Arguments:
            - key (:obj:`Union[int, str]`): The key.
        Returns:
            - kv (:obj:`Optional[Any]`): The very object that was set, or None.
        """
        slot = self._slot_of_key.get(key)
        return None if slot is None else self._value_of_slot[slot]

    def resize(self, pool_size: int) -> None:
        """
        Overview:
            Change the number of entries that fit. Shrinking evicts in the strategy's order; what stays keeps its slot.
        Arguments:
            - pool_size (:obj:`int`): The new size.
        Raises:
            - ValueError: If it is below 1.
        """
        self.pool_size = check_count(pool_size, f"pool_size of pool '{self.name}'")
        while len(self) > self.pool_size:
            self._evict()

    def clear(self) -> None:
        """
        Overview:
            Remove all entries. The statistics stay, and what leaves this way does not count as evicted.
        """
        leaving = list(self._value_of_slot.values())
        self._reset_index()
        if leaving:
            self._release(leaving)

    def keys(self) -> Iterator[Hashable]:
        """
        Overview:
            The keys of all entries, in no particular order.
        """
        return iter(self._slot_of_key)

    def values(self) -> list[Any]:
        """
        Overview:
            The values of all entries, in no particular order.
        """
        return list(self._value_of_slot.values())

    def __contains__(self, key: Hashable) -> bool:
        return key in self._slot_of_key

    def __len__(self) -> int:
        return len(self._slot_of_key)

    def __repr__(self) -> str:
        return f"KVCachePool(name='{self.name}', entries={len(self)}, pool_size={self.pool_size}, stats={self.stats})"

    def _evict(self) -> None:
        slot = self.eviction_policy.victim()
        self.eviction_policy.remove(slot)
        del self._slot_of_key[self._key_of_slot.pop(slot)]
        self._free_slots.append(slot)
        if self.enable_stats:
            self.stats.evictions += 1
        self._release([self._value_of_slot.pop(slot)])

    def _release(self, leaving: list[Any]) -> None:
        if self._on_release is not None:
            self._on_release(leaving)
