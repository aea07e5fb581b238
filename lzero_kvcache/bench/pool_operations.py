import gc
import random
from collections import OrderedDict
from statistics import median
from time import perf_counter_ns
from typing import Any

from rich.table import Table

from ..eviction import EVICTION_REGISTRY
from ..lock import CopyableLock
from ..pool import KVCachePool
from .clock import Clock
from .figures import as_text, figure_of
from .section import Section, table_of
from .settings import Settings

OPERATIONS = {
    'get': 'get of a random key',
    'overwrite': 'set of a random key that is there',
    'evict': 'set of a new key, full pool',
}
CONTROL = 'OrderedDict'


class FullDict(OrderedDict):
    """
    Overview:
        The control: what Python's own dictionary pays as it outgrows the processor's caches.
    """

    def set(self, key: int, kv: None, priority: float) -> None:
        """
        Overview:
            As ``KVCachePool.set``.
        """
        if key not in self:
            self.popitem(last=False)
        self[key] = kv


class Workload:
    """
    Overview:
        A full pool and the arguments of the operations on it.
    Arguments:
        - strategy (:obj:`str`): The pool's, or ``CONTROL``.
        - size (:obj:`int`): Its entries.
        - rng (:obj:`Random`): Draws keys and priorities.
    """

    def __init__(self, strategy: str, size: int, rng: random.Random) -> None:
        self.pool = FullDict.fromkeys(range(-size, 0)) if strategy == CONTROL else KVCachePool(size, strategy)
        self.size, self.rng, self.next_key = size, rng, 0
        self.nanoseconds('evict', size)

    def arguments(self, operation: str, count: int) -> list:
        """
        Overview:
            Keys and priorities; priorities rise with time, so that earlier and later entries compete for room.
        """
        if operation == 'evict':
            keys = range(self.next_key, self.next_key + count)
            self.next_key += count
        else:
            keys = self.rng.choices(list(self.pool.keys()), k=count)
        return [(key, self.next_key + self.rng.random() * self.size) for key in keys]

    def nanoseconds(self, operation: str, count: int) -> float:
        """
        Overview:
            The time of one operation, the mean over ``count`` of them.
        """
        arguments = self.arguments(operation, count)
        start = perf_counter_ns()
        if operation == 'get':
            for key, _ in arguments:
                self.pool.get(key)
        else:
            for key, priority in arguments:
                self.pool.set(key, None, priority)
        return (perf_counter_ns() - start) / count


def lock_nanoseconds(count: int) -> float:
    """
    Overview:
        What taking a free lock and giving it back costs, the mean over ``count`` times.
    """
    lock = CopyableLock()
    start = perf_counter_ns()
    for _ in range(count):
        with lock:
            pass
    locked = perf_counter_ns()
    for _ in range(count):
        pass
    return (2 * locked - start - perf_counter_ns()) / count


class PoolOperations(Section):
    """
    Overview:
        Does a pool's operation cost the same at any pool size, and how much of it is its lock's? Every strategy, all
        sizes in turn.
    """
    name = 'pool_operations'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        rng, rows, sizes = random.Random(0), [], settings.pool_sizes
        strategies = [*sorted(EVICTION_REGISTRY), CONTROL]
        # One strategy at a time keeps the memory small; within it every size runs in every round, in random order.
        for strategy in clock.each(strategies, 'pool operations: {}'.format):
            workloads = {size: Workload(strategy, size, rng) for size in sizes}
            times = {(operation, size): [] for operation in OPERATIONS for size in sizes}
            gc.collect()
            gc.disable()
            try:
                for _ in range(settings.pool_rounds + 1):
                    for operation, size in rng.sample(sorted(times), len(times)):
                        with clock.measuring():
                            times[operation, size].append(workloads[size].nanoseconds(operation, settings.operations))
            finally:
                gc.enable()
            for (operation, size), of_round in times.items():
                # The first round warms up.
                smallest, of_round = times[operation, sizes[0]][1:], of_round[1:]
                rows.append(dict(
                    operation=operation, strategy=strategy, pool_size=size, **figure_of('nanoseconds', of_round),
                    **figure_of('ratio', [time / base for time, base in zip(of_round, smallest)]),
                ))
        lock = median(lock_nanoseconds(settings.operations) for _ in range(settings.pool_rounds))
        return [dict(row, lock_nanoseconds=lock) for row in rows]

    def table(self, rows: list[dict]) -> Table:
        sizes = sorted({row['pool_size'] for row in rows})
        title = (
            f"Nanoseconds per operation, {rows[0]['lock_nanoseconds']:,.0f} of them for the pool's lock, and the ratio "
            f'to a pool of {sizes[0]:,} entries'
        )
        table = table_of(title, 'operation', 'strategy', *(f'{size:,}' for size in sizes), names=2)
        for operation in OPERATIONS:
            for strategy in dict.fromkeys(row['strategy'] for row in rows):
                of_sizes = {
                    row['pool_size']: f"{as_text(row, 'nanoseconds', '{:,.0f}')} x{row['ratio']:.2f}" for row in rows
                    if (row['operation'], row['strategy']) == (operation, strategy)
                }
                table.add_row(operation, strategy, *(of_sizes[size] for size in sizes))
            table.add_section()
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        sizes = sorted({row['pool_size'] for row in rows})
        panels = figure.subplots(1, len(OPERATIONS), sharey=True)
        for panel, (operation, title) in zip(panels, OPERATIONS.items()):
            for strategy, marker in zip(dict.fromkeys(row['strategy'] for row in rows), 'osD^vP*Xhd' * 10):
                latency = [
                    row['nanoseconds'] / 1000 for row in rows
                    if (row['operation'], row['strategy']) == (operation, strategy)
                ]
                style = dict(color='grey', linestyle='--') if strategy == CONTROL else {}
                panel.plot(sizes, latency, marker=marker, label=strategy, **style)
            panel.set(title=title, xscale='log', xlabel='pool size (entries)')
            panel.set_xticks(sizes, [f'{size // 1000}k' if size % 1000 == 0 else f'{size}' for size in sizes])
            panel.minorticks_off()
        panels[0].set(ylabel='microseconds per operation')
        panels[0].set_ylim(bottom=0)
        panels[0].legend(frameon=False)
        figure.suptitle('Cost of a KVCachePool operation by pool size')
