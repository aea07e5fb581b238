from typing import Any

from rich.table import Table

from ..eviction import EVICTION_REGISTRY
from .clock import Clock
from .figures import as_text, figure_of
from .searcher import Searcher
from .section import Section, in_lines, table_of
from .settings import MODELS, Settings
from .timing import in_turn, paired_ratios, until_the_window_is_full

GOAL = 0.8


class SmallPools(Section):
    """Real searches with recur pools that do not hold all their nodes, lossless, every strategy.

    Hit rates, and throughput against an unlimited pool. The first model meets every share, the others the small pool.
    """
    name = 'small_pools'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        first, *others = settings.models
        sizes = [(first, share) for share in settings.pool_shares]
        if settings.small_pool is not None:
            sizes += [(model, settings.small_pool) for model in others]
        rows = []
        for model, share in clock.each(sizes, lambda size: f'recur pool of {size[1]:.0%}: {size[0]}'):
            rows += self._measure(settings, model, share, clock)
        return rows

    def _measure(self, settings: Settings, model: str, share: float, clock: Clock) -> list[dict]:
        search = dict(MODELS[model], env_num=settings.env_num, num_simulations=settings.num_simulations)
        pool = dict(size=max(1, round(share * settings.env_num * settings.num_simulations)))
        strategies = sorted(EVICTION_REGISTRY)
        searchers = [Searcher(**search, kv_cache=dict(strategy='lru'))]
        searchers += [Searcher(**search, kv_cache=dict(strategy=name, recur_pool=pool)) for name in strategies]
        warm_up = until_the_window_is_full(search['context_length'])
        times = in_turn([searcher.collect for searcher in searchers], warm_up, max(2, settings.steps // 2), clock)
        if times is None:
            return []
        rows, unlimited = [], times[0]
        for strategy, searcher, taken in zip(strategies, searchers[1:], times[1:]):
            inference = searcher.world_model.kv_cache_inference
            queries = inference.manager.recur_pool.stats.total_queries
            rows.append(dict(
                model=model, share=share, pool_size=pool['size'], strategy=strategy,
                hit_rate=inference.manager.recur_pool.stats.hit_rate,
                **figure_of('throughput', paired_ratios(unlimited, taken)),
                last_inference=inference.manager.wm_pool.stats.hits / queries,
                restored=inference.rebuild_stats.restored / queries, rebuilt=inference.rebuild_stats.rebuilds / queries,
            ))
        return rows

    def table(self, rows: list[dict]) -> Table:
        table = table_of('Recur pools that are too small, against one that is not (of the queries: hits, found '
                         'in the wm pool, restored without computation, rebuilt)', 'model', 'pool', 'strategy', 'hits',
                         'wm', 'restored', 'rebuilt', 'speed', names=3)
        for row in rows:
            shares = [f'{row[name]:.1%}' for name in ('hit_rate', 'last_inference', 'restored', 'rebuilt')]
            table.add_row(row['model'], f"{row['share']:.0%}", row['strategy'], *shares,
                          as_text(row, 'throughput', '{:.2f}'))
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        of_hits, of_throughput, of_models = figure.subplots(1, 3)
        first = rows[0]['model']
        shares = sorted({row['share'] for row in rows if row['model'] != first} or {row['share'] for row in rows})
        models = list(dict.fromkeys(row['model'] for row in rows))
        strategies = sorted({row['strategy'] for row in rows})
        width = 0.8 / len(strategies)
        for number, strategy in enumerate(strategies):
            own = [row for row in rows if row['strategy'] == strategy]
            of_first = [row for row in own if row['model'] == first]
            percent = [100 * row['share'] for row in of_first]
            of_hits.plot(percent, [100 * row['hit_rate'] for row in of_first], 'o-', label=strategy)
            of_throughput.plot(percent, [row['throughput'] for row in of_first], 'o-', label=strategy)
            at_small = {row['model']: row['throughput'] for row in own if row['share'] == shares[0]}
            places = [place + (number - (len(strategies) - 1) / 2) * width for place in range(len(models))]
            of_models.bar(places, [at_small.get(model, 0) for model in models], width, label=strategy)
        of_hits.set(title=f'hit rate\n{first}', xlabel='recur pool (% of the nodes)', ylabel='% of the queries')
        of_hits.set_ylim(0, 103)
        of_throughput.set(title=f'throughput, lossless\n{first}', xlabel='recur pool (% of the nodes)',
                          ylabel='of an unlimited pool')
        of_models.set(title=f'throughput, pool of {shares[0]:.0%}', ylabel='of an unlimited pool')
        of_models.set_xticks(range(len(models)), [in_lines(model) for model in models])
        for panel in (of_throughput, of_models):
            panel.axhline(GOAL, color='black', linestyle=':', label=f'goal at {shares[0]:.0%}')
            panel.set_ylim(0, 1.15)
        figure.legend(*of_throughput.get_legend_handles_labels(), loc='outside right upper', frameon=False)
