"""What does a search cost with the cache? Release and plugin in turn, in one process, step by step."""
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import click
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.machine import machine
from benchmarks.search_policies import Searcher
from lzero_kvcache import EVICTION_REGISTRY
from lzero_kvcache.world_model.contexts import NodeContexts
from lzero_kvcache.world_model.managed import ManagedInference
from lzero_kvcache.world_model.window import ContextWindow

ENV_NUM, NUM_SIMULATIONS = 8, 50
SIZES = {
    '64 wide, window 8': dict(embed_dim=64, context_length=8),
    '64 wide, window 8, rotary': dict(embed_dim=64, context_length=8, rotary=True),
    '256 wide, window 32': dict(embed_dim=256, context_length=32),
    '768 wide, window 8, images': dict(embed_dim=768, context_length=8, observation='image'),
}
# Everything between the search and the forward passes: names and keys, look-ups and gather, scatter, pools.
CACHE_WORK = [
    (ManagedInference, 'nodes_of'), (NodeContexts, 'of'), (ContextWindow, 'add'), (ManagedInference, '_add_nodes'),
]


def seconds(searcher: Searcher) -> float:
    start = perf_counter()
    searcher.collect()
    return perf_counter() - start


def in_turn(
        searchers: Sequence[Searcher], warm_up: int, steps: int, progress: Progress, name: str
) -> list[list[float]]:
    """Seconds of each searcher's steps, taken in turn."""
    task = progress.add_task(name, total=warm_up + steps)
    times: list[list[float]] = [[] for _ in searchers]
    for step in range(warm_up + steps):
        for searcher, of_searcher in zip(searchers, times):
            taken = seconds(searcher)
            if step >= warm_up:
                of_searcher.append(taken)
        progress.advance(task)
    return times


def paired_ratio(times: Sequence[float], base: Sequence[float]) -> float:
    return median(time / other for time, other in zip(times, base))


