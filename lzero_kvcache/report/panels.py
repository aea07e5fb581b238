"""The plots: each panel is an SVG of its own, laid out and coloured by the CSS of its page."""
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import chain
from typing import Optional
from xml.sax.saxutils import quoteattr

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from .curves import Curve
from .metrics import Metric

# In inches. A large panel has half of a wide page, a small one a third; on a narrow one each has a row.
LARGE, SMALL = (5.0, 3.1), (4.4, 2.9)
# Colours are variables of the page, so that a dark screen and white paper have their own. Matplotlib knows no
# variables: it draws with colours that stand for them.
INK, MUTED, GRID = '#010101', '#020202', '#030303'
ARM_COLOURS = tuple(f'#0a0a0{index}' for index in range(6))
VARIABLES = {INK: '--ink', MUTED: '--muted', GRID: '--grid',
             **{colour: f'--arm-{index}' for index, colour in enumerate(ARM_COLOURS)}}
# Their numbers have no common factor with each other, so that colour, line and marker do not repeat together.
DASHES = ('-', (0, (6, 2)), (0, (1.5, 1.5)), (0, (7, 2, 1.5, 2)), (0, (3, 1.5)))
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X')
LONGEST_NAME = 16
# Room beyond 0 % and 100 %, for lines that run along there.
SLACK = 0.02
STYLE = {
    'svg.fonttype': 'none', 'text.parse_math': False, 'font.size': 11, 'axes.titlesize': 12,
    'axes.titleweight': 'bold', 'axes.titlelocation': 'left', 'text.color': INK, 'axes.labelcolor': MUTED,
    'axes.titlecolor': INK, 'axes.edgecolor': MUTED, 'xtick.color': MUTED, 'ytick.color': MUTED, 'axes.grid': True,
    'grid.color': GRID, 'grid.linewidth': 0.8, 'axes.axisbelow': True, 'axes.spines.top': False,
    'axes.spines.right': False, 'figure.facecolor': 'none', 'axes.facecolor': 'none', 'savefig.facecolor': 'none',
    'axes.formatter.useoffset': False,
}


@dataclass(frozen=True)
class ArmStyle:
    """
    Overview:
        How an arm looks in every plot: told apart without colours, too.
    Arguments:
        - colour, marker (:obj:`str`): In Matplotlib's terms.
        - dashes (:obj:`Union[str, tuple]`): The line's style.
    """
    colour: str
    dashes: object
    marker: str


def arm_styles(arms: Sequence[str]) -> dict[str, ArmStyle]:
    """
    Overview:
        A style for each arm, in the order of the config file.
    Arguments:
        - arms (:obj:`Sequence[str]`): Their names.
    """
    return {
        arm: ArmStyle(ARM_COLOURS[index % len(ARM_COLOURS)], DASHES[index % len(DASHES)], MARKERS[index % len(MARKERS)])
        for index, arm in enumerate(arms)
    }


def curve_panel(
        name: str, title: str, x_label: str, unit: str, means: Mapping[str, Curve],
        styles: Mapping[str, ArmStyle], single: Mapping[str, Sequence[Curve]], size: tuple[float, float] = SMALL,
) -> Optional[str]:
    """
    Overview:
        Arms over the course of training.
    Arguments:
        - name (:obj:`str`): Tells this SVG's ids from those of the page's other ones.
        - title, x_label (:obj:`str`): What is drawn over what.
        - unit (:obj:`str`): '%' for shares between 0 and 1.
        - means (:obj:`Mapping[str, Curve]`): Mean and range of each arm that has any.
        - styles (:obj:`Mapping[str, ArmStyle]`): From ``arm_styles``.
        - single (:obj:`Mapping[str, Sequence[Curve]]`): The seeds of each arm, to be drawn as thin lines.
        - size (:obj:`Tuple[float, float]`): ``LARGE`` or ``SMALL``.
    Returns:
        - svg (:obj:`Optional[str]`): The element; None where there is nothing to draw.
    """
    if not means and not any(single.values()):
        return None
    with style.context(['default', STYLE]):
        figure = Figure(figsize=size, layout='constrained')
        axes = figure.subplots()
        for arm, curves in single.items():
            for curve in curves:
                axes.plot(curve.x, curve.y, color=styles[arm].colour, linewidth=0.7, alpha=0.45)
        for arm, mean in means.items():
            _draw_mean(axes, mean, styles[arm])
        axes.set_title(title)
        axes.set_xlabel(x_label)
        right = max(curve.x[-1] for curve in [*means.values(), *chain(*single.values())])
        axes.set_xlim(0, 1.02 * right if right > 0 else 1)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        if right >= 10_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        if unit == '%':
            axes.yaxis.set_major_formatter(FuncFormatter(_percent))
            axes.set_ylim(*_widened(axes.get_ylim(), 0.1, unit))
        else:
            axes.set_ylabel(unit)
        ends = [f'{arm} ends at {_spoken(mean.y[-1], unit)}' for arm, mean in means.items()]
        return _svg(figure, name, f"{title}, over {x_label}. {'; '.join(ends)}.")


