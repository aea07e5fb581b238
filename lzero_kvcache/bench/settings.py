from dataclasses import dataclass
from typing import Optional

MODELS = {
    '64 wide, window 8': dict(embed_dim=64, context_length=8),
    '64 wide, window 8, rotary': dict(embed_dim=64, context_length=8, rotary=True),
    '256 wide, window 32': dict(embed_dim=256, context_length=32),
    '768 wide, window 8, images': dict(embed_dim=768, context_length=8, observation='image'),
}


@dataclass(frozen=True)
class Settings:
    """
    Overview:
        What a benchmark measures, and how often.
    Arguments:
        - seconds (:obj:`Optional[float]`): What all sections may take together: where it is short, sizes are left out.
            None: whatever they need.
        - steps (:obj:`int`): Collect steps of each arm per measurement, fewer where the time is short.
        - growth_steps (:obj:`int`): The same, where the search grows.
        - models (:obj:`Tuple[str, ...]`): Names in ``MODELS``.
        - env_num, num_simulations (:obj:`int`): The search.
        - env_nums, simulations, windows (:obj:`Tuple[int, ...]`): What the search grows to, windows in tokens.
        - pool_shares (:obj:`Tuple[float, ...]`): Recur pools, as shares of a search's nodes.
        - small_pool (:obj:`Optional[float]`): The one of them for the other models; None: none of them is measured.
        - pool_sizes (:obj:`Tuple[int, ...]`): Pools whose operations are timed, in entries.
        - pool_rounds, operations (:obj:`int`): How often each is timed, and by how many operations.
    """
    seconds: Optional[float] = None
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


QUICK = Settings(
    seconds=70, steps=15, growth_steps=15, models=('64 wide, window 8', '768 wide, window 8, images'),
    num_simulations=25, env_nums=(1, 16), simulations=(50, 100), windows=(16, 40), pool_shares=(0.25, ),
    small_pool=None, pool_sizes=(100, 10_000), pool_rounds=20,
)