@contextmanager
def timed_cache_work() -> Iterator[list[float]]:
    """Collect the seconds spent on the cache within the ``with`` block."""
    spent: list[float] = []
    originals = [(owner, name, getattr(owner, name)) for owner, name in CACHE_WORK]

    def timed(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(perf_counter() - start)
        return call

    for owner, name, function in originals:
        setattr(owner, name, timed(function))
    try:
        yield spent
    finally:
        for owner, name, function in originals:
            setattr(owner, name, function)


def measure_steps(steps: int, progress: Progress) -> list[dict]:
    results = []
    for name, size in SIZES.items():
        release = Searcher(**size, env_num=ENV_NUM, num_simulations=NUM_SIMULATIONS)
        plugin = Searcher(**size, env_num=ENV_NUM, num_simulations=NUM_SIMULATIONS, kv_cache=dict(strategy='lru'))
        # Until every root's window is full.
        warm_up = size['context_length'] // 2 + 2
        of_release, of_plugin = in_turn([release, plugin], warm_up, steps, progress, name)
        shares = []
        for _ in range(steps // 2):
            with timed_cache_work() as spent:
                taken = seconds(plugin)
            shares.append(sum(spent) / taken)
        results.append(dict(
            size=name, release_ms=1000 * median(of_release), plugin_ms=1000 * median(of_plugin),
            ratio=paired_ratio(of_plugin, of_release), cache_share=median(shares),
        ))
    return results


def measure_memory(progress: Progress) -> list[dict]:
    results, windows = [], (8, 16, 40, 80)
    task = progress.add_task('memory by window', total=len(windows))
    for window in windows:
        searcher = Searcher(64, window, dict(strategy='lru'), env_num=2)
        for _ in range(window // 2 + 2):
            searcher.collect()
        manager = searcher.world_model.kv_cache_manager
        per_node = manager.memory_bytes()['recur_pool'] / len(manager.recur_pool)
        # The release keeps whole windows: keys and values of every layer, 4 bytes each.
        of_release = 2 * searcher.world_model.num_layers * window * 64 * 4
        results.append(dict(window=window, plugin_bytes=per_node, release_bytes=of_release,
                            ratio=per_node / of_release))
        progress.advance(task)
    return results


def measure_eviction(steps: int, share: float, progress: Progress) -> list[dict]:
    results = []
    pool = dict(size=int(share * ENV_NUM * NUM_SIMULATIONS))
    for name, size in SIZES.items():
        caches = {'unlimited': dict(strategy='lru')}
        caches.update({strategy: dict(strategy=strategy, recur_pool=pool) for strategy in sorted(EVICTION_REGISTRY)})
        searchers = [Searcher(**size, kv_cache=cache, num_simulations=NUM_SIMULATIONS) for cache in caches.values()]
        times = in_turn(searchers, size['context_length'] // 2 + 2, steps, progress, f'{name}, pool of {share:.0%}')
        for strategy, searcher, taken in list(zip(caches, searchers, times))[1:]:
            stats = searcher.world_model.kv_cache_manager.recur_pool.stats
            results.append(dict(size=name, strategy=strategy, throughput=1 / paired_ratio(taken, times[0]),
                                hit_rate=stats.hit_rate))
    return results


def tables(report: dict) -> list[Table]:
    steps = Table('size', 'release', 'plugin', 'plugin / release', 'share of the cache', box=None,
                  title=f'one collect step, {ENV_NUM} environments x {NUM_SIMULATIONS} simulations (medians of pairs)')
    for row in report['steps']:
        steps.add_row(row['size'], f"{row['release_ms']:.0f} ms", f"{row['plugin_ms']:.0f} ms", f"{row['ratio']:.2f}",
                      f"{row['cache_share']:.1%}")
    memory = Table('window', 'release', 'plugin', 'plugin / release', box=None,
                   title='bytes of keys and values per node')
    for row in report['memory']:
        memory.add_row(str(row['window']), f"{row['release_bytes']:,.0f}", f"{row['plugin_bytes']:,.0f}",
                       f"{row['ratio']:.3f}")
    eviction = Table('size', 'strategy', 'hit rate', 'throughput', box=None,
                     title=f"recur pool of {report['pool_share']:.0%} of the nodes, against an unlimited one")
    for row in report['eviction']:
        eviction.add_row(row['size'], row['strategy'], f"{row['hit_rate']:.1%}", f"{row['throughput']:.2f}")
    return [steps, memory, eviction]


def plot(report: dict, path: Path) -> None:
    figure = Figure(figsize=(13, 4), layout='constrained')
    of_steps, of_memory, of_eviction = figure.subplots(1, 3)
    names = [row['size'].replace(', ', '\n') for row in report['steps']]
    of_steps.bar_label(of_steps.bar(names, [row['ratio'] for row in report['steps']]), fmt='%.2f')
    of_steps.axhline(1, color='grey', linestyle='--')
    of_steps.set(title='time of a collect step, plugin / release')
    of_steps.tick_params(axis='x', labelsize='small')
    windows = [row['window'] for row in report['memory']]
    for arm, style in (('release', 'o--'), ('plugin', 'o-')):
        of_memory.plot(windows, [row[f'{arm}_bytes'] / 1024 for row in report['memory']], style, label=arm)
    of_memory.set(title='keys and values per cached node', xlabel='window (tokens)', ylabel='KiB', ylim=(0, None))
    of_memory.legend(frameon=False)
    for strategy in sorted({row['strategy'] for row in report['eviction']}):
        rows = [row for row in report['eviction'] if row['strategy'] == strategy]
        of_eviction.plot(names, [row['throughput'] for row in rows], 'o-', label=strategy)
    of_eviction.axhline(1, color='grey', linestyle='--')
    of_eviction.set(title=f"throughput, pool of {report['pool_share']:.0%} / unlimited", ylim=(0, 1.1))
    of_eviction.tick_params(axis='x', labelsize='small')
    of_eviction.legend(frameon=False)
    for panel in (of_steps, of_memory, of_eviction):
        panel.spines[['top', 'right']].set_visible(False)
    figure.savefig(path, dpi=150)


@click.command(help=__doc__)
@click.option('--steps', default=30, show_default=True, type=click.IntRange(2), help='Collect steps per measurement.')
@click.option('--threads', default=2, show_default=True, type=click.IntRange(1), help='Threads of PyTorch.')
@click.option('--pool-share', default=0.25, show_default=True, type=click.FloatRange(0.01, 1),
              help='The small recur pool, as a share of the nodes.')
@click.option('--out', default='data_benchmarks/kv_cache', type=click.Path(path_type=Path), show_default=True,
              help='Folder for benchmark_kv_cache.json and .png.')
def main(steps: int, threads: int, pool_share: float, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    # LightZero lets every logger of the process speak, down to its debug messages.
    logging.getLogger('matplotlib').setLevel(logging.WARNING)
    console = Console()
    with Progress(console=console) as progress:
        report = dict(
            machine=machine(), threads=threads, pool_share=pool_share, steps=measure_steps(steps, progress),
            memory=measure_memory(progress), eviction=measure_eviction(max(2, steps // 2), pool_share, progress),
        )
    (out / 'benchmark_kv_cache.json').write_text(json.dumps(report, indent=2))
    plot(report, out / 'benchmark_kv_cache.png')
    console.print(*tables(report), ', '.join(f'{key}: {value}' for key, value in report['machine'].items()),
                  f'Written to {out}/benchmark_kv_cache.json and .png', sep='\n')


if __name__ == '__main__':
    main()
