"""The report of an A/B run: what it computes, what it says, and that it is one safe file."""
import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lzero_kvcache.report import write_report
from lzero_kvcache.report.__main__ import main
from lzero_kvcache.report.comparisons import Correction, holm
from lzero_kvcache.report.curves import Curve, hit_rate, learning_curve, over_seeds, throughput
from lzero_kvcache.report.folder import RunRecord, Trial, read_run
from lzero_kvcache.report.metrics import METRIC, METRICS, MINUS, decimals_of, number
from lzero_kvcache.report.panels import MARKERS, arm_styles, curve_panel
from lzero_kvcache.report.sentences import answers, certainty, headline, short_verdict
from lzero_kvcache.report.statistics import (
    MOST_SEEDS,
    difference,
    seeds_needed,
    student_t_p_value,
    student_t_quantile,
    summarize,
)

POOLS = ('init_pools', 'recur_pool', 'wm_pool')
numbers = st.floats(-1e6, 1e6).map(lambda value: round(value, 3))
by_seed = st.dictionaries(st.integers(0, 8), numbers, max_size=8)


def write_trial(folder, arm, seed, status='done', error=None, rows=40, stock=False, returns=(9.0, 20.0, 30.0),
                threads=1, **result):
    """A trial as 'lzero-kvcache ab' writes it; its series grows by 10 steps, 2 seconds, 8 hits and 2 misses a row."""
    trial = folder / 'trials' / f'{arm}_seed{seed}'
    trial.mkdir(parents=True)
    (trial / 'output.log').write_text('output of LightZero\n')
    columns = ['env_step', 'seconds', 'learner_step', 'search_seconds', 'searches',
               *(f'{pool}_{name}' for pool in POOLS for name in ('hits', 'misses', 'evictions', 'entries', 'bytes')),
               'rebuilds', 'rebuilt_tokens', 'restored', 'rss_mb']
    lines = [','.join(columns)]
    for row in range(1, rows + 1):
        cache = [''] * 18 if stock else [8 * row, 2 * row, row, 5, 2**20] * 3 + [row, 3 * row, 0]
        lines.append(','.join(map(str, [10 * row, 2 * row, row, 0.1 * row, row, *cache, 900 + row])))
    (trial / 'series.csv').write_text('\n'.join(lines) + '\n')
    (trial / 'returns.csv').write_text('env_step,return_mean,return_max,return_min\n' + ''.join(
        f'{10 * rows * index // max(1, len(returns) - 1)},{value},{value + 1},{value - 1}\n'
        for index, value in enumerate(returns)
    ))
    cache = {} if stock else dict(hit_rate_init_pools=1.0, hit_rate_recur_pool=0.8, rebuilt_tokens=3 * rows,
                                  peak_cache_mb=3.0)
    done = dict(return_last=30.0 + seed, env_steps=10 * rows, seconds=2.0 * rows, env_steps_per_second=5.0,
                search_ms=100.0, peak_memory_mb=900.0 + rows, **cache) if status == 'done' else {}
    row = dict(arm=arm, seed=seed, status=status, **{**done, **result})
    (trial / 'trial.json').write_text(json.dumps(dict(
        arm=arm, seed=seed, max_env_step=10 * rows, spec='0', status=status, error=error, seconds=2.0 * rows,
        threads=threads, result=row
    )))
    results = folder / 'results.csv'
    former = list(csv.DictReader(results.open())) if results.exists() else []
    with results.open('w', newline='') as file:
        writer = csv.DictWriter(file, ['arm', 'seed', 'status', *METRIC, 'log'])
        writer.writeheader()
        writer.writerows([*former, row])


def write_run(folder, arms=('fifo', 'lru'), seeds=(0, 1, 2), **changes):
    key = 'policy.model.world_model_cfg.kv_cache.strategy'
    folder.mkdir(exist_ok=True)
    (folder / 'ab.json').write_text(json.dumps({**dict(
        config='configs/ab.py', title='Two strategies', arms={arm: dict(kv_cache=dict(strategy=arm)) for arm in arms},
        differences={arm: {key: arm} for arm in arms}, seeds=list(seeds), max_env_step=400, baseline=arms[0],
        machine=dict(cpu='a processor', torch='2.12.1'), started='2026-11-25T09:45:00+00:00'
    ), **changes}))
    return folder


