"""LightZero main's reanalysis of the replay buffer."""
import logging
from collections.abc import Callable, Iterator
from functools import cache, wraps
from typing import Any

from lzero.mcts import UniZeroGameBuffer

logger = logging.getLogger('lzero_kvcache')


@cache
def search_all_roots_at_once(is_managed: Callable[[Any], bool]) -> None:
    """
    Overview:
        Let the replay buffer reanalyse all roots of a batch in one search, where the cache has room for any number. By
        itself it searches in as many parts as its own cache needs, with the same targets. For the rest of this process.
    Arguments:
        - is_managed (:obj:`Callable[[Any], bool]`): Whether a model has a managed cache.
    """
    UniZeroGameBuffer._iter_reanalyzed_root_slices = _in_one(UniZeroGameBuffer._iter_reanalyzed_root_slices, is_managed)


def _in_one(stock_slices: Callable, is_managed: Callable[[Any], bool]) -> Callable:

    @wraps(stock_slices)
    def slices(self: UniZeroGameBuffer, model: Any, root_count: int) -> Iterator[tuple[int, int]]:
        if not is_managed(model):
            yield from stock_slices(self, model, root_count)
            return
        if self._cfg.get('reanalyze_search_chunk_size') is not None:
            _say_that_there_are_no_chunks()
        yield 0, root_count

    return slices


@cache
def _say_that_there_are_no_chunks() -> None:
    logger.info(
        'policy.reanalyze_search_chunk_size is for caches with room for few roots: the managed one searches from all '
        'roots at once, with the same targets. Said once.'
    )
