"""CartPole, UniZero (vector observations, rotary positions), small enough for a laptop's CPU."""
from copy import deepcopy

from configs.research.cartpole_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

main_config.exp_name = 'data_unizero/cartpole_unizero_kv_cache'
main_config.policy.batch_size = 64
main_config.policy.eval_freq = 100
create_config.env_manager.type = 'base'
