import gc
import logging
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import wandb

from ..plugin.statistics import running_learners

logger = logging.getLogger('lzero_kvcache')


@contextmanager
def keep_what_is_there() -> Iterator[None]:
    """
    Overview:
        If the run in the ``with`` block is interrupted or fails, do what LightZero's entries do at a run's end: save a
        checkpoint, ``ckpt/iteration_<learner step>.pth.tar``, write the last scalars, close the environments and the
        run at Weights & Biases.
    """
    others, outer_wandb_run = set(running_learners), wandb.run
    try:
        yield
    except BaseException as error:
        for learner in set(running_learners) - others:
            try:
                learner.call_hook('after_run')
            except Exception:
                logger.exception('The checkpoint could not be saved')
            running_learners.discard(learner)
        # The entry's frames hold the environments, which close when nobody holds them.
        traceback.clear_frames(error.__traceback__)
        gc.collect()
        if wandb.run is not outer_wandb_run:
            wandb.finish(exit_code=1)
        raise


def begin_wandb_run(config: dict) -> None:
    """
    Overview:
        Begin a run at Weights & Biases as ``train_unizero`` does. ``train_unizero_segment`` of LightZero 0.2.0 logs to
        one that it does not begin.
    Arguments:
        - config (:obj:`dict`): What the run shows as its config.
    """
    if wandb.run is None:
        wandb.init(project='LightZero', config=config)
