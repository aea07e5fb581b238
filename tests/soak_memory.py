"""What a soak measures of its memory, and what of it must not grow."""
import gc
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch

from lzero_kvcache.eviction import SearchNodes
from lzero_kvcache.search.search import Search
from lzero_kvcache.store import Context
from lzero_kvcache.world_model.forward import SearchTensors

OF_A_SEARCH = (Search, SearchNodes, SearchTensors)
WATCHED_TYPES = (*OF_A_SEARCH, Context)
WINDOWS = 5


@dataclass
class Sample:
    """
    What there was after so many search steps. ``most_...``: the most since the last sample, in all worlds together, but
    for items, counted at the end; ``rest_...``: when all episodes had ended and the caches were cleared.
    """
    step: int
    seconds: float
    most_live_tokens: int
    most_entries: int
    most_nodes: int
    slab_mb: float
    busy_items: int
    rest_items: int
    rest_objects: int
    rest_rss_mb: float


@dataclass(frozen=True)
class Quantity:
    """
    A figure of the samples that must not grow: the largest one of the last three fifths of a soak may exceed the
    largest one of the second fifth by ``share`` of it and by ``number``. The first fifth is the warm-up.
    """
    name: str
    title: str
    share: float = 0.
    number: float = 0.

    def maxima(self, samples: Sequence[Sample]) -> list[float]:
        """The largest figure of each fifth."""
        figures = [getattr(sample, self.name) for sample in samples]
        return [float(max(window)) for window in np.array_split(figures, WINDOWS)]

    def limit(self, samples: Sequence[Sample]) -> float:
        return self.maxima(samples)[1] * (1 + self.share) + self.number

    def is_flat(self, samples: Sequence[Sample]) -> bool:
        return max(self.maxima(samples)[2:]) <= self.limit(samples)


# What is left to chance: pieces that the allocator cannot join, the nodes of the last searches and the pieces of their
# tensors (five items a simulation), which may be more or fewer, and the largest figure of a window, which is a random
# one itself.
QUANTITIES = [
    Quantity('rest_rss_mb', 'memory of the process at rest, MiB', number=5),
    Quantity('rest_objects', 'Python objects at rest', number=1000),
    Quantity('rest_items', 'items of containers at rest', number=500),
    Quantity('slab_mb', 'slabs of the stores, MiB'),
    Quantity('most_live_tokens', 'live tokens', share=0.2),
    Quantity('most_entries', 'entries of the pools', share=0.2),
    Quantity('most_nodes', 'nodes of searches', share=0.2),
    Quantity('busy_items', 'items of containers', share=0.2),
]


def items_of_containers(beginnings: Sequence[Any]) -> int:
    """Items of all containers that are found in these, in objects of the package, and in their attributes."""
    met: set[int] = set()
    waiting, items = list(beginnings), 0
    while waiting:
        thing = waiting.pop()
        if id(thing) in met or isinstance(thing, torch.nn.Module):
            continue
        met.add(id(thing))
        if isinstance(thing, (dict, list, tuple, set, frozenset, deque)):
            items += len(thing)
            waiting.extend(thing.values() if isinstance(thing, dict) else thing)
        elif hasattr(thing, 'cache_info'):
            items += thing.cache_info().currsize
        elif any(base.__module__.startswith('lzero_kvcache') for base in type(thing).__mro__):
            waiting.extend(_attributes(thing))
    return items


def containers_of_the_package() -> list[Any]:
    """What the modules of the package have names for and can grow."""
    return [
        thing for name, module in list(sys.modules.items())
        if name.split('.')[0] == 'lzero_kvcache' and isinstance(module, ModuleType)
        for attribute, thing in vars(module).items() if not attribute.startswith('__')
        and (isinstance(thing, (dict, list, set, deque)) or hasattr(thing, 'cache_info'))
    ]


def objects_of_this_process() -> Counter:
    """How many Python objects there are, of the watched types and together ('all')."""
    gc.collect()
    objects = gc.get_objects()
    found = Counter(type(thing) for thing in objects if type(thing) in WATCHED_TYPES)
    found['all'] = len(objects)
    return found


def _attributes(thing: Any) -> Iterator[Any]:
    yield from getattr(thing, '__dict__', {}).values()
    for base in type(thing).__mro__:
        for name in getattr(base, '__slots__', ()):
            if hasattr(thing, name):
                yield getattr(thing, name)
