"""What a simulation says: table, CSV and recommendation."""
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from rich.markup import escape

from ..files import write_atomically
from ..wide_table import WideTable
from .choices import BELADY
from .counts import POOLS
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
        """The simulated sizes, rising."""
        return sorted({outcome.job.share for outcome in self.outcomes})

    @property
    def names(self) -> list[str]:
        """The strategies, the bound first, then by their hits over all sizes."""
        hits: dict[str, int] = {}
        for outcome in self.outcomes:
            hits[outcome.job.choice.name] = hits.get(outcome.job.choice.name, 0) + outcome.hits
        return sorted(hits, key=lambda name: (name != BELADY.name, -hits[name]))

    def of(self, name: str, share: float) -> Optional[Outcome]:
        """One outcome; None: not there, because the simulation was interrupted."""
        return next((each for each in self.outcomes if (each.job.choice.name, each.job.share) == (name, share)), None)

    def kept(self, outcome: Outcome) -> float:
        """Its hits, of those of a recur pool that never evicts."""
        return outcome.hits / self.unlimited.hits if self.unlimited.hits else 1.0

    def computed_again(self, outcome: Outcome) -> float:
        """The tokens that misses cost, of those that the search computes anyway."""
        total = outcome.total
        tokens_per_step = 1 + self.survey.facts.num_observations_tokens
        # A search may have nothing but nodes without a parent.
        return total.rebuilds.tokens / (total.expansions * tokens_per_step) if total.expansions else 0.0

    def best(self, share: float) -> Optional[Outcome]:
        """The strategy with the most hits at a size; among equals, the one that computes fewest tokens again."""
        of_share = [each for each in self.outcomes if each.job.share == share and each.job.choice != BELADY]
        return max(of_share, key=lambda each: (each.hits, -each.total.rebuilds.tokens), default=None)

    def recommended(self) -> Optional[Outcome]:
        """The smallest pool that keeps ``KEPT_HITS`` of the hits, with its best strategy; None: no simulated one."""
        bests = filter(None, map(self.best, self.shares))
        return next((best for best in bests if self.kept(best) >= KEPT_HITS), None)

    def entries(self, outcome: Outcome) -> int:
        """Entries of its recur pool."""
        return outcome.job.recur_size(self.survey.facts)


def recommendation(results: Results) -> str:
    """What a user should do, in plain words, with the lines to paste."""
    if not results.unlimited.hits:
        return 'The recur pool was never asked for anything that it could have had: any size and strategy will do.'
    chosen = results.recommended()
    bests = [best for best in map(results.best, results.shares) if best is not None]
    if not bests:
        return 'No strategy has been simulated.'
    if chosen is None:
        best = bests[-1]
        return (
            f'None of these pools keeps {KEPT_HITS:.0%} of the hits. The largest, {_size(results, best)}, keeps '
            f'{results.kept(best):.1%} with {best.job.choice.name}: simulate larger ones (--sizes).'
        )
    lines = [
        f'Smallest pool that keeps {KEPT_HITS:.0%} of the hits: {_size(results, chosen)}, '
        f'with {chosen.job.choice.name}.',
        f'It keeps {results.kept(chosen):.1%} of the hits of an unlimited pool; {_cost(results, chosen)}.',
    ]
    smaller = [best for best in bests if best.job.share < chosen.job.share][:-4:-1]
    lines += [
        f'  {_size(results, best)}: at best {results.kept(best):.1%} ({best.job.choice.name}); {_cost(results, best)}.'
        for best in smaller
    ]
    if 'tree' in {best.job.choice.name for best in (*smaller, chosen)}:
        lines.append(
            "  Hits are not speed: 'tree' takes time of its own, which models of a few dozen units do not win back; "
            "'lzero-kvcache bench --section small_pools' shows both."
        )
    if not smaller:
        lines.append('It is the smallest of the simulated ones: a smaller one may do (--sizes).')
    lines += [
        '', 'To paste into the config (one without kv_cache takes kv_cache = dict(...) in place of '
        'kv_cache.update(...)):', *(f'  {line}' for line in config_lines(results, chosen)),
    ]
    return '\n'.join(lines)