def write_trials(folder, arms=('fifo', 'lru'), seeds=(0, 1, 2)):
    for arm in arms:
        for seed in seeds:
            write_trial(folder, arm, seed)
    return folder


class Page(HTMLParser):
    """Elements, ids, links, text, and whether every element is closed where it should be."""
    VOID = {'meta', 'link', 'wbr', 'br'}

    def __init__(self, html):
        super().__init__()
        self.elements, self.attributes, self.texts, self._open = [], [], [], []
        self.feed(html)
        self.close()
        assert not self._open, f'never closed: {self._open}'

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes.extend((tag, name, value) for name, value in attributes)
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag, f'{tag} closed out of turn'

    def handle_data(self, data):
        if self._open and self._open[-1] != 'style':
            self.texts.append(data)

    @property
    def text(self):
        return re.sub(r'\s+', ' ', ' '.join(self.texts))

    def values(self, *names):
        return [value for _, name, value in self.attributes if name in names]


def page_of(folder):
    return Page(write_report(folder).read_text(encoding='utf-8'))


# Statistics

@pytest.mark.parametrize('degrees', [1, 2, 3, 4, 7, 19, 100, 999])
@pytest.mark.parametrize('probability', [0.6, 0.8, 0.975, 0.995])
def test_quantiles_are_those_of_scipy(degrees, probability):
    assert student_t_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-5)


@given(st.dictionaries(st.integers(0, 9), st.tuples(numbers, numbers), min_size=2))
def test_the_interval_is_that_of_scipys_paired_t_test(pairs):
    values, reference = ({seed: pair[side] for seed, pair in pairs.items()} for side in (0, 1))
    compared = difference(values, reference)
    seeds = sorted(pairs)
    differences = np.array([values[seed] - reference[seed] for seed in seeds])
    error = stats.sem(differences)
    if error > 1e-9:
        low, high = stats.t.interval(0.95, len(seeds) - 1, loc=differences.mean(), scale=error)
        assert (compared.low, compared.high) == pytest.approx((low, high), rel=1e-4, abs=1e-4 * error)
    else:
        assert compared.low == pytest.approx(compared.high)


def test_a_difference_by_hand():
    # Differences 1, 2, 3: mean 2, standard deviation 1, and 4.3027 is the quantile for 2 degrees of freedom.
    compared = difference({0: 11.0, 1: 22.0, 2: 33.0, 7: 99.0}, {0: 10.0, 1: 20.0, 2: 30.0, 5: 0.0})
    assert (compared.count, compared.mean, compared.relative) == (3, 2.0, 0.1)
    assert compared.low == pytest.approx(2 - 4.3027 / math.sqrt(3), abs=1e-4)
    assert compared.high == pytest.approx(2 + 4.3027 / math.sqrt(3), abs=1e-4)
    assert compared.verdict == 'unclear'
    # (t(0.975, n - 1) + t(0.8, n - 1)) / sqrt(n) <= 2: for n = 4 (3.182 + 0.978) / 2 = 2.08, for n = 5 1.66.
    assert compared.seeds_needed() == 5


@given(by_seed, by_seed)
def test_arms_that_swap_swap_the_sign(values, reference):
    one, other = difference(values, reference), difference(reference, values)
    assert one.count == other.count == len(values.keys() & reference.keys())
    opposite = {'higher': 'lower', 'lower': 'higher'}
    assert one.verdict == opposite.get(other.verdict, other.verdict)
    assert one.seeds_needed() == other.seeds_needed()
    if one.count:
        assert one.mean == -other.mean
    if one.count > 1:
        assert (one.low, one.high) == pytest.approx((-other.high, -other.low))
        assert one.low <= one.mean <= one.high


@given(st.lists(numbers, min_size=2, max_size=6), st.integers(2, 4))
def test_intervals_shrink_with_more_seeds_of_the_same_kind(values, times):
    def half(seeds):
        compared = difference(dict(enumerate(seeds)), dict.fromkeys(range(len(seeds)), 0.0))
        return (compared.high - compared.low) / 2

    if np.std(values) > 1e-3:
        assert half(values * times) < half(values)


