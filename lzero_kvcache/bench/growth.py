from statistics import median
from typing import Any

from matplotlib.ticker import LogLocator
from rich.progress import Progress
from rich.table import Table

from .searcher import Searcher
from .section import COLORS, Section, table_of
from .settings import MODELS, Settings
from .timing import in_turn, paired_ratio, until_the_window_is_full

MODEL = '64 wide, window 8'
AXES = {'env_num': 'environments', 'num_simulations': 'simulations', 'context_length': 'window (tokens)'}


class Growth(Section):
    """
    Overview:
        A collect step with more environments, more simulations, longer windows, release beside plugin.
    """
    name = 'growth'

    def measure(self, settings: Settings, progress: Progress) -> list[dict]:
        grid = dict(
            env_num=settings.env_nums, num_simulations=settings.simulations, context_length=settings.windows
        )
        rows = []
        for axis, values in grid.items():
            for value in values:
                search = dict(MODELS[MODEL], env_num=settings.env_num, num_simulations=settings.num_simulations)
                search[axis] = value
                searchers = [Searcher(**search), Searcher(**search, kv_cache={})]
                of_release, of_plugin = in_turn(
                    searchers, until_the_window_is_full(search['context_length']), settings.growth_steps, progress,
                    f'growth: {value} {AXES[axis]}'
                )
                rows.append(dict(
                    axis=axis, value=value, release_ms=1000 * median(of_release), plugin_ms=1000 * median(of_plugin),
                    ratio=paired_ratio(of_plugin, of_release),
                ))
        return rows

    def table(self, rows: list[dict]) -> Table:
        table = table_of('One collect step as the search grows, 64 wide (medians of pairs)', 'what grows', 'to',
                         'release', 'plugin', 'plugin / release', names=2)
        for row in rows:
            table.add_row(AXES[row['axis']], str(row['value']), f"{row['release_ms']:,.0f} ms",
                          f"{row['plugin_ms']:,.0f} ms", f"{row['ratio']:.2f}")
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        for panel, (axis, label) in zip(figure.subplots(1, len(AXES)), AXES.items()):
            of_axis = [row for row in rows if row['axis'] == axis]
            values = [row['value'] for row in of_axis]
            for arm, color in COLORS.items():
                panel.plot(values, [row[f'{arm}_ms'] for row in of_axis], 'o-', color=color, label=arm)
            for row in of_axis:
                panel.annotate(f"{row['ratio']:.2f}", (row['value'], row['plugin_ms']), xytext=(0, -14),
                               textcoords='offset points', ha='center', fontsize='small', color=COLORS['plugin'])
            panel.set(xlabel=label, xscale='log', yscale='log', title=f'by {label.split()[0]}')
            panel.set_xticks(values, [str(value) for value in values])
            panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            panel.yaxis.set_major_formatter('{x:,.0f}')
            panel.minorticks_off()
            panel.margins(y=0.15)
        figure.axes[0].set(ylabel='ms per collect step')
        figure.axes[0].legend(frameon=False)
        figure.suptitle('A collect step as the search grows, 64 wide; the small numbers are plugin / release')
