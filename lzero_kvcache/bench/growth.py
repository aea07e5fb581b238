from typing import Any

from matplotlib.ticker import LogLocator
from rich.table import Table

from .clock import Clock
from .figures import as_text, error_bars, figure_of
from .searcher import Searcher
from .section import COLORS, Section, table_of
from .settings import MODELS, Settings
from .timing import in_turn, paired_ratios, until_the_window_is_full

MODEL = '64 wide, window 8'
AXES = {'env_num': 'environments', 'num_simulations': 'simulations', 'context_length': 'window (tokens)'}


class Growth(Section):
    """A collect step with more environments, more simulations, longer windows, release beside plugin."""
    name = 'growth'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        grid = dict(
            env_num=settings.env_nums, num_simulations=settings.simulations, context_length=settings.windows
        )
        rows = []
        sizes = [(axis, value) for axis, values in grid.items() for value in values]
        for axis, value in clock.each(sizes, lambda size: f'growth: {size[1]} {AXES[size[0]]}'):
            search = dict(MODELS[MODEL], env_num=settings.env_num, num_simulations=settings.num_simulations)
            search[axis] = value
            searchers = [Searcher(**search), Searcher(**search, kv_cache={})]
            warm_up = until_the_window_is_full(search['context_length'])
            times = in_turn([searcher.collect for searcher in searchers], warm_up, settings.growth_steps, clock)
            if times is None:
                continue
            of_release, of_plugin = times
            rows.append(dict(
                axis=axis, value=value, **figure_of('release_ms', [1000 * seconds for seconds in of_release]),
                **figure_of('plugin_ms', [1000 * seconds for seconds in of_plugin]),
                **figure_of('ratio', paired_ratios(of_plugin, of_release)),
            ))
        return rows

    def table(self, rows: list[dict]) -> Table:
        table = table_of('One collect step as the search grows, 64 wide', 'what grows', 'to', 'release (ms)',
                         'plugin (ms)', 'plugin / release', names=2)
        for row in rows:
            table.add_row(AXES[row['axis']], str(row['value']), as_text(row, 'release_ms', '{:,.0f}'),
                          as_text(row, 'plugin_ms', '{:,.0f}'), as_text(row, 'ratio', '{:.2f}'))
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        measured = list(dict.fromkeys(row['axis'] for row in rows))
        for panel, axis in zip(figure.subplots(1, len(measured), squeeze=False)[0], measured):
            label = AXES[axis]
            of_axis = [row for row in rows if row['axis'] == axis]
            values = [row['value'] for row in of_axis]
            for arm, color in COLORS.items():
                medians, bars = [row[f'{arm}_ms'] for row in of_axis], error_bars(of_axis, f'{arm}_ms')
                panel.errorbar(values, medians, bars, fmt='o-', color=color, label=arm)
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