@given(st.floats(0.01, 100), st.floats(0.01, 100))
def test_the_seeds_needed_are_enough_and_no_more(mean, deviation):
    def enough(seeds):
        return (stats.t.ppf(0.975, seeds - 1) + stats.t.ppf(0.8, seeds - 1)) * deviation / math.sqrt(seeds) <= mean

    seeds = seeds_needed(mean, deviation)
    if seeds is None:
        assert not enough(int(MOST_SEEDS * 0.99))
    else:
        assert enough(seeds + 1) and (seeds <= 3 or not enough(seeds - 2))


@given(st.lists(numbers, min_size=2, max_size=9))
def test_what_cannot_be_told_needs_more_seeds_than_there_are(values):
    compared = difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    if compared.verdict == 'unclear' and compared.seeds_needed() is not None:
        assert compared.count < compared.seeds_needed() <= (compared.seeds_needed(12) or MOST_SEEDS)


def test_three_seeds_are_covered_by_students_interval_and_not_by_the_bootstrap():
    generator = np.random.default_rng(0)
    samples = generator.normal(1.0, 1.0, (1000, 3))
    reference = dict.fromkeys(range(3), 0.0)
    intervals = [difference(dict(enumerate(map(float, sample))), reference) for sample in samples]
    assert np.mean([one.low <= 1 <= one.high for one in intervals]) == pytest.approx(0.95, abs=0.02)
    means = samples[:, generator.integers(0, 3, (1000, 3))].mean(axis=2)
    low, high = np.quantile(means, (0.025, 0.975), axis=1)
    assert np.mean((low <= 1) & (1 <= high)) < 0.85


@given(st.floats(-1e3, 1e3), st.integers(1, 30))
def test_p_values_are_those_of_scipy(statistic, degrees):
    expected = 2 * stats.t.sf(abs(statistic), degrees)
    assert student_t_p_value(statistic, degrees) == pytest.approx(expected, rel=1e-3, abs=1e-9)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_by_its_definition(p_values):
    corrected = holm(p_values)
    for level in (0.01, 0.05, 0.3):
        # Step down: the smallest is tested at level / m, the next at level / (m - 1), until one fails.
        rejected = set()
        for rank, place in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
            if p_values[place] * (len(p_values) - rank) > level:
                break
            rejected.add(place)
        assert {place for place, value in enumerate(corrected) if value <= level} == rejected


def test_summaries():
    assert summarize([]) is None
    assert summarize([4.0]).deviation is None
    summary = summarize([1.0, 2.0, 3.0])
    assert (summary.count, summary.mean, summary.deviation) == (3, 2.0, 1.0)


# Sentences

RETURN, SEARCH = METRIC['return_last'], METRIC['search_ms']


def compare(*differences):
    return difference(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))


@pytest.mark.parametrize('differences', [(), (5.0,), (5.0, 5.1), (1.0, -2.0, 3.0), (1.0, 2.0, -2.9, 0.2, 3.0)])
def test_what_the_seeds_cannot_tell_is_not_told(differences):
    assert certainty(RETURN, compare(*differences)).startswith('Cannot tell')
    assert short_verdict(RETURN, compare(*differences)) not in ('better', 'worse')


def test_what_the_seeds_tell():
    assert certainty(RETURN, compare(5.0, 5.1, 5.2, 4.9, 5.0)).startswith('That is unlikely to be chance')
    assert 'normally distributed' not in certainty(RETURN, compare(5.0, 5.1, 5.2, 4.9, 5.0))
    assert 'which 3 seeds cannot show' in certainty(RETURN, compare(5.0, 5.1, 5.2))
    assert short_verdict(RETURN, compare(5.0, 5.1, 5.2)) == 'better'
    assert short_verdict(SEARCH, compare(5.0, 5.1, 5.2)) == 'worse'
    assert short_verdict(SEARCH, compare(0.0, 0.0, 0.0)) == 'equal'


def test_the_seeds_needed_are_named():
    compared = compare(1.0, 2.0, 3.0)
    assert 'about 5 seeds per arm' in certainty(RETURN, compared)
    assert short_verdict(RETURN, compared) == 'cannot tell; needs about 5 seeds'
    assert f'more than {MOST_SEEDS}' in certainty(RETURN, compare(-1.0, 0.0, 1.0))


ASKED = ('return_last', 'env_steps_per_second', 'hit_rate_recur_pool', 'peak_cache_mb', 'peak_memory_mb')


