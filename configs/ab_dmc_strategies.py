"""DeepMind Control Suite from states with a recur pool that holds a quarter of a search's nodes: which strategy."""
from copy import deepcopy

from configs.dmc_state_sampled_unizero_config import create_config, main_config

title = 'DMC states: eviction strategies with a small recur pool'
seeds = [0, 1, 2]
max_env_step = 1000

main_config = deepcopy(main_config)
# So few steps come to fifty learner steps.
main_config.policy.eval_freq = 10

nodes = main_config.policy.num_simulations * main_config.policy.collector_env_num
small_pool = dict(size=nodes // 4)

arms = dict(
    fifo=dict(kv_cache=dict(strategy='fifo', recur_pool=small_pool)),
    lru=dict(kv_cache=dict(strategy='lru', recur_pool=small_pool)),
    tree=dict(kv_cache=dict(strategy='tree', recur_pool=small_pool)),
    # LightZero's own cache.
    release=dict(kv_cache=None),
)
