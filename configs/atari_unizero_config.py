"""Pong, UniZero with reanalysis (images, learned positions), small enough for a laptop's CPU."""
from copy import deepcopy

from configs.research.atari_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

collector_env_num = 2
evaluator_env_num = 1
num_unroll_steps = 5

main_config.exp_name = 'data_unizero/pong_unizero_kv_cache'
main_config.env.update(
    collector_env_num=collector_env_num,
    evaluator_env_num=evaluator_env_num,
    n_evaluator_episode=evaluator_env_num,
    # An episode of Pong takes a thousand steps.
    collect_max_episode_steps=100,
    eval_max_episode_steps=50,
)
main_config.policy.update(
    num_unroll_steps=num_unroll_steps,
    replay_ratio=0.05,
    batch_size=8,
    num_simulations=10,
    train_start_after_envsteps=0,
    # A quarter of each batch gets new policy targets from a search with the target model.
    reanalyze_ratio=0.25,
    n_episode=collector_env_num,
    eval_freq=1000,
    collector_env_num=collector_env_num,
    evaluator_env_num=evaluator_env_num,
)
main_config.policy.model.world_model_cfg.update(
    max_blocks=num_unroll_steps,
    max_tokens=2 * num_unroll_steps,
    num_heads=4,
    embed_dim=64,
    env_num=max(collector_env_num, evaluator_env_num),
)
create_config.env_manager.type = 'base'
