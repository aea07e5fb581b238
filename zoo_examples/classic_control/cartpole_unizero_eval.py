import click
from lzero.entry import eval_muzero

from configs.cartpole_unizero_config import create_config, main_config
from lzero_kvcache.progress import run_progress
from zoo_examples.options import apply_options, run_options


@click.argument('checkpoint', type=click.Path(exists=True, dir_okay=False))
@run_options()
def main(checkpoint: str, seed: int, **options) -> None:
    """Evaluate a CartPole CHECKPOINT, e.g. EXP_NAME/ckpt/ckpt_best.pth.tar, with the managed KV cache."""
    exp_name = apply_options(main_config, **options)
    with run_progress(exp_name):
        mean_return, _ = eval_muzero([main_config, create_config], seed=seed, model_path=checkpoint)
    click.echo(f'mean return: {mean_return}')


if __name__ == '__main__':
    main()
