from functools import partial
from typing import Any, NamedTuple

from matplotlib.ticker import PercentFormatter
from rich.table import Table

from .clock import Clock
from .figures import as_text, error_bars, figure_of
from .lean_passes import LeanPasses
from .searcher import Searcher
from .section import COLORS, Section, in_lines, table_of
from .settings import MODELS, Settings
from .timing import in_turn, paired_ratios, seconds_of, timed_cache_work, until_the_window_is_full

# Who takes a collect step in turn: the policy's 'kv_cache' entry, None for LightZero's own policy.
ARMS = {'release': None, 'plugin': {}, 'rebuild': dict(window='rebuild'), 'compiled': dict(compile=True)}
# Takes its turn after them: the forward passes alone.
LEAN = 'lean'


class Ratio(NamedTuple):
    """Two arms' steps compared, and what the ratio is to be at most, for 8 environments x 50 simulations."""
    name: str
    arm: str
    base: str
    heading: str
    goals: dict[str, float]


SMALL, MIDDLE, LARGE = '64 wide, window 8', '256 wide, window 32', '768 wide, window 8, images'
RATIOS = (
    Ratio('ratio', 'plugin', 'release', 'plugin / release', {SMALL: 0.30, MIDDLE: 0.40, LARGE: 0.36}),
    Ratio('to_lean', 'plugin', LEAN, 'plugin / lean', {SMALL: 1.40, MIDDLE: 1.25, LARGE: 1.25}),
    Ratio('rebuild_to_shift', 'rebuild', 'plugin', 'window rebuild / shift', {SMALL: 1.25, MIDDLE: 1.05, LARGE: 1.40}),
    Ratio('compiled', 'compiled', 'release', 'compiled / release', {SMALL: 0.18, MIDDLE: 0.27, LARGE: 0.27}),
    Ratio('compiled_to_lean', 'compiled', LEAN, 'compiled / lean', {SMALL: 1.0, MIDDLE: 1.0, LARGE: 1.0}),
)
SHARE_GOALS = {SMALL: 0.12, MIDDLE: 0.08, LARGE: 0.04}


class CollectSteps(Section):
    """One collect step of the policy (root inference, search, actions), and how much of it is the cache's.

    In the same turn: the step with ``window='rebuild'``, compiled, and the forward passes alone, written lean.
    """
    name = 'steps'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        search = dict(env_num=settings.env_num, num_simulations=settings.num_simulations)
        rows = []
        for name in clock.each(settings.models, 'steps: {}'.format):
            arms = {arm: kv_cache for arm, kv_cache in ARMS.items() if settings.compiles or arm != 'compiled'}
            searchers = {arm: Searcher(**MODELS[name], **search, kv_cache=kv_cache) for arm, kv_cache in arms.items()}
            plugin = searchers['plugin']
            lean = LeanPasses(plugin.world_model, settings.env_num)
            collect = {arm: searcher.collect for arm, searcher in searchers.items()}
            collect[LEAN] = partial(lean.collect, plugin.observations(), settings.num_simulations)
            warm_up = until_the_window_is_full(MODELS[name]['context_length'])
            measured = in_turn(list(collect.values()), warm_up, settings.steps, clock)
            if measured is None:
                continue
            times = dict(zip(collect, measured))
            shares = []
            for _ in range(max(1, len(times['plugin']) // 2)):
                with timed_cache_work() as spent:
                    taken = seconds_of(plugin.collect)
                shares.append(sum(spent) / taken)
            ratios = [ratio for ratio in RATIOS if ratio.arm in times]
            row = dict(model=name, **search, **figure_of('cache_share', shares), goals=dict(
                {ratio.name: ratio.goals.get(name) for ratio in ratios}, cache_share=SHARE_GOALS.get(name)
            ))
            for arm, of_arm in times.items():
                row.update(figure_of(f'{arm}_ms', [1000 * seconds for seconds in of_arm]))
            for ratio in ratios:
                row.update(figure_of(ratio.name, paired_ratios(times[ratio.arm], times[ratio.base])))
            rows.append(row)
        return rows

    def table(self, rows: list[dict]) -> Table:
        search = '{env_num} environments x {num_simulations} simulations'.format(**rows[0])
        title = f'One collect step, {search}; lean: the forward passes alone; goals in brackets'
        arms = ('release', 'plugin', LEAN)
        ratios = _measured(rows)
        table = table_of(title, 'model', *(f'{arm} (ms)' for arm in arms), *(ratio.heading for ratio in ratios),
                         'cache')
        for row in rows:
            table.add_row(
                row['model'], *(as_text(row, f'{arm}_ms', '{:,.0f}') for arm in arms),
                *(_with_goal(row, ratio.name, '{:.2f}') for ratio in ratios), _with_goal(row, 'cache_share', '{:.1%}')
            )
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        shown = {ratio.name: (ratio.heading, '{:.2f}') for ratio in _measured(rows)}
        shown['cache_share'] = 'share of the cache in a step', '{:.1%}'
        names = [in_lines(row['model']) for row in rows]
        figure.set_size_inches(13, 8)
        for panel, (name, (title, text)) in zip(figure.subplots(2, len(shown) // 2).flat, shown.items()):
            panel.bar(names, [row[name] for row in rows], color=COLORS['plugin'], yerr=error_bars(rows, name))
            for number, row in enumerate(rows):
                # At the bottom, where no goal is.
                panel.annotate(text.format(row[name]), (number, 0), xytext=(0, 4), textcoords='offset points',
                               ha='center', color='white')
                if row['goals'][name] is not None:
                    panel.hlines(row['goals'][name], number - 0.4, number + 0.4, color='black', linestyle=':')
            panel.set(title=title)
            panel.margins(y=0.1)
        for panel in figure.axes[:-1]:
            panel.axhline(1, color='grey', linestyle='--', linewidth=0.8)
            panel.yaxis.set_major_formatter('{x:.1f}')
        figure.axes[-1].yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        figure.suptitle('Collect steps, taken in turn; dotted: the goals')


def _measured(rows: list[dict]) -> list[Ratio]:
    return [ratio for ratio in RATIOS if ratio.name in rows[0]]


def _with_goal(row: dict, name: str, text: str) -> str:
    goal = row['goals'][name]
    return as_text(row, name, text) + ('' if goal is None else f' ({text.format(goal)})')
