import json
from concurrent.futures import BrokenExecutor
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import click

from ..untrusted import printable
from .run import INTERRUPTED


@click.command()
@click.argument('trace', type=click.Path(path_type=Path))
@click.option('--strategies', default='all', show_default=True, metavar='A,B,...',
              help="Strategies, or all of them. 'priority' is each of its scores, 'priority:predicted_value' one.")
@click.option('--sizes', default='5%,10%,...,100%', show_default=True,
              help='Sizes of the recur pool, in percent of the nodes of a search.')
@click.option('--import', 'modules', multiple=True, metavar='MODULE',
              help='A module that registers strategies of your own; once for each.')
@click.option('--jobs', type=click.IntRange(1), help='Replays at a time.  [default: one per core]')
@click.option('--out', type=click.Path(path_type=Path, file_okay=False),
              help="Folder of results.csv, hit_rate.png and recommendation.txt.  [default: beside TRACE]")
def simulate(
        trace: Path, strategies: str, sizes: str, modules: tuple[str, ...], jobs: Optional[int], out: Optional[Path]
) -> None:
    """
    What would other strategies and pool sizes have done? Replays a trace through the real pools, without a model.

    TRACE is a folder that 'lzero-kvcache trace' has written. Nothing in it is executed.
    """
    from ..eviction import EvictionStrategyError
    from ..files import DiskFullError, disk_full_named
    from ..output import output_to, spinner

    # The name of '.' or '/' is empty.
    out = out or trace.parent / f'{trace.stem}_simulated'
    refusal, interrupted, outcomes = None, False, []
    # What importing a user's module, and with it DI-engine, prints is of no use.
    with output_to() as screen:
        try:
            with spinner(screen, f'Reading {trace} ...'):
                from ..trace.choices import chosen_strategies
                from ..trace.folder import check_folder, settings_of
                from ..trace.simulation import jobs_of, survey
                from ..trace.sizes import parse_sizes

                for module in modules:
                    _register_strategies_of(module)
                shares = parse_sizes(sizes)
                chosen = chosen_strategies([name.strip() for name in strategies.split(',')])
                replays = jobs_of(chosen, shares)
                seen = survey(trace)
                settings = settings_of(trace, chosen, shares)
                check_folder(out, settings)
                with disk_full_named(out):
                    out.mkdir(parents=True, exist_ok=True)
            _show_survey(screen, seen)
            interrupted = _replay(screen, trace, replays, jobs, modules, outcomes)
        except FileNotFoundError as error:
            refusal = f'{_sentence(error)}{_nearest(trace)}'
        except (ValueError, OSError, ImportError, DiskFullError, BrokenExecutor, EvictionStrategyError) as error:
            refusal = _sentence(error)
        else:
            try:
                _report(screen, seen, outcomes, len(replays), out, settings)
            except (OSError, DiskFullError) as error:
                refusal = _sentence(error)
    if refusal is not None:
        raise click.ClickException(refusal)
    if interrupted:
        raise SystemExit(INTERRUPTED)


def _register_strategies_of(module: str) -> None:
    try:
        import_module(module)
    except (ImportError, ValueError):
        raise
    except Exception as error:
        raise ImportError(f'{module} cannot be imported ({type(error).__name__}: {error})') from error


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError):
        return f'{error.filename}: {error.strerror}' if error.filename else str(error)
    if isinstance(error, ImportError):
        return f'--import: {error}'
    return str(error)


def _nearest(path: Path) -> str:
    if path.exists() or not path.parent.is_dir():
        return ''
    nearest = get_close_matches(path.name, [other.name for other in path.parent.iterdir() if other.is_dir()], n=1)
    return f'; did you mean {path.with_name(nearest[0])}?' if nearest else ''


def _show_survey(screen: Any, seen: Any) -> None:
    facts = seen.facts
    screen.print(
        f'{printable(str(seen.reader.path))}: {seen.describe_searches()}; {seen.expansions:,} expansions. A search of '
        f'all {facts.env_num} environments has {facts.nodes_of_search:,} nodes ({facts.num_simulations} simulations).',
        markup=False, highlight=False, soft_wrap=True
    )
    if not seen.reader.is_complete:
        screen.print('The trace was cut off, perhaps because the run was killed: what is there is whole, and is used.')


def _replay(screen: Any, trace: Path, replays: list, jobs: Optional[int], modules: tuple, outcomes: list) -> bool:
    """Add to the outcomes what there is; whether the user has interrupted it."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from ..ab.machine_limits import cores
    from ..trace.simulation import simulate

    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=screen) as progress:
        task = progress.add_task('replays', total=len(replays))
        try:
            for outcome in simulate(trace, replays, jobs or cores(), modules):
                outcomes.append(outcome)
                progress.advance(task)
        except KeyboardInterrupt:
            return True
    return False


def _report(screen: Any, seen: Any, outcomes: list, wanted: int, out: Path, settings: Any) -> None:
    from ..files import write_atomically
    from ..trace.folder import RECORD
    from ..trace.results import Results, hit_rates_table, pools_table, recommendation, write_csv

    unlimited = next((outcome for outcome in outcomes if outcome.share is None), None)
    if unlimited is None or len(outcomes) < 2:
        screen.print('Interrupted before the first results.')
        return
    results = Results(seen, unlimited, [outcome for outcome in outcomes if outcome is not unlimited])
    screen.print(hit_rates_table(results))
    shown = results.recommended() or results.best(results.shares[-1])
    if shown is not None:
        screen.print()
        screen.print(pools_table(results, shown))
    text = recommendation(results)
    if len(outcomes) < wanted:
        text = f'Interrupted after {len(outcomes)} of {wanted} replays; what follows is of these alone.\n\n{text}'
    screen.print(f'\n{text}\n', markup=False, highlight=False, soft_wrap=True)
    write_atomically(out / RECORD, json.dumps(settings, indent=2))
    write_atomically(out / 'recommendation.txt', f'{text}\n')
    write_csv(results, out / 'results.csv')
    written = ['results.csv', 'recommendation.txt']
    try:
        from ..trace.plot import plot_results
    except ModuleNotFoundError as error:
        if not error.name.startswith('matplotlib'):
            raise
        screen.print("There is no plot, because matplotlib is not installed: pip install 'lzero-kvcache[bench]'",
                     markup=False)
    else:
        plot_results(results, out / 'hit_rate.png')
        written.append('hit_rate.png')
    screen.print(f"In {out}: {', '.join(written)}", markup=False, soft_wrap=True)
