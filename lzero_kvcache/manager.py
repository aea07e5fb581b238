from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Callable, Optional

from .budget import MIB, ContextMemory, MemoryBudget, PoolSizes, check_sizes
from .checks import check_count, is_integer
from .config import KVCacheConfig, PoolConfig, entry_of
from .lock import CopyableLock
from .placement import check_names
from .pool import KVCachePool
from .stats import CacheStats


def _tensor_bytes(values: Sequence[Any]) -> int:
    # Imported late: a manager built by hand needs no torch.
    from .store.memory import tensor_bytes

    return tensor_bytes(values)


class KVCacheManager:
    """
    Overview:
        The three kinds of pool of one world model: ``init_pools`` (root contexts, one pool per environment, carried
        from step to step), ``recur_pool`` (nodes of the running search, all environments) and ``wm_pool`` (rows of the
        last inference). Several threads may use one manager: its pools share ``lock``, which each operation holds.
    Arguments:
        - config (:obj:`Any`): An EasyDict, a dict or any object with attributes, normally ``world_model_cfg``. Reads
            ``kv_cache`` (see ``KVCacheConfig``) and, for sizes that it leaves open, ``num_simulations`` (default 50)
            and ``game_segment_length``. With ``memory_budget_mb`` also ``num_layers``, ``embed_dim`` and
            ``context_length``.
        - env_num (:obj:`int`): The number of environments.
        - enable_stats (:obj:`bool`): Whether the pools count; False overrides ``kv_cache.enable_stats``.
        - on_release (:obj:`Optional[Callable]`): As ``KVCachePool``.
        - measure (:obj:`Callable`): Returns how many bytes of keys and values a list of values holds.
        - memory (:obj:`Optional[ContextMemory]`): What entries cost; None: a whole window each.
        - on_loss (:obj:`Optional[Callable]`): As ``KVCachePool``.
    Raises:
        - ValueError: If the config is not valid, ``env_num`` is below 1, or the memory budget or this machine's memory
            too small.
    """

    # What builds the pools, with the arguments of ``KVCachePool``.
    pool_class: type[KVCachePool] = KVCachePool

    def __init__(
            self, config: Any, env_num: int, enable_stats: bool = True,
            on_release: Optional[Callable[[Sequence[Any]], None]] = None,
            measure: Callable[[Sequence[Any]], int] = _tensor_bytes, memory: Optional[ContextMemory] = None,
            on_loss: Optional[Callable[[], None]] = None
    ) -> None:
        self.env_num = check_count(env_num, 'env_num', 'environments')
        if isinstance(config, Mapping):
            check_names(config)
        self.config = KVCacheConfig.find_in(config)
        self._measure = measure
        self.lock = CopyableLock()
        self.enable_stats = enable_stats and self.config.enable_stats
        self.budget: Optional[MemoryBudget] = None
        self.memory = _memory_of(config, self.config) if memory is None else memory
        self.sizes = self._pool_sizes(config)

        def build(name: str, pool_config: PoolConfig, size: int) -> KVCachePool:
            strategy = self.config.strategy_of(pool_config)
            return self.pool_class(size, strategy, self.enable_stats, name, on_release, self.lock, on_loss)

        self.init_pools: list[KVCachePool] = [
            build(f'init_pools[{env_id}]', self.config.init_pool, self.sizes.init) for env_id in range(env_num)
        ]
        self.recur_pool = build('recur_pool', self.config.recur_pool, self.sizes.recur)
        self.wm_pool = build('wm_pool', self.config.wm_pool, self.sizes.wm)

    def _pool_sizes(self, config: Any) -> PoolSizes:
        num_simulations = _count_in(config, 'num_simulations', 'simulations', default=50)
        init_size = _count_in(config, 'game_segment_length', 'steps', default=max(256, 2 * num_simulations))
        wanted = PoolSizes(init=init_size, recur=num_simulations * self.env_num, wm=self.env_num)
        given = PoolSizes(self.config.init_pool.size, self.config.recur_pool.size, self.config.wm_pool.size)
        check_sizes(given, wanted, self.memory, self.env_num)
        if self.config.memory_budget_mb is None:
            return given.or_else(wanted)
        self.budget = MemoryBudget(float(self.config.memory_budget_mb), self.memory, self.env_num)
        return self.budget.fit(given, wanted)

    def describe(self) -> str:
        """Mode, strategies, sizes and, if the model's dimensions are known, the memory of full pools, in a sentence."""
        config, sizes = self.config, self.sizes
        init, recur, wm = (
            name if isinstance(name, str) else name['type']
            for name in map(config.strategy_of, (config.init_pool, config.recur_pool, config.wm_pool))
        )
        text = (
            f"kv_cache.mode='{config.mode}': init pools of {sizes.init:,} entries for each of {self.env_num} "
            f'environments ({init}), a recur pool of {sizes.recur:,} ({recur}), a wm pool of {sizes.wm:,} ({wm})'
        )
        if self.memory is None:
            return text
        needed = self.memory.tokens_of(sizes, self.env_num) * self.memory.token_bytes
        budget = '' if self.budget is None else f', of memory_budget_mb={self.budget.megabytes:g}'
        return f'{text}; {needed / MIB:,.2f} MiB when they are full{budget}, {self.memory.token_bytes:,} bytes a token'

    def get_init_cache(self, env_id: int, cache_key: Hashable) -> Optional[Any]:
        """Look a root context up. Result as ``KVCachePool.get``; a ValueError if there is no such environment."""
        return self._init_pool(env_id).get(cache_key)

    def set_init_cache(self, env_id: int, cache_key: Hashable, kv_cache: Any, priority: Optional[float] = None) -> int:
        """Store a root context. As ``KVCachePool.set``; a ValueError if there is no such environment."""
        return self._init_pool(env_id).set(cache_key, kv_cache, priority)

    def get_recur_cache(self, cache_key: Hashable) -> Optional[Any]:
        """Look a search node up. Arguments and result as ``KVCachePool.get``."""
        return self.recur_pool.get(cache_key)

    def set_recur_cache(self, cache_key: Hashable, kv_cache: Any, priority: Optional[float] = None) -> int:
        """Store a search node. Arguments and result as ``KVCachePool.set``."""
        return self.recur_pool.set(cache_key, kv_cache, priority)

    def get_wm_cache(self, cache_key: Hashable) -> Optional[Any]:
        """Look a row of the last inference up. Arguments and result as ``KVCachePool.get``."""
        return self.wm_pool.get(cache_key)

    def set_wm_cache(self, cache_key: Hashable, kv_cache: Any, priority: Optional[float] = None) -> int:
        """Store a row of the last inference. Arguments and result as ``KVCachePool.set``."""
        return self.wm_pool.set(cache_key, kv_cache, priority)

    def hierarchical_get(self, env_id: int, cache_key: Hashable) -> Optional[Any]:
        """Look up a root context, else a search node. Result and errors as ``get_init_cache``."""
        with self.lock:
            kv_cache = self.get_init_cache(env_id, cache_key)
            return self.get_recur_cache(cache_key) if kv_cache is None else kv_cache

    @property
    def is_whole(self) -> bool:
        """False if an interrupted operation has left a pool that is still to be emptied."""
        return self.recur_pool.is_whole and self.wm_pool.is_whole and all(pool.is_whole for pool in self.init_pools)

    def pools(self) -> dict[str, list[KVCachePool]]:
        """All pools by kind: 'init_pools', 'recur_pool', 'wm_pool'."""
        return {'init_pools': self.init_pools, 'recur_pool': [self.recur_pool], 'wm_pool': [self.wm_pool]}

    def total_stats(self) -> dict[str, CacheStats]:
        """A copy of the statistics by kind of pool, the environments' pools added up."""
        with self.lock:
            return {kind: sum((pool.stats for pool in pools), CacheStats()) for kind, pools in self.pools().items()}

    def memory_bytes(self) -> dict[str, int]:
        """Bytes of keys and values by kind of pool; what several entries of a kind share counts once."""
        with self.lock:
            return {
                kind: self._measure([value for pool in pools for value in pool.values()])
                for kind, pools in self.pools().items()
            }

    def clear_all(self) -> None:
        """Remove every entry of every pool. The statistics stay."""
        with self.lock:
            self.clear_init_caches()
            self.clear_recur_cache()
            self.wm_pool.clear()

    def clear_init_caches(self) -> None:
        """Remove all root contexts."""
        with self.lock:
            for pool in self.init_pools:
                pool.clear()

    def clear_recur_cache(self) -> None:
        """Remove all search nodes."""
        self.recur_pool.clear()

    def reset_stats(self) -> None:
        """Let every pool count from zero again. The entries stay."""
        with self.lock:
            for pools in self.pools().values():
                for pool in pools:
                    pool.stats.reset()

    def get_stats_summary(self) -> dict[str, Any]:
        """
        Overview:
            The statistics of every pool as text.
        Returns:
            - summary (:obj:`Dict[str, Any]`): ``{'stats_enabled': True, 'init_pools': {'env_0': 'CacheStats(...)',
                ...}, 'recur_pool': 'CacheStats(...)', 'wm_pool': 'CacheStats(...)'}``, or ``{'stats_enabled': False}``.
        """
        if not self.enable_stats:
            return {'stats_enabled': False}
        with self.lock:
            return {
                'stats_enabled': True,
                'init_pools': {f'env_{env_id}': str(pool.stats) for env_id, pool in enumerate(self.init_pools)},
                'recur_pool': str(self.recur_pool.stats),
                'wm_pool': str(self.wm_pool.stats),
            }

    def _init_pool(self, env_id: int) -> KVCachePool:
        if not is_integer(env_id) or not 0 <= env_id < self.env_num:
            raise ValueError(f'env_id is {env_id!r}: allowed are the integers 0 to {self.env_num - 1}')
        return self.init_pools[env_id]


def _count_in(config: Any, name: str, unit: str, default: int) -> int:
    count = entry_of(config, name)
    return default if count is None else check_count(count, name, unit)


def _memory_of(config: Any, kv_cache: KVCacheConfig) -> Optional[ContextMemory]:
    known = None not in [entry_of(config, name) for name in ('num_layers', 'embed_dim', 'context_length')]
    return ContextMemory.of_whole_windows(config) if known or kv_cache.memory_budget_mb is not None else None
