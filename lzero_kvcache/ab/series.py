"""What a trial notes down while it runs."""
import csv
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, Callable, Optional

import torch

from ..files import disk_full_named
from ..plugin.policies import KVCachePolicyMixin
from ..plugin.statistics import step_listeners

POOLS = ('init_pools', 'recur_pool', 'wm_pool')
COLUMNS = (
    'env_step', 'seconds', 'learner_step', 'search_seconds', 'searches',
    *(f'{kind}_{what}' for kind in POOLS for what in ('hits', 'misses', 'evictions', 'entries', 'bytes')),
    'rebuilds', 'rebuilt_tokens', 'restored', 'rss_mb', 'peak_gpu_memory_mb',
)
ROWS = 100
MIB = 2 ** 20


class SeriesRecorder:
    """
    Overview:
        Writes ``series.csv``: a row about every hundredth of a run, at once on the disk, so that others can follow it.
    Arguments:
        - path (:obj:`Path`): The file.
        - max_env_step (:obj:`int`): The environment steps of the run.
    """

    def __init__(self, path: Path, max_env_step: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self._path = path
        self._max_env_step = max_env_step
        self._began: Optional[float] = None
        self._counts = dict(env_step=0, learner_step=0, search_seconds=0., searches=0)
        self._inference: Any = None
        # 'collect', 'eval' or 'learn': what has been done last.
        self.last_phase: Optional[str] = None
        with disk_full_named(path):
            # Line by line: whoever looks sees whole rows.
            self._file = open(path, 'w', newline='', buffering=1)
            self._writer = csv.DictWriter(self._file, COLUMNS)
            self._writer.writeheader()

    @contextmanager
    def recording(self) -> Iterator[None]:
        """
        Overview:
            Note down the run that takes place within the ``with`` block, up to ``end``.
        """
        step_listeners.append(self._on_step)
        try:
            with _searches_timed(self._on_search):
                yield
        finally:
            step_listeners.remove(self._on_step)
            with disk_full_named(self._path):
                self._file.close()

    @property
    def env_step(self) -> int:
        """
        Overview:
            The environment steps that have been collected.
        """
        return self._counts['env_step']

    def end(self) -> None:
        """
        Overview:
            The training has ended: write its last row.
        """
        self._write_row()

    def _on_search(self, phase: str, seconds: float) -> None:
        if self._began is None:
            self._began = perf_counter() - seconds
        if phase == 'collect':
            self._counts['search_seconds'] += seconds
            self._counts['searches'] += 1

    def _on_step(self, phase: str, env_num: int, inference: Any) -> None:
        self._inference = inference or self._inference
        self.last_phase = phase
        if phase == 'learn':
            self._counts['learner_step'] += 1
        elif phase == 'collect':
            self._counts['env_step'] += env_num
            written = self.rows[-1]['env_step'] if self.rows else 0
            if self._counts['env_step'] - written >= self._max_env_step / ROWS:
                self._write_row()

    def _write_row(self) -> None:
        seconds = 0. if self._began is None else perf_counter() - self._began
        row = dict(self._counts, seconds=round(seconds, 3), search_seconds=round(self._counts['search_seconds'], 4),
                   rss_mb=round(peak_memory_mb(), 1), peak_gpu_memory_mb=peak_gpu_memory_mb())
        if self._inference is not None:
            row.update(_cache_counts(self._inference))
        self.rows.append(row)
        with disk_full_named(self._path):
            self._writer.writerow(row)


def _cache_counts(inference: Any) -> dict[str, int]:
    manager = inference.manager
    stats, memory = manager.total_stats(), manager.memory_bytes()
    counts = dict(
        rebuilds=inference.rebuild_stats.rebuilds, rebuilt_tokens=inference.rebuild_stats.tokens,
        restored=inference.rebuild_stats.restored,
    )
    for kind, pools in manager.pools().items():
        counts.update({
            f'{kind}_hits': stats[kind].hits, f'{kind}_misses': stats[kind].misses,
            f'{kind}_evictions': stats[kind].evictions, f'{kind}_entries': sum(map(len, pools)),
            f'{kind}_bytes': memory[kind],
        })
    return counts


@contextmanager
def _searches_timed(on_search: Callable[[str, float], None]) -> Iterator[None]:
    search_in_phase = KVCachePolicyMixin._search_in_phase

    def timed(policy: Any, phase: str, search: Callable, data: Any, ready_env_id: Any) -> dict:
        def timed_search(env_ids: Any) -> dict:
            began = perf_counter()
            output = search(env_ids)
            on_search(phase, perf_counter() - began)
            return output

        return search_in_phase(policy, phase, timed_search, data, ready_env_id)

    KVCachePolicyMixin._search_in_phase = timed
    try:
        yield
    finally:
        KVCachePolicyMixin._search_in_phase = search_in_phase


def peak_memory_mb() -> float:
    """
    Overview:
        The most resident memory, in MiB, that this process has had so far.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == 'darwin' else peak * 1024 / MIB


def peak_gpu_memory_mb() -> Optional[float]:
    """
    Overview:
        The most memory, in MiB, that PyTorch's tensors have held so far on the GPU that this process uses; None where
        it uses none. What CUDA itself takes comes on top.
    """
    return round(torch.cuda.max_memory_allocated() / MIB, 1) if torch.cuda.is_initialized() else None
