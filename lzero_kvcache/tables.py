from typing import Any

from .manager import KVCacheManager
from .wide_table import WideTable


def contexts_summary(root_stats: Any, rebuild_stats: Any) -> str:
    """
    Overview:
        What the searches' roots have found, and what misses have cost, in two sentences.
    Arguments:
        - root_stats (:obj:`RootStats`): The world model's.
        - rebuild_stats (:obj:`RebuildStats`): The world model's.
    """
    return (
        f'Roots of running episodes: {root_stats.continuing:,}, with {root_stats.mean_context_length:.1f} tokens of '
        f'context on average, {root_stats.cold_starts:,} cold starts. '
        f'After misses: {rebuild_stats.restored:,} contexts restored without computation, {rebuild_stats.rebuilds:,} '
        f'rebuilt, by {rebuild_stats.tokens:,} tokens.'
    )


def statistics_table(manager: KVCacheManager) -> WideTable:
    """
    Overview:
        What each kind of pool has seen.
    Arguments:
        - manager (:obj:`KVCacheManager`): The pools.
    Returns:
        - table (:obj:`WideTable`): One row per kind of pool; the environments' init pools are added up. 'peak' is the
            most entries a pool has held.
    """
    table = WideTable(
        'KV cache', ['pool'], ['size', 'entries', 'peak', 'hits', 'misses', 'evictions', 'hit rate']
    )
    totals = manager.total_stats()
    for kind, pools in manager.pools().items():
        stats = totals[kind]
        size = str(pools[0].pool_size) if len(pools) == 1 else f'{len(pools)} x {pools[0].pool_size}'
        table.add_row(
            kind, size, str(sum(len(pool) for pool in pools)), str(sum(pool.peak_entries for pool in pools)),
            f'{stats.hits:,}', f'{stats.misses:,}', f'{stats.evictions:,}',
            f'{stats.hit_rate:.1%}' if stats.total_queries else '-'
        )
    return table
