"""A task of the DeepMind Control Suite from images, Sampled UniZero, with the values of LightZero's repository."""
from copy import deepcopy

from configs.research.dmc_state_sampled_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

main_config.exp_name = 'data_unizero/dmc_pixels_sampled_unizero_kv_cache_research'
# The size for which the release's encoder was made.
main_config.env.update(from_pixels=True, height=64, width=64, scale=True)
main_config.policy.update(replay_ratio=0.25, eval_freq=int(2e3))
main_config.policy.model.update(observation_shape=(3, 64, 64), model_type='conv')
main_config.policy.model.world_model_cfg.update(obs_type='image', model_type='conv')
