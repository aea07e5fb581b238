"""CartPole, UniZero (vector observations, rotary positions), as in LightZero's zoo."""
from copy import deepcopy

from zoo.classic_control.cartpole.config.cartpole_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

# All that the cache needs.
create_config.policy.import_names = ['lzero_kvcache.plugin']
main_config.policy.model.world_model_cfg.kv_cache = dict(strategy='lru')

main_config.exp_name = 'data_unizero/cartpole_unizero_kv_cache_research'
