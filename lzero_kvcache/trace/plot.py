from io import BytesIO
from pathlib import Path

from matplotlib import colormaps, style
from matplotlib.figure import Figure

from ..files import write_atomically
from ..untrusted import printable
from .choices import BELADY
from .results import KEPT_HITS, Results

MARKERS = 'osD^vP*Xhd'
LONGEST_TITLE = 100


def plot_results(results: Results, path: Path) -> None:
    """Hit rate of the recur pool by its size, and what the misses cost, one line per strategy, as a PNG file."""
    image = BytesIO()
    # Whatever a matplotlibrc says, nothing here is for LaTeX.
    with style.context('default'):
        _draw(results).savefig(image, format='png', dpi=110)
    write_atomically(path, image.getvalue())


def _draw(results: Results) -> Figure:
    figure = Figure(figsize=(13, 5.2), layout='constrained')
    of_hits, of_tokens = figure.subplots(1, 2)
    colours = colormaps['tab20'].colors
    # Dark ones first.
    colours = colours[::2] + colours[1::2]
    for number, name in enumerate(results.names):
        outcomes = list(filter(None, (results.of(name, share) for share in results.shares)))
        percents = [100 * outcome.share for outcome in outcomes]
        marker, colour = MARKERS[number % len(MARKERS)], colours[number % len(colours)]
        look = dict(marker=marker, markersize=4, linewidth=1.2, color=colour)
        if name == BELADY:
            look = dict(color='black', linestyle='--', linewidth=1.5, zorder=5)
        of_hits.plot(percents, [100 * outcome.recur_pool.hit_rate for outcome in outcomes], label=name, **look)
        of_tokens.plot(percents, [100 * results.computed_again(outcome) for outcome in outcomes], **look)
    of_hits.axhline(
        100 * KEPT_HITS * results.unlimited.recur_pool.hit_rate, color='grey', linestyle=':', linewidth=1,
        label=f'{KEPT_HITS:.0%} of an unlimited pool'
    )
    chosen = results.recommended()
    if chosen is not None:
        of_hits.plot(
            100 * chosen.share, 100 * chosen.recur_pool.hit_rate, 'o', markersize=14, markerfacecolor='none',
            markeredgecolor='black', label=f'smallest: {100 * chosen.share:g}%, {chosen.strategy}'
        )
    size = 'recur pool (% of the nodes of a search)'
    of_hits.set(title='Hit rate of the recur pool', xlabel=size, ylabel='% of the queries', xlim=(0, None))
    of_tokens.set(title='Tokens computed again after misses', xlabel=size, ylabel='% of the tokens of the searches',
                  xlim=(0, None), ylim=(0, None))
    of_hits.grid(alpha=0.3)
    of_tokens.grid(alpha=0.3)
    figure.legend(loc='outside right upper', frameon=False)
    config = str(results.survey.reader.options.get('config'))[:LONGEST_TITLE]
    # What a file says is text here, never mathematics.
    figure.suptitle(f'{printable(config)}: {results.survey.describe_searches()}', parse_math=False)
    return figure
