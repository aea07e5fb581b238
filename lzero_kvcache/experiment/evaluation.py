"""What a checkpoint's policy reaches, by LightZero's evaluator."""
import os
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from tempfile import TemporaryDirectory
from textwrap import shorten
from typing import Any, Optional

import numpy as np
import torch
from ding.config import compile_config
from ding.envs import create_env_manager, get_vec_env_setting
from ding.policy import create_policy
from ding.utils import set_pkg_seed
from easydict import EasyDict
from lzero.worker import MuZeroEvaluator

from ..plugin.evaluator import first_observations
from .config_file import Experiment
from .replay import RecordedEnvironment, check_replay, replay_file


@dataclass
class Episode:
    """
    Overview:
        An episode that has ended.
    Arguments:
        - seed (:obj:`int`): Its environment's.
        - episode_return (:obj:`float`): The sum of its rewards.
        - replay (:obj:`Optional[str]`): The GIF that shows it.
    """
    seed: int
    episode_return: float
    replay: Optional[str] = None


def evaluate(
        experiment: Experiment, checkpoint: Path, episodes: int, replay_folder: Optional[Path] = None
) -> Iterator[list[Episode]]:
    """
    Overview:
        Evaluate a checkpoint in rounds of as many episodes as there are evaluation environments. Each episode has a
        seed of its own, from ``experiment.seed`` on, so that the number of environments has no influence on them.
    Arguments:
        - experiment (:obj:`Experiment`): Of UniZero or Sampled UniZero.
        - checkpoint (:obj:`Path`): A file that ``check_checkpoint`` has accepted.
        - episodes (:obj:`int`): How many.
        - replay_folder (:obj:`Optional[Path]`): Where each episode is kept as a GIF.
    Returns:
        - rounds (:obj:`Iterator[List[Episode]]`): The episodes of each round, when it has ended.
    Raises:
        - ValueError: If the checkpoint is one of another model, and as ``check_replay``.
    """
    seeds = range(experiment.seed, experiment.seed + episodes)
    with TemporaryDirectory() as folder:
        config = _compiled(experiment, Path(folder))
        env_num = min(episodes, config.policy.evaluator_env_num)
        if replay_folder is not None:
            environment, env_configs = _environments(config, 1)
            check_replay(environment, env_configs[0], replay_folder, seeds)
        set_pkg_seed(experiment.seed, use_cuda=torch.cuda.is_available())
        policy = _policy(config, checkpoint)
        evaluator: Optional[MuZeroEvaluator] = None
        try:
            for first in range(0, episodes, env_num):
                of_round = seeds[first:first + env_num]
                if evaluator is None or evaluator._env.env_num != len(of_round):
                    if evaluator is not None:
                        evaluator.close()
                    evaluator = _evaluator(config, policy, len(of_round), replay_folder)
                # DI-engine marks in its list which seeds have been used.
                evaluator._env.seed(list(of_round), dynamic_seed=False)
                _, info = evaluator.eval(n_episode=len(of_round))
                # Environments begin another episode by themselves, and those in processes can only be closed then.
                first_observations(evaluator._env, range(len(of_round)))
                returns = np.ravel(info['eval_episode_return']).tolist()
                yield [
                    Episode(seed, episode_return, replay_folder and str(replay_file(replay_folder, seed)))
                    for seed, episode_return in zip(of_round, returns)
                ]
        finally:
            if evaluator is not None:
                evaluator.close()


def summary(episodes: list[Episode]) -> dict[str, Optional[float]]:
    """
    Overview:
        Mean, sample standard deviation, smallest and largest return. Of a single episode there is no deviation.
    Arguments:
        - episodes (:obj:`List[Episode]`): At least one.
    """
    returns = [episode.episode_return for episode in episodes]
    return dict(
        mean=mean(returns), std=stdev(returns) if len(returns) > 1 else None, min=min(returns), max=max(returns)
    )


def _compiled(experiment: Experiment, folder: Path) -> EasyDict:
    main_config, create_config = deepcopy(experiment.main_config), deepcopy(experiment.create_config)
    # DI-engine puts './' before it, which would make an absolute path a relative one.
    main_config.exp_name = os.path.relpath(folder / 'evaluation')
    device = main_config.policy.model.world_model_cfg.get('device', 'cuda')
    main_config.policy.device = device if torch.cuda.is_available() else 'cpu'
    return compile_config(
        main_config, seed=experiment.seed, env=None, auto=True, create_cfg=create_config, save_cfg=False
    )


def _policy(config: EasyDict, checkpoint: Path) -> Any:
    policy = create_policy(config.policy, enable_field=['learn', 'eval'])
    weights = torch.load(checkpoint, map_location=config.policy.device, weights_only=True)
    try:
        policy.learn_mode.load_state_dict(weights)
    except (KeyError, RuntimeError, ValueError) as error:
        # PyTorch names every tensor that does not fit.
        reason = shorten(str(error), 300)
        raise ValueError(f"{checkpoint} is a checkpoint of another model than the config's: {reason}") from error
    return policy


def _environments(config: EasyDict, env_num: int) -> tuple[Any, list[EasyDict]]:
    """The class of the evaluation environments, and the config of each."""
    env_config = deepcopy(config.env)
    env_config.evaluator_env_num = env_num
    environment, _, env_configs = get_vec_env_setting(env_config)
    return environment, env_configs


def _evaluator(config: EasyDict, policy: Any, env_num: int, replay_folder: Optional[Path]) -> MuZeroEvaluator:
    environment, env_configs = _environments(config, env_num)
    make = environment if replay_folder is None else partial(RecordedEnvironment, environment, replay_folder)
    return MuZeroEvaluator(
        n_evaluator_episode=env_num,
        stop_value=config.env.stop_value,
        env=create_env_manager(config.env.manager, [partial(make, cfg=env_config) for env_config in env_configs]),
        policy=policy.eval_mode,
        exp_name=config.exp_name,
        policy_config=config.policy,
    )
