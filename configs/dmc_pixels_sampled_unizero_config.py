"""A task of the DeepMind Control Suite from images, Sampled UniZero, small enough for a laptop's CPU."""
from copy import deepcopy

from configs.dmc_state_sampled_unizero_config import make_small
from configs.research.dmc_pixels_sampled_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)
main_config.exp_name = 'data_unizero/dmc_pixels_sampled_unizero_kv_cache'
make_small(main_config, create_config)
