"""One run of a LightZero entry, seen on the screen: a progress bar, and the cache's statistics at the end."""
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any, Optional

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from .experiment.run_folder import newest_checkpoint
from .output import output_to
from .tables import contexts_summary, statistics_table

SECONDS_BETWEEN_LOOKS = 0.5


@contextmanager
def run_progress(exp_name: str, max_env_step: Optional[int] = None, counted: str = 'collect') -> Iterator[None]:
    """
    Overview:
        Show the progress of the LightZero entry that runs within the ``with`` block. What it prints and logs goes to
        ``EXP_NAME.log``; the cache's statistics, and where the checkpoint and TensorBoard's logs lie, are shown when it
        is done.
    Arguments:
        - exp_name (:obj:`str`): The run's folder, which must not exist yet, or LightZero would choose another one.
        - max_env_step (:obj:`Optional[int]`): The environment steps that the run collects, if known.
        - counted (:obj:`str`): The phase whose environment steps are counted: 'collect', or 'eval' where the entry only
            evaluates.
    """
    from .plugin.statistics import step_listeners

    log_path = Path(f'{exp_name}.log')
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with output_to(log_path) as screen:
        display = _RunDisplay(screen, max_env_step, counted)
        step_listeners.append(display.on_step)
        try:
            with display.progress:
                yield
        except KeyboardInterrupt:
            screen.print(f'Interrupted after {display.summary()}.')
            display.show_statistics()
            raise
        finally:
            step_listeners.remove(display.on_step)
        display.show_statistics()
        if display.is_training:
            screen.print(f'Checkpoint: {newest_checkpoint(Path(exp_name))}', markup=False, soft_wrap=True)
        screen.print(f'TensorBoard: tensorboard --logdir {exp_name}/log   (scalars kv_cache/...)', markup=False,
                     soft_wrap=True)
        screen.print(f'Output of LightZero: {log_path}', markup=False, soft_wrap=True)


class _RunDisplay:

    def __init__(self, screen: Console, max_env_step: Optional[int], counted: str) -> None:
        self.inference: Any = None
        self.progress = Progress(
            TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TextColumn('environment steps'),
            TextColumn('{task.fields[activity]}'), TimeElapsedColumn(), console=screen,
            redirect_stdout=False, redirect_stderr=False,
            # A thread that draws would take a part of the processor from the training.
            auto_refresh=False
        )
        self._drawn_at = 0.
        self._screen = screen
        self._counted = counted
        self._task = self.progress.add_task(
            'training' if counted == 'collect' else 'evaluation', total=max_env_step, activity=''
        )
        self._learner_steps = 0
        self._searches = 0

    def on_step(self, phase: str, env_num: int, inference: Any) -> None:
        self.inference = inference or self.inference
        if not self._searches and phase != 'learn':
            said = 'The stock code runs, without a managed cache' if inference is None else inference.manager.describe()
            self._screen.print(said, markup=False, highlight=False, soft_wrap=True)
        if phase == 'learn':
            self._learner_steps += 1
            activity = f'learner step {self._learner_steps}'
        else:
            self._searches += 1
            activity = f'{phase}, search {self._searches}'
        self.progress.update(self._task, advance=env_num if phase == self._counted else 0, activity=activity)
        if monotonic() - self._drawn_at > SECONDS_BETWEEN_LOOKS:
            self._drawn_at = monotonic()
            self.progress.refresh()
        # A bar is drawn on a terminal only; elsewhere lines show that the run is alive.
        if not self._screen.is_terminal and (self._searches + self._learner_steps) % 50 == 0:
            self._screen.print(f'{int(self.progress.tasks[0].completed)} environment steps, {activity}')

    @property
    def is_training(self) -> bool:
        return self._counted == 'collect' and self.progress.tasks[0].completed > 0

    def summary(self) -> str:
        steps = int(self.progress.tasks[0].completed)
        return f'{steps:,} environment steps, {self._searches:,} searches and {self._learner_steps:,} learner steps'

    def show_statistics(self) -> None:
        if self.inference is None:
            return
        self._screen.print(statistics_table(self.inference.manager))
        self._screen.print(contexts_summary(self.inference.root_stats, self.inference.rebuild_stats))
        if hasattr(self.inference, 'report'):
            self._screen.print(str(self.inference.report))
