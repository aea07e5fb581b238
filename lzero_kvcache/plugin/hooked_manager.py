"""This package's manager under the names that LightZero's own code calls one by."""
from collections.abc import Mapping
from typing import Any, Optional

from ..manager import KVCacheManager
from ..pool import KVCachePool
from ..world_model.histories import RootStats


class HookedKVCachePool(KVCachePool):
    """
    Overview:
        A pool whose keys LightZero's own code reads, to forget what it keeps beside the entries.
    """

    @property
    def _key_to_index(self) -> Mapping[int, int]:
        return self._slot_of_key


class HookedKVCacheManager(KVCacheManager):
    """
    Overview:
        A ``KVCacheManager`` for the ``kv_cache_manager`` of a LightZero that has a manager of its own. Its methods and
        their arguments are those of LightZero's. Pools keep copies, because LightZero goes on writing into what it
        hands over. ``root_stats`` tells what has been found of running episodes: at their roots LightZero asks an init
        pool alone, everywhere else by ``hierarchical_get``. It never asks the wm pool.
    Arguments:
        - config (:obj:`Any`): As ``KVCacheManager``.
        - env_num (:obj:`int`): The number of environments.
        - tokens_per_observation (:obj:`int`): What a context begins with after a miss.
    Raises:
        - ValueError: As ``KVCacheManager``.
    """

    pool_class = HookedKVCachePool

    def __init__(self, config: Any, env_num: int, tokens_per_observation: int = 1) -> None:
        super().__init__(config, env_num)
        self.root_stats = RootStats()
        self.keys_values_wm_list: list[Any] = []
        self.keys_values_wm_size_list: list[int] = []
        self._tokens_per_observation = tokens_per_observation

    def get_init_cache(self, env_id: int, cache_key: int) -> Optional[Any]:
        """
        Overview:
            Look the context of an episode's last step up.
        Arguments:
            - env_id (:obj:`int`): The environment.
            - cache_key (:obj:`int`): The key.
        Returns:
            - kv_cache (:obj:`Optional[KeysValues]`): What was set, or None.
        Raises:
            - ValueError: If there is no such environment.
        """
        found = super().get_init_cache(env_id, cache_key)
        self.root_stats.continuing += 1
        self.root_stats.cold_starts += found is None
        self.root_stats.context_tokens += self._tokens_per_observation if found is None else found.size
        return found

    def set_init_cache(self, env_id: int, cache_key: int, kv_cache: Any) -> int:
        """
        Overview:
            Store a copy of a root's context.
        Arguments:
            - env_id (:obj:`int`): The environment.
            - cache_key (:obj:`int`): The key.
            - kv_cache (:obj:`KeysValues`): The context, of one row.
        Returns:
            - slot (:obj:`int`): The slot in the environment's pool.
        Raises:
            - ValueError: If there is no such environment.
        """
        return super().set_init_cache(env_id, cache_key, kv_cache.clone())

    def set_recur_cache(self, cache_key: int, kv_cache: Any) -> int:
        """
        Overview:
            Store a copy of a search node's context. Result as ``KVCachePool.set``.
        """
        return super().set_recur_cache(cache_key, kv_cache.clone())

    def set_wm_cache(self, cache_key: int, kv_cache: Any) -> int:
        """
        Overview:
            Store a copy of a row of the last inference. Result as ``KVCachePool.set``.
        """
        return super().set_wm_cache(cache_key, kv_cache.clone())

    def hierarchical_get(self, env_id: int, cache_key: int) -> Optional[Any]:
        """
        Overview:
            Look a context up, among the environment's root contexts first, then among the search nodes.
        Arguments:
            - env_id (:obj:`int`): The environment.
            - cache_key (:obj:`int`): The key.
        Returns:
            - kv_cache (:obj:`Optional[KeysValues]`): What was set, or None.
        Raises:
            - ValueError: If there is no such environment.
        """
        with self.lock:
            # Not by this class's own, which is asked at roots.
            found = super().get_init_cache(env_id, cache_key)
            return self.get_recur_cache(cache_key) if found is None else found

    def clear_all(self) -> None:
        """
        Overview:
            Remove every entry of every pool, and LightZero's working batch. The statistics stay.
        """
        with self.lock:
            super().clear_all()
            self.keys_values_wm_list.clear()
            self.keys_values_wm_size_list.clear()
