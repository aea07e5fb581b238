"""The names under which the stock code reaches into the world model's caches."""
from typing import Any


def bind_stock_names(world_model: Any, mode: str) -> None:
    """Let the stock code's ``clear()`` of its caches reach the managed pools, and drop its own working memory, which
    cannot be pickled. In mode 'validate' the stock code keeps its own caches. Its counters, such as ``hit_count``, stay
    plain numbers.
    """
    if mode != 'managed':
        return
    world_model.past_kv_cache_init_infer_envs = world_model.kv_cache_manager.init_pools
    world_model.past_kv_cache_recurrent_infer = world_model.kv_cache_manager.recur_pool
    world_model.keys_values_wm_list = world_model.kv_cache_manager.wm_pool
    world_model.keys_values_wm = None
    world_model.keys_values_wm_single_env = None
    world_model.keys_values_wm_single_env_tmp = None


def count_queries(world_model: Any, queries: int, hits: int) -> None:
    """Add to the stock code's counters of contexts that a search asked for and found."""
    # Not through the module's own setattr, which looks for parameters first and would show in every simulation.
    counters = vars(world_model)
    counters['total_query_count'] += queries
    counters['hit_count'] += hits