def noisy_run(generator, arms, seeds=5, missing=(), **better):
    """A run whose arms all draw from the same distribution, but for some of the last one's numbers."""
    names = [f'arm{index}' for index in range(arms)]
    trials = []
    for arm in names:
        for seed in range(seeds):
            results = {key: float(generator.normal(100, 1)) for key in ASKED if (arm, key) not in missing}
            for key, shift in better.items():
                results[key] += shift * (arm == names[-1])
            trials.append(Trial(arm, seed, 'done', results=results))
    return RunRecord(
        'noise', None, dict.fromkeys(names, {}), names[0], list(range(seeds)), None, {}, {}, None, trials, []
    )


@pytest.mark.parametrize('arms', [2, 4])
@pytest.mark.parametrize('missing', [(), [('arm0', 'hit_rate_recur_pool'), ('arm0', 'peak_cache_mb')]],
                         ids=['all', 'baseline without a cache'])
def test_noise_is_hardly_ever_called_a_difference(arms, missing):
    generator = np.random.default_rng(0)
    reports = [answers(noisy_run(generator, arms, missing=missing)) for _ in range(600)]
    assert np.mean(['Unlikely to be chance' in headline(found) for found in reports]) <= 0.07
    # Nor does any answer below the headline.
    assert np.mean([any('unlikely to be chance' in one.text for one in found.values()) for found in reports]) <= 0.07


@pytest.mark.parametrize('arms', [2, 4])
def test_a_large_difference_is_named(arms):
    generator = np.random.default_rng(1)
    for _ in range(20):
        said = headline(answers(noisy_run(generator, arms, return_last=20.0, peak_memory_mb=-20.0)))
        assert f'Unlikely to be chance: arm{arms - 1} beats arm0 in return and memory of the process' in said


def test_one_comparison_of_many_is_not_believed_as_one_alone():
    compared = compare(1.0, 2.0, 2.0, 3.0, 4.0)
    assert compared.p_value == pytest.approx(stats.ttest_1samp([1.0, 2.0, 2.0, 3.0, 4.0], 0).pvalue, rel=1e-3)
    assert short_verdict(RETURN, compared) == 'better'
    corrected = Correction(15 * compared.p_value, 15)
    assert certainty(RETURN, compared, corrected).startswith('Cannot tell')
    assert 'one of 15 comparisons, and corrected for their number p = 0.14' in certainty(RETURN, compared, corrected)
    assert re.fullmatch(r'cannot tell; needs about \d+ seeds', short_verdict(RETURN, compared, corrected))


def test_the_page_says_how_many_comparisons_it_makes(tmp_path):
    write_run(tmp_path, ('fifo', 'lru', 'tree'))
    write_trials(tmp_path, ('fifo', 'lru', 'tree'))
    page = page_of(tmp_path)
    assert '10 comparisons were made for these answers' in page.text and 'Holm, 1979' in page.text


def test_arms_of_unequal_lengths_are_compared_per_step(tmp_path):
    write_run(tmp_path)
    for seed in range(3):
        write_trial(tmp_path, 'fifo', seed, env_steps=2000, evictions=4000, rebuilds=20, rebuilt_tokens=40)
        write_trial(tmp_path, 'lru', seed, env_steps=3000, evictions=6000, rebuilds=30, rebuilt_tokens=60)
    page = page_of(tmp_path)
    assert ('Lengths differ: the trials of lru collected 3,000 environment steps on average, those of fifo 2,000.'
            in page.text)
    for words in ('Evictions, per 1,000 steps 2,000 ± 0 2,000 ± 0', 'Rebuilt contexts, per 1,000 steps 10.0',
                  'Rebuilt tokens, per 1,000 steps 20.0'):
        assert words in page.text
    values = read_run(tmp_path).values('rebuilt_tokens')
    assert values['fifo'] == values['lru'] == {0: 20.0, 1: 20.0, 2: 20.0}


def test_nearly_equal_lengths_are_not_worth_a_sentence(tmp_path):
    write_run(tmp_path)
    for seed in range(3):
        write_trial(tmp_path, 'fifo', seed, env_steps=3000)
        write_trial(tmp_path, 'lru', seed, env_steps=3100)
    assert 'Lengths differ' not in page_of(tmp_path).text


