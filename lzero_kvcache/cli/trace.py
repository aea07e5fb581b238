import os
from pathlib import Path
from typing import Any

import click

from .run import RunFailed, run

OUT = click.Option(
    ('--out', ), required=True, type=click.Path(path_type=Path),
    help='The trace, a folder that is not there yet, e.g. cartpole.trace.'
)


def record(out: Path, **options: Any) -> None:
    """
    Train as 'run' does, and record every cache operation.

    'lzero-kvcache simulate' says of the trace what other strategies and pool sizes would have done. Some hundred
    environment steps are enough. An interrupted run leaves a trace of what it did. CONFIG is as for 'run'.
    """
    if options['cpu']:
        # Before PyTorch looks for one, which happens when LightZero is imported.
        os.environ['CUDA_VISIBLE_DEVICES'] = ''
    from ..files import DiskFullError
    from ..output import loading

    with loading('LightZero'):
        from ..trace.recorder import record_searches
        from ..trace.writer import TraceWriter
    given = {name: str(value) for name, value in options.items() if value not in (None, (), False)}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        writer = TraceWriter(out, given)
    except FileExistsError as error:
        raise click.ClickException(f'{out} is there already: choose another --out') from error
    except DiskFullError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f'{out} cannot be written: {error.strerror}') from error
    began = True
    try:
        with record_searches(writer):
            # Of the stock code there is nothing to record.
            run.callback(mode='managed', **options)
    except click.ClickException as error:
        began = isinstance(error, RunFailed)
        raise
    finally:
        if began:
            click.echo(_what_is_there(writer))
    if writer.error is not None:
        raise click.ClickException(f'the trace ends early: {writer.error}')


def _what_is_there(writer: Any) -> str:
    if not writer.searches:
        return 'No trace is kept, because no search has been recorded.'
    return (
        f'Trace: {writer.path}, {writer.searches:,} searches, {_size(writer.bytes_written)}.\n'
        f'Next: lzero-kvcache simulate {writer.path}'
    )


def _size(count: int) -> str:
    return f'{count / 2 ** 20:,.2f} MiB' if count >= 2 ** 20 else f'{count / 2 ** 10:.1f} KiB'


trace = click.Command(
    'trace', params=[*(option for option in run.params if option.name != 'mode'), OUT], callback=record,
    help=record.__doc__
)
