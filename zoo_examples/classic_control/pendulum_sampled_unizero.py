from easydict import EasyDict
from lzero.entry import train_unizero

from lzero_kvcache.progress import run_progress
from zoo_examples.options import run_options


@run_options('pendulum_sampled_unizero_config', max_env_step=2000)
def main(main_config: EasyDict, create_config: EasyDict, exp_name: str, max_env_step: int, seed: int) -> None:
    """Train Sampled UniZero on Pendulum, whose actions are continuous, with the managed KV cache."""
    with run_progress(exp_name, max_env_step):
        train_unizero([main_config, create_config], seed=seed, max_env_step=max_env_step)


if __name__ == '__main__':
    main()
