from easydict import EasyDict
from lzero.entry import train_unizero

from lzero_kvcache.progress import run_progress
from zoo_examples.options import run_options


@run_options('atari_unizero_config', max_env_step=1000)
def main(main_config: EasyDict, create_config: EasyDict, exp_name: str, max_env_step: int, seed: int) -> None:
    """Train UniZero on Pong with the managed KV cache."""
    with run_progress(exp_name, max_env_step):
        train_unizero([main_config, create_config], seed=seed, max_env_step=max_env_step)


if __name__ == '__main__':
    main()
