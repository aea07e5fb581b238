"""
Strategy 'tree' against Belady's optimum and all other strategies, on real searches of trained models that it was not
designed on, but for how often it looks at a search and what it estimates in between: a part of each trace that
docs/strategies.md measures whole.
"""
from functools import cache
from pathlib import Path

import pytest

from lzero_kvcache.trace.choices import BELADY, chosen_strategies
from lzero_kvcache.trace.simulation import jobs_of, simulate

TRACES = {
    'cartpole': 'CartPole, 2 actions, 8 environments x 50 simulations, after 8,000 environment steps (return 200)',
    'pendulum': 'Pendulum, 11 actions, 8 environments x 50 simulations, after 5,400 environment steps',
}
GOALS = {0.1: 0.75, 0.25: 0.9}


@cache
def totals(trace):
    path = Path(__file__).parent / 'traces' / f'{trace}.trace'
    outcomes = simulate(path, jobs_of(chosen_strategies(['all']), list(GOALS)), workers=1)
    return {(outcome.strategy, outcome.share): outcome.total for outcome in outcomes}


def hit_rate(trace, strategy, share):
    return totals(trace)[strategy, share].pools['recur_pool'].hit_rate


@pytest.mark.parametrize('share', GOALS)
@pytest.mark.parametrize('trace', TRACES)
def test_the_share_of_beladys_hits(trace, share):
    assert hit_rate(trace, 'tree', share) >= GOALS[share] * hit_rate(trace, BELADY, share)


@pytest.mark.parametrize('trace, share', [('cartpole', 0.1), ('cartpole', 0.25), ('pendulum', 0.1)])
def test_the_most_hits_and_the_fewest_tokens_of_all(trace, share):
    others = {name for name, _ in totals(trace)} - {'tree', BELADY}
    assert len(others) > 8
    for name in others:
        assert hit_rate(trace, 'tree', share) > hit_rate(trace, name, share)
        assert totals(trace)['tree', share].rebuilds.tokens < totals(trace)[name, share].rebuilds.tokens