def test_the_best_arm_is_named_by_what_is_better(tmp_path):
    write_run(tmp_path)
    for seed in range(3):
        write_trial(tmp_path, 'fifo', seed, return_last=20.0 + seed, search_ms=50.0)
        write_trial(tmp_path, 'lru', seed, return_last=40.0 + 1.1 * seed, search_ms=70.0)
    run = read_run(tmp_path)
    found = answers(run)
    assert found['Return'].best == 'lru' and found['Return'].sure
    assert '41.1 against 21.0 of fifo, the baseline' in found['Return'].text
    assert not found['Speed'].sure and 'No difference to be seen' in found['Speed'].text
    assert headline(found) == 'Unlikely to be chance: lru beats fifo in return.'
    assert short_verdict(SEARCH, difference(run.values('search_ms')['lru'], run.values('search_ms')['fifo'])) == 'worse'


def test_a_mean_that_misleads_is_not_believed(tmp_path):
    write_run(tmp_path, seeds=range(4))
    for seed in range(3):
        write_trial(tmp_path, 'fifo', seed, return_last=20.0 + seed)
        write_trial(tmp_path, 'lru', seed, return_last=15.0 + 1.1 * seed)
    write_trial(tmp_path, 'lru', 3, return_last=90.0)
    found = answers(read_run(tmp_path))['Return']
    assert found.best == 'lru' and not found.sure and 'The seeds that both have say the opposite' in found.text


@given(st.floats(-1e9, 1e9))
def test_numbers_are_written_to_three_digits(value):
    text = number(value, decimals_of(value))
    read = float(text.replace(MINUS, '-').replace(',', ''))
    assert read == pytest.approx(value, rel=5.1e-3, abs=5e-7)
    assert '-' not in text and text != f'{MINUS}0'


# Curves

def trial_of(**series):
    return Trial('fifo', 0, 'done', series={name: np.array(values, float) for name, values in series.items()})


def test_rates_are_those_of_a_window():
    trial = trial_of(env_step=[10, 20, 30], seconds=[1, 2, 7], recur_pool_hits=[8, 8, 8], recur_pool_misses=[2, 12, 12])
    curve = hit_rate(trial, 'recur_pool')
    assert curve.x.tolist() == [10, 20] and curve.y.tolist() == [0.8, 0.0]
    assert throughput(trial).y.tolist() == [10, 10, 2]
    assert not len(hit_rate(trial, 'wm_pool').x)


def test_the_learning_curve_over_time():
    trial = Trial('fifo', 0, 'done', series=dict(env_step=np.array([100.0, 200.0]), seconds=np.array([60.0, 240.0])),
                  returns=dict(env_step=np.array([0.0, 50.0, 150.0]), return_mean=np.array([1.0, 2.0, 3.0])))
    assert learning_curve(trial, over_time=True).x.tolist() == [0.0, 0.5, 2.5]


@given(st.lists(st.lists(st.tuples(st.integers(0, 1000), numbers), min_size=1, max_size=8), min_size=1, max_size=5))
def test_means_lie_within_their_seeds_and_within_all_ranges(seeds):
    curves = []
    for points in seeds:
        x, y = zip(*sorted(dict(points).items()))
        curves.append(Curve(np.array(x, float), np.array(y, float)))
    mean = over_seeds(curves)
    if mean is None:
        assert max(curve.x[0] for curve in curves) > min(curve.x[-1] for curve in curves)
    elif mean.low is not None:
        assert mean.x[0] == max(curve.x[0] for curve in curves) and mean.x[-1] == min(curve.x[-1] for curve in curves)
        assert (mean.low <= mean.y + 1e-6).all() and (mean.y <= mean.high + 1e-6).all()


def test_arms_are_told_apart_without_colours():
    looks = arm_styles([f'arm {index}' for index in range(30)])
    assert len({(str(look.dashes), look.marker) for look in looks.values()}) == 30
    assert len(MARKERS) == len(set(MARKERS))


# The page

@pytest.fixture(scope='module')
def html(tmp_path_factory):
    folder = write_trials(write_run(tmp_path_factory.mktemp('run')))
    html = write_report(folder).read_text(encoding='utf-8')
    assert [path.name for path in folder.iterdir() if 'report' in path.name] == ['report.html']
    return html


