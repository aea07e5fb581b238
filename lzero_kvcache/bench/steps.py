from typing import Any

from rich.table import Table

from .clock import Clock
from .figures import as_text, error_bars, figure_of
from .searcher import Searcher
from .section import COLORS, Section, in_lines, table_of
from .settings import MODELS, Settings
from .timing import in_turn, paired_ratios, seconds_of_step, timed_cache_work, until_the_window_is_full

# Of plugin / release, for 8 environments x 50 simulations.
GOALS = {'64 wide, window 8': 0.40, '256 wide, window 32': 0.45, '768 wide, window 8, images': 0.80}
SHARE_GOAL = 0.05


class CollectSteps(Section):
    """
    Overview:
        One collect step of the policy (root inference, search, actions), and how much of it is the cache's.
    """
    name = 'steps'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        search = dict(env_num=settings.env_num, num_simulations=settings.num_simulations)
        rows = []
        for name in clock.each(settings.models, 'steps: {}'.format):
            release = Searcher(**MODELS[name], **search)
            plugin = Searcher(**MODELS[name], **search, kv_cache={})
            warm_up = until_the_window_is_full(MODELS[name]['context_length'])
            times = in_turn([release, plugin], warm_up, settings.steps, clock)
            if times is None:
                continue
            of_release, of_plugin = times
            shares = []
            for _ in range(max(1, len(of_plugin) // 2)):
                with timed_cache_work() as spent:
                    taken = seconds_of_step(plugin)
                shares.append(sum(spent) / taken)
            rows.append(dict(
                model=name, **search, goal=GOALS.get(name),
                **figure_of('release_ms', [1000 * seconds for seconds in of_release]),
                **figure_of('plugin_ms', [1000 * seconds for seconds in of_plugin]),
                **figure_of('ratio', paired_ratios(of_plugin, of_release)), **figure_of('cache_share', shares),
            ))
        return rows

    def table(self, rows: list[dict]) -> Table:
        search = '{env_num} environments x {num_simulations} simulations'.format(**rows[0])
        title = f'One collect step, {search}, and the share of it that the cache takes (goal {SHARE_GOAL:.0%})'
        table = table_of(title, 'model', 'release (ms)', 'plugin (ms)', 'plugin / release', 'goal', 'cache')
        for row in rows:
            goal = '' if row['goal'] is None else f"{row['goal']:.2f}"
            table.add_row(row['model'], as_text(row, 'release_ms', '{:,.0f}'), as_text(row, 'plugin_ms', '{:,.0f}'),
                          as_text(row, 'ratio', '{:.2f}'), goal, as_text(row, 'cache_share', '{:.1%}'))
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        of_ratio, of_share = figure.subplots(1, 2)
        names = [in_lines(row['model']) for row in rows]
        bars = of_ratio.bar(names, [row['ratio'] for row in rows], color=COLORS['plugin'], label='plugin / release',
                            yerr=error_bars(rows, 'ratio'))
        of_ratio.bar_label(bars, fmt='%.2f')
        goals = [(number, row['goal']) for number, row in enumerate(rows) if row['goal'] is not None]
        of_ratio.hlines([goal for _, goal in goals], [number - 0.4 for number, _ in goals],
                        [number + 0.4 for number, _ in goals], color='black', linestyle=':', label='goal')
        of_ratio.axhline(1, color=COLORS['release'], linestyle='--', label='release')
        of_ratio.set(title='time of a collect step', ylabel='plugin / release')
        bars = of_share.bar(names, [100 * row['cache_share'] for row in rows], color=COLORS['plugin'])
        of_share.bar_label(bars, fmt='%.1f %%')
        of_share.axhline(100 * SHARE_GOAL, color='black', linestyle=':', label='goal')
        of_share.set(title='share of the step that the cache takes', ylabel='% of the time')
        for panel in (of_ratio, of_share):
            panel.margins(y=0.25)
            panel.legend(frameon=False, loc='upper center', ncols=3)
