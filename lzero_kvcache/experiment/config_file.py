import inspect
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from copy import deepcopy
from dataclasses import dataclass
from io import StringIO
from os.path import relpath
from pathlib import Path
from typing import Any, Optional
from unittest.mock import patch

from easydict import EasyDict

from ..placement import check_placement
from .ended_early import begin_wandb_run, keep_what_is_there
from .imports import named_modules
from .nearest_file import existing_config, unizero_neighbours

# LightZero's entries that train the policies which this package is for.
ENTRIES = ('train_unizero', 'train_unizero_segment')
POLICY_TYPES = ('unizero', 'sampled_unizero')


@dataclass
class Experiment:
    """
    Overview:
        What a config file would run.
    Arguments:
        - main_config, create_config (:obj:`EasyDict`): LightZero's two configs.
        - entry (:obj:`str`): A name in ``ENTRIES``.
        - seed (:obj:`int`): The random seed.
        - max_env_step (:obj:`Optional[int]`): Environment steps to collect, at most; None: the entry's default.
        - model_path (:obj:`Optional[str]`): A checkpoint to begin with.
        - notes (:obj:`Tuple[str, ...]`): What will not be as the config file says, a sentence each.
    """
    main_config: EasyDict
    create_config: EasyDict
    entry: str
    seed: int = 0
    max_env_step: Optional[int] = None
    model_path: Optional[str] = None
    notes: tuple[str, ...] = ()

    def run(self, exp_name: str) -> None:
        """
        Overview:
            Run it by its stock entry. A run that is interrupted or fails saves a checkpoint and its last statistics, as
            one that ends does.
        Arguments:
            - exp_name (:obj:`str`): The folder of the run. DI-engine writes beside a folder that is there already.
        """
        import lzero.entry

        main_config = deepcopy(self.main_config)
        # DI-engine puts './' before it, which would make an absolute path a relative one.
        main_config.exp_name = relpath(exp_name)
        limits = {} if self.max_env_step is None else dict(max_env_step=self.max_env_step)
        with keep_what_is_there():
            if self.entry == 'train_unizero_segment' and main_config.policy.get('use_wandb'):
                begin_wandb_run(main_config)
            getattr(lzero.entry, self.entry)(
                [main_config, deepcopy(self.create_config)], seed=self.seed, model_path=self.model_path, **limits
            )


class _EntryCalled(BaseException):
    """What a config file passes to LightZero's entry; no ``except Exception`` in the file stops it."""

    def __init__(self, entry: str, arguments: dict[str, Any]) -> None:
        super().__init__()
        self.entry = entry
        self.arguments = arguments


def load_experiment(path: Path, arguments: Sequence[str] = ()) -> Experiment:
    """
    Overview:
        Find out what a config file would run: it is executed as a script up to the point where it calls one of
        LightZero's entries. A file that calls none defines ``main_config`` and ``create_config``.
    Arguments:
        - path (:obj:`Path`): A config file of LightZero's zoo, of ``configs/``, or one's own.
        - arguments (:obj:`Sequence[str]`): Of the file's own command line, e.g. ``['--seed', '1']``.
    Returns:
        - experiment (:obj:`Experiment`): Copies of its configs.
    Raises:
        - ValueError: If there is no such file, it fails, or it is not for UniZero or Sampled UniZero.
    """
    try:
        with _entries_replaced():
            names = run_config_file(path, '__main__', arguments)
    except _EntryCalled as call:
        return _checked(path, _of_call(path, call))
    missing = [name for name in ('main_config', 'create_config') if name not in names]
    if missing:
        raise ValueError(
            f"{path} defines no {' and no '.join(missing)} and calls none of LightZero's entries: needed is a config "
            'file like those in zoo/atari/config or configs/'
        )
    return experiment_of(path, names)


def experiment_of(path: Path, names: Mapping[str, Any]) -> Experiment:
    """
    Overview:
        What a config file without a call means.
    Arguments:
        - path (:obj:`Path`): The file.
        - names (:obj:`Mapping[str, Any]`): Its global names: ``main_config``, ``create_config`` and, if it likes,
            ``max_env_step``.
    Returns:
        - experiment (:obj:`Experiment`): Copies of its configs.
    Raises:
        - ValueError: If it is not for UniZero or Sampled UniZero.
    """
    for name in ('main_config', 'create_config'):
        if not isinstance(names[name], Mapping):
            raise ValueError(f'{path}: {name} is {names[name]!r}: allowed is a dict')
    main_config = EasyDict(deepcopy(names['main_config']))
    entry = 'train_unizero_segment' if 'num_segments' in main_config.get('policy', {}) else 'train_unizero'
    return _checked(path, Experiment(
        main_config, EasyDict(deepcopy(names['create_config'])), entry, max_env_step=names.get('max_env_step')
    ))


