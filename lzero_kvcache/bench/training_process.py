"""One training by LightZero's own entry, timed from within: ``python -m lzero_kvcache.bench.training_process``.

Standard input has the two configs, the seed and the environment steps as a Python literal; standard output gets one
line of JSON. Nothing of this package is imported unless a config names it, so that the release is by itself.
"""
import json
import os
import sys
from ast import literal_eval
from time import perf_counter, process_time
from typing import Any, Callable


def timed(owner: type, name: str, spent: Callable[[Any, float], None]) -> None:
    """Tell ``spent`` of each call of a method whose object it was and the seconds that it took."""
    method = getattr(owner, name)

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        began = perf_counter()
        try:
            return method(self, *args, **kwargs)
        finally:
            spent(self, perf_counter() - began)

    setattr(owner, name, call)


def train(main_config: dict, create_config: dict, seed: int, max_env_step: int) -> dict[str, Any]:
    """Train, and return the seconds of each part, and how far it came."""
    from ding.worker import BaseLearner
    from easydict import EasyDict
    from lzero.entry import train_unizero
    from lzero.mcts import UniZeroGameBuffer
    from lzero.worker import MuZeroCollector, MuZeroEvaluator

    result = dict(collect=0., learn=0., evaluate=0., env_steps=0, learner_steps=0)

    def collected(collector: Any, seconds: float) -> None:
        result['collect'] += seconds
        result['env_steps'] = collector.envstep

    def learned(learner: Any, seconds: float) -> None:
        result['learn'] += seconds
        result['learner_steps'] = learner.train_iter

    def spent_on(part: str) -> Callable[[Any, float], None]:
        def spent(worker: Any, seconds: float) -> None:
            result[part] += seconds
        return spent

    timed(MuZeroCollector, 'collect', collected)
    timed(BaseLearner, 'train', learned)
    # The targets of a batch are computed when it is drawn, reanalysis included.
    timed(UniZeroGameBuffer, 'sample', spent_on('learn'))
    timed(MuZeroEvaluator, 'eval', spent_on('evaluate'))
    policy = train_unizero([EasyDict(main_config), EasyDict(create_config)], seed=seed, max_env_step=max_env_step)
    return dict(
        result, cpu_seconds=process_time(), device=str(policy._cfg.device),
        policy=f'{type(policy).__module__}.{type(policy).__qualname__}'
    )


if __name__ == '__main__':
    # LightZero prints a lot.
    with os.fdopen(os.dup(1), 'w') as answer:
        os.dup2(2, 1)
        print(json.dumps(train(*literal_eval(sys.stdin.read()))), file=answer)
