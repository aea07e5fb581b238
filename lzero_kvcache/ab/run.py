"""An A/B run from its config to its results."""
import json
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Optional

from rich.console import Console
from rich.markup import escape

from ..bench.machine import machine
from ..untrusted import printable
from .backend import Backend, Event
from .changes import by_changes
from .config import ABConfig
from .display import ABDisplay
from .folder import RunFolder, last_lines
from .results import MOST_UNEQUAL, means_table, write_results
from .spec import TrialSpec, as_json

# What is said of the trials that are there already, by their state.
SAID_OF = {
    'done': 'done already, not run again',
    'failed': 'failed before, run again',
    'changed': 'run again by --redo, because the config, the number of steps or the versions have changed',
    'interrupted': 'interrupted before, run from the start',
}


class ABRun:
    """
    Overview:
        The trials of an A/B config in a folder. Those that are done stay as they are; its results are those of all
        trials in the folder that fit the config.
    Arguments:
        - config (:obj:`ABConfig`): The checked config.
        - folder (:obj:`RunFolder`): Where everything goes.
        - arms (:obj:`Optional[Sequence[str]]`): Which arms; None: all.
        - seeds (:obj:`Optional[Sequence[int]]`): Which seeds; None: the config's.
        - console (:obj:`Console`): The screen.
        - redo (:obj:`bool`): Run trials again that are done with other settings. An old one is removed when its new one
            begins.
    Raises:
        - ValueError: If there is no such arm, the folder holds another config's run, or, without ``redo``, trials that
            are done with other settings.
    """

    def __init__(
            self, config: ABConfig, folder: RunFolder, arms: Optional[Sequence[str]], seeds: Optional[Sequence[int]],
            console: Console, redo: bool = False
    ) -> None:
        self.config = config
        self.folder = folder
        self.specs = config.specs(arms, seeds)
        self._console = console
        former = folder.record() or {}
        if former and former['config'].rpartition('/')[2] != config.path.name:
            raise ValueError(
                f"{folder.path} holds the A/B run of {former['config']}, not of {config.path}: choose another --out"
            )
        changed = {spec.name: folder.changes(spec) for spec in self.specs if folder.state(spec) == 'changed'}
        if changed and not redo:
            raise ValueError('\n'.join([
                f'{folder.path} holds trials that are done, with other settings:',
                *(f'  {line}' for line in by_changes(changed)),
                'Choose another --out, or add --redo: it runs them again, and removes each when its new trial begins',
            ]))
        self._known, self._left_out = self._all_known()
        now = datetime.now().astimezone().isoformat(timespec='seconds')
        self._started = former['started'] if isinstance(former.get('started'), str) else now

    def run(self, backend: Backend) -> list[TrialSpec]:
        """
        Overview:
            Run the trials that are not done.
        Arguments:
            - backend (:obj:`Backend`): What runs them.
        Returns:
            - failed (:obj:`List[TrialSpec]`): Those that have failed.
        Raises:
            - DiskFullError: If there is no room; what is done is kept.
        """
        states = {spec.name: self.folder.state(spec) for spec in self.specs}
        to_run = [spec for spec in self.specs if states[spec.name] != 'done']
        self.folder.write_record(self._record())
        self._write_results()
        with ABDisplay(self._console, self.folder, to_run) as display:
            for state, text in SAID_OF.items():
                names = [name for name, of_trial in states.items() if of_trial == state]
                if names:
                    display.say(f"{', '.join(names)}: {text}")
            display.say(*(f'Kept, but not among the results: {line}' for line in by_changes(self._left_out)))
            if to_run:
                display.say(f"{len(to_run)} trial{'s' if len(to_run) > 1 else ''} to run, {backend.describe()}")
            events = backend.run(to_run, self.folder)
            try:
                for event in events:
                    if event is None:
                        display.refresh()
                    elif event.ended:
                        display.ended(event.spec)
                        self._finish(event, display)
                    else:
                        display.started(event.spec)
            finally:
                # Ends the trials that are running if this loop is left early.
                events.close()
        return [spec for spec in self.specs if self.folder.state(spec) == 'failed']

    def rows(self) -> list[dict[str, Any]]:
        """
        Overview:
            The rows of ``results.csv``, in the order of the config's arms.
        """
        arms = list(self.config.experiments)
        outcomes = [self.folder.outcome(spec) for spec in self._known]
        rows = [outcome['result'] for outcome in outcomes if outcome is not None]
        return sorted(rows, key=lambda row: (arms.index(row['arm']), row['seed']))

    def show_means(self) -> None:
        """
        Overview:
            Print each arm's means.
        """
        rows = [row for row in self.rows() if row['status'] == 'done']
        if not rows:
            return
        self._console.print(means_table(rows, f'{self.config.title}: means over the seeds'))
        lengths = [row['env_steps'] for row in rows]
        if max(lengths) > MOST_UNEQUAL * min(lengths):
            self._console.print(
                f'The trials collected {min(lengths):,} to {max(lengths):,} environment steps: totals such as '
                'evictions are those of different lengths. The report has them per 1,000 steps.', highlight=False,
                soft_wrap=True
            )
        outcomes = [outcome for outcome in map(self.folder.outcome, self._known) if outcome]
        threads = {str(outcome.get('threads')) for outcome in outcomes if outcome['status'] == 'done'}
        if len(threads) > 1:
            numbers = escape(printable(', '.join(sorted(threads))))
            self._console.print(f'The trials ran with different numbers of threads ({numbers}): their times cannot be '
                                'compared.', soft_wrap=True)

    def _all_known(self) -> tuple[list[TrialSpec], dict[str, list[str]]]:
        """Own trials and those of earlier calls that fit; by name, why others that are done do not."""
        known, left_out = {spec.name: spec for spec in self.specs}, {}
        for outcome in self.folder.outcomes():
            arm, seed, done = outcome['arm'], outcome['seed'], outcome['status'] == 'done'
            specs = self.config.specs([arm], [seed]) if arm in self.config.experiments else []
            for spec in specs:
                if spec.name in known or self.folder.outcome(spec):
                    known.setdefault(spec.name, spec)
                elif done:
                    left_out[spec.name] = self.folder.changes(spec)
            if done and not specs:
                left_out[f'{arm}_seed{seed}'] = ['the config has no such arm']
        return list(known.values()), left_out

    def _finish(self, event: Event, display: ABDisplay) -> None:
        from .trial import write_outcome

        spec, trial_folder = event.spec, self.folder.trial_folder(event.spec)
        if self.folder.outcome(spec) is None:
            write_outcome(spec, trial_folder, error=event.error or 'the process has left no results')
        outcome = self.folder.outcome(spec)
        self._write_results()
        display.say(*event.notes)
        if outcome['status'] == 'done':
            display.say(f"{spec.name} is done: {_in_short(outcome['result'])}")
            return
        log_path = trial_folder / 'output.log'
        display.say(f"{spec.name} has FAILED: {outcome['error']}", f'The last lines of {log_path}:',
                    *(f'    {line}' for line in last_lines(log_path)))
        self.folder.check_room()

    def _write_results(self) -> None:
        write_results(self.rows(), self.folder.results_path)

    def _record(self) -> dict[str, Any]:
        used = {spec.arm for spec in self._known}
        arms = [arm for arm in self.config.experiments if arm in used]
        record = dict(
            config=str(self.config.path), title=self.config.title,
            arms={arm: self.config.overrides[arm] for arm in arms}, differences=self.config.differences(arms),
            seeds=sorted({spec.seed for spec in self._known}), max_env_step=self.config.max_env_step, baseline=arms[0],
            machine=machine(), started=self._started,
        )
        return json.loads(json.dumps(as_json(record)))


def _in_short(row: dict[str, Any]) -> str:
    return (
        f"{row['env_steps']:,} environment steps in {row['seconds']:,.0f} s, return {row['return_last']:.1f}, "
        f"evaluations {row['evaluation_seconds']:,.0f} s"
    )
