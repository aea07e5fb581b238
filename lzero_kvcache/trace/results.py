"""What a simulation says: table, CSV and recommendation."""
import csv
import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rich.markup import escape

from ..files import write_atomically
from ..wide_table import WideTable
from .choices import BELADY
from .simulation import Outcome, Survey

KEPT_HITS = 0.99
MOST_COLUMNS = 10
TITLES = dict(init_pools='init', recur_pool='recur', wm_pool='wm')


@dataclass
class Results:
    """All outcomes of a simulation: of a recur pool that never evicts, and all others."""
    survey: Survey
    unlimited: Outcome
    outcomes: list[Outcome]

    @property
    def shares(self) -> list[float]:
        return sorted({outcome.share for outcome in self.outcomes})

    @property
    def names(self) -> list[str]:
        """The strategies, the bound first, then by their hits over all sizes."""
        hits = Counter()
        for outcome in self.outcomes:
            hits[outcome.strategy] += outcome.recur_pool.hits
        return sorted(hits, key=lambda name: (name != BELADY, -hits[name]))

    def of(self, name: str, share: float) -> Optional[Outcome]:
        """One outcome; None: not there, because the simulation was interrupted."""
        return next((each for each in self.outcomes if (each.strategy, each.share) == (name, share)), None)

    def kept(self, outcome: Outcome) -> float:
        """Its hits, of those of a recur pool that never evicts."""
        return outcome.recur_pool.hits / self.unlimited.recur_pool.hits if self.unlimited.recur_pool.hits else 1.0

    def computed_again(self, outcome: Outcome) -> float:
        """The tokens that misses cost, of those that the search computes anyway."""
        computed = outcome.total.expansions * (1 + self.survey.facts.num_observations_tokens)
        # A search may have nothing but nodes without a parent.
        return outcome.total.rebuilds.tokens / computed if computed else 0.0

    def best(self, share: float) -> Optional[Outcome]:
        """The strategy with the most hits at a size; among equals, the one that computes fewest tokens again."""
        of_share = [each for each in self.outcomes if each.share == share and each.strategy != BELADY]
        return max(of_share, key=lambda each: (each.recur_pool.hits, -each.total.rebuilds.tokens), default=None)

    def recommended(self) -> Optional[Outcome]:
        """The smallest pool that keeps ``KEPT_HITS`` of the hits, with its best strategy; None: no simulated one."""
        bests = filter(None, map(self.best, self.shares))
        return next((best for best in bests if self.kept(best) >= KEPT_HITS), None)


def recommendation(results: Results) -> str:
    """What a user should do, in plain words, with the lines to paste."""
    if not results.unlimited.recur_pool.hits:
        return 'The recur pool was never asked for anything that it could have had: any size and strategy will do.'
    chosen = results.recommended()
    bests = [best for best in map(results.best, results.shares) if best is not None]
    if not bests:
        return 'No strategy has been simulated.'
    if chosen is None:
        return (
            f'None of these pools keeps {KEPT_HITS:.0%} of the hits. The largest, {_size(results, bests[-1])}, keeps '
            f'{results.kept(bests[-1]):.1%} with {bests[-1].strategy}: simulate larger ones (--sizes).'
        )
    lines = [
        f'Smallest pool that keeps {KEPT_HITS:.0%} of the hits: {_size(results, chosen)}, with {chosen.strategy}.',
        f'It keeps {results.kept(chosen):.1%} of the hits of an unlimited pool; {_cost(results, chosen)}.',
    ]
    smaller = [best for best in bests if best.share < chosen.share][:-4:-1]
    lines += [
        f'  {_size(results, best)}: at best {results.kept(best):.1%} ({best.strategy}); {_cost(results, best)}.'
        for best in smaller
    ]
    if 'tree' in {best.strategy for best in (*smaller, chosen)}:
        lines.append(
            "  Hits are not speed: 'tree' takes time of its own, which models of a few dozen units do not win back; "
            "'lzero-kvcache bench --section small_pools' shows both."
        )
    if not smaller:
        lines.append('It is the smallest of the simulated ones: a smaller one may do (--sizes).')
    name, _, score = chosen.strategy.partition(':')
    strategy = f'dict(type={name!r}, score={score!r})' if score else repr(name)
    lines += [
        '', 'To paste into the config (one without kv_cache takes kv_cache = dict(...) in place of '
        'kv_cache.update(...)):',
        "  create_config.policy.import_names = ['lzero_kvcache.plugin']",
        f'  main_config.policy.model.world_model_cfg.kv_cache.update(strategy={strategy}, '
        f'recur_pool=dict(size={chosen.recur_size(results.survey.facts)}))',
    ]
    return '\n'.join(lines)


