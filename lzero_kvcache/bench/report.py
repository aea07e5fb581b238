"""All sections of the benchmark, one after another: a folder with JSON and plots, tables on the screen."""
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path

import torch
from matplotlib.figure import Figure
from rich.progress import Progress

from ..files import write_atomically
from ..output import output_to
from .growth import Growth
from .launches import Launches
from .machine import machine
from .memory import Memory
from .pool_operations import PoolOperations
from .section import Section
from .settings import Settings
from .small_pools import SmallPools
from .steps import CollectSteps

SECTIONS: tuple[Section, ...] = (
    CollectSteps(), Growth(), SmallPools(), Memory(), PoolOperations(), Launches()
)
REPORT, LOG = 'benchmark_kv_cache.json', 'benchmark_kv_cache.log'


def run_benchmark(names: Sequence[str], settings: Settings, threads: int, out: Path) -> None:
    """
    Overview:
        Measure, show the tables, and write JSON and plots. What is done is written before the next section begins.
    Arguments:
        - names (:obj:`Sequence[str]`): The sections.
        - settings (:obj:`Settings`): What is measured, and how often.
        - threads (:obj:`int`): Threads of PyTorch.
        - out (:obj:`Path`): The folder.
    """
    out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(threads)
    # LightZero lets every logger of the process speak, down to its debug messages.
    logging.getLogger('matplotlib').setLevel(logging.WARNING)
    report = dict(machine=machine(), threads=threads, settings=asdict(settings), sections={})
    sections = [section for section in SECTIONS if section.name in names]
    with output_to(out / LOG) as screen:
        with Progress(console=screen, redirect_stdout=False, redirect_stderr=False) as progress:
            overall = progress.add_task('sections', total=len(sections))
            for section in sections:
                rows = section.measure(settings, progress)
                report['sections'][section.name] = rows
                write_atomically(out / REPORT, json.dumps(report, indent=2))
                draw(section, rows, out / f'{section.name}.png')
                progress.console.print(section.table(rows), '')
                progress.advance(overall)
        screen.print(', '.join(f'{key}: {value}' for key, value in report['machine'].items()), f'threads: {threads}',
                     f'Written to {out}: {REPORT}, ' + ', '.join(f'{section.name}.png' for section in sections),
                     f'Output of LightZero: {out / LOG}', sep='\n', soft_wrap=True)


def draw(section: Section, rows: list[dict], path: Path) -> None:
    """
    Overview:
        Write the plot of one section.
    Arguments:
        - section (:obj:`Section`): The section.
        - rows (:obj:`List[Dict]`): What it has measured.
        - path (:obj:`Path`): The picture's path.
    """
    figure = Figure(figsize=(13, 4.5), layout='constrained')
    section.plot(rows, figure)
    for panel in figure.axes:
        panel.spines[['top', 'right']].set_visible(False)
        panel.tick_params(axis='x', labelsize='small')
    image = BytesIO()
    figure.savefig(image, format='png', dpi=120)
    write_atomically(path, image.getvalue())
