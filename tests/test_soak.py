"""A short soak, and whether a soak finds what it is for."""
import csv
import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from soak import Soak, SoakFailure, main
from soak_memory import QUANTITIES, WINDOWS, Quantity
from soak_report import show_results, write_results
from soak_world import TURNS

from lzero_kvcache import EVICTION_REGISTRY, CacheStats, KVCachePool
from lzero_kvcache.search.contexts import SearchContexts
from lzero_kvcache.search.search import Search
from lzero_kvcache.store import TokenStore
from lzero_kvcache.world_model.histories import EnvironmentHistories
from lzero_kvcache.world_model.model_watch import ModelWatch


@pytest.fixture
def screen():
    return Console(file=open('/dev/null', 'w'))


@pytest.mark.slow
def test_a_short_soak(tmp_path, capsys):
    soak = Soak(steps=250, num_samples=WINDOWS)
    soak.run(Console())
    assert len(soak.worlds) == len(EVICTION_REGISTRY)
    done = soak.done()
    assert done['search steps'] >= 250 and min(done.values()) >= 1
    compared, difference = soak.comparisons()
    assert compared > 500 and difference < 1e-4
    show_results(soak, Console())
    assert f'{compared:,} predictions compared' in ' '.join(capsys.readouterr().out.split())
    write_results(soak, tmp_path, failure=None)
    with open(tmp_path / 'samples.csv', newline='') as file:
        assert [int(row['step']) for row in csv.DictReader(file)] == [sample.step for sample in soak.samples]
    written = json.loads((tmp_path / 'soak.json').read_text())
    for counts in written['pools'].values():
        assert counts['hits'] + counts['misses'] == counts['queries'] > 0
        assert counts['new'] == counts['evictions'] + counts['cleared'] + counts['entries']
    assert (tmp_path / 'memory.png').read_bytes().startswith(b'\x89PNG')


def skip_now_and_then(monkeypatch, owner, name, result=None):
    original, calls = getattr(owner, name), []

    def sometimes(self, *arguments, **keywords):
        calls.append(name)
        return result if len(calls) % 20 == 0 else original(self, *arguments, **keywords)

    monkeypatch.setattr(owner, name, sometimes)


def forget_to_release(monkeypatch):
    skip_now_and_then(monkeypatch, TokenStore, 'release')


def forget_to_tell_of_what_leaves(monkeypatch):
    skip_now_and_then(monkeypatch, KVCachePool, '_release')


def forget_to_count(monkeypatch):
    skip_now_and_then(monkeypatch, CacheStats, 'count_queries')


def overlook_a_learner_step(monkeypatch):
    monkeypatch.setattr(ModelWatch, 'has_changed', lambda self, world_model: not self._tensors)
    monkeypatch.setattr(ModelWatch, 'may_have_changed', lambda self: False)
    monkeypatch.setitem(TURNS, 'learn', 100)


def take_one_node_for_another(monkeypatch):
    look_up = SearchContexts._look_up

    def look_up_the_first_child(self, search, nodes):
        num_roots = search.nodes.ends[0]
        return look_up(self, search, [
            number if number < num_roots else num_roots + number % num_roots for number in nodes
        ])

    monkeypatch.setattr(SearchContexts, '_look_up', look_up_the_first_child)


def keep_searches(monkeypatch):
    kept, add = [], Search.add

    def add_and_keep(self, *arguments):
        kept.append(self)
        return add(self, *arguments)

    monkeypatch.setattr(Search, 'add', add_and_keep)


@pytest.mark.parametrize('fault, found', [
    (forget_to_release, 'AssertionError'), (forget_to_tell_of_what_leaves, 'AssertionError'),
    (forget_to_count, 'AssertionError'), (overlook_a_learner_step, 'AssertionError'),
    (take_one_node_for_another, 'AssertionError'), (keep_searches, 'objects of Search are alive'),
])
def test_a_soak_finds(fault, found, monkeypatch, screen):
    fault(monkeypatch)
    soak = Soak(steps=2000, num_samples=40, compares_nodes=0.5, strategies=['lru', 'tree'])
    with pytest.raises(SoakFailure, match=found):
        soak.run(screen)


def test_a_soak_finds_what_grows(monkeypatch, screen):
    meet = EnvironmentHistories.meet

    def meet_and_note(self, *arguments):
        self.notes = getattr(self, 'notes', []) + [0] * 500
        return meet(self, *arguments)

    monkeypatch.setattr(EnvironmentHistories, 'meet', meet_and_note)
    soak = Soak(steps=75, num_samples=WINDOWS, compares_nodes=0, strategies=['lru'])
    soak.run(screen)
    with pytest.raises(SoakFailure, match='Grown: '):
        soak.check_flatness()
    assert not next(quantity for quantity in QUANTITIES if quantity.name == 'rest_items').is_flat(soak.samples)


class Figure:

    def __init__(self, figure):
        self.figure = figure


@given(st.lists(st.integers(0, 100), min_size=50, max_size=80), st.integers(1, 20))
def test_noise_is_flat_and_growth_is_not(noise, growth):
    quantity = Quantity('figure', 'figures', share=0.1, number=100)
    flat = [Figure(1000 + number) for number in noise]
    assert quantity.is_flat(flat)
    grown = [Figure(1000 + number + 50 * growth * step) for step, number in enumerate(noise)]
    assert not quantity.is_flat(grown)


def test_the_command_fails_with_a_sentence(monkeypatch, tmp_path):
    forget_to_count(monkeypatch)
    result = CliRunner().invoke(main, ['--steps', '50', '--out', str(tmp_path)])
    assert result.exit_code == 1
    assert 'Error: AssertionError after ' in result.output
    assert 'forget_to_count' not in result.output and "in the world of {'cache'" in result.output
    assert 'search steps' in json.loads((tmp_path / 'soak.json').read_text())['failure']