def config_lines(results: Results, outcome: Outcome) -> list[str]:
    """What an outcome is as lines of a config, which leave its other settings of the cache as they are."""
    strategy = outcome.job.choice.strategy
    written = repr(strategy) if isinstance(strategy, str) else (
        f"dict({', '.join(f'{key}={value!r}' for key, value in strategy.items())})"
    )
    return [
        "create_config.policy.import_names = ['lzero_kvcache.plugin']",
        'main_config.policy.model.world_model_cfg.kv_cache.update('
        f'strategy={written}, recur_pool=dict(size={results.entries(outcome)}))',
    ]


def hit_rates_table(results: Results) -> WideTable:
    """Hit rates of the recur pool by strategy and size."""
    shares, chosen = _shown(results), results.recommended()
    table = WideTable(
        'Hit rate of the recur pool (%) by its size, in % of the nodes of a search', ['strategy'],
        [_percent(share) for share in shares]
    )
    for name in results.names:
        outcomes = [results.of(name, share) for share in shares]
        cells = ['' if outcome is None else f'{100 * outcome.hit_rate:.1f}' for outcome in outcomes]
        table.add_row(escape(name), *(
            f'[bold green]{cell}[/]' if cell and outcome is chosen else cell for outcome, cell in zip(outcomes, cells)
        ))
    return table


def pools_table(results: Results, outcome: Outcome) -> WideTable:
    """What every pool would have seen, by phase."""
    name = escape(outcome.job.choice.name)
    table = WideTable(
        f'All pools, with {name} and {results.entries(outcome):,} entries for the recur pool',
        ['phase', 'pool'], ['queries', 'hits', 'misses', 'evictions', 'hit rate']
    )
    for (manager, phase), counts in sorted(outcome.counts.items()):
        for kind in POOLS:
            stats = counts.pools[kind]
            table.add_row(
                f'{phase} (model {manager + 1})' if manager else phase, TITLES[kind], f'{stats.total_queries:,}',
                f'{stats.hits:,}', f'{stats.misses:,}', f'{stats.evictions:,}',
                f'{stats.hit_rate:.1%}' if stats.total_queries else '-'
            )
    return table


def write_csv(results: Results, path: Path) -> None:
    """All numbers, one row per strategy, size, model and phase; errors as those of ``write_atomically``."""
    managers = results.survey.reader.managers
    columns = [(kind, column) for kind in POOLS for column in ('hits', 'misses', 'evictions')]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([
        'strategy', 'recur_pool_percent', 'recur_pool_entries', 'model', 'phase', 'expansions',
        *(f'{TITLES[kind]}_{column}' for kind, column in columns), 'recur_hit_rate', 'restored', 'rebuilt',
        'rebuilt_tokens',
    ])
    for outcome in (results.unlimited, *results.outcomes):
        job = outcome.job
        for (manager, phase), counts in sorted(outcome.counts.items()):
            setting = ('no eviction', '', '') if job.share is None else (
                job.choice.name, f'{100 * job.share:g}', job.recur_size(managers[manager])
            )
            rebuilds = counts.rebuilds
            writer.writerow([
                *setting, manager + 1, phase, counts.expansions,
                *(getattr(counts.pools[kind], column) for kind, column in columns),
                f'{counts.recur_pool.hit_rate:.6f}', rebuilds.restored, rebuilds.rebuilds, rebuilds.tokens,
            ])
    write_atomically(path, text.getvalue())


def _shown(results: Results) -> list[float]:
    """As many sizes as fit on a screen, the recommended one among them."""
    shares, chosen = results.shares, results.recommended()
    if len(shares) <= MOST_COLUMNS:
        return shares
    spread = {shares[round(place * (len(shares) - 1) / (MOST_COLUMNS - 2))] for place in range(MOST_COLUMNS - 1)}
    return sorted(spread | ({chosen.job.share} if chosen else set()))


def _percent(share: float) -> str:
    return f'{100 * share:g}%'


def _size(results: Results, outcome: Outcome) -> str:
    entries, nodes = results.entries(outcome), results.survey.facts.nodes_of_search
    return f'{_percent(outcome.job.share)} of the nodes of a search ({entries:,} of {nodes:,} entries)'


def _cost(results: Results, outcome: Outcome) -> str:
    again = results.computed_again(outcome) - results.computed_again(results.unlimited)
    return f'misses make the model compute {again:.1%} more tokens' if again > 0 else 'misses cost nothing'
