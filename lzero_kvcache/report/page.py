import json
import os
import re
import shlex
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, Optional
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..files import write_atomically
from . import sentences
from .comparisons import Comparisons
from .course import plots
from .folder import RunRecord, read_run
from .metrics import METRIC, METRICS
from .panels import arm_styles, dots_panel, swatch
from .statistics import COMFORTABLE_SEEDS, MINIMUM_SEEDS, Difference, difference, summarize

REPORT = 'report.html'
# As many as stand beside each other on the widest page.
TRIAL_COLUMNS = 8


def write_report(folder: Path) -> Path:
    """
    Overview:
        Write the report of an A/B run into its folder. Equal folders give equal reports.
    Arguments:
        - folder (:obj:`Path`): What ``lzero-kvcache ab`` has written, whether or not it has come to its end.
    Returns:
        - path (:obj:`Path`): ``folder / 'report.html'``.
    Raises:
        - ValueError: If it is no such folder, or a file in it is broken.
        - DiskFullError: If there is no room; a former report stays.
    """
    path = Path(folder) / REPORT
    # Arms may have names that UTF-8 cannot write.
    write_atomically(path, render(read_run(Path(folder))).encode('utf-8', 'replace'))
    return path


def render(run: RunRecord) -> str:
    """
    Overview:
        The page.
    Arguments:
        - run (:obj:`RunRecord`): The run.
    Returns:
        - html (:obj:`str`): The whole document.
    """
    # Names and error lines come from config files and logs: whatever is not Markup is escaped.
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True
    )
    environment.filters.update(quote=_quoted, literal=_literal, time=_time, breakable=_breakable)
    shown = [metric for metric in METRICS if any(run.values(metric.key).values())]
    styles = arm_styles(list(run.arms))
    asked = Comparisons(run, [METRIC[key] for key in sentences.QUESTIONS.values()])
    answers = sentences.answers(run, asked)
    return environment.get_template('report.html.jinja').render(
        run=run, metrics=shown, answers=answers, headline=sentences.headline(answers), plots=plots(run, styles),
        swatch=lambda place, arm: Markup(swatch(f'{place}-{list(run.arms).index(arm)}', styles[arm])),
        dots=[
            Markup(dots_panel(f'dots-{metric.key}', metric, run.values(metric.key), styles))
            for metric in shown if metric.compared
        ],
        summaries={
            metric.key: {arm: summarize(values.values()) for arm, values in run.values(metric.key).items()}
            for metric in shown
        },
        differences=_differences(run, asked), asked=asked, lengths=sentences.unequal_lengths(run),
        key_paths=sorted(set().union(*run.differences.values())),
        trial_tables=[shown[place:place + TRIAL_COLUMNS] for place in range(0, max(len(shown), 1), TRIAL_COLUMNS)],
        broken=[trial for trial in run.trials if trial.status != 'done'],
        command=_command(run) if run.config else None,
        minimum_seeds=MINIMUM_SEEDS, comfortable_seeds=COMFORTABLE_SEEDS,
    )


def _differences(run: RunRecord, asked: Comparisons) -> list[list[dict[str, Any]]]:
    """For each metric a row for each arm but the baseline, with all that its cells say."""
    others = Comparisons(run, [
        metric for metric in METRICS if metric.compared and metric.key not in sentences.QUESTIONS.values()
    ])
    groups = []
    for metric in METRICS:
        if not metric.compared:
            continue
        values = run.values(metric.key)
        reference = values.pop(run.baseline)
        compared = {arm: difference(numbers, reference) for arm, numbers in values.items()}
        compared = {arm: changed for arm, changed in compared.items() if changed.count}
        scale = _scale(compared.values())
        comparisons = asked if metric.key in sentences.QUESTIONS.values() else others
        if compared:
            groups.append([
                dict(
                    metric=metric, arm=arm, changed=changed, positions=_positions(changed, scale),
                    interval=sentences.interval_text(metric, changed),
                    relative=sentences.relative_text(metric, changed), verdict=sentences.short_verdict(
                        metric, changed, comparisons.correction(metric.key, arm, run.baseline)
                    )
                )
                for arm, changed in compared.items()
            ])
    return groups


def _scale(compared: Iterable[Difference]) -> float:
    """The number at the end of a drawing: two seeds have intervals beside which those of three cannot be seen."""
    compared = list(compared)
    enough = [changed for changed in compared if changed.count >= MINIMUM_SEEDS] or compared
    ends = [end for changed in enough for end in (changed.low, changed.high) if end is not None]
    return max((abs(end) for end in [*ends, *(changed.mean for changed in compared)]), default=0) or 1


def _positions(changed: Difference, scale: float) -> dict[str, Optional[float]]:
    """Where the interval is drawn: from 0 to 100, zero in the middle, what is further away at the edge."""
    ends = dict(low=changed.low, mean=changed.mean, high=changed.high)
    return {
        name: None if end is None else min(max(round(50 + 46 * end / scale, 1), 0), 100) for name, end in ends.items()
    }


def _command(run: RunRecord) -> list[str]:
    """The words of the command that repeats the run."""
    steps = [] if run.max_env_step is None else ['--max-env-step', str(run.max_env_step)]
    words = ['lzero-kvcache', 'ab', run.config, '--arms', ','.join(run.arms), '--seeds', ','.join(map(str, run.seeds)),
             *steps, '--out', 'FOLDER']
    return [shlex.quote(word) for word in words]


def _quoted(path: str) -> str:
    # As bytes: a file may have a name that is no text.
    return quote(os.fsencode(path))


def _literal(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _breakable(name: str) -> Markup:
    """A name that a narrow cell breaks behind its dots and underscores."""
    return Markup('<wbr>').join(re.split(r'(?<=[._])', name))


def _time(iso: str) -> str:
    try:
        return f'{datetime.fromisoformat(iso):%d %B %Y, %H:%M %Z}'.strip(' ,')
    except ValueError:
        return iso
