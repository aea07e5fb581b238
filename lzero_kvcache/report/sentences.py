"""What the numbers say, in plain words, and how sure that is."""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Optional

from ..ab.results import MOST_UNEQUAL
from .comparisons import Comparisons, Correction
from .folder import RunRecord
from .metrics import METRIC, MINUS, Metric
from .statistics import COMFORTABLE_SEEDS, CONFIDENCE, MINIMUM_SEEDS, MOST_SEEDS, Difference, difference, summarize

# What the first paragraph answers.
QUESTIONS = {
    'Return': 'return_last', 'Speed': 'env_steps_per_second', 'Hit rate': 'hit_rate_recur_pool',
    'Memory of the cache': 'peak_cache_mb', 'Memory of the process': 'peak_memory_mb',
}
SUPERLATIVES = {'higher': 'highest', 'lower': 'lowest'}


@dataclass(frozen=True)
class Answer:
    """
    Overview:
        Which arm was best by one number.
    Arguments:
        - text (:obj:`str`): Some sentences.
        - best, other (:obj:`Optional[str]`): The arm, and the one that it is compared to; None where there are no two.
        - sure (:obj:`bool`): Whether the seeds tell them apart.
    """
    text: str
    best: Optional[str] = None
    other: Optional[str] = None
    sure: bool = False


def answers(run: RunRecord, comparisons: Optional[Comparisons] = None) -> dict[str, Answer]:
    """
    Overview:
        Which arm was best in what, and how sure that is.
    Arguments:
        - run (:obj:`RunRecord`): The run.
        - comparisons (:obj:`Optional[Comparisons]`): What has been compared; None: what ``QUESTIONS`` ask for.
    Returns:
        - answers (:obj:`Dict[str, Answer]`): One for each of ``QUESTIONS``.
    """
    metrics = {question: METRIC[key] for question, key in QUESTIONS.items()}
    comparisons = comparisons or Comparisons(run, metrics.values())
    return {question: answer(run, metric, comparisons) for question, metric in metrics.items()}


def headline(found: Mapping[str, Answer]) -> str:
    """
    Overview:
        All answers in one or two sentences.
    Arguments:
        - found (:obj:`Mapping[str, Answer]`): From ``answers``.
    """
    sure: dict[str, list[str]] = {}
    for question, one in found.items():
        if one.sure:
            sure.setdefault(f'{one.best} beats {one.other}', []).append(question.lower())
    unsure = [question.lower() for question, one in found.items() if one.best is not None and not one.sure]
    sentences = []
    if sure:
        beaten = '; '.join(f'{who} in {_listed(what)}' for who, what in sure.items())
        sentences.append(f'Unlikely to be chance: {beaten}.')
    if unsure:
        sentences.append(f'These seeds cannot tell the arms apart in {_listed(unsure)}.')
    return ' '.join(sentences) or 'There is no difference between two arms to speak of.'


def answer(run: RunRecord, metric: Metric, comparisons: Comparisons) -> Answer:
    """
    Overview:
        Which arm was best by one number. It is compared to the baseline, or, if it is the baseline itself or the
        baseline has no such number, to the next best.
    Arguments:
        - run (:obj:`RunRecord`): The run.
        - metric (:obj:`Metric`): The number.
        - comparisons (:obj:`Comparisons`): All that are made, this one among them.
    """
    values = run.values(metric.key)
    means = {arm: summarize(numbers.values()).mean for arm, numbers in values.items() if numbers}
    name = metric.label[0].lower() + metric.label[1:]
    if not means:
        return Answer(f'No trial has a figure for {name}.')
    best, *others = sorted(means, key=means.get, reverse=metric.better == 'higher')
    if not others:
        return Answer(f'{best} alone has a figure for {name}: {metric.with_unit(means[best])}.')
    if len({metric.text(mean) for mean in means.values()}) == 1:
        everywhere = 'both arms' if len(means) == 2 else f'all {len(means)} arms'
        return Answer(f'No difference to be seen: mean {name} was {metric.with_unit(means[best])} in {everywhere}.')
    other = run.baseline if run.baseline in others else others[0]
    role = 'the baseline' if other == run.baseline else 'the next'
    compared, correction = difference(values[best], values[other]), comparisons.correction(metric.key, best, other)
    missing = [arm for arm in run.arms if arm not in means]
    silent = f' There is no figure for {_listed(missing)}.' if missing else ''
    larger = max(means[best], means[other], key=abs)
    of_best, of_other = metric.with_unit(means[best], larger), metric.with_unit(means[other], larger)
    if of_best == of_other and compared.verdict != metric.better:
        return Answer(f'{best} had about the same mean {name}, {of_best}, as {other}, {role}.{silent}', best, other)
    return Answer(
        f'{best} had the {SUPERLATIVES[metric.better]} mean {name}, {of_best} against {of_other} of {other}, {role}. '
        f'{certainty(metric, compared, correction)}{silent}',
        best, other, compared.verdict == metric.better and _survives(correction)
    )


