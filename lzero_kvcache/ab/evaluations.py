"""The returns of a run's evaluations, from its TensorBoard logs."""
import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ..files import write_atomically

TAGS = {'return_mean': 'evaluator_step/reward_mean', 'return_max': 'evaluator_step/reward_max',
        'return_min': 'evaluator_step/reward_min', 'seconds': 'evaluator_step/evaluate_time'}


@dataclass
class Evaluation:
    """
    Overview:
        One evaluation: the mean, largest and smallest return of its episodes, and the time that it took.
    """
    env_step: int
    return_mean: float
    return_max: float
    return_min: float
    seconds: float


def read_evaluations(run: Path) -> list[Evaluation]:
    """
    Overview:
        All evaluations of a run.
    Arguments:
        - run (:obj:`Path`): LightZero's folder of it.
    """
    # By default it keeps a sample of the points.
    events = EventAccumulator(str(run / 'log' / 'serial'), size_guidance={'scalars': 0})
    events.Reload()
    if not set(TAGS.values()) <= set(events.Tags()['scalars']):
        return []
    points = {name: events.Scalars(tag) for name, tag in TAGS.items()}
    return [
        Evaluation(of_one[0].step, **{name: point.value for name, point in zip(points, of_one)})
        for of_one in zip(*points.values())
    ]


def write_evaluations(evaluations: list[Evaluation], path: Path) -> None:
    """
    Overview:
        Write ``returns.csv``.
    Arguments:
        - evaluations (:obj:`List[Evaluation]`): The rows.
        - path (:obj:`Path`): The file.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, ['env_step', *TAGS])
    writer.writeheader()
    writer.writerows(vars(evaluation) for evaluation in evaluations)
    write_atomically(path, text.getvalue())


def return_last(evaluations: list[Evaluation], env_steps: int) -> Optional[float]:
    """
    Overview:
        The mean of the evaluations in the last third of a run, None if there is none.
    Arguments:
        - evaluations (:obj:`List[Evaluation]`): All of them.
        - env_steps (:obj:`int`): The environment steps of the run.
    """
    late = [evaluation.return_mean for evaluation in evaluations if evaluation.env_step >= env_steps * 2 / 3]
    return sum(late) / len(late) if late else None
