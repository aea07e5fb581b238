"""What is drawn over the course of training: groups of plots with their captions."""
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Callable, Optional

from markupsafe import Markup

from . import curves
from .curves import POOLS, Curve
from .folder import RunRecord, Trial
from .panels import LARGE, SMALL, ArmStyle, curve_panel


@dataclass(frozen=True)
class PlotGroup:
    """
    Overview:
        Some plots that belong together.
    Arguments:
        - title, caption (:obj:`str`): What they show.
        - panels (:obj:`List[Optional[str]]`): SVG elements; None where a plot has nothing to show.
        - large (:obj:`bool`): Two to a row of a wide page instead of three.
    """
    title: str
    panels: list[Optional[str]]
    caption: str
    large: bool


def plots(run: RunRecord, styles: Mapping[str, ArmStyle]) -> list[PlotGroup]:
    """
    Overview:
        Everything that is drawn over the course of training.
    Arguments:
        - run (:obj:`RunRecord`): The run.
        - styles (:obj:`Mapping[str, ArmStyle]`): From ``arm_styles``.
    Returns:
        - groups (:obj:`List[PlotGroup]`): Those that have anything to show.
    """
    def panel(
            name: str, title: str, unit: str, of_trial: Callable[[Trial], Curve], x_label: str = 'environment steps',
            large: bool = False
    ) -> Optional[str]:
        trials = {arm: [of_trial(trial) for trial in run.done(arm)] for arm in run.arms}
        means = {arm: curves.over_seeds(of_seeds) for arm, of_seeds in trials.items()}
        return curve_panel(
            name, title, x_label, unit, {arm: mean for arm, mean in means.items() if mean is not None}, styles,
            {arm: [one for one in of_seeds if large and len(one.x)] for arm, of_seeds in trials.items()},
            LARGE if large else SMALL
        )

    groups = [
        PlotGroup(
            'Learning curves', large=True, panels=[
                panel('return-steps', 'Return by environment steps', 'return', curves.learning_curve, large=True),
                panel('return-time', 'Return by wall time', 'return', partial(curves.learning_curve, over_time=True),
                      'minutes', large=True),
            ], caption='Mean return of each evaluation. Thin lines are single seeds.'
        ),
        PlotGroup(
            'Hit rate over time', large=False, panels=[
                panel(f'hit-rate-{pool}', f"Hit rate of the {pool.replace('_', ' ')}", '%',
                      partial(curves.hit_rate, pool=pool)) for pool in POOLS
            ], caption='Share of the queries that found their context, over a moving window of 5 % of the run. A pool '
            'that was never asked has no plot.'
        ),
        PlotGroup(
            'Throughput', large=False, panels=[
                panel('throughput', 'Throughput', 'steps/s', curves.throughput),
                panel('search-time', 'Collect search', 'ms', curves.search_time),
                panel('rebuilt-tokens', 'Rebuilding', 'tokens per step', curves.rebuilt_tokens),
            ], caption='Over a moving window of 5 % of the run: environment steps per second (training and evaluation '
            'included), time per collect search, and the tokens that misses have cost per environment step.'
        ),
        PlotGroup(
            'Memory', large=False, panels=[
                panel('cache-memory', 'Keys and values', 'MiB', curves.cache_memory),
                panel('cache-entries', 'Contexts', 'entries', curves.cache_entries),
                panel('process-memory', 'Process', 'MiB', curves.process_memory),
            ], caption='Keys and values of all pools now, contexts in all pools now, and the peak resident memory of '
            'the process so far.'
        ),
    ]
    drawn = [[Markup(panel) for panel in group.panels if panel is not None] for group in groups]
    return [replace(group, panels=panels) for group, panels in zip(groups, drawn) if panels]
