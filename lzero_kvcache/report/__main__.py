from pathlib import Path

import click

from ..untrusted import printable
from .page import write_report


@click.command()
@click.argument('folder', type=click.Path(path_type=Path, file_okay=False, exists=True))
def main(folder: Path) -> None:
    """Make the report of an A/B run again, from the FOLDER that 'lzero-kvcache ab' has written."""
    try:
        click.echo(write_report(folder))
    except ValueError as error:
        raise click.ClickException(printable(str(error))) from error


if __name__ == '__main__':
    main(prog_name='python -m lzero_kvcache.report')
