import sys
from os.path import relpath
from pathlib import Path

import click
from easydict import EasyDict
from lzero.entry import train_unizero

from lzero_kvcache.experiment.run_folder import newest_checkpoint
from lzero_kvcache.progress import run_progress
from zoo_examples.options import run_options

NEXT = dict(
    cartpole_unizero_eval='play some episodes:',
    cartpole_imagine='imagine episodes in latent space, against real ones, with a plot:',
)


@run_options('cartpole_unizero_config', max_env_step=2000)
def main(main_config: EasyDict, create_config: EasyDict, exp_name: str, max_env_step: int, seed: int) -> None:
    """Train UniZero on CartPole with the managed KV cache."""
    with run_progress(exp_name, max_env_step):
        train_unizero([main_config, create_config], seed=seed, max_env_step=max_env_step)
    checkpoint = newest_checkpoint(Path(exp_name))
    # A virtual environment that is not active has no 'python' on the path.
    python = relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else 'python'
    click.echo('\nNext, with what it has learned:')
    for script, what in NEXT.items():
        click.echo(f'  {what}\n    {python} -m zoo_examples.classic_control.{script} {checkpoint}')


if __name__ == '__main__':
    main()