def certainty(metric: Metric, compared: Difference, correction: Optional[Correction] = None) -> str:
    """
    Overview:
        How sure it is that one arm is better than another.
    Arguments:
        - metric (:obj:`Metric`): The number.
        - compared (:obj:`Difference`): The better arm's difference to the other one.
        - correction (:obj:`Optional[Correction]`): For the comparisons that it is one of; None: it is the only one.
    Returns:
        - certainty (:obj:`str`): A sentence; 'Cannot tell' begins it where the seeds do not suffice.
    """
    verdict, seeds = compared.verdict, compared.count
    correction = correction or Correction(0.0 if compared.p_value is None else compared.p_value, 1)
    if verdict == 'nothing':
        return 'Cannot tell whether that is more than chance: no seed is done in both.'
    if verdict == 'few':
        common = 'one common seed' if seeds == 1 else f'{seeds} common seeds'
        return (f'Cannot tell whether that is more than chance from {common}: it takes {MINIMUM_SEEDS}, better '
                f'{COMFORTABLE_SEEDS} or more.')
    if verdict == 'equal':
        return f'Seed by seed the two were equal ({seeds} seeds).'
    unit = f' {metric.change_unit}' if metric.change_unit else ''
    interval = f'{interval_text(metric, compared)}{unit}'
    if verdict == 'unclear':
        return (f'Cannot tell whether that is more than chance: with {seeds} seeds the 95 % interval of the '
                f'difference, {interval}, includes 0. {needed_text(compared, correction)}')
    if not _survives(correction):
        return (f'Cannot tell whether that is more than chance: with {seeds} seeds the 95 % interval of the '
                f'difference, {interval}, leaves 0 out, but it is one of {correction.count} comparisons, and corrected '
                f'for their number {_p_text(correction)}. {needed_text(compared, correction)}')
    doubt = '' if seeds >= COMFORTABLE_SEEDS else (
        f', if the differences are normally distributed, which {seeds} seeds cannot show'
    )
    # Means over all of an arm's seeds can mislead where some of them have no partner.
    claim = 'That is unlikely to be chance' if verdict == metric.better else 'The seeds that both have say the opposite'
    corrected = '' if correction.count == 1 else (
        f' Corrected for {correction.count} comparisons, {_p_text(correction)}.'
    )
    return f'{claim}: the 95 % interval of the difference over {seeds} seeds is {interval}{doubt}.{corrected}'


def interval_text(metric: Metric, compared: Difference) -> str:
    """
    Overview:
        The ends of the interval, without the unit.
    Arguments:
        - metric (:obj:`Metric`): The number.
        - compared (:obj:`Difference`): The difference.
    """
    if compared.low is None:
        return 'none'
    wider = max(compared.low, compared.high, key=abs)
    return f'{metric.change(compared.low, wider)} to {metric.change(compared.high, wider)}'


def needed_text(compared: Difference, correction: Correction) -> str:
    """
    Overview:
        How many seeds would tell.
    Arguments:
        - compared (:obj:`Difference`): A difference that may be chance.
        - correction (:obj:`Correction`): For the comparisons that it is one of.
    """
    needed = compared.seeds_needed(max(1, correction.count))
    if needed is None:
        return f'If there is a difference, it would take more than {MOST_SEEDS} seeds per arm to see it.'
    return f'If difference and spread are as they look, about {needed} seeds per arm would tell.'


def short_verdict(metric: Metric, compared: Difference, correction: Optional[Correction] = None) -> str:
    """
    Overview:
        The same for a cell of a table.
    Arguments:
        - metric (:obj:`Metric`): The number.
        - compared (:obj:`Difference`): The difference to the baseline.
        - correction (:obj:`Optional[Correction]`): For the comparisons that it is one of; None: it is the only one.
    """
    verdict = compared.verdict
    correction = correction or Correction(0.0 if compared.p_value is None else compared.p_value, 1)
    if verdict == 'nothing':
        return 'no common seed'
    if verdict == 'equal':
        return 'equal'
    if verdict == 'few':
        return 'cannot tell: too few seeds'
    if verdict == 'unclear' or not _survives(correction):
        needed = compared.seeds_needed(max(1, correction.count))
        return f"cannot tell; needs {f'more than {MOST_SEEDS}' if needed is None else f'about {needed}'} seeds"
    return 'better' if verdict == metric.better else 'worse'


def relative_text(metric: Metric, compared: Difference) -> str:
    """
    Overview:
        The difference in percent of the baseline; nothing for shares, whose difference is in points.
    Arguments:
        - metric (:obj:`Metric`): The number.
        - compared (:obj:`Difference`): The difference.
    """
    if compared.relative is None or not isfinite(compared.relative) or metric.unit == '%':
        return ''
    percent = f'{100 * compared.relative:+,.1f} %'.replace('-', MINUS)
    return percent if any(digit in percent for digit in '123456789') else '0 %'


def unequal_lengths(run: RunRecord) -> Optional[str]:
    """
    Overview:
        That arms have collected different numbers of environment steps, which they do by whole episodes.
    Arguments:
        - run (:obj:`RunRecord`): The run.
    Returns:
        - sentence (:obj:`Optional[str]`): None where the means differ by no more than ``MOST_UNEQUAL``.
    """
    metric = METRIC['env_steps']
    means = {arm: summarize(values.values()).mean for arm, values in run.values(metric.key).items() if values}
    if not means:
        return None
    least, most = min(means, key=means.get), max(means, key=means.get)
    if means[most] <= MOST_UNEQUAL * means[least]:
        return None
    return (
        f'the trials of {most} collected {metric.text(round(means[most]))} environment steps on average, those of '
        f'{least} {metric.text(round(means[least]))}. Totals such as evictions are given per 1,000 steps.'
    )


def _survives(correction: Correction) -> bool:
    return correction.p_value <= 1 - CONFIDENCE


def _p_text(correction: Correction) -> str:
    return 'p < 0.001' if correction.p_value < 0.001 else f'p = {correction.p_value:.2g}'


def _listed(names: Sequence[str]) -> str:
    return ' and '.join([', '.join(names[:-1])] * (len(names) > 1) + [names[-1]])
