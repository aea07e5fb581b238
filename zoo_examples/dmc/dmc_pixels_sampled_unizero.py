from easydict import EasyDict
from lzero.entry import train_unizero

from lzero_kvcache.progress import run_progress
from zoo_examples.dmc.task import choose_task, task_options
from zoo_examples.options import run_options


@task_options
@run_options('dmc_pixels_sampled_unizero_config', max_env_step=300)
def main(
        main_config: EasyDict, create_config: EasyDict, exp_name: str, max_env_step: int, seed: int, domain_name: str,
        task_name: str
) -> None:
    """Train Sampled UniZero on images of a task of the DeepMind Control Suite with the managed KV cache."""
    choose_task(main_config, domain_name, task_name)
    with run_progress(exp_name, max_env_step):
        train_unizero([main_config, create_config], seed=seed, max_env_step=max_env_step)


if __name__ == '__main__':
    main()
