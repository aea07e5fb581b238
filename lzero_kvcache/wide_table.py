from collections.abc import Iterator, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Column, Table
from rich.text import Text

WIDER_THAN_ANY_TABLE = 10_000
LAYOUT = dict(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style='bold')


class WideTable(Table):
    """
    Overview:
        A table of numbers, none of which is cut on a narrow screen: the columns that have no room follow below the
        others, beside the names of the rows once more.
    Arguments:
        - title (:obj:`str`): Its title, with rich's markup.
        - names (:obj:`Sequence[str]`): The headings of the columns that name a row.
        - numbers (:obj:`Sequence[str]`): The headings of the others.
    """

    def __init__(self, title: str, names: Sequence[str], numbers: Sequence[str]) -> None:
        super().__init__(title=title, **LAYOUT)
        for heading in names:
            self.add_column(heading, overflow='fold')
        for heading in numbers:
            self.add_column(heading, justify='right', overflow='fold')
        self._names = len(names)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text.from_markup(self.title, style='italic')
        for number, part in enumerate(self._parts(console, options)):
            if number:
                yield ''
            yield part

    def _parts(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        names, waiting = self.columns[:self._names], self.columns[self._names:]
        unbounded = options.update(max_width=WIDER_THAN_ANY_TABLE)
        while waiting:
            shown = 1
            while shown < len(waiting):
                wider = _table_of([*names, *waiting[:shown + 1]])
                if console.measure(wider, options=unbounded).maximum > options.max_width:
                    break
                shown += 1
            yield _table_of([*names, *waiting[:shown]])
            waiting = waiting[shown:]


def _table_of(columns: Sequence[Column]) -> Table:
    table = Table(*(column.copy() for column in columns), **LAYOUT)
    for cells in zip(*(column.cells for column in columns)):
        table.add_row(*cells)
    return table
