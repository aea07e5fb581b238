"""Pong, UniZero by segments with the replay buffer reanalysed, small enough for a laptop's CPU."""
from copy import deepcopy

from configs.atari_unizero_config import create_config, main_config

main_config, create_config = deepcopy(main_config), deepcopy(create_config)

main_config.exp_name = 'data_unizero/pong_unizero_segment_kv_cache'
main_config.policy.update(
    num_segments=main_config.policy.collector_env_num,
    train_start_after_envsteps=0,
    reanalyze_ratio=0.,
    # Reanalyse once per epoch, sequences from the older three quarters of the buffer.
    buffer_reanalyze_freq=1,
    reanalyze_batch_size=4,
    reanalyze_partition=0.75,
    replay_ratio=0.1,
)
