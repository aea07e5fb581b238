"""A task of the DeepMind Control Suite from its states, Sampled UniZero, small enough for a laptop's CPU."""
from copy import deepcopy

from easydict import EasyDict

from configs.research.dmc_state_sampled_unizero_config import create_config, main_config


def make_small(main_config: EasyDict, create_config: EasyDict) -> None:
    """Cut a DMC config down, in place."""
    main_config.env.update(
        collector_env_num=2,
        evaluator_env_num=1,
        n_evaluator_episode=1,
        # An episode has 500 steps.
        collect_max_episode_steps=50,
        eval_max_episode_steps=50,
    )
    main_config.policy.update(
        collector_env_num=2, evaluator_env_num=1, n_episode=2, num_simulations=10, batch_size=16, replay_ratio=0.05,
        train_start_after_envsteps=0, game_segment_length=50, eval_freq=1000
    )
    main_config.policy.model.num_of_sampled_actions = 6
    main_config.policy.model.world_model_cfg.update(num_of_sampled_actions=6, env_num=2, embed_dim=64, num_heads=4)
    create_config.env_manager.type = 'base'


main_config, create_config = deepcopy(main_config), deepcopy(create_config)
main_config.exp_name = 'data_unizero/dmc_state_sampled_unizero_kv_cache'
make_small(main_config, create_config)
