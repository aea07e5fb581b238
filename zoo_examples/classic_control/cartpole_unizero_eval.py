import click
from easydict import EasyDict
from lzero.entry import eval_muzero

from lzero_kvcache.progress import run_progress
from zoo_examples.options import checkpoint_argument, run_options


@checkpoint_argument
@run_options('cartpole_unizero_config')
def main(main_config: EasyDict, create_config: EasyDict, exp_name: str, checkpoint: str, seed: int) -> None:
    """Evaluate a CartPole CHECKPOINT, e.g. EXP_NAME/ckpt/ckpt_best.pth.tar, with the managed KV cache."""
    with run_progress(exp_name, counted='eval'):
        mean_return, _ = eval_muzero([main_config, create_config], seed=seed, model_path=checkpoint)
    click.echo(f'mean return: {mean_return}')


if __name__ == '__main__':
    main()
