from dataclasses import dataclass
from typing import Optional

MODELS = {
    '64 wide, window 8': dict(embed_dim=64, context_length=8),
    '64 wide, window 8, rotary': dict(embed_dim=64, context_length=8, rotary=True),
    '256 wide, window 32': dict(embed_dim=256, context_length=32),
    '768 wide, window 8, images': dict(embed_dim=768, context_length=8, observation='image'),
}
# Config files of LightZero, and what makes them small enough for a laptop's CPU; the same as in configs/.
TRAININGS = {
    'CartPole': dict(
        config='zoo/classic_control/cartpole/config/cartpole_unizero_config.py', max_env_step=300,
        env={}, policy=dict(batch_size=64, eval_freq=100),
    ),
    'Pong': dict(
        config='zoo/atari/config/atari_unizero_config.py', max_env_step=400,
        env=dict(
            collector_env_num=2, evaluator_env_num=1, n_evaluator_episode=1, collect_max_episode_steps=100,
            eval_max_episode_steps=50,
        ),
        policy=dict(
            collector_env_num=2, evaluator_env_num=1, n_episode=2, num_simulations=10, num_unroll_steps=5,
            batch_size=8, replay_ratio=0.05, reanalyze_ratio=0.25, train_start_after_envsteps=0, eval_freq=1000,
            model=dict(world_model_cfg=dict(max_blocks=5, max_tokens=10, num_heads=4, embed_dim=64, env_num=2)),
        ),
    ),
}


@dataclass(frozen=True)
class Settings:
    """What a benchmark measures, and how often.

    Args:
        seconds: What all sections may take together: where it is short, sizes are left out. None: whatever they need.
        compiles: Whether the compiled step takes its turn, too.
        steps: Collect steps of each arm per measurement, fewer where the time is short.
        growth_steps: The same, where the search grows.
        models: Names in ``MODELS``.
        env_num, num_simulations: The search.
        env_nums, simulations, windows: What the search grows to, windows in tokens.
        pool_shares: Recur pools, as shares of a search's nodes.
        small_pool: The one of them for the other models; None: none of them is measured.
        pool_sizes: Pools whose operations are timed, in entries.
        pool_rounds, operations: How often each is timed, and by how many operations.
        trainings: Names in ``TRAININGS``.
        pairs: Trainings of each arm.
    """
    seconds: Optional[float] = None
    compiles: bool = True
    steps: int = 30
    growth_steps: int = 7
    models: tuple[str, ...] = tuple(MODELS)
    env_num: int = 8
    num_simulations: int = 50
    env_nums: tuple[int, ...] = (1, 4, 16, 64)
    simulations: tuple[int, ...] = (25, 50, 100, 200, 400)
    windows: tuple[int, ...] = (8, 16, 40, 80, 128)
    pool_shares: tuple[float, ...] = (0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
    small_pool: Optional[float] = 0.25
    pool_sizes: tuple[int, ...] = (100, 1_000, 10_000, 100_000)
    pool_rounds: int = 200
    operations: int = 500
    trainings: tuple[str, ...] = tuple(TRAININGS)
    pairs: int = 3


QUICK = Settings(
    seconds=70, compiles=False, steps=15, growth_steps=15, models=('64 wide, window 8', '768 wide, window 8, images'),
    num_simulations=25, env_nums=(1, 16), simulations=(50, 100), windows=(16, 40), pool_shares=(0.25, ),
    small_pool=None, pool_sizes=(100, 10_000), pool_rounds=20, pairs=1,
)
