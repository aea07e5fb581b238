import logging
from collections.abc import Iterator
from contextlib import contextmanager

from ..plugin.statistics import running_learners

logger = logging.getLogger('lzero_kvcache')


@contextmanager
def keep_what_is_there() -> Iterator[None]:
    """
    Overview:
        If the run in the ``with`` block is interrupted or fails, do what LightZero's entries do at a run's end: save a
        checkpoint, ``ckpt/iteration_<learner step>.pth.tar``, and write the last scalars.
    """
    others = set(running_learners)
    try:
        yield
    except BaseException:
        for learner in set(running_learners) - others:
            try:
                learner.call_hook('after_run')
            except Exception:
                logger.exception('The checkpoint could not be saved')
            running_learners.discard(learner)
        raise
