"""Pong, UniZero (images, learned positions), with the values of LightZero's zoo."""
from easydict import EasyDict
from zoo.atari.config.atari_env_action_space_map import atari_env_action_space_map

env_id = 'PongNoFrameskip-v4'
action_space_size = atari_env_action_space_map[env_id]
collector_env_num = 8
evaluator_env_num = 3
num_unroll_steps = 10
infer_context_length = 4

main_config = EasyDict(
    exp_name='data_unizero/pong_unizero_kv_cache_research',
    env=dict(
        stop_value=int(1e6),
        env_id=env_id,
        observation_shape=(3, 64, 64),
        gray_scale=False,
        collector_env_num=collector_env_num,
        evaluator_env_num=evaluator_env_num,
        n_evaluator_episode=evaluator_env_num,
        manager=dict(shared_memory=False),
    ),
    policy=dict(
        learn=dict(learner=dict(hook=dict(save_ckpt_after_iter=1000000))),
        model=dict(
            observation_shape=(3, 64, 64),
            action_space_size=action_space_size,
            world_model_cfg=dict(
                kv_cache=dict(strategy='lru'),
                policy_entropy_weight=1e-4,
                continuous_action_space=False,
                max_blocks=num_unroll_steps,
                # Each timestep has two tokens, observation and action.
                max_tokens=2 * num_unroll_steps,
                context_length=2 * infer_context_length,
                device='cuda',
                action_space_size=action_space_size,
                num_layers=2,
                num_heads=8,
                embed_dim=768,
                obs_type='image',
                env_num=max(collector_env_num, evaluator_env_num),
                rotary_emb=False,
            ),
        ),
        model_path=None,
        num_unroll_steps=num_unroll_steps,
        replay_ratio=0.25,
        batch_size=64,
        learning_rate=0.0001,
        num_simulations=50,
        train_start_after_envsteps=2000,
        game_segment_length=20,
        replay_buffer_size=int(1e6),
        eval_freq=int(5e3),
        collector_env_num=collector_env_num,
        evaluator_env_num=evaluator_env_num,
    ),
)
create_config = EasyDict(
    env=dict(type='atari_lightzero', import_names=['zoo.atari.envs.atari_lightzero_env']),
    env_manager=dict(type='subprocess'),
    policy=dict(type='unizero', import_names=['lzero_kvcache.plugin']),
)
