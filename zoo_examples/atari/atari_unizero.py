from lzero.entry import train_unizero

from configs.atari_unizero_config import create_config, main_config
from lzero_kvcache.progress import run_progress
from zoo_examples.options import apply_options, run_options


@run_options(default_max_env_step=1000)
def main(max_env_step: int, seed: int, **options) -> None:
    """Train UniZero on Pong with the managed KV cache."""
    exp_name = apply_options(main_config, **options)
    with run_progress(exp_name, max_env_step):
        train_unizero([main_config, create_config], seed=seed, max_env_step=max_env_step)


if __name__ == '__main__':
    main()
