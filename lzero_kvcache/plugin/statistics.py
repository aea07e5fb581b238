import logging
from typing import Any, Callable, Optional
from weakref import WeakSet

import wandb
from ding.worker.learner.learner_hook import LearnerHook, register_learner_hook
from easydict import EasyDict

from ..config import KEY_PATH, entry_of
from ..stats import CacheStats

logger = logging.getLogger('lzero_kvcache')

StepListener = Callable[[str, int, Any], None]
# Called after each search of any policy of this process with 'collect' or 'eval', the environments that take a step
# and the world model's ``kv_cache_inference`` (None where the stock code runs), and after each learner step with
# 'learn', 0 and None.
step_listeners: list[StepListener] = []
# DI-engine's learners of the runs that go on in this process.
running_learners: WeakSet = WeakSet()


def say_that_stock_code_runs(world_model_cfg: Any) -> None:
    """
    Overview:
        Say in the log that a policy has no managed cache, and why.
    Arguments:
        - world_model_cfg (:obj:`Any`): The model's config.
    """
    if entry_of(world_model_cfg, 'kv_cache') is None:
        logger.warning(f'no kv_cache: the stock code runs. Its place is {KEY_PATH}')
    else:
        logger.info("kv_cache.mode='legacy': the stock code runs")


class StatisticsReporter:
    """
    Overview:
        Tells collect from eval in the pools' statistics and reports both: a log line, and scalars over the environment
        steps collected so far, to TensorBoard and, where the run uses it, to Weights & Biases.
        ``kv_cache/<phase>_<pool>/{hit_rate,misses,evictions,entries}`` count since the phase's last point,
        ``kv_cache/<pool>/...`` both phases since the run began, as do
        ``kv_cache/roots/{mean_context_length,cold_starts}`` and ``kv_cache/rebuilds/{restored,contexts,tokens}``.
    Arguments:
        - inference (:obj:`Union[ManagedInference, ValidatedInference]`): The world model's, with the pools.
        - log_interval (:obj:`int`): Searches between two log lines and two points; a phase that ends writes a point,
            too.
        - use_wandb (:obj:`bool`): The policy's.
    """

    def __init__(self, inference: Any, log_interval: int, use_wandb: bool = False) -> None:
        self.tb_logger: Any = None
        self.env_steps = 0
        self._use_wandb = use_wandb
        self._has_missed_wandb_run = False
        self._inference = inference
        self._manager = inference.manager
        self._log_interval = log_interval
        self._seen = self._manager.total_stats()
        self._pending: dict[str, dict[str, CacheStats]] = {}
        self._entries: dict[str, int] = {}
        self._searches: dict[str, int] = {}
        self._phase: Optional[str] = None

    def count_search(self, phase: str, env_num: int) -> None:
        """
        Overview:
            A search has been done.
        Arguments:
            - phase (:obj:`str`): 'collect' or 'eval'.
            - env_num (:obj:`int`): The environments that take a step after it.
        """
        if not self._manager.enable_stats:
            return
        if phase != self._phase:
            self.flush()
        self._phase = phase
        if phase == 'collect':
            self.env_steps += env_num
        totals = self._manager.total_stats()
        pending = self._pending.setdefault(phase, {kind: CacheStats() for kind in totals})
        for kind, total in totals.items():
            pending[kind] = pending[kind] + (total - self._seen[kind])
        self._seen = totals
        # Counted now, because the stock code may have cleared the pools when the point is written.
        self._entries = {kind: sum(len(pool) for pool in pools) for kind, pools in self._manager.pools().items()}
        self._searches[phase] = self._searches.get(phase, 0) + 1
        if self._log_interval and self._searches[phase] % self._log_interval == 0:
            self._log(phase)
            self.flush()

    def flush(self) -> None:
        """
        Overview:
            Write the point of the phase that is ending.
        """
        pending = self._pending.pop(self._phase, None)
        if pending is None or self.tb_logger is None:
            return
        scalars = {
            'roots/mean_context_length': self._inference.root_stats.mean_context_length,
            'roots/cold_starts': self._inference.root_stats.cold_starts,
            'rebuilds/restored': self._inference.rebuild_stats.restored,
            'rebuilds/contexts': self._inference.rebuild_stats.rebuilds,
            'rebuilds/tokens': self._inference.rebuild_stats.tokens,
        }
        for kind, total in self._seen.items():
            for room, stats in ((kind, total), (f'{self._phase}_{kind}', pending[kind])):
                scalars.update({
                    f'{room}/hit_rate': stats.hit_rate, f'{room}/misses': stats.misses,
                    f'{room}/evictions': stats.evictions, f'{room}/entries': self._entries[kind],
                })
        self._write({f'kv_cache/{tag}': number for tag, number in scalars.items()})

    def _write(self, scalars: dict[str, float]) -> None:
        for tag, number in scalars.items():
            self.tb_logger.add_scalar(tag, number, self.env_steps)
        # The stock entries leave the writer open, and a process that ends loses what it has not written.
        self.tb_logger.flush()
        if not self._use_wandb:
            return
        if wandb.run is None:
            if not self._has_missed_wandb_run:
                logger.warning(
                    'policy.use_wandb is True, but there is no run at Weights & Biases (wandb.init() begins one): '
                    'kv_cache/... goes to TensorBoard alone'
                )
            self._has_missed_wandb_run = True
        else:
            # LightZero's steps there are environment steps, too, and what goes to an earlier step is dropped.
            wandb.log(scalars, step=max(self.env_steps, wandb.run.step))

    def finish(self) -> None:
        """
        Overview:
            The run has ended: write the last point, and log what mode 'validate' has seen.
        """
        self.flush()
        report = getattr(self._inference, 'report', None)
        if report is not None:
            logger.info(f"kv_cache.mode='validate': {report}")

    def _log(self, phase: str) -> None:
        pending = self._pending[phase]
        pools = '; '.join(
            f'{kind} hit rate {pending[kind].hit_rate:.1%} of {pending[kind].total_queries} queries, '
            f'{pending[kind].evictions} evictions, {self._entries[kind]} entries'
            for kind in pending
        )
        logger.info(f'kv_cache, {phase}, {self._searches[phase]} searches, {self.env_steps} environment steps: {pools}')