def test_the_report_of_a_finished_run(html):
    page = Page(html)
    for words in ('Two strategies', 'In short', '80.00 %', 'lzero-kvcache ab configs/ab.py',
                  'a processor', '25 November 2026, 09:45 UTC', 'What the numbers mean', '3 of 3',
                  'A seed fixes the initial weights', 'draws among equal scores by the clock'):
        assert words in page.text
    assert 'policy.model.world_model_cfg.kv_cache.strategy' in ''.join(page.texts)
    assert 'not done' not in page.text
    assert page.elements.count('h1') == 1 and page.elements.count('table') == 5
    alternatives = [value for tag, name, value in page.attributes if (tag, name) == ('svg', 'aria-label')]
    assert any('Return by environment steps' in text and 'fifo ends at 30' in text for text in alternatives)
    assert len(html.encode()) < 1_000_000


def tables_of(html):
    """Each table's rows, and each row's cells: element, attributes, text."""
    for table in re.findall(r'<table.*?</table>', html, re.DOTALL):
        yield [
            [(tag, dict(re.findall(r'([\w-]+)="([^"]*)"', attributes)), text) for tag, attributes, text in
             re.findall(r'<(t[hd])\b([^>]*)>(.*?)</t[hd]>', row, re.DOTALL)]
            for row in re.findall(r'<tr.*?</tr>', table, re.DOTALL)
        ]


def test_every_value_has_its_name_beside_it_where_rows_are_cards(html):
    names = set()
    for rows in tables_of(html):
        for row in rows[1:]:
            assert row[0][0] == 'th'
            for tag, attributes, text in row:
                if tag == 'td' and '<svg' not in text:
                    names.add(attributes['data-label'])
    assert {'fifo', 'lru', 'Difference', '95 % interval', 'Verdict', 'Status', 'Output', 'Wall time, s'} <= names
    cards = html.split('@media screen and (max-width: 72rem)')[1].split('\n}')[0]
    assert 'td::before' in cards and 'content: attr(data-label)' in cards


def test_no_table_has_more_columns_than_the_widest_page_has_room_for(html):
    results, *tables = tables_of(html)
    trials = [rows for rows in tables if rows[0][1][2] == 'Seed']
    assert len(trials) == 2 and all(len(rows[0]) <= 11 and len(rows) == 7 for rows in trials)
    headings = [text for rows in trials for _, _, text in rows[0]]
    metrics = [row[0][2] for row in results[2:]]
    assert sorted(headings) == sorted([*metrics, *['Arm', 'Seed'] * 2, 'Status', 'Output'])


def test_equal_folders_give_equal_reports(html, tmp_path):
    assert write_report(write_trials(write_run(tmp_path))).read_text(encoding='utf-8') == html


def test_the_page_loads_nothing_and_runs_nothing(html):
    page = Page(html)
    assert not {'script', 'img', 'iframe', 'object', 'embed', 'base', 'form', 'image'} & set(page.elements)
    assert not [name for _, name, _ in page.attributes if name.startswith('on')]
    for tag, name, value in page.attributes:
        if name in ('src', 'srcset', 'action', 'data', 'poster') or (name in ('href', 'xlink:href') and tag != 'a'):
            assert value.startswith(('#', 'data:')), (tag, name, value)
    assert not re.search(r'@import|url\((?!#)', html)


def test_ids_are_unique_and_every_reference_is_met(html):
    page = Page(html)
    ids = page.values('id')
    assert len(ids) == len(set(ids))
    references = [value[1:] for value in page.values('href', 'xlink:href') if value.startswith('#')]
    references += re.findall(r'url\(#([^)]+)\)', html)
    references += page.values('aria-labelledby')
    assert references and set(references) <= set(ids)


def test_colours_are_left_to_the_page(html):
    svgs = re.findall(r'<svg.*?</svg>', html, re.DOTALL)
    assert len(svgs) > 20
    assert not [colour for svg in svgs for colour in re.findall(r'(?:fill|stroke): *(#\w+|rgb\S+|black|white)', svg)]


# Without a slash, because an arm's name is a folder's.
HOSTILE = '<script>alert(1)<img src=x onerror=alert(2)>"><svg onload=alert(3)>&amp; $x^{$ {{ 7 * 7 }} \''


