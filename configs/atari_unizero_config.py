"""Pong, UniZero with reanalysis (images, learned positions), small enough for a laptop's CPU."""
from easydict import EasyDict
from zoo.atari.config.atari_env_action_space_map import atari_env_action_space_map

env_id = 'PongNoFrameskip-v4'
action_space_size = atari_env_action_space_map[env_id]
collector_env_num = 2
evaluator_env_num = 1
game_segment_length = 20
num_unroll_steps = 5
infer_context_length = 4

main_config = EasyDict(
    exp_name='data_unizero/pong_unizero_kv_cache',
    env=dict(
        stop_value=int(1e6),
        env_id=env_id,
        observation_shape=(3, 64, 64),
        gray_scale=False,
        collector_env_num=collector_env_num,
        evaluator_env_num=evaluator_env_num,
        n_evaluator_episode=evaluator_env_num,
        manager=dict(shared_memory=False),
        # An episode of Pong takes a thousand steps.
        collect_max_episode_steps=100,
        eval_max_episode_steps=50,
    ),
    policy=dict(
        learn=dict(learner=dict(hook=dict(save_ckpt_after_iter=1000000))),
        model=dict(
            observation_shape=(3, 64, 64),
            action_space_size=action_space_size,
            world_model_cfg=dict(
                kv_cache=dict(strategy='lru'),
                continuous_action_space=False,
                max_blocks=num_unroll_steps,
                # Each timestep has two tokens, observation and action.
                max_tokens=2 * num_unroll_steps,
                context_length=2 * infer_context_length,
                device='cuda',
                action_space_size=action_space_size,
                num_layers=2,
                num_heads=4,
                embed_dim=64,
                obs_type='image',
                env_num=max(collector_env_num, evaluator_env_num),
                rotary_emb=False,
            ),
        ),
        num_unroll_steps=num_unroll_steps,
        replay_ratio=0.05,
        batch_size=8,
        learning_rate=0.0001,
        num_simulations=10,
        # A quarter of each batch gets new policy targets from a search with the target model.
        reanalyze_ratio=0.25,
        n_episode=collector_env_num,
        game_segment_length=game_segment_length,
        replay_buffer_size=int(1e6),
        eval_freq=1000,
        collector_env_num=collector_env_num,
        evaluator_env_num=evaluator_env_num,
    ),
)
create_config = EasyDict(
    env=dict(type='atari_lightzero', import_names=['zoo.atari.envs.atari_lightzero_env']),
    env_manager=dict(type='base'),
    policy=dict(type='unizero', import_names=['lzero_kvcache.plugin']),
)
