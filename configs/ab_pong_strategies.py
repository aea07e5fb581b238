"""Pong by segments with a recur pool that holds a quarter of a search's nodes: which eviction strategy."""
from configs.atari_unizero_segment_config import create_config, main_config

title = 'Pong: eviction strategies with a small recur pool'
seeds = [0, 1]
max_env_step = 1000

nodes = main_config.policy.num_simulations * main_config.policy.collector_env_num
small_pool = dict(size=nodes // 4)

arms = dict(
    fifo=dict(kv_cache=dict(strategy='fifo', recur_pool=small_pool)),
    lru=dict(kv_cache=dict(strategy='lru', recur_pool=small_pool)),
    tree=dict(kv_cache=dict(strategy='tree', recur_pool=small_pool)),
    # LightZero's own cache.
    release=dict(kv_cache=None),
)
