"""Does a pool's operation cost the same at any pool size? Every strategy, all sizes in turn in one process."""
import gc
import json
import random
from collections import OrderedDict
from pathlib import Path
from statistics import median
from time import perf_counter_ns

import click
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.machine import machine
from lzero_kvcache import EVICTION_REGISTRY, KVCachePool

OPERATIONS = {
    'get': 'get of a random key',
    'overwrite': 'set of a random key that is there',
    'evict': 'set of a new key, full pool',
}
CONTROL = 'OrderedDict'
STRATEGIES = [*sorted(EVICTION_REGISTRY), CONTROL]


class FullDict(OrderedDict):
    """The control: what Python's own dictionary pays as it outgrows the processor's caches."""

    def set(self, key: int, kv: None, priority: float) -> None:
        if key not in self:
            self.popitem(last=False)
        self[key] = kv


class Workload:
    """A full pool and the arguments of the operations on it."""

    def __init__(self, strategy: str, size: int, rng: random.Random) -> None:
        self.pool = FullDict.fromkeys(range(-size, 0)) if strategy == CONTROL else KVCachePool(size, strategy)
        self.size, self.rng, self.next_key = size, rng, 0
        self.nanoseconds('evict', size)

    def arguments(self, operation: str, count: int) -> list:
        """Keys and priorities; priorities rise with time, so that old and new entries compete for room."""
        if operation == 'evict':
            keys = range(self.next_key, self.next_key + count)
            self.next_key += count
        else:
            keys = self.rng.choices(list(self.pool.keys()), k=count)
        return [(key, self.next_key + self.rng.random() * self.size) for key in keys]

    def nanoseconds(self, operation: str, count: int) -> float:
        """The time of one operation, the mean over ``count`` of them."""
        arguments = self.arguments(operation, count)
        start = perf_counter_ns()
        if operation == 'get':
            for key, _ in arguments:
                self.pool.get(key)
        else:
            for key, priority in arguments:
                self.pool.set(key, None, priority)
        return (perf_counter_ns() - start) / count


def measure(sizes: tuple, rounds: int, count: int) -> dict:
    """By operation and strategy, a row per size; each ratio compares two sizes within the same round."""
    rng, results = random.Random(0), {operation: {} for operation in OPERATIONS}
    # One strategy at a time keeps the memory small; within it every size runs in every round, in random order.
    for strategy in track(STRATEGIES, description='strategies'):
        workloads = {size: Workload(strategy, size, rng) for size in sizes}
        times = {(operation, size): [] for operation in OPERATIONS for size in sizes}
        gc.collect()
        gc.disable()
        for _ in range(rounds + 1):
            for operation, size in rng.sample(sorted(times), len(times)):
                times[operation, size].append(workloads[size].nanoseconds(operation, count))
        gc.enable()
        for (operation, size), of_round in times.items():
            smallest, of_round = times[operation, sizes[0]][1:], of_round[1:]  # The first round warms up.
            results[operation].setdefault(strategy, []).append(dict(
                pool_size=size, nanoseconds=median(of_round),
                ratio=median(time / base for time, base in zip(of_round, smallest)),
                ratio_of_totals=sum(of_round) / sum(smallest),
            ))
    return results


def table(results: dict, sizes: tuple) -> Table:
    title = f'ns per operation, and its ratio to a pool of {sizes[0]:,} entries (medians)'
    view = Table('operation', 'strategy', *(f'{size:,}' for size in sizes), title=title, box=None)
    for operation in OPERATIONS:
        for strategy, rows in results[operation].items():
            cells = [f"{row['nanoseconds']:,.0f} x{row['ratio']:.2f}" for row in rows]
            view.add_row(operation, strategy, *cells)
        view.add_section()
    return view


def plot(results: dict, sizes: tuple, info: dict, path: Path) -> None:
    figure = Figure(figsize=(12, 4), layout='constrained')
    panels = figure.subplots(1, len(OPERATIONS), sharey=True)
    for panel, (operation, title) in zip(panels, OPERATIONS.items()):
        for (strategy, rows), marker in zip(results[operation].items(), 'osD^vP*Xhd' * 10):
            latency = [row['nanoseconds'] / 1000 for row in rows]
            style = dict(color='grey', linestyle='--') if strategy == CONTROL else {}
            panel.plot(sizes, latency, marker=marker, label=strategy, **style)
        panel.set(title=title, xscale='log', xlabel='pool size (entries)')
        panel.set_xticks(sizes, [f'{size // 1000}k' if size % 1000 == 0 else f'{size}' for size in sizes])
        panel.minorticks_off()
        panel.grid(alpha=0.3)
        panel.spines[['top', 'right']].set_visible(False)
    panels[0].set(ylabel='microseconds per operation', ylim=(0, None))
    panels[0].legend(frameon=False)
    figure.suptitle(f"Cost of a KVCachePool operation by pool size ({info['cpu']}, Python {info['python']})")
    figure.savefig(path, dpi=150)


@click.command(help=__doc__)
@click.option('--out', default='data_benchmarks', type=click.Path(path_type=Path), show_default=True,
              help='Directory for pool_operations.json and pool_operations.png.')
@click.option('--rounds', default=200, type=click.IntRange(1), show_default=True, help='Times every size is measured.')
@click.option('--count', default=500, type=click.IntRange(1), show_default=True, help='Operations per measurement.')
@click.option('--size', 'sizes', multiple=True, default=(100, 1_000, 10_000, 100_000), type=click.IntRange(1),
              show_default=True, help='Pool size, once for each; ratios are to the smallest.')
def main(out: Path, rounds: int, count: int, sizes: tuple) -> None:
    sizes, info = tuple(sorted(sizes)), machine()
    out.mkdir(parents=True, exist_ok=True)
    results = measure(sizes, rounds, count)
    report = dict(machine=info, rounds=rounds, operations_per_measurement=count, results=results)
    (out / 'pool_operations.json').write_text(json.dumps(report, indent=2))
    plot(results, sizes, info, out / 'pool_operations.png')
    Console().print(table(results, sizes), ', '.join(f'{key}: {value}' for key, value in info.items()),
                    f'Written to {out}/pool_operations.json and .png', sep='\n')


if __name__ == '__main__':
    main()
