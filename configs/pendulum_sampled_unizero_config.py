"""Pendulum, Sampled UniZero (continuous actions, learned positions), small enough for a laptop's CPU."""
from copy import deepcopy

from configs.research.pendulum_sampled_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

main_config.exp_name = 'data_unizero/pendulum_sampled_unizero_kv_cache'
main_config.env.update(collector_env_num=2, evaluator_env_num=1, n_evaluator_episode=1)
main_config.policy.update(
    collector_env_num=2, evaluator_env_num=1, n_episode=2, num_simulations=10, batch_size=16, replay_ratio=0.05,
    eval_freq=100
)
main_config.policy.model.num_of_sampled_actions = 6
main_config.policy.model.world_model_cfg.update(
    num_of_sampled_actions=6, env_num=2, collector_env_num=2, evaluator_env_num=1, embed_dim=64, num_heads=4
)
create_config.env_manager.type = 'base'
