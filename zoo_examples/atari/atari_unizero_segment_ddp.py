from math import ceil
from pathlib import Path

import click
import torch.distributed as dist
from easydict import EasyDict
from lzero.entry import train_unizero_segment

from lzero_kvcache.ddp import ddp_context
from lzero_kvcache.output import output_to
from lzero_kvcache.progress import run_progress
from zoo_examples.options import run_options


@run_options('atari_unizero_segment_config', max_env_step=1000)
def main(main_config: EasyDict, create_config: EasyDict, exp_name: str, max_env_step: int, seed: int) -> None:
    """
    Train one UniZero model on Pong in several processes, each with environments, replay buffer and KV cache of its own.

    torchrun --standalone --nproc_per_node 2 -m zoo_examples.atari.atari_unizero_segment_ddp

    Each process has a GPU, or none has. The numbers of environments and the batch size are those of one process.
    """
    if not dist.is_torchelastic_launched():
        raise click.UsageError('Only torchrun can start it, as --help says.')
    with ddp_context():
        rank, processes = dist.get_rank(), dist.get_world_size()
        # The default has the time in it, which may be another in each process.
        names = [exp_name]
        dist.broadcast_object_list(names)
        exp_name = main_config.exp_name = names[0]
        main_config.policy.multi_gpu = True
        # With the same seed the same episodes would begin in all processes.
        seed += rank * main_config.policy.collector_env_num
        own_output = output_to(Path(f'{exp_name}_rank{rank}.log'))
        with own_output if rank else run_progress(exp_name, ceil(max_env_step / processes)):
            train_unizero_segment([main_config, create_config], seed=seed, max_env_step=max_env_step)


if __name__ == '__main__':
    main()