class RunHook(LearnerHook):
    """
    Overview:
        Hands the run's TensorBoard writer to the policy when a run begins, lets the last point be written when it ends,
        tells ``step_listeners`` of each learner step, and keeps ``running_learners``.
    """

    def __init__(self, *args: Any, ext_args: EasyDict, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)

    def __call__(self, learner: Any) -> None:
        """
        Overview:
            Called by DI-engine's learner.
        Arguments:
            - learner (:obj:`BaseLearner`): The learner of the run.
        """
        reporter = learner.policy.get_attribute('kv_cache_statistics')
        if self.position == 'before_run':
            running_learners.add(learner)
            if reporter is not None:
                reporter.tb_logger = learner.tb_logger
        elif self.position == 'after_iter':
            if reporter is not None and learner.collector_envstep >= 0:
                # Where several processes collect, each sees its own searches only.
                reporter.env_steps = learner.collector_envstep
            for listener in list(step_listeners):
                listener('learn', 0, None)
        else:
            running_learners.discard(learner)
            if reporter is not None:
                reporter.finish()


register_learner_hook('kv_cache', RunHook)


def with_run_hooks(policy_config: EasyDict) -> EasyDict:
    """
    Overview:
        Add the learner hooks of this plugin to a policy's default config.
    Arguments:
        - policy_config (:obj:`EasyDict`): The stock policy's.
    Returns:
        - policy_config (:obj:`EasyDict`): The same, changed.
    """
    hooks = policy_config.learn.setdefault('learner', EasyDict()).setdefault('hook', EasyDict())
    for position in ('before_run', 'after_iter', 'after_run'):
        name = f'kv_cache_{position}'
        hooks[name] = EasyDict(name=name, type='kv_cache', position=position, priority=30, ext_args={})
    return policy_config
