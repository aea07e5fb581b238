"""CartPole, UniZero (vector observations, rotary positions), small enough for a laptop's CPU."""
from copy import deepcopy

from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

# The two lines that put the cache to work.
create_config.policy.import_names = ['lzero_kvcache.plugin']
main_config.policy.model.world_model_cfg.kv_cache = dict(strategy='lru')

# Laptop scale.
main_config.exp_name = 'data_unizero/cartpole_unizero_kv_cache'
main_config.policy.batch_size = 64
main_config.policy.eval_freq = 100
create_config.env_manager.type = 'base'
