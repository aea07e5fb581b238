import json
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import click

COLOURS = {'ok': 'green', 'warning': 'yellow', 'problem': 'bold red'}


@click.command()
@click.option('--json', 'as_json', is_flag=True, help='For a bug report.')
def doctor(as_json: bool) -> None:
    """
    Is everything here that the cache needs? Each problem with the command that mends it.

    The status is 1 if there is a problem. A warning means that a part which not everybody needs does not work.
    """
    from ..doctor import CHECKS, PROBLEM, WARNING, examine
    from ..output import output_to

    findings = []
    # Importing LightZero prints a lot, and no check prints anything.
    with output_to() as screen:
        with screen.status('') as status:
            for name, found in examine(CHECKS):
                status.update(f'Looking at {name} ...')
                findings += found
        problems = [finding for finding in findings if finding.status == PROBLEM]
        warnings = [finding for finding in findings if finding.status == WARNING]
        if as_json:
            machine = dict(system=platform.platform(), machine=platform.machine(), python=platform.python_version())
            screen.file.write(json.dumps(
                {'lzero-kvcache': version('lzero-kvcache'), **machine, 'checks': list(map(asdict, findings))}, indent=2
            ) + '\n')
        else:
            _show(screen, findings)
            screen.print(f'\nProblems: {len(problems)}, warnings: {len(warnings)}.')
    raise SystemExit(1 if problems else 0)


def _show(screen: Any, findings: list) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style='bold')
    for column in ('', 'check', 'seen'):
        table.add_column(column, overflow='fold')
    to_mend: dict[str, list[str]] = {}
    for finding in findings:
        table.add_row(
            f'[{COLOURS[finding.status]}]{finding.status}[/]', escape(finding.name), escape(finding.seen)
        )
        if finding.mend:
            to_mend.setdefault(finding.mend, []).append(finding.name)
    screen.print(table)
    for mend, names in to_mend.items():
        screen.print(f"\nTo mend {', '.join(names)}:\n  {mend}", markup=False, highlight=False, soft_wrap=True)
