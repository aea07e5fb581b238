"""Strategies as a simulation, its tables and plots name them: 'lru', 'priority:predicted_value'."""
from collections.abc import Iterable
from typing import Any, Union

from ..checks import choices
from ..eviction import build_eviction_policy, parse_strategy, registered

# What a trace knows of the nodes. A function of the user's own would need the model's logits.
SCORES = ('search_depth', 'predicted_value', 'predicted_reward')
# The bound; no name of a registered strategy.
BELADY = "Belady's optimum"


def as_configured(strategy: str) -> Union[str, dict[str, Any]]:
    name, _, score = strategy.partition(':')
    return dict(type=name, score=score) if score else name


def chosen_strategies(names: Iterable[str]) -> list[str]:
    """
    The strategies to simulate, each once: registered names, 'priority:SCORE' for one score, or 'all'. A strategy that
    goes by scores stands for each of ``SCORES``. A ValueError if there is none such, or it needs options.
    """
    given = [each for name in names for each in (sorted(registered.by_name) if name == 'all' else [name])]
    return list(dict.fromkeys(strategy for each in given for strategy in _strategies_of(each)))


def _strategies_of(given: str) -> list[str]:
    name, _, score = given.partition(':')
    if name not in registered.by_name:
        raise ValueError(f'--strategies has {given!r}: {choices(name, [*registered.by_name, "all"])}')
    parse_strategy(name, '--strategies')
    if not hasattr(build_eviction_policy(name), 'score'):
        if score:
            raise ValueError(f'--strategies has {given!r}, but {name!r} goes by no score: allowed is {name!r}, with '
                             'the defaults of its options')
        return [name]
    if score and score not in SCORES:
        raise ValueError(f'--strategies has {given!r}, but a trace has no such score: {choices(score, SCORES)}')
    return [given] if score else [f'{name}:{each}' for each in SCORES]
