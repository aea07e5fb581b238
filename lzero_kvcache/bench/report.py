"""All sections of the benchmark, one after another: a folder with JSON and plots, tables on the screen."""
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from math import inf
from pathlib import Path
from time import perf_counter

import torch
from matplotlib.figure import Figure
from rich.progress import Progress

from ..files import write_atomically
from ..output import output_to
from .clock import Clock, busy_sentence
from .growth import Growth
from .launches import Launches
from .machine import machine
from .memory import Memory
from .pool_operations import PoolOperations
from .section import Section
from .settings import Settings
from .small_pools import SmallPools
from .steps import CollectSteps
from .training import Training

SECTIONS: tuple[Section, ...] = (
    CollectSteps(), Growth(), SmallPools(), Memory(), PoolOperations(), Launches(), Training()
)
REPORT, LOG = 'benchmark_kv_cache.json', 'benchmark_kv_cache.log'


def run_benchmark(names: Sequence[str], settings: Settings, threads: int, out: Path) -> None:
    """Measure, show the tables, and write JSON and plots. What is done is written before the next section begins.

    Args:
        names: The sections.
        settings: What is measured, and how often.
        threads: Threads of PyTorch.
        out: The folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    report = dict(machine=machine(), threads=threads, load_before=os.getloadavg()[0], settings=asdict(settings),
                  measured={}, sections={})
    sections = [section for section in SECTIONS if section.name in names]
    end = perf_counter() + (inf if settings.seconds is None else settings.seconds)
    clocks = []
    with output_to(out / LOG) as screen:
        # A thread that draws would take a part of what is measured.
        with Progress(console=screen, auto_refresh=False, redirect_stdout=False, redirect_stderr=False) as progress:
            overall = progress.add_task('sections', total=len(sections))
            for number, section in enumerate(sections):
                # The first ones have more to measure.
                clock = Clock(progress, 2 * (end - perf_counter()) / (len(sections) - number + 1))
                clocks.append(clock)
                rows = section.measure(settings, clock)
                report['sections'][section.name] = rows
                report['measured'][section.name] = dict(
                    seconds=clock.measured, seconds_with_a_core=clock.computed, left_out=clock.left_out,
                    notes=clock.notes
                )
                write_atomically(out / REPORT, json.dumps(report, indent=2))
                draw(section, rows, out / f'{section.name}.png')
                progress.console.print(section.table(rows))
                if clock.left_out:
                    progress.console.print(f"Left out, because the time was short: {'; '.join(clock.left_out)}.")
                for note in clock.notes:
                    progress.console.print(note, markup=False)
                progress.console.print()
                progress.advance(overall)
        busy = busy_sentence(sum(clock.measured for clock in clocks), sum(clock.computed for clock in clocks),
                             report['load_before'], report['machine']['cores'])
        screen.print('Medians; ± is half the distance between the quartiles.', *filter(None, [busy]),
                     ', '.join(f'{key}: {value}' for key, value in report['machine'].items()), f'threads: {threads}',
                     f'Written to {out}: {REPORT}, ' + ', '.join(f'{section.name}.png' for section in sections),
                     f'Output of LightZero: {out / LOG}', sep='\n', soft_wrap=True)


def draw(section: Section, rows: list[dict], path: Path) -> None:
    """Write the plot of what one section has measured."""
    figure = Figure(figsize=(13, 4.5), layout='constrained')
    section.plot(rows, figure)
    for panel in figure.axes:
        panel.spines[['top', 'right']].set_visible(False)
        panel.tick_params(axis='x', labelsize='small')
    image = BytesIO()
    figure.savefig(image, format='png', dpi=120)
    write_atomically(path, image.getvalue())
