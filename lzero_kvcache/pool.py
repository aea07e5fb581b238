from collections.abc import Hashable, Iterator, Sequence
from functools import partial
from numbers import Integral
from typing import Any, Callable, Optional

from .checks import check_count, is_number
from .eviction import EVICTION_REGISTRY, EvictionStrategy, Priority, SearchTreeNode, parse_strategy
from .eviction.strategy import StrategyLike
from .lock import CopyableLock
from .stats import CacheStats


class KVCachePool:
    """
    Overview:
        A bounded map from keys to cached values. A full pool evicts by its strategy. The pool keeps what it is given
        by reference and never looks inside. ``stats`` counts, ``peak_entries`` is the most it has ever held. Get, set
        and eviction cost O(1), with 'priority' O(log n); with 'tree' all evictions of a simulation together O(n).
        Several threads may use one pool: each operation holds ``lock``, which also makes one of several, as in
        ``with pool.lock: ...``.
    Arguments:
        - pool_size (:obj:`int`): The number of entries that fit.
        - eviction_strategy (:obj:`Union[EvictionStrategy, str, dict]`): A member of ``EvictionStrategy``, a name in
            ``EVICTION_REGISTRY``, or ``dict(type=name, **options)``.
        - enable_stats (:obj:`bool`): Whether ``stats`` counts.
        - name (:obj:`str`): The pool's name, for error messages.
        - on_release (:obj:`Optional[Callable]`): Called with a list of the values that leave the pool by eviction, by
            being overwritten, or by ``clear``.
        - lock (:obj:`Optional[CopyableLock]`): For pools whose values share something; None: one of its own.
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
            lock: Optional[CopyableLock] = None,
    ) -> None:
        self.lock = CopyableLock() if lock is None else lock
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
        self._follows_search = self.eviction_policy.follows_search

    def _reset_index(self) -> None:
        self.eviction_policy = self._new_eviction_policy()
        self.eviction_policy.resize(self.pool_size)
        self._slot_of_key: dict[Hashable, int] = {}
        self._key_of_slot: dict[int, Hashable] = {}
        self._value_of_slot: dict[int, Any] = {}
        self._free_slots: list[int] = []

    def set(self, key: Hashable, kv: Any, priority: Priority = None) -> int:
        """
        Overview:
            Store ``kv`` under ``key``, overwriting what the key had, else evicting an entry if the pool is full.
        Arguments:
            - key (:obj:`Union[int, str]`): The key.
            - kv (:obj:`Any`): The value, kept by reference.
            - priority (:obj:`Union[float, SearchTreeNode, None]`): For the strategies that look at it; None keeps a
                key's former priority.
        Returns:
            - slot (:obj:`int`): The slot of the entry. The same key keeps its slot.
        Raises:
            - ValueError: If the key is neither an int nor a string, or the priority is neither a number nor, with a
                strategy that follows the search, one of its nodes.
        """
        leaving: list[Any] = []
        with self.lock:
            slot = self._store(key, kv, priority, leaving)
            if leaving:
                self._release(leaving)
        return slot

    def set_many(self, keys: Sequence[Hashable], kvs: Sequence[Any], priorities: Sequence[Priority]) -> None:
        """
        Overview:
            ``set`` for each key in turn. What leaves is released at once, after the last.
        Arguments:
            - keys (:obj:`Sequence[Union[int, str]]`): The keys.
            - kvs (:obj:`Sequence[Any]`): The value of each, kept by reference.
            - priorities (:obj:`Sequence[Optional[float]]`): As ``set``, one for each.
        Raises:
            - ValueError: As ``set``; the keys before the faulty one are stored. If the lengths differ, none is.
        """
        if not len(keys) == len(kvs) == len(priorities):
            raise ValueError(
                f"pool '{self.name}' was given {len(keys)} keys, {len(kvs)} values and {len(priorities)} priorities: "
                'needed is one of each for each entry'
            )
        leaving: list[Any] = []
        with self.lock:
            try:
                for key, kv, priority in zip(keys, kvs, priorities):
                    self._store(key, kv, priority, leaving)
            finally:
                if leaving:
                    self._release(leaving)

    def _store(self, key: Hashable, kv: Any, priority: Priority, leaving: list[Any]) -> int:
        if type(key) is not str:
            self._check_key(key)
        if priority is not None:
            if isinstance(priority, SearchTreeNode):
                if not self._follows_search:
                    raise ValueError(
                        f"priority of key {key!r} in pool '{self.name}' is a node of a search, which "
                        f'{type(self.eviction_policy).__name__} does not follow: allowed is a number'
                    )
            elif not is_number(priority):
                raise ValueError(f"priority of key {key!r} in pool '{self.name}' is {priority!r}: allowed is a number")
        slot = self._slot_of_key.get(key)
        if slot is not None:
            replaced = self._value_of_slot[slot]
            self._value_of_slot[slot] = kv
            self.eviction_policy.update(slot, priority)
            if replaced is not kv:
                leaving.append(replaced)
            return slot
        self.eviction_policy.before_insert(key)
        entries = len(self._slot_of_key)
        if entries >= self.pool_size:
            leaving.append(self._evict())
            entries -= 1
        slot = self._free_slots.pop() if self._free_slots else entries
        self._slot_of_key[key] = slot
        self._key_of_slot[slot] = key
        self._value_of_slot[slot] = kv
        self.eviction_policy.insert(slot, priority)
        if entries >= self.peak_entries:
            self.peak_entries = entries + 1
        return slot

    def get(self, key: Hashable) -> Optional[Any]:
        """
        Overview:
            Look ``key`` up. This counts as a query and as a use of the entry.
        Arguments:
            - key (:obj:`Union[int, str]`): The key.
        Returns:
            - kv (:obj:`Optional[Any]`): The very object that was set, or None.
        Raises:
            - ValueError: If the key is neither an int nor a string.
        """
        return self.get_many([key])[0]

    def get_many(self, keys: Sequence[Hashable]) -> list[Optional[Any]]:
        """
        Overview:
            ``get`` for each key in turn.
        Arguments:
            - keys (:obj:`Sequence[Union[int, str]]`): The keys.
        Returns:
            - kvs (:obj:`List[Optional[Any]]`): What ``get`` returns, one for each.
        Raises:
            - ValueError: As ``get``, before anything is looked up.
        """
        for key in keys:
            if type(key) is not str:
                self._check_key(key)
        with self.lock:
            slots = [self._slot_of_key.get(key) for key in keys]
            kvs = []
            for slot in slots:
                if slot is None:
                    kvs.append(None)
                else:
                    self.eviction_policy.touch(slot)
                    kvs.append(self._value_of_slot[slot])
            if self.enable_stats:
                misses = slots.count(None)
                self.stats.count_queries(len(slots) - misses, misses)
        return kvs

    def peek(self, key: Hashable) -> Optional[Any]:
        """
        Overview:
            Look ``key`` up without counting a query or a use.
        Arguments:
            - key (:obj:`Union[int, str]`): The key.
        Returns:
            - kv (:obj:`Optional[Any]`): The very object that was set, or None.
        Raises:
            - ValueError: As ``get``.
        """
        self._check_key(key)
        with self.lock:
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
        pool_size = check_count(pool_size, f"pool_size of pool '{self.name}'")
        with self.lock:
            self.pool_size = pool_size
            self.eviction_policy.resize(pool_size)
            leaving = []
            while len(self) > pool_size:
                leaving.append(self._evict())
            if leaving:
                self._release(leaving)

    def evict(self) -> None:
        """
        Overview:
            Let the strategy's next victim leave.
        Raises:
            - ValueError: If the pool is empty.
        """
        with self.lock:
            if not self._slot_of_key:
                raise ValueError(f"pool '{self.name}' is empty: there is nothing to evict")
            self._release([self._evict()])

    def clear(self) -> None:
        """
        Overview:
            Remove all entries. The statistics stay, and what leaves this way does not count as evicted.
        """
        with self.lock:
            leaving = list(self._value_of_slot.values())
            self._reset_index()
            if leaving:
                self._release(leaving)

    def keys(self) -> Iterator[Hashable]:
        """
        Overview:
            The keys of all entries, in no particular order.
        """
        with self.lock:
            return iter(list(self._slot_of_key))

    def values(self) -> list[Any]:
        """
        Overview:
            The values of all entries, in no particular order.
        """
        with self.lock:
            return list(self._value_of_slot.values())

    def __contains__(self, key: Hashable) -> bool:
        self._check_key(key)
        return key in self._slot_of_key

    def __len__(self) -> int:
        return len(self._slot_of_key)

    def __repr__(self) -> str:
        return f"KVCachePool(name='{self.name}', entries={len(self)}, pool_size={self.pool_size}, stats={self.stats})"

    def _check_key(self, key: Hashable) -> None:
        # Not only when it is set: to a dict, 1, 1.0 and True are the same.
        if isinstance(key, bool) or not isinstance(key, (Integral, str)):
            raise ValueError(f"key of pool '{self.name}' is {key!r}: allowed are ints and strings")

    def _evict(self) -> Any:
        slot = self.eviction_policy.victim()
        self.eviction_policy.remove(slot)
        del self._slot_of_key[self._key_of_slot.pop(slot)]
        self._free_slots.append(slot)
        if self.enable_stats:
            self.stats.evictions += 1
        return self._value_of_slot.pop(slot)

    def _release(self, leaving: list[Any]) -> None:
        if self._on_release is not None:
            self._on_release(leaving)
