"""An evaluation, seen on the screen: its progress, each return, and the cache's statistics at the end."""
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .experiment.evaluation import Episode, summary
from .plugin.statistics import step_listeners
from .tables import contexts_summary, statistics_table
from .wide_table import WideTable

SEARCHES_BETWEEN_LINES = 100


class EvaluationDisplay:
    """
    Overview:
        Shows an evaluation.
    Arguments:
        - screen (:obj:`Console`): The screen, as ``output_to`` returns it.
        - episodes (:obj:`int`): How many will be run.
    """

    def __init__(self, screen: Console, episodes: int) -> None:
        self.ended: list[Episode] = []
        self.searches = 0
        self._screen = screen
        self._episodes = episodes
        self._inference: Any = None
        self._progress = Progress(
            TextColumn('evaluation'), BarColumn(20), MofNCompleteColumn(), TextColumn('episodes'),
            TextColumn('{task.fields[activity]}'), TimeElapsedColumn(), console=screen, redirect_stdout=False,
            redirect_stderr=False
        )
        self._task = self._progress.add_task('', total=episodes, activity='loading')

    @contextmanager
    def live(self) -> Iterator[None]:
        """
        Overview:
            Show the progress of what runs within the ``with`` block.
        """
        step_listeners.append(self._on_search)
        try:
            with self._progress:
                yield
        finally:
            step_listeners.remove(self._on_search)

    def add(self, episodes: Sequence[Episode]) -> None:
        """
        Overview:
            Episodes have ended.
        Arguments:
            - episodes (:obj:`Sequence[Episode]`): These.
        """
        self.ended += episodes
        self._progress.update(self._task, completed=len(self.ended))

    def show_results(self) -> None:
        """
        Overview:
            Show the return of each episode, what they come to, and the cache's statistics.
        """
        table = WideTable('Returns', ['seed'], ['return'])
        for episode in self.ended:
            table.add_row(str(episode.seed), f'{episode.episode_return:.6g}')
        self._screen.print(table)
        numbers = summary(self.ended)
        if numbers['std'] is not None:
            self._screen.print(
                f"Mean return of {len(self.ended)}: {numbers['mean']:.6g}, standard deviation {numbers['std']:.3g}, "
                f"from {numbers['min']:.6g} to {numbers['max']:.6g}"
            )
        if self._inference is not None:
            self._screen.print(statistics_table(self._inference.manager))
            self._screen.print(contexts_summary(self._inference.root_stats, self._inference.rebuild_stats))
        if hasattr(self._inference, 'report'):
            self._screen.print(str(self._inference.report))

    def results(self) -> dict[str, Any]:
        """
        Overview:
            The same, as JSON knows it.
        """
        pools = None
        if self._inference is not None:
            pools = {
                kind: dict(asdict(stats), hit_rate=stats.hit_rate)
                for kind, stats in self._inference.manager.total_stats().items()
            }
        return {'return': summary(self.ended), 'episodes': list(map(asdict, self.ended)), 'kv_cache': pools}

    def _on_search(self, phase: str, env_num: int, inference: Any) -> None:
        self._inference = inference or self._inference
        self.searches += 1
        self._progress.update(self._task, activity=f'search {self.searches}')
        # A bar is drawn on a terminal only; elsewhere lines show that the evaluation is alive.
        if not self._screen.is_terminal and self.searches % SEARCHES_BETWEEN_LINES == 0:
            self._screen.print(f'{len(self.ended)} of {self._episodes} episodes, search {self.searches}')
