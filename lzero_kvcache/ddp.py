"""One model that several processes train (DDP), as DI-engine and LightZero do it, with and without GPUs."""
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Union

import torch
import torch.distributed as dist
from ding.policy import Policy
from ding.utils import allreduce_data, dist_init
from ding.worker.learner import learner_hook
from easydict import EasyDict
from lzero.entry.utils import calculate_update_per_collect

COLLECTORS = ('lzero.worker.muzero_collector', 'lzero.worker.muzero_segment_collector')
ENTRIES = ('lzero.entry.train_unizero', 'lzero.entry.train_unizero_segment')

logger = logging.getLogger('lzero_kvcache')


@contextmanager
def ddp_context() -> Iterator[None]:
    """
    Overview:
        Open the process group of the processes that ``torchrun`` has started, in place of DI-engine's ``DDPContext``:
        by NCCL where each process has a GPU, as that does, and by gloo where there is no GPU. The stock entries train
        one model in all of them, if ``policy.multi_gpu`` is True; see ``mend_release``.
    Raises:
        - ValueError: If ``torchrun`` has not started this process, or there are fewer GPUs than processes.
    """
    if 'RANK' not in os.environ or 'WORLD_SIZE' not in os.environ:
        raise ValueError(
            'ddp_context is for processes that torchrun has started: torchrun --standalone --nproc_per_node 2 SCRIPT'
        )
    processes, gpus = int(os.environ.get('LOCAL_WORLD_SIZE', 1)), torch.cuda.device_count()
    if 0 < gpus < processes:
        raise ValueError(
            f'torchrun has started {processes} processes on a machine with {gpus} GPU(s), and each needs its own: '
            f'--nproc_per_node {gpus}, or CUDA_VISIBLE_DEVICES= before the command, for the CPU'
        )
    if gpus:
        dist_init()
    else:
        dist.init_process_group('gloo')
    mend_release()
    yield
    # Not after an error: the other processes do not come here, and waiting for them would hide it.
    dist.destroy_process_group()


def mend_release() -> None:
    """
    Overview:
        Mend what keeps the entries of LightZero 0.2.0 and DI-engine 0.5 from training in several processes, for the
        rest of this process and for the stock policies, too: parameters without a gradient, which models of vector
        observations have, take part with a gradient of zero. Without a GPU, numbers are summed up where they are, and
        all processes take the same number of learner steps. A single process trains as before.
    """
    if Policy.sync_gradients is _sync_gradients:
        return
    Policy.sync_gradients = _sync_gradients
    mended = 'parameters without a gradient'
    if not torch.cuda.is_available():
        for name in COLLECTORS:
            import_module(name).allreduce_data = _allreduce_on_cpu
        for name in ENTRIES:
            import_module(name).calculate_update_per_collect = _learner_steps
        # The hook that averages the logs of the learners takes their ranks for the devices that these are on.
        learner_hook.get_rank = lambda: 'cpu'
        mended += ', sums without a GPU, the number of learner steps'
    logger.info(f'LightZero is mended for several processes: {mended}')


_stock_sync_gradients = Policy.sync_gradients


def _sync_gradients(policy: Policy, model: torch.nn.Module) -> None:
    # DI-engine begins with gradients of zero for them, but from PyTorch 2.0 on 'zero_grad' removes these.
    unused = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter.grad is None]
    for parameter in unused:
        parameter.grad = torch.zeros_like(parameter)
    _stock_sync_gradients(policy, model)
    for parameter in unused:
        if not parameter.grad.any():
            # As in a single process: the weights of what has no gradient do not decay.
            parameter.grad = None


def _allreduce_on_cpu(number: Union[int, float], op: str) -> Union[int, float]:
    # Tensors stay where they are; numbers would go to a GPU.
    return allreduce_data(torch.as_tensor(number), op).item()


def _learner_steps(config: EasyDict, new_data: Sequence, world_size: int = 1) -> int:
    if config.policy.update_per_collect is not None or world_size == 1:
        return calculate_update_per_collect(config, new_data, world_size)
    # With a replay ratio of 1 they are the transitions that this process has collected.
    policy = dict(config.policy, replay_ratio=1)
    transitions = calculate_update_per_collect(EasyDict(policy=policy), new_data)
    return int(_allreduce_on_cpu(transitions, 'sum') * config.policy.replay_ratio)