def dots_panel(
        name: str, metric: Metric, values: Mapping[str, Mapping[int, float]], styles: Mapping[str, ArmStyle]
) -> Optional[str]:
    """
    Overview:
        Every trial as a dot, a row for each arm, a stroke for each mean.
    Arguments:
        - name (:obj:`str`): Tells this SVG's ids from those of the page's other ones.
        - metric (:obj:`Metric`): The number.
        - values (:obj:`Mapping[str, Mapping[int, float]]`): By arm and seed.
        - styles (:obj:`Mapping[str, ArmStyle]`): From ``arm_styles``.
    Returns:
        - svg (:obj:`Optional[str]`): The element; None where there is nothing to draw.
    """
    if not any(values.values()):
        return None
    means = {arm: sum(numbers.values()) / len(numbers) for arm, numbers in values.items() if numbers}
    with style.context(['default', STYLE]):
        figure = Figure(figsize=(SMALL[0], 1.0 + 0.28 * len(values)), layout='constrained')
        axes = figure.subplots()
        for row, (arm, numbers) in enumerate(values.items()):
            look = styles[arm]
            axes.plot(list(numbers.values()), [row] * len(numbers), look.marker, color=look.colour, markersize=6.5,
                      markerfacecolor='none', markeredgewidth=1.5)
            if arm in means:
                axes.plot([means[arm]] * 2, [row - 0.32, row + 0.32], color=look.colour, linewidth=2.5)
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.set_yticks(range(len(values)), [_shortened(arm) for arm in values])
        axes.tick_params(axis='y', length=0, labelcolor=INK)
        axes.grid(False, axis='y')
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=metric.counts))
        # Differences of a few percent shall look like that.
        span = 0.05 if metric.unit == '%' else max(0.05 * max(map(abs, axes.get_xlim())), metric.counts)
        axes.set_xlim(*_widened(axes.get_xlim(), span, metric.unit))
        if metric.unit == '%':
            axes.xaxis.set_major_formatter(FuncFormatter(_percent))
        elif max(map(abs, axes.get_xlim())) >= 10_000:
            axes.xaxis.set_major_formatter(EngFormatter(sep=''))
        axes.set_title(metric.label if metric.unit == '%' else metric.heading)
        spoken = [f'{arm} {metric.with_unit(mean)}' for arm, mean in means.items()]
        return _svg(figure, name, f"{metric.label} of each trial. Means: {'; '.join(spoken)}.")


def swatch(name: str, look: ArmStyle) -> str:
    """
    Overview:
        An arm's line and marker, for a legend.
    Arguments:
        - name (:obj:`str`): Tells this SVG's ids from those of the page's other ones.
        - look (:obj:`ArmStyle`): The arm's style.
    Returns:
        - svg (:obj:`str`): The element, hidden from screen readers: the name stands beside it.
    """
    with style.context(['default', STYLE]):
        figure = Figure(figsize=(0.6, 0.2))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis('off')
        axes.plot([0, 0.5, 1], [0, 0, 0], linestyle=look.dashes, color=look.colour, linewidth=2)
        axes.plot([0.5], [0], look.marker, color=look.colour, markersize=6.5)
        return _svg(figure, name, None)


def _draw_mean(axes: Axes, mean: Curve, look: ArmStyle) -> None:
    if mean.low is not None:
        axes.fill_between(mean.x, mean.low, mean.high, color=look.colour, alpha=0.16, linewidth=0)
    axes.plot(mean.x, mean.y, linestyle=look.dashes, color=look.colour, linewidth=2, marker=look.marker, markersize=5,
              markevery=max(1, len(mean.x) // 6))


def _widened(limits: tuple[float, float], span: float, unit: str) -> tuple[float, float]:
    low, high = limits
    more = max(0.0, span - (high - low)) / 2
    low, high = low - more, high + more
    return (max(low, -SLACK), min(high, 1 + SLACK)) if unit == '%' else (low, high)


def _percent(share: float, _: int) -> str:
    return f'{abs(100 * share):.4g} %' if -1e-9 < share < 1 + 1e-9 else ''


def _shortened(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else f'{name[:LONGEST_NAME - 1]}\N{HORIZONTAL ELLIPSIS}'


def _spoken(value: float, unit: str) -> str:
    return f'{100 * value:.3g} %' if unit == '%' else f'{value:.4g} {unit}'.strip()


def _svg(figure: Figure, name: str, alternative: Optional[str]) -> str:
    file = StringIO()
    with style.context({'svg.hashsalt': name}), warnings.catch_warnings():
        # The text is drawn by the browser, which has more fonts.
        warnings.filterwarnings('ignore', 'Glyph .* missing from')
        figure.savefig(file, format='svg', metadata=dict.fromkeys(('Date', 'Creator', 'Format', 'Type')))
    svg = file.getvalue()
    svg = svg[svg.index('<svg'):]
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f'var({variable})')
    svg = re.sub(r"'(?:DejaVu Sans|sans-serif)'[^;\"]*", 'var(--font)', svg)
    # An id belongs to one element of a page, and Matplotlib numbers those of every figure alike.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf'\g<1>{name}-', svg)
    # A style element would be that of the whole page, not of this SVG.
    svg = re.sub(r'<style.*?</style>', '', svg, flags=re.DOTALL)
    # What nobody sees is more than half of the file.
    svg = re.sub(r'\bd="[^"]*"', lambda path: re.sub(r'(\.\d)\d+', r'\1', path.group()), svg)
    svg = re.sub(r'\n\s*', '\n', svg)
    spoken = 'aria-hidden="true"' if alternative is None else f'role="img" aria-label={quoteattr(alternative)}'
    return svg.replace('<svg', f'<svg {spoken}', 1)
