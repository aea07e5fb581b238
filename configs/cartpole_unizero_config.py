"""CartPole, UniZero (vector observations, rotary positions), small enough for a laptop's CPU."""
from copy import deepcopy

from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

# All that the cache needs; what follows only makes the run small.
create_config.policy.import_names = ['lzero_kvcache.plugin']
main_config.policy.model.world_model_cfg.kv_cache = dict(strategy='lru')

# For a model that is trained from scratch; one that the release has trained was searched with its positions.
main_config.policy.model.world_model_cfg.kv_cache.rope_positions = 'aligned'
# The stock scale is meant for a GPU.
main_config.exp_name = 'data_unizero/cartpole_unizero_kv_cache'
main_config.policy.batch_size = 64
main_config.policy.eval_freq = 100
create_config.env_manager.type = 'base'
