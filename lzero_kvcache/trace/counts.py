"""What a replay counts."""
from dataclasses import dataclass, field

from ..stats import CacheStats

# As ``KVCacheManager.pools`` has them.
POOLS = ('init_pools', 'recur_pool', 'wm_pool')


@dataclass
class Rebuilds:
    """
    Overview:
        As ``RebuildStats``: what misses would have cost.
    """
    rebuilds: int = 0
    tokens: int = 0
    restored: int = 0

    def __add__(self, other: 'Rebuilds') -> 'Rebuilds':
        return Rebuilds(
            self.rebuilds + other.rebuilds, self.tokens + other.tokens, self.restored + other.restored
        )

    def __sub__(self, earlier: 'Rebuilds') -> 'Rebuilds':
        return Rebuilds(
            self.rebuilds - earlier.rebuilds, self.tokens - earlier.tokens, self.restored - earlier.restored
        )


@dataclass
class PhaseCounts:
    """
    Overview:
        What one phase of a run came to.
    Arguments:
        - pools (:obj:`Dict[str, CacheStats]`): By kind of pool.
        - rebuilds (:obj:`Rebuilds`): What misses would have cost.
        - expansions (:obj:`int`): Nodes below the roots.
    """
    pools: dict[str, CacheStats] = field(default_factory=lambda: {kind: CacheStats() for kind in POOLS})
    rebuilds: Rebuilds = field(default_factory=Rebuilds)
    expansions: int = 0

    def __add__(self, other: 'PhaseCounts') -> 'PhaseCounts':
        pools = {kind: self.pools[kind] + other.pools[kind] for kind in POOLS}
        return PhaseCounts(pools, self.rebuilds + other.rebuilds, self.expansions + other.expansions)

    def __sub__(self, earlier: 'PhaseCounts') -> 'PhaseCounts':
        pools = {kind: self.pools[kind] - earlier.pools[kind] for kind in POOLS}
        return PhaseCounts(pools, self.rebuilds - earlier.rebuilds, self.expansions - earlier.expansions)
