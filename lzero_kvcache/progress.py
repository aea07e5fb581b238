"""One run of a LightZero entry, seen on the screen: a progress bar, and the cache's statistics at the end."""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Optional

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .output import output_to
from .tables import contexts_summary, statistics_table


@contextmanager
def run_progress(exp_name: str, max_env_step: Optional[int] = None) -> Iterator[None]:
    """
    Overview:
        Show the progress of the LightZero entry that runs within the ``with`` block. What it prints and logs goes to
        ``EXP_NAME.log``; the cache's statistics, and where TensorBoard's logs lie, are shown when it is done.
    Arguments:
        - exp_name (:obj:`str`): The run's folder, which must not exist yet, or LightZero would choose another one.
        - max_env_step (:obj:`Optional[int]`): The environment steps that the run collects, if known.
    """
    from .plugin.statistics import step_listeners

    log_path = Path(f'{exp_name}.log')
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with output_to(log_path) as screen:
        display = _RunDisplay(screen, max_env_step)
        step_listeners.append(display.on_step)
        try:
            with display.progress:
                yield
        finally:
            step_listeners.remove(display.on_step)
        if display.inference is not None:
            screen.print(statistics_table(display.inference.manager))
            screen.print(contexts_summary(display.inference.root_stats, display.inference.rebuild_stats))
            if hasattr(display.inference, 'report'):
                screen.print(str(display.inference.report))
        screen.print(f'TensorBoard: tensorboard --logdir {exp_name}/log   (scalars kv_cache/...)', soft_wrap=True)
        screen.print(f'Output of LightZero: {log_path}', soft_wrap=True)


class _RunDisplay:

    def __init__(self, screen: Console, max_env_step: Optional[int]) -> None:
        self.inference: Any = None
        self.progress = Progress(
            TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('environment steps'),
            TextColumn('{task.fields[activity]}'), TimeElapsedColumn(), console=screen,
            redirect_stdout=False, redirect_stderr=False
        )
        self._screen = screen
        self._task = self.progress.add_task('training' if max_env_step else 'run', total=max_env_step, activity='')
        self._learner_steps = 0
        self._searches = 0

    def on_step(self, phase: str, env_num: int, inference: Any) -> None:
        self.inference = inference or self.inference
        if phase == 'learn':
            self._learner_steps += 1
            activity = f'learner step {self._learner_steps}'
        else:
            self._searches += 1
            activity = f'{phase}, search {self._searches}'
        self.progress.update(self._task, advance=env_num if phase == 'collect' else 0, activity=activity)
        # A bar is drawn on a terminal only; elsewhere lines show that the run is alive.
        if not self._screen.is_terminal and (self._searches + self._learner_steps) % 50 == 0:
            self._screen.print(f'{int(self.progress.tasks[0].completed)} environment steps, {activity}')
