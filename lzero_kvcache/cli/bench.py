from pathlib import Path
from typing import Optional

import click

# Here, so that --help needs none of what the sections import.
SECTIONS = ('steps', 'growth', 'small_pools', 'memory', 'pool_operations', 'launches', 'training')
TAKES_MINUTES = 'training'


@click.command()
@click.option('--section', 'names', multiple=True, type=click.Choice(SECTIONS),
              help='What is measured; once for each.  [default: all; with --quick all but training, which takes '
                   'minutes]')
@click.option('--steps', type=click.IntRange(2),
              help='Collect steps per measurement.  [default: 30; with --quick 5 to 15]')
@click.option('--pairs', type=click.IntRange(1),
              help='Trainings of each arm in section training.  [default: 3; with --quick 1]')
@click.option('--quick', is_flag=True,
              help='A first look in less than two minutes: fewer models, sizes and steps, and no trainings.')
@click.option('--threads', default=1, show_default=True, type=click.IntRange(1),
              help='Threads of PyTorch. More of them slow small models down, above all where others use the machine.')
@click.option('--out', default='data_benchmarks/kv_cache', type=click.Path(path_type=Path, file_okay=False),
              show_default=True, help='Folder for the JSON file and the plots.')
def bench(
        names: tuple[str, ...], steps: Optional[int], pairs: Optional[int], quick: bool, threads: int, out: Path
) -> None:
    """
    What does a search cost with the cache? Release and plugin in turn, step by step, in one process.

    Section training runs LightZero's train_unizero from beginning to end, each run in a process of its own.
    """
    from dataclasses import replace

    from ..output import loading

    try:
        with loading('LightZero'):
            from ..bench.report import run_benchmark
            from ..bench.training import TrainingFailed
    except ModuleNotFoundError as error:
        if not error.name.startswith('matplotlib'):
            raise
        raise click.ClickException(
            f"the benchmark needs {error.name}, which is not installed: pip install 'lzero-kvcache[bench]'"
        ) from error
    from ..bench.settings import QUICK, Settings

    settings = QUICK if quick else Settings()
    if steps is not None:
        settings = replace(settings, steps=steps, growth_steps=min(steps, settings.growth_steps))
    if pairs is not None:
        settings = replace(settings, pairs=pairs)
    if not names:
        names = tuple(name for name in SECTIONS if not quick or name != TAKES_MINUTES)
    try:
        run_benchmark(names, settings, threads, out)
    except TrainingFailed as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f'{error.filename or out} cannot be written: {error.strerror}') from error