def run_config_file(path: Path, run_name: str = 'config', arguments: Sequence[str] = ()) -> dict[str, Any]:
    """
    Overview:
        Execute a config file.
    Arguments:
        - path (:obj:`Path`): The file. The folder that it lies in, or the one that holds its package, is put on
            ``sys.path``, and the working directory after everything else.
        - run_name (:obj:`str`): Its ``__name__``.
        - arguments (:obj:`Sequence[str]`): Of its command line.
    Returns:
        - names (:obj:`Dict[str, Any]`): Its global names.
    Raises:
        - ValueError: If there is no such file, or it fails.
    """
    path = existing_config(Path(path))
    root = path.resolve().parent
    while (root / '__init__.py').exists():
        root = root.parent
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    if os.getcwd() not in sys.path:
        # As 'python -m' has it, so that a config anywhere may build on those of configs/.
        sys.path.append(os.getcwd())
    try:
        with patch.object(sys, 'argv', [str(path), *arguments]), redirect_stderr(StringIO()) as said:
            return runpy.run_path(str(path), run_name=run_name)
    except Exception as error:
        raise ValueError(f'{path} cannot be executed: {type(error).__name__}: {error}') from error
    except SystemExit as error:
        # The last line of argparse says what it did not like.
        reason = ''.join(f': {line}' for line in said.getvalue().splitlines()[-1:])
        raise ValueError(
            f'{path} ended by itself, with status {error.code}, before it called an entry{reason}'
        ) from error
    finally:
        sys.stderr.write(said.getvalue())


@contextmanager
def _entries_replaced() -> Iterator[None]:
    import ding.utils
    import lzero.entry

    def replacement(name: str) -> Any:
        signature = inspect.signature(getattr(lzero.entry, name))

        def call(*args: Any, **kwargs: Any) -> None:
            raise _EntryCalled(name, dict(signature.bind(*args, **kwargs).arguments))

        return call

    names = [name for name in vars(lzero.entry) if name.startswith(('train_', 'eval_'))
             and inspect.isfunction(getattr(lzero.entry, name))]
    calls = {name: replacement(name) for name in names}
    # Configs for several processes open a process group before they call the entry.
    with patch.multiple(lzero.entry, **calls), patch.object(ding.utils, 'DDPContext', nullcontext):
        yield


def _of_call(path: Path, call: _EntryCalled) -> Experiment:
    if call.entry not in ENTRIES:
        raise ValueError(
            f"{path} calls {call.entry}: the cache is for {' and '.join(ENTRIES)}{unizero_neighbours(path)}"
        )
    arguments = call.arguments
    main_config, create_config = deepcopy(arguments['input_cfg'])
    notes = [
        f'{path} passes {name} to {call.entry}, which has no effect here.'
        for name in arguments if name not in ('input_cfg', 'seed', 'max_env_step', 'model_path')
    ]
    return Experiment(
        EasyDict(main_config), EasyDict(create_config), call.entry, arguments.get('seed', 0),
        arguments.get('max_env_step'), arguments.get('model_path'), tuple(notes),
    )


def _checked(path: Path, experiment: Experiment) -> Experiment:
    policy_type = experiment.create_config.get('policy', {}).get('type')
    if policy_type not in POLICY_TYPES:
        raise ValueError(
            f"{path}: create_config.policy.type is {policy_type!r}: the cache is for {' and '.join(POLICY_TYPES)}"
            f'{unizero_neighbours(path)}'
        )
    policy = experiment.main_config.get('policy', {})
    try:
        for room in ('policy', 'env'):
            named_modules(experiment.create_config, room)
            check_placement(experiment.main_config)
        check_placement(experiment.create_config, 'create_config')
    except ValueError as error:
        raise ValueError(f'{path}: {error}') from error
    if not isinstance(policy.get('model', {}).get('world_model_cfg'), Mapping):
        raise ValueError(f'{path}: main_config.policy.model.world_model_cfg is missing, which {experiment.entry} needs')
    if policy.get('multi_gpu'):
        policy.multi_gpu = False
        experiment.notes += (f'{path} is meant for several processes, each with a GPU: it runs in one.', )
    return experiment
