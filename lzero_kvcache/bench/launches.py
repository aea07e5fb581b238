from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.table import Table
from torch.profiler import ProfilerActivity, profile

from ..world_model import linear
from .clock import Clock
from .searcher import Searcher
from .section import COLORS, Section, in_lines, table_of
from .settings import MODELS, Settings
from .timing import until_the_window_is_full

GOAL = 60
# They look at memory or reserve it, and start nothing on a GPU.
NO_LAUNCH = {f'aten::{name}' for name in (
    'alias', 'as_strided', 'broadcast_to', 'chunk', 'detach', 'detach_', 'empty', 'empty_like', 'empty_strided',
    'expand', 'expand_as', 'flatten', 'is_nonzero', 'is_same_size', 'lift_fresh', 'movedim', 'narrow', 'new_empty',
    'permute', 'resize_', 'resolve_conj', 'resolve_neg', 'result_type', 'select', 'set_', 'slice', 'split',
    'split_with_sizes', 'squeeze', 't', 'transpose', 'unbind', 'unflatten', 'unfold', 'unsafe_split', 'unsqueeze',
    'view', 'view_as', '_reshape_alias', '_unsafe_view',
)}
# They start what they consist of.
COMPOSITE = {f'aten::{name}' for name in (
    '_to_copy', 'allclose', 'clone', 'constant_pad_nd', 'contiguous', 'dropout', 'embedding', 'full', 'isclose', 'item',
    'layer_norm', 'linear', 'masked_fill', 'matmul', 'new_zeros', 'one_hot', 'ones', 'ones_like', 'pad', 'reshape',
    'scaled_dot_product_attention', 'softmax', 'stack', 'to', 'zeros', 'zeros_like',
)}


class Launches(Section):
    """Operations that start a kernel on a GPU, per simulation, counted by ``torch.profiler``.

    The slope between searches of two lengths. They are the same on a CPU that computes products as a GPU does, but for
    copies from and to the host, which a CPU does not need.
    """
    name = 'launches'

    def measure(self, settings: Settings, clock: Clock) -> list[dict]:
        rows = []
        for model in clock.each(settings.models, 'launches: {}'.format):
            row = dict(model=model)
            for arm, kv_cache in (('release', None), ('plugin', {})):
                few, many = settings.num_simulations // 2, settings.num_simulations
                counts = [self._count(settings, model, kv_cache, simulations) for simulations in (few, many)]
                row[arm] = (counts[1] - counts[0]) / (many - few)
            rows.append(dict(row, ratio=row['plugin'] / row['release']))
        return rows

    def _count(self, settings: Settings, model: str, kv_cache: Any, num_simulations: int) -> int:
        searcher = Searcher(**MODELS[model], kv_cache=kv_cache, env_num=settings.env_num,
                            num_simulations=num_simulations)
        with products_of_a_gpu():
            for _ in range(until_the_window_is_full(MODELS[model]['context_length'])):
                searcher.collect()
            with profile(activities=[ProfilerActivity.CPU]) as profiler:
                searcher.collect()
        return sum(launches(event) for event in profiler.events() if event.cpu_parent is None)

    def table(self, rows: list[dict]) -> Table:
        table = table_of(f'Kernel launches per simulation (goal {GOAL})', 'model', 'release', 'plugin',
                         'plugin / release')
        for row in rows:
            table.add_row(row['model'], f"{row['release']:.1f}", f"{row['plugin']:.1f}", f"{row['ratio']:.2f}")
        return table

    def plot(self, rows: list[dict], figure: Any) -> None:
        panel = figure.subplots()
        for shift, (arm, color) in zip((-0.2, 0.2), COLORS.items()):
            bars = panel.bar([place + shift for place in range(len(rows))], [row[arm] for row in rows], 0.4,
                             color=color, label=arm)
            panel.bar_label(bars, fmt='%.0f')
        panel.set_xticks(range(len(rows)), [in_lines(row['model']) for row in rows])
        panel.axhline(GOAL, color='black', linestyle=':', label='goal')
        panel.set(title='kernel launches per simulation', ylabel='launches')
        panel.legend(frameon=False)


@contextmanager
def products_of_a_gpu() -> Iterator[None]:
    """Let models that begin to search within the ``with`` block call products as on a GPU: nothing is packed there."""
    former = linear.SMALLEST_PACKED, linear.takes_gelu
    linear.SMALLEST_PACKED, linear.takes_gelu = float('inf'), lambda weight: True
    try:
        yield
    finally:
        linear.SMALLEST_PACKED, linear.takes_gelu = former


def launches(event: Any) -> int:
    """How many kernels an operation starts; the event, of ``torch.profiler``, has those that it consists of."""
    if event.name in NO_LAUNCH:
        return 0
    if '::' not in event.name or event.name in COMPOSITE:
        return sum(launches(child) for child in event.cpu_children)
    return 1