def test_names_and_log_lines_inject_nothing(tmp_path):
    arms = ('fifo', HOSTILE)
    write_run(tmp_path, arms, title=HOSTILE, config=HOSTILE, machine={HOSTILE: HOSTILE}, started=HOSTILE,
              differences={HOSTILE: {f'policy.{HOSTILE}': HOSTILE, 'policy.more': [HOSTILE]}})
    write_trial(tmp_path, 'fifo', 0)
    for seed, status in enumerate(('done', 'failed', 'done')):
        write_trial(tmp_path, HOSTILE, seed, status=status, error=HOSTILE if status == 'failed' else None)
    page = page_of(tmp_path)
    assert not {'script', 'img'} & set(page.elements)
    assert not [name for _, name, _ in page.attributes if name.startswith('on')]
    assert page.text.count('alert(1)') > 10 and '49' not in re.findall(r'\{\{ 7 \* 7 \}\}|49', page.text)


@given(name=st.text(st.characters(exclude_categories=('Cs',)), min_size=1, max_size=30))
@settings(deadline=None, max_examples=30)
def test_any_name_is_only_text_in_a_plot(name):
    curve = Curve(np.array([0.0, 1.0]), np.array([1.0, 2.0]))
    svg = curve_panel('plot', name, 'steps', '', {name: curve}, arm_styles([name]), {})
    page = Page(svg)
    assert set(page.elements) <= {'svg', 'defs', 'style', 'g', 'path', 'use', 'text', 'clippath', 'rect', 'tspan'}
    assert not [attribute for _, attribute, _ in page.attributes if attribute.startswith('on')]


def test_memory_of_a_gpu_is_shown_where_there_is_one(tmp_path):
    write_run(tmp_path)
    write_trial(tmp_path, 'lru', 0)
    assert 'Peak GPU memory' not in page_of(tmp_path).text
    write_trial(tmp_path, 'fifo', 0, peak_gpu_memory_mb=61.5)
    page = page_of(tmp_path)
    assert 'Peak GPU memory' in page.text and '61.5' in page.text


def test_failed_and_missing_trials_are_left_out_and_named(tmp_path):
    write_run(tmp_path)
    for seed in range(3):
        write_trial(tmp_path, 'fifo', seed)
    write_trial(tmp_path, 'lru', 0, status='failed', error='RuntimeError: out of memory')
    write_trial(tmp_path, 'lru', 1)
    page = page_of(tmp_path)
    assert '2 of 6 trials are not done' in page.text
    assert 'RuntimeError: out of memory' in page.text and 'lru, seed 2: unfinished' in page.text
    assert 'It has left no output.' in page.text
    assert page.values('href').count('trials/lru_seed0/output.log') == 2
    assert '1 of 3' in page.text
    assert page.text.count('cannot tell: too few seeds') == len(
        [metric for metric in METRICS if metric.compared and metric.key not in ('return_best', 'peak_gpu_memory_mb')]
    )


def test_a_run_without_a_finished_trial(tmp_path):
    page = page_of(write_run(tmp_path))
    assert 'No trial is done yet.' in page.text and '6 of 6 trials are not done' in page.text
    assert 'There is no difference between two arms to speak of.' in page.text


def test_a_single_seed_has_no_interval_and_no_verdict(tmp_path):
    write_run(tmp_path, seeds=(5,))
    write_trial(tmp_path, 'fifo', 5)
    write_trial(tmp_path, 'lru', 5, return_last=90.0)
    page = page_of(tmp_path)
    assert '±' not in page.text.replace('Mean ± standard deviation', '')
    assert 'none' in page.text and 'Cannot tell whether that is more than chance from one common seed' in page.text
    table = page.text.split('Verdict')[1].split('Differences are paired')[0]
    assert 'cannot tell' in table and not {'better', 'worse'} & set(table.split())


def test_an_arm_on_the_stock_code_has_no_cache(tmp_path):
    write_run(tmp_path, ('fifo', 'release'))
    for seed in range(3):
        write_trial(tmp_path, 'fifo', seed)
        write_trial(tmp_path, 'release', seed, stock=True, env_steps_per_second=4.0)
    page = page_of(tmp_path)
    assert 'fifo alone has a figure for hit rate of the recur pool: 80.00 %.' in page.text
    assert 'fifo had the highest mean throughput, 5.00 steps/s against 4.00 steps/s of release' in page.text


