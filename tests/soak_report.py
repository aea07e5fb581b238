"""What a soak has found, as tables, files and a plot."""
import csv
import json
from collections import Counter
from dataclasses import asdict, fields
from io import BytesIO
from pathlib import Path
from typing import Any, Optional

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table
from soak_memory import QUANTITIES, WINDOWS, Sample

from lzero_kvcache import CacheStats
from lzero_kvcache.bench.machine import machine
from lzero_kvcache.files import write_atomically
from lzero_kvcache.world_model import RebuildStats

# With a limit for one line, the axis is cut to what lies around it.
PANELS = [
    ('Memory of the process at rest', 'MiB', {'rest_rss_mb': 'MiB'}),
    ('Python objects at rest', 'objects', {'rest_objects': 'objects'}),
    ('The most at any time, in all worlds', '', {
        'most_live_tokens': 'live tokens', 'most_nodes': 'nodes of searches', 'most_entries': 'entries of the pools',
    }),
    ('Items of containers', 'items', {'busy_items': 'busy', 'rest_items': 'at rest'}),
]


def pool_counts(soak: Any) -> dict[str, dict[str, int]]:
    """By kind of pool: what its statistics say, and what was counted outside."""
    counts = {}
    for kind in ('init_pools', 'recur_pool', 'wm_pool'):
        pools = [pool for world in soak.worlds for pool in world.inference.manager.pools()[kind]]
        stats = sum((pool.stats for pool in pools), CacheStats())
        counted = sum((pool.counted for pool in pools), Counter())
        counts[kind] = dict(
            queries=stats.total_queries, hits=stats.hits, misses=stats.misses, sets=counted['sets'],
            new=counted['new'], evictions=stats.evictions, cleared=counted['cleared'], entries=sum(map(len, pools)),
        )
    return counts


def rebuilds(soak: Any) -> dict[str, int]:
    """What misses have cost in all worlds."""
    stats = [world.inference.rebuild_stats for world in soak.worlds]
    return {field.name: sum(getattr(each, field.name) for each in stats) for field in fields(RebuildStats)}


def show_results(soak: Any, screen: Console) -> None:
    """What has happened, what the pools have counted, and what has become of memory."""
    compared, difference = soak.comparisons()
    happened = ', '.join(f'{count:,} {name}' for name, count in soak.done().items())
    misses = rebuilds(soak)
    screen.print(
        f'{len(soak.worlds)} worlds, {soak.seconds:,.0f} s: {happened}. {compared:,} predictions compared with a '
        f'forward without a cache, off by {difference:.1e} at most. After misses: {misses["restored"]:,} contexts '
        f'restored, {misses["rebuilds"]:,} rebuilt, by {misses["tokens"]:,} tokens.', highlight=False
    )
    counts = pool_counts(soak)
    table = Table(title='Pools: new = evictions + cleared + entries', box=None, padding=(0, 2, 0, 0))
    table.add_column('pool')
    for name in counts['recur_pool']:
        table.add_column(name, justify='right')
    for kind, of_kind in counts.items():
        table.add_row(kind, *(f'{count:,}' for count in of_kind.values()))
    screen.print(table)
    if len(soak.samples) < WINDOWS:
        return
    table = Table(title='The largest figure of each fifth', box=None, padding=(0, 2, 0, 0))
    table.add_column('', no_wrap=True)
    for title in ('warm-up', 'second', 'third', 'fourth', 'last', 'limit'):
        table.add_column(title, justify='right')
    for quantity in QUANTITIES:
        figures = [*quantity.maxima(soak.samples), quantity.limit(soak.samples)]
        digits = 1 if quantity.name.endswith('_mb') else 0
        table.add_row(quantity.title, *(f'{figure:,.{digits}f}' for figure in figures))
    screen.print(table)


def write_results(soak: Any, folder: Path, failure: Optional[str]) -> None:
    """``soak.json``, ``samples.csv`` and ``memory.png``."""
    folder.mkdir(parents=True, exist_ok=True)
    compared, difference = soak.comparisons()
    maxima = {}
    if len(soak.samples) >= WINDOWS:
        maxima = {
            quantity.name: dict(maxima=quantity.maxima(soak.samples), limit=quantity.limit(soak.samples))
            for quantity in QUANTITIES
        }
    write_atomically(folder / 'soak.json', json.dumps(dict(
        failure=failure, steps=soak.step, seed=soak.seed, seconds=round(soak.seconds, 1), done=soak.done(),
        compared=compared, largest_difference=difference, pools=pool_counts(soak), rebuilds=rebuilds(soak),
        flatness=maxima, worlds=[world.settings for world in soak.worlds], machine=machine(),
    ), indent=2) + '\n')
    with open(folder / 'samples.csv', 'w', newline='') as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Sample)])
        writer.writeheader()
        writer.writerows(map(asdict, soak.samples))
    if soak.samples:
        _plot(soak, folder / 'memory.png')


def _plot(soak: Any, path: Path) -> None:
    figure = Figure(figsize=(12, 7.5), layout='constrained')
    quantities = {quantity.name: quantity for quantity in QUANTITIES}
    for axes, (title, unit, lines) in zip(figure.subplots(2, 2).flat, PANELS):
        for name, label in lines.items():
            figures = [getattr(sample, name) for sample in soak.samples]
            axes.plot([sample.step for sample in soak.samples], figures, label=label, linewidth=1.2)
        if len(lines) == 1 and len(soak.samples) >= WINDOWS:
            limit = quantities[name].limit(soak.samples)
            axes.axhline(limit, color='firebrick', linestyle='--', linewidth=1, label='limit')
            margin = 0.3 * (limit - min(figures))
            axes.set_ylim(min(figures) - margin, max(limit, *figures) + 1.5 * margin)
            title = f'{title} (axis cut)'
        else:
            axes.set_ylim(0, 1.35 * axes.get_ylim()[1])
        axes.axvspan(0, soak.steps / WINDOWS, color='grey', alpha=0.15, label='warm-up')
        axes.set(title=title, ylabel=unit, xlabel='search steps', xlim=(0, soak.steps))
        axes.xaxis.set_major_formatter('{x:,.0f}')
        axes.yaxis.set_major_formatter('{x:,.0f}')
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, ncols=2, loc='upper right')
    compared, difference = soak.comparisons()
    evictions = sum(of_kind['evictions'] for of_kind in pool_counts(soak).values())
    figure.suptitle(
        f'{soak.step:,} search steps, {soak.done()["learner steps"]:,} learner steps, {evictions:,} evictions; '
        f'{compared:,} predictions compared, off by {difference:.1e} at most'
    )
    image = BytesIO()
    figure.savefig(image, format='png', dpi=110)
    write_atomically(path, image.getvalue())
