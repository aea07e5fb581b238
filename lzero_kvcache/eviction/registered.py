"""The strategies by the names that a config uses."""
from .base import EvictionPolicy
from .fifo import FIFOEviction
from .lfu import LFUEviction
from .lru import LRUEviction
from .priority import PriorityEviction
from .random import RandomEviction
from .s3fifo import S3FIFOEviction
from .sieve import SIEVEEviction
from .slru import SLRUEviction
from .tree import TreeEviction

# Whoever asks for ``EVICTION_REGISTRY`` has it put here in place of this dict: only then is DI-engine imported, which
# loads torch and takes seconds.
by_name: dict[str, type[EvictionPolicy]] = {
    'fifo': FIFOEviction,
    'lfu': LFUEviction,
    'lru': LRUEviction,
    'priority': PriorityEviction,
    'random': RandomEviction,
    's3fifo': S3FIFOEviction,
    'sieve': SIEVEEviction,
    'slru': SLRUEviction,
    'tree': TreeEviction,
}
