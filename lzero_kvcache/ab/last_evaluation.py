"""The evaluation that a trial ends with: LightZero's entries never evaluate what the last round has taught."""
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from ding.worker.learner.learner_hook import LearnerHook, register_learner_hook
from easydict import EasyDict
from lzero.worker import MuZeroEvaluator

from .series import SeriesRecorder

HOOK = 'ab_last_evaluation'
# Before the hooks that save the last checkpoint and write the cache's last statistics.
PRIORITY = 10


@contextmanager
def last_evaluation(main_config: EasyDict, recorder: SeriesRecorder) -> Iterator[None]:
    """
    Overview:
        Let the run within the ``with`` block end with an evaluation, unless it has just been evaluated or fails. The
        series ends before it, so that steps per second do not depend on how long the last episodes are.
    Arguments:
        - main_config (:obj:`EasyDict`): The run's, changed in place.
        - recorder (:obj:`SeriesRecorder`): It records the run.
    """
    evaluators: list[MuZeroEvaluator] = []
    stock_init = MuZeroEvaluator.__init__

    def init(evaluator: MuZeroEvaluator, *args: Any, **kwargs: Any) -> None:
        stock_init(evaluator, *args, **kwargs)
        evaluators.append(evaluator)

    class LastEvaluation(LearnerHook):

        def __init__(self, *args: Any, ext_args: EasyDict, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

        def __call__(self, learner: Any) -> None:
            # A run that has failed calls this, too, while its error is being handled.
            if sys.exc_info()[0] is None:
                recorder.end()
                if recorder.last_phase != 'eval':
                    evaluator = evaluators[-1]
                    evaluator.eval(learner.save_checkpoint, learner.train_iter, recorder.env_step)
            # The stock entries leave the writer open, and a process that ends loses what it has not written.
            learner.tb_logger.flush()

    register_learner_hook(HOOK, LastEvaluation)
    hooks = main_config.policy.setdefault('learn', {}).setdefault('learner', {}).setdefault('hook', {})
    hooks[HOOK] = dict(name=HOOK, type=HOOK, position='after_run', priority=PRIORITY, ext_args={})
    with patch.object(MuZeroEvaluator, '__init__', init):
        yield
