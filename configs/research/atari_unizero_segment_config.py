"""Pong, UniZero by segments with the replay buffer reanalysed, with the values of LightZero's zoo."""
from copy import deepcopy

from configs.research.atari_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

main_config.exp_name = 'data_unizero/pong_unizero_segment_kv_cache_research'
main_config.env.update(evaluator_env_num=10, n_evaluator_episode=10)
main_config.policy.update(
    evaluator_env_num=10,
    num_segments=main_config.policy.collector_env_num,
    train_start_after_envsteps=0,
    # Reanalyse once in 50 epochs, 160 sequences from the older three quarters of the buffer.
    buffer_reanalyze_freq=1 / 50,
    reanalyze_batch_size=160,
    reanalyze_partition=0.75,
)
main_config.policy.model.world_model_cfg.update(policy_entropy_weight=5e-3, env_num=10)
