"""What a replay counts."""
from dataclasses import dataclass, field

from ..stats import CacheStats, Counts, RebuildStats

# As ``KVCacheManager.pools`` has them.
POOLS = ('init_pools', 'recur_pool', 'wm_pool')


@dataclass
class PhaseCounts(Counts):
    """What one phase of a run came to: by kind of pool, what misses would have cost, and the nodes below the roots."""
    init_pools: CacheStats = field(default_factory=CacheStats)
    recur_pool: CacheStats = field(default_factory=CacheStats)
    wm_pool: CacheStats = field(default_factory=CacheStats)
    rebuilds: RebuildStats = field(default_factory=RebuildStats)
    expansions: int = 0

    @property
    def pools(self) -> dict[str, CacheStats]:
        return {kind: getattr(self, kind) for kind in POOLS}
