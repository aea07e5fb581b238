"""Strategies as a simulation names them."""
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Union

from ..checks import choices
from ..eviction import build_eviction_policy, parse_strategy, registered

# What a trace knows of the nodes. A function of the user's own would need the model's logits.
SCORES = ('search_depth', 'predicted_value', 'predicted_reward')


@dataclass(frozen=True)
class Choice:
    """One strategy, named as tables and plots have it: 'lru', 'priority:predicted_value'."""
    name: str

    @property
    def strategy(self) -> Union[str, dict[str, Any]]:
        """As a config has it."""
        name, _, score = self.name.partition(':')
        return dict(type=name, score=score) if score else name


# The bound; no name of a registered strategy.
BELADY = Choice("Belady's optimum")


def chosen_strategies(names: Iterable[str]) -> list[Choice]:
    """
    The strategies to simulate, each once.

    Args:
        names: Registered names, 'priority:SCORE' for one score, or 'all'. A strategy that goes by scores stands for
            each of ``SCORES``.

    Raises:
        ValueError: If there is no such strategy or score, or it cannot be built without options.
    """
    given = [each for name in names for each in (sorted(registered.by_name) if name == 'all' else [name])]
    return list(dict.fromkeys(choice for each in given for choice in _choices_of(each)))


def _choices_of(given: str) -> list[Choice]:
    name, _, score = given.partition(':')
    if name not in registered.by_name:
        raise ValueError(f'--strategies has {given!r}: {choices(name, [*registered.by_name, "all"])}')
    parse_strategy(name, '--strategies')
    goes_by_scores = hasattr(build_eviction_policy(name), 'score')
    if score and not goes_by_scores:
        raise ValueError(
            f'--strategies has {given!r}, but {name!r} goes by no score: allowed is {name!r}, with the defaults of its '
            'options'
        )
    if score and score not in SCORES:
        raise ValueError(f'--strategies has {given!r}, but a trace has no such score: {choices(score, SCORES)}')
    if not goes_by_scores:
        return [Choice(name)]
    return [Choice(f'{name}:{each}') for each in ([score] if score else SCORES)]
