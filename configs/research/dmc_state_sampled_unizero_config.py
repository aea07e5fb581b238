"""A task of the DeepMind Control Suite from its states, Sampled UniZero, with the values of LightZero's repository."""
from easydict import EasyDict

domain_name = 'cartpole'
task_name = 'swingup'
# These go with the task: the numbers of its state and of its actions.
observation_shape = 5
action_space_size = 1
num_of_sampled_actions = 20
collector_env_num = 8
evaluator_env_num = 3
game_segment_length = 100
num_unroll_steps = 5
infer_context_length = 2

main_config = EasyDict(
    exp_name='data_unizero/dmc_state_sampled_unizero_kv_cache_research',
    env=dict(
        domain_name=domain_name,
        task_name=task_name,
        from_pixels=False,
        frame_skip=2,
        continuous=True,
        # LightZero's own environment has no defaults for these two.
        save_replay_gif=False,
        replay_path_gif=None,
        collector_env_num=collector_env_num,
        evaluator_env_num=evaluator_env_num,
        n_evaluator_episode=evaluator_env_num,
        manager=dict(shared_memory=False),
    ),
    policy=dict(
        learn=dict(learner=dict(hook=dict(save_ckpt_after_iter=1000000))),
        model=dict(
            observation_shape=observation_shape,
            action_space_size=action_space_size,
            continuous_action_space=True,
            num_of_sampled_actions=num_of_sampled_actions,
            model_type='mlp',
            world_model_cfg=dict(
                kv_cache=dict(strategy='lru'),
                obs_type='vector',
                model_type='mlp',
                norm_type='LN',
                num_unroll_steps=num_unroll_steps,
                policy_entropy_weight=5e-2,
                policy_loss_type='kl',
                continuous_action_space=True,
                num_of_sampled_actions=num_of_sampled_actions,
                sigma_type='conditioned',
                fixed_sigma_value=0.5,
                bound_type=None,
                max_blocks=num_unroll_steps,
                # Each timestep has two tokens, observation and action.
                max_tokens=2 * num_unroll_steps,
                context_length=2 * infer_context_length,
                device='cuda',
                action_space_size=action_space_size,
                num_layers=2,
                num_heads=8,
                embed_dim=768,
                env_num=max(collector_env_num, evaluator_env_num),
                rotary_emb=False,
            ),
        ),
        model_path=None,
        num_unroll_steps=num_unroll_steps,
        cuda=True,
        use_augmentation=False,
        env_type='not_board_games',
        replay_ratio=0.1,
        batch_size=64,
        discount_factor=0.99,
        td_steps=5,
        piecewise_decay_lr_scheduler=False,
        learning_rate=0.0001,
        grad_clip_value=5,
        manual_temperature_decay=True,
        threshold_training_steps_for_final_temperature=int(2.5e4),
        cos_lr_scheduler=True,
        train_start_after_envsteps=2000,
        game_segment_length=game_segment_length,
        num_simulations=50,
        reanalyze_ratio=0,
        n_episode=collector_env_num,
        eval_freq=int(5e3),
        replay_buffer_size=int(1e6),
        collector_env_num=collector_env_num,
        evaluator_env_num=evaluator_env_num,
    ),
)
create_config = EasyDict(
    # LightZero's own environment where dmc2gym is installed, else the one of this project.
    env=dict(type='dmc_lightzero', import_names=['lzero_kvcache.envs.dmc_lightzero_env']),
    env_manager=dict(type='subprocess'),
    policy=dict(type='sampled_unizero', import_names=['lzero_kvcache.plugin']),
)
