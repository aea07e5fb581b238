from typing import Any

from rich.table import Table

from ..store.memory import tensor_bytes
from .clock import Clock
from .searcher import Searcher
from .section import COLORS, Section, table_of
from .settings import MODELS, Settings
from .timing import until_the_window_is_full

MODEL = '64 wide, window 8'
ENV_NUM = 2


class Memory(Section):
    """
    Overview:
        Bytes of keys and values that a cached node costs once the windows are full.
    """
    name = 'memory'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        rows = []
        for window in clock.each(settings.windows, 'memory: window of {}'.format):
            search = dict(MODELS[MODEL], context_length=window, env_num=ENV_NUM,
                          num_simulations=settings.num_simulations)
            release, plugin = Searcher(**search), Searcher(**search, kv_cache={})
            for _ in range(until_the_window_is_full(window)):
                release.collect()
                plugin.collect()
            written = [kv for kv in release.world_model.shared_pool_recur_infer if kv is not None]
            manager = plugin.world_model.kv_cache_manager
            of_release = tensor_bytes(written) / len(written)
            of_plugin = manager.memory_bytes()['recur_pool'] / len(manager.recur_pool)
            rows.append(dict(window=window, release_bytes=of_release, plugin_bytes=of_plugin,
                             ratio=of_plugin / of_release))
        return rows

    def table(self, rows: list[dict]) -> Table:
        table = table_of('Bytes of keys and values per node of a search, 64 wide', 'window', 'release', 'plugin',
                         'plugin / release')
        for row in rows:
            table.add_row(str(row['window']), f"{row['release_bytes']:,.0f}", f"{row['plugin_bytes']:,.0f}",
                          f"{row['ratio']:.3f}")
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        panel = figure.subplots()
        windows = [row['window'] for row in rows]
        for arm, color in COLORS.items():
            panel.plot(windows, [row[f'{arm}_bytes'] / 1024 for row in rows], 'o-', color=color, label=arm)
        panel.set(title='keys and values per cached node, 64 wide', xlabel='window (tokens)', ylabel='KiB')
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False)