def test_trials_of_unequal_lengths_and_missing_columns(tmp_path):
    write_run(tmp_path)
    write_trials(tmp_path, ('fifo',))
    for seed, rows in enumerate((10, 40, 25)):
        write_trial(tmp_path, 'lru', seed, rows=rows, returns=(5.0,) * (seed + 1))
    short = tmp_path / 'trials' / 'lru_seed0'
    (short / 'series.csv').write_text('env_step,seconds\n10,1\n20,2\n')
    (short / 'returns.csv').unlink()
    (tmp_path / 'trials' / 'lru_seed1' / 'series.csv').write_text('')
    page = page_of(tmp_path)
    assert 'Hit rate of the recur pool' in page.text


def test_a_single_arm(tmp_path):
    page = page_of(write_trials(write_run(tmp_path, ('fifo',)), ('fifo',)))
    assert 'There is only one arm' in page.text


def test_trials_of_another_run_are_left_out(tmp_path):
    write_trials(write_run(tmp_path, seeds=(0, 1)))
    page = page_of(tmp_path)
    assert "results.csv has arm 'lru' with seed 2, which is no part of the run" in page.text


def test_times_of_different_numbers_of_threads_are_not_compared_in_silence(tmp_path):
    write_run(tmp_path)
    write_trial(tmp_path, 'fifo', 0)
    write_trial(tmp_path, 'lru', 0, threads=2)
    assert 'Times cannot be compared: the trials ran with 1 and 2 threads.' in page_of(tmp_path).text


@pytest.mark.parametrize('name, content, words', [
    ('ab.json', None, 'has no ab.json'),
    ('ab.json', '{"arms": ', 'cannot be read as JSON'),
    ('ab.json', '[]', 'holds a list'),
    ('ab.json', '{"seeds": [0]}', 'arms is None: needed is an object'),
    ('ab.json', '{"arms": {}, "seeds": [0]}', 'at least one arm'),
    ('ab.json', '{"arms": {"fifo": {}}, "seeds": ["0"]}', "whole numbers as seeds"),
    ('ab.json', '{"arms": {"fifo": {}}, "seeds": [0], "baseline": "fif"}', "baseline is 'fif'.*did you mean 'fifo'"),
    ('ab.json', '{"arms": {"fifo": {}}, "seeds": [0], "max_env_step": "x"}', 'needed is a whole number'),
    ('ab.json', '{"arms": {"fifo": {}}, "seeds": [0], "differences": {"fifo": 3}}', 'fifo is 3: needed is an object'),
    ('results.csv', 'arm,seed,status\nfifo,0,don\n', "status of a row of fifo is 'don'.*did you mean 'done'"),
    ('results.csv', 'arm,seed,status\nfifo,first,done\n', "seed of fifo is 'first'"),
    ('results.csv', 'arm,seed,status\nfifo,,done\n', "seed of fifo is ''"),
    ('results.csv', 'arm,seed,status,seconds\nfifo,0,done,long\n',
     "seconds of fifo with seed 0 is 'long': needed is a number"),
    ('trials/fifo_seed0/trial.json', '{"arm": ', 'cannot be read as JSON'),
    ('trials/fifo_seed0/trial.json', '{"error": ["a", "b"]}', 'error is .*: needed is a text'),
    ('trials/fifo_seed0/series.csv', 'env_step,seconds\n10,1\n20,soon\n', "seconds, row 2 is 'soon'"),
    ('trials/fifo_seed0/returns.csv', 'env_step,return_mean\n\x00,1\n', 'returns.csv'),
])
def test_what_is_broken_is_named(tmp_path, name, content, words):
    folder = write_trials(write_run(tmp_path / 'run'))
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f'(?s){re.escape(str(folder))}.*{words}'):
        write_report(folder)
    assert not [path for path in folder.iterdir() if 'report' in path.name]


def test_from_the_command_line(tmp_path):
    folder = write_trials(write_run(tmp_path / 'run'))
    result = CliRunner().invoke(main, [str(folder)])
    assert result.exit_code == 0 and Path(result.output.strip()) == folder / 'report.html'
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 1 and result.output.startswith('Error: ') and 'has no ab.json' in result.output


def test_what_is_not_installed_is_named():
    code = "import sys; sys.modules['jinja2'] = None; import lzero_kvcache.report"
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert result.returncode == 1
    assert "needs jinja2, which is not installed: pip install 'lzero-kvcache[report]'" in result.stderr.splitlines()[-1]
