from collections.abc import Sequence
from typing import Optional

from .assignments import nested, parse_assignment
from .config_file import Experiment
from .overrides import apply_overrides


def apply_options(
        experiment: Experiment, assignments: Sequence[str] = (), strategy: Optional[str] = None,
        recur_pool_size: Optional[int] = None, mode: Optional[str] = None
) -> None:
    """
    Overview:
        Switch the cache on, and change an experiment as a command line says.
    Arguments:
        - experiment (:obj:`Experiment`): Changed in place.
        - assignments (:obj:`Sequence[str]`): Changes such as 'policy.num_simulations=25', of all that
            ``apply_overrides`` knows.
        - strategy, recur_pool_size, mode (:obj:`Optional`): Entries of ``kv_cache``; they come after ``assignments``.
    Raises:
        - ValueError: On a change that is not allowed, with its full key path.
    """
    options = {'kv_cache.strategy': strategy, 'kv_cache.recur_pool.size': recur_pool_size, 'kv_cache.mode': mode}
    overrides = nested([
        *map(parse_assignment, assignments), *((path, value) for path, value in options.items() if value is not None)
    ])
    # Without an entry of its own a stock config would run the stock code.
    overrides.setdefault('kv_cache', {})
    apply_overrides(experiment, overrides, '')
