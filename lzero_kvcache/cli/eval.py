import json
import traceback
from importlib.metadata import version
from pathlib import Path
from typing import Any, Optional

import click

from .run import INTERRUPTED, RunFailed, prepare, run

# Of the options of 'run'.
SHARED = ('config', 'config_arguments', 'strategy', 'recur_pool_size', 'mode', 'assignments', 'seed', 'threads', 'cpu')
OPTIONS = [
    click.Option(
        ('--checkpoint', ), required=True, type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help='The checkpoint, e.g. EXP_NAME/ckpt/ckpt_best.pth.tar.'
    ),
    click.Option(
        ('--episodes', ), type=click.IntRange(1), help="How many.  [default: the config's env.n_evaluator_episode]"
    ),
    click.Option(
        ('--replay', ), metavar='FOLDER', type=click.Path(path_type=Path, file_okay=False),
        help='Keep each episode there as a GIF.'
    ),
    click.Option(
        ('--json', 'json_file'), metavar='FILE', type=click.Path(path_type=Path, dir_okay=False),
        help='Write the results, too, to a file that is not there yet.'
    ),
]


def evaluate_checkpoint(
        checkpoint: Path, episodes: Optional[int], replay: Optional[Path], json_file: Optional[Path], **options: Any
) -> None:
    """
    Evaluate a checkpoint: the return of each episode, their mean and spread, and what the cache did.

    CONFIG is the config file for UniZero or Sampled UniZero that the checkpoint was trained by, as for 'run'. Each
    episode has a seed of its own, from --seed on.
    """
    if json_file is not None and json_file.exists():
        raise click.ClickException(f'{json_file} is there already: choose another file')
    experiment = prepare(checkpoint=checkpoint, fields=('eval', ), **options)
    if episodes is None:
        episodes = experiment.main_config.env.get('n_evaluator_episode', 1)
    from ..evaluation_display import EvaluationDisplay
    from ..experiment.evaluation import evaluate
    from ..output import output_to

    refusal, interrupted = None, False
    try:
        with output_to() as screen:
            display = EvaluationDisplay(screen, episodes)
            try:
                with display.live():
                    for of_round in evaluate(experiment, checkpoint, episodes, replay):
                        display.add(of_round)
            except KeyboardInterrupt:
                interrupted = True
                screen.print(f'Interrupted after {len(display.ended)} of {episodes} episodes.')
            except Exception as error:
                if display.searches or not isinstance(error, ValueError):
                    traceback.print_exc()
                    raise
                refusal = error
            if display.ended:
                display.show_results()
    except Exception as error:
        raise RunFailed(f'the evaluation has failed: {type(error).__name__}: {error}') from error
    if refusal is not None:
        raise click.ClickException(str(refusal))
    if json_file is not None and display.ended:
        _write(json_file, dict(
            config=str(options['config']), checkpoint=str(checkpoint), **display.results(),
            versions={name: version(name) for name in ('lzero-kvcache', 'lightzero')},
        ))
    if interrupted:
        raise SystemExit(INTERRUPTED)


def _write(path: Path, results: dict) -> None:
    from ..files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(results, indent=2) + '\n')
    except OSError as error:
        raise click.ClickException(f'{path} cannot be written: {error.strerror}') from error


evaluate = click.Command(
    'eval', params=[*(option for option in run.params if option.name in SHARED), *OPTIONS],
    callback=evaluate_checkpoint, help=evaluate_checkpoint.__doc__
)
