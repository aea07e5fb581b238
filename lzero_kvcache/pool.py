import logging
from collections.abc import Hashable, Iterator, Sequence
from traceback import extract_tb
from typing import Any, Callable, Optional

from .checks import check_count, is_integer, is_number
from .eviction import EvictionStrategy, EvictionStrategyError, Priority, SearchTreeNode, eviction_policy_factory
from .eviction.strategy import StrategyLike
from .lock import CopyableLock
from .stats import CacheStats

logger = logging.getLogger('lzero_kvcache')

# Keys of these types need no further check; bool is another type.
KEY_TYPES = (int, str)
# In an error message.
SLOTS_SHOWN = 5


class KVCachePool:
    """
    Overview:
        A bounded map from keys to cached values. A full pool evicts by its strategy. It keeps values by reference and
        never looks inside. ``stats`` counts; ``peak_entries`` is the most it has ever held. Get, set and eviction cost
        O(1), with 'priority' O(log n); with 'tree' an eviction costs O(n).
        Several threads may use one pool: each operation holds ``lock``. Hold it yourself, as in ``with pool.lock:
        ...``, to make several operations one. An operation that breaks off, by Ctrl-C or a strategy that raises, sets
        ``is_whole`` to False; the next operation empties the pool. A strategy that raises, or names a victim that the
        pool does not hold, raises an EvictionStrategyError, which is a RuntimeError.
    Arguments:
        - pool_size (:obj:`int`): The number of entries that fit.
        - eviction_strategy (:obj:`Union[EvictionStrategy, str, dict]`): A member of ``EvictionStrategy``, a name in
            ``EVICTION_REGISTRY``, or ``dict(type=name, **options)``.
        - enable_stats (:obj:`bool`): Whether ``stats`` counts.
        - name (:obj:`str`): For error messages.
        - on_release (:obj:`Optional[Callable]`): Called with a list of the values that leave the pool: evicted,
            overwritten or cleared.
        - lock (:obj:`Optional[CopyableLock]`): For pools whose values share something; None: one of its own.
        - on_loss (:obj:`Optional[Callable]`): Called instead of ``on_release`` when an interrupted operation has
            emptied the pool. It is not known then which of the last values have been released.
    Raises:
        - ValueError: On a size below 1 or a strategy that is not registered.
    """

    def __init__(
            self, pool_size: int, eviction_strategy: StrategyLike = EvictionStrategy.FIFO, enable_stats: bool = True,
            name: str = 'default', on_release: Optional[Callable[[Sequence[Any]], None]] = None,
            lock: Optional[CopyableLock] = None, on_loss: Optional[Callable[[], None]] = None
    ) -> None:
        self.lock = CopyableLock() if lock is None else lock
        self.name = name
        self.pool_size = check_count(pool_size, f"pool_size of pool '{name}'")
        self.enable_stats = enable_stats
        self.stats = CacheStats()
        self.peak_entries = 0
        # A pool is emptied at every step of a search, where checking the strategy again would show.
        self._new_eviction_policy = eviction_policy_factory(eviction_strategy, f"eviction_strategy of pool '{name}'")
        self._on_release = on_release
        self._on_loss = on_loss
        self.is_whole = True
        self._value_of_slot: dict[int, Any] = {}
        # These have left and are still to be released.
        self._leaving: list[Any] = []
        self._change(self._reset_index)
        self._follows_search = self.eviction_policy.follows_search

    def _reset_index(self) -> None:
        self.eviction_policy = self._new_eviction_policy()
        self.eviction_policy.resize(self.pool_size)
        self._slot_of_key: dict[Hashable, int] = {}
        self._key_of_slot: dict[int, Hashable] = {}
        self._free_slots: list[int] = []
        # In one statement, so that an interruption finds each value in exactly one of the two.
        self._leaving, self._value_of_slot = [*self._leaving, *self._value_of_slot.values()], {}

    def set(self, cache_key: Hashable, kv_cache: Any, priority: Priority = None) -> int:
        """
        Overview:
            Store ``kv_cache`` under ``cache_key``. Overwrites the key's former value; else a full pool evicts an entry.
        Arguments:
            - cache_key (:obj:`Union[int, str]`): The key.
            - kv_cache (:obj:`Any`): The value, kept by reference.
            - priority (:obj:`Union[float, SearchTreeNode, None]`): For strategies that use one; None keeps the key's
                former priority.
        Returns:
            - slot (:obj:`int`): The slot of the entry. The same key keeps its slot.
        Raises:
            - ValueError: If the key is neither an int nor a string, or the priority is neither a number nor, with a
                strategy that follows the search, one of its nodes.
        """
        return self.set_many([cache_key], [kv_cache], [priority])[0]

    def set_many(
            self, cache_keys: Sequence[Hashable], kv_caches: Sequence[Any], priorities: Sequence[Priority]
    ) -> list[int]:
        """
        Overview:
            ``set`` for each key in turn, with a value and a priority each. What leaves is released together, after the
            last.
        Raises:
            - ValueError: As ``set``, and if the lengths differ; nothing is stored then.
        """
        if not len(cache_keys) == len(kv_caches) == len(priorities):
            raise ValueError(
                f"pool '{self.name}' was given {len(cache_keys)} keys, {len(kv_caches)} values and {len(priorities)} "
                'priorities: needed is one of each for each entry'
            )
        for cache_key, priority in zip(cache_keys, priorities):
            # The common case, in every simulation, needs no check and no call.
            if priority is not None or type(cache_key) not in KEY_TYPES:
                self._check_entry(cache_key, priority)
        with self.lock:
            if not self.is_whole:
                self._recover()
            self.is_whole = False
            slots = []
            try:
                for cache_key, kv_cache, priority in zip(cache_keys, kv_caches, priorities):
                    slots.append(self._store(cache_key, kv_cache, priority))
            except Exception as error:
                raise self._strategy_failure(error) from error
            if self._leaving:
                self._release()
            self.is_whole = True
        return slots

    def _store(self, cache_key: Hashable, kv_cache: Any, priority: Priority) -> int:
        slot = self._slot_of_key.get(cache_key)
        if slot is not None:
            replaced = self._value_of_slot[slot]
            if replaced is not kv_cache:
                self._value_of_slot[slot] = kv_cache
                self._leaving.append(replaced)
            self.eviction_policy.update(slot, priority)
            return slot
        self.eviction_policy.before_insert(cache_key)
        entries = len(self._slot_of_key)
        if entries >= self.pool_size:
            self._evict()
            entries -= 1
        slot = self._free_slots.pop() if self._free_slots else entries
        self._slot_of_key[cache_key] = slot
        self._key_of_slot[slot] = cache_key
        self._value_of_slot[slot] = kv_cache
        self.eviction_policy.insert(slot, priority)
        if entries >= self.peak_entries:
            self.peak_entries = entries + 1
        return slot

    def get(self, cache_key: Hashable) -> Optional[Any]:
        """
        Overview:
            Look ``cache_key`` up. This counts as a query and as a use of the entry.
        Returns:
            - kv_cache (:obj:`Optional[Any]`): The very object that was set, or None.
        Raises:
            - ValueError: If the key is neither an int nor a string.
        """
        return self.get_many([cache_key])[0]

    def get_many(self, cache_keys: Sequence[Hashable]) -> list[Optional[Any]]:
        """``get`` for each key in turn. A bad key raises its ValueError before anything is looked up."""
        for cache_key in cache_keys:
            if type(cache_key) not in KEY_TYPES:
                self._check_key(cache_key)
        with self.lock:
            if not self.is_whole:
                self._recover()
            self.is_whole = False
            slots = [self._slot_of_key.get(cache_key) for cache_key in cache_keys]
            kv_caches = []
            try:
                for slot in slots:
                    if slot is None:
                        kv_caches.append(None)
                    else:
                        self.eviction_policy.touch(slot)
                        kv_caches.append(self._value_of_slot[slot])
            except Exception as error:
                raise self._strategy_failure(error) from error
            if self.enable_stats:
                misses = slots.count(None)
                self.stats.count_queries(len(slots) - misses, misses)
            self.is_whole = True
        return kv_caches

    def peek(self, cache_key: Hashable) -> Optional[Any]:
        """As ``get``, without counting a query or a use."""
        self._check_key(cache_key)
        with self.lock:
            slot = self._whole_index().get(cache_key)
            return None if slot is None else self._value_of_slot[slot]

    def resize(self, pool_size: int) -> None:
        """
        Overview:
            Change the number of entries that fit. Shrinking evicts in the strategy's order; what stays keeps its slot.
        Raises:
            - ValueError: If the new one is below 1.
        """
        self._change(self._fit, check_count(pool_size, f"pool_size of pool '{self.name}'"))

    def _fit(self, pool_size: int) -> None:
        self.pool_size = pool_size
        self.eviction_policy.resize(pool_size)
        while len(self._slot_of_key) > pool_size:
            self._evict()

    def evict(self) -> None:
        """Let the strategy's next victim leave. A ValueError if the pool is empty."""
        with self.lock:
            if not len(self):
                raise ValueError(f"pool '{self.name}' is empty: there is nothing to evict")
            self._change(self._evict)

    def clear(self) -> None:
        """Remove all entries. The statistics stay, and the removed entries do not count as evicted."""
        self._change(self._reset_index)

    def keys(self) -> Iterator[Hashable]:
        """The keys of all entries, in no particular order."""
        with self.lock:
            return iter(list(self._whole_index()))

    def values(self) -> list[Any]:
        """The values of all entries, in no particular order."""
        with self.lock:
            return [self._value_of_slot[slot] for slot in self._whole_index().values()]

    def __contains__(self, cache_key: Hashable) -> bool:
        self._check_key(cache_key)
        with self.lock:
            return cache_key in self._whole_index()

    def __len__(self) -> int:
        with self.lock:
            return len(self._whole_index())

    def __repr__(self) -> str:
        return f"KVCachePool(name='{self.name}', entries={len(self)}, pool_size={self.pool_size}, stats={self.stats})"

    def _change(self, operation: Callable[..., None], *arguments: Any) -> None:
        # set_many and get_many repeat these lines: they run in every simulation, where a call would show.
        with self.lock:
            if not self.is_whole:
                self._recover()
            self.is_whole = False
            try:
                operation(*arguments)
            except Exception as error:
                raise self._strategy_failure(error) from error
            if self._leaving:
                self._release()
            self.is_whole = True

    def _whole_index(self) -> dict[Hashable, int]:
        if not self.is_whole:
            self._recover()
        return self._slot_of_key

    def _recover(self) -> None:
        self._reset_index()
        lost, self._leaving = self._leaving, []
        if self._on_loss is not None:
            self._on_loss()
        elif self._on_release is not None and lost:
            self._on_release(lost)
        self.is_whole = True
        logger.warning("An operation of pool '%s' has broken off: the pool has been emptied.", self.name)

    def _check_entry(self, cache_key: Hashable, priority: Priority) -> None:
        if type(cache_key) not in KEY_TYPES:
            self._check_key(cache_key)
        if isinstance(priority, SearchTreeNode):
            if not self._follows_search:
                raise ValueError(
                    f"priority of key {cache_key!r} in pool '{self.name}' is a node of a search, which "
                    f'{type(self.eviction_policy).__name__} does not follow: allowed is a number'
                )
        elif priority is not None and not is_number(priority):
            raise ValueError(
                f"priority of key {cache_key!r} in pool '{self.name}' is {priority!r}: allowed is a number"
            )

    def _check_key(self, cache_key: Hashable) -> None:
        # Lookups check it, too: to a dict, 1, 1.0 and True are the same.
        if not isinstance(cache_key, str) and not is_integer(cache_key):
            raise ValueError(f"key of pool '{self.name}' is {cache_key!r}: allowed are ints and strings")

    def _evict(self) -> None:
        victim = self.eviction_policy.victim()
        try:
            # Not the victim itself, which may be a NumPy integer.
            slot = self._slot_of_key.pop(self._key_of_slot.pop(victim))
        except (KeyError, TypeError):
            held = sorted(self._key_of_slot)
            raise ValueError(
                f'victim() has returned {victim!r}: allowed is one of the {len(held)} slots that it holds, '
                f"{', '.join(map(str, held[:SLOTS_SHOWN]))}{', ...' if len(held) > SLOTS_SHOWN else ''}"
            ) from None
        self.eviction_policy.remove(slot)
        self._free_slots.append(slot)
        if self.enable_stats:
            self.stats.evictions += 1
        self._leaving.append(self._value_of_slot.pop(slot))

    def _strategy_failure(self, error: Exception) -> EvictionStrategyError:
        raised_at = extract_tb(error.__traceback__)[-1]
        reason = str(error)
        if raised_at.filename != __file__:
            reason = f'{type(error).__name__}: {error} ({raised_at.filename}, line {raised_at.lineno})'
        return EvictionStrategyError(
            f"the eviction strategy {type(self.eviction_policy).__name__} of pool '{self.name}' has failed: {reason}"
        )

    def _release(self) -> None:
        # If ``on_release`` is interrupted, a caller that tracks references can no longer trust its counts.
        self.is_whole = self._on_loss is None
        leaving, self._leaving = self._leaving, []
        if self._on_release is not None:
            self._on_release(leaving)