def hit_rates_table(results: Results) -> WideTable:
    shares, chosen = _shown(results), results.recommended()
    title = 'Hit rate of the recur pool (%) by its size, in % of the nodes of a search'
    table = WideTable(title, ['strategy'], [f'{100 * share:g}%' for share in shares])
    for name in results.names:
        outcomes = [results.of(name, share) for share in shares]
        cells = ['' if outcome is None else f'{100 * outcome.recur_pool.hit_rate:.1f}' for outcome in outcomes]
        table.add_row(escape(name), *(
            f'[bold green]{cell}[/]' if cell and outcome is chosen else cell for outcome, cell in zip(outcomes, cells)
        ))
    return table


def pools_table(results: Results, outcome: Outcome) -> WideTable:
    """What every pool would have seen, by phase."""
    entries = outcome.recur_size(results.survey.facts)
    title = f'All pools, with {escape(outcome.strategy)} and {entries:,} entries for the recur pool'
    table = WideTable(title, ['phase', 'pool'], ['queries', 'hits', 'misses', 'evictions', 'hit rate'])
    for (manager, phase), counts in sorted(outcome.counts.items()):
        for kind, stats in counts.pools.items():
            table.add_row(
                f'{phase} (model {manager + 1})' if manager else phase, TITLES[kind], f'{stats.total_queries:,}',
                f'{stats.hits:,}', f'{stats.misses:,}', f'{stats.evictions:,}',
                f'{stats.hit_rate:.1%}' if stats.total_queries else '-'
            )
    return table


def write_csv(results: Results, path: Path) -> None:
    """All numbers, one row per strategy, size, model and phase; errors as those of ``write_atomically``."""
    rows = list(_rows(results))
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, text.getvalue())


def _rows(results: Results) -> Iterator[dict]:
    for outcome in (results.unlimited, *results.outcomes):
        limited = outcome.share is not None
        for (manager, phase), counts in sorted(outcome.counts.items()):
            size = outcome.recur_size(results.survey.reader.managers[manager])
            yield dict(
                strategy=outcome.strategy if limited else 'no eviction',
                recur_pool_percent=f'{100 * outcome.share:g}' if limited else '',
                recur_pool_entries=size if limited else '', model=manager + 1, phase=phase,
                expansions=counts.expansions, **{
                    f'{TITLES[kind]}_{column}': getattr(stats, column) for kind, stats in counts.pools.items()
                    for column in ('hits', 'misses', 'evictions')
                }, recur_hit_rate=f'{counts.recur_pool.hit_rate:.6f}', restored=counts.rebuilds.restored,
                rebuilt=counts.rebuilds.rebuilds, rebuilt_tokens=counts.rebuilds.tokens,
            )


def _shown(results: Results) -> list[float]:
    """As many sizes as fit on a screen, the recommended one among them."""
    shares, chosen = results.shares, results.recommended()
    if len(shares) <= MOST_COLUMNS:
        return shares
    spread = {shares[round(place * (len(shares) - 1) / (MOST_COLUMNS - 2))] for place in range(MOST_COLUMNS - 1)}
    return sorted(spread | ({chosen.share} if chosen else set()))


def _size(results: Results, outcome: Outcome) -> str:
    entries, nodes = outcome.recur_size(results.survey.facts), results.survey.facts.nodes_of_search
    return f'{100 * outcome.share:g}% of the nodes of a search ({entries:,} of {nodes:,} entries)'


def _cost(results: Results, outcome: Outcome) -> str:
    again = results.computed_again(outcome) - results.computed_again(results.unlimited)
    return f'misses make the model compute {again:.1%} more tokens' if again > 0 else 'misses cost nothing'
