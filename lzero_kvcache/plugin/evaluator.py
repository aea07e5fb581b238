"""LightZero 0.2.0's evaluator, mended for any number of episodes."""
import logging
import time
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Callable, Optional

import numpy as np
import torch
import wandb
from ding.envs import BaseEnvManager
from ding.torch_utils import to_item, to_ndarray
from ding.utils import broadcast_object_list, get_rank, get_world_size, lists_to_dicts
from lzero.mcts.utils import prepare_observation
from lzero.worker import MuZeroEvaluator

from ..checks import check_count

logger = logging.getLogger('lzero_kvcache')

POLICIES_WITH_CACHES = ('unizero', 'sampled_unizero')
SECONDS_BETWEEN_LOOKS = 0.001


def mend_evaluator() -> None:
    """
    Let LightZero's ``MuZeroEvaluator`` evaluate any number of episodes, for the rest of this process and for the stock
    policies, too. By itself it starts the next episode wherever an environment is free, but waits for a fixed number
    from each: unless each environment runs exactly one episode, it ends in an ``IndexError`` as soon as their lengths
    differ. Numbers that it can do are left to it.
    """
    if MuZeroEvaluator.eval is not _eval:
        MuZeroEvaluator.eval = _eval
        logger.info("LightZero's evaluator is mended: env.n_evaluator_episode may differ from env.evaluator_env_num")


_stock_eval = MuZeroEvaluator.eval


@dataclass
class _Episode:
    """An episode that goes on: the observations that the model sees stacked, and the last one with its mask."""
    frames: deque
    observation: dict
    steps: int = 0


def _eval(
        self: MuZeroEvaluator, save_ckpt_fn: Optional[Callable] = None, train_iter: int = -1, envstep: int = -1,
        n_episode: Optional[int] = None, return_trajectory: bool = False
) -> tuple[bool, dict[str, Any]]:
    n_episode = check_count(
        self._default_n_episode if n_episode is None else n_episode, 'env.n_evaluator_episode', 'episodes'
    )
    if n_episode == self._env.env_num:
        return _stock_eval(self, save_ckpt_fn, train_iter, envstep, n_episode, return_trajectory)
    if return_trajectory:
        raise ValueError(
            f'return_trajectory=True is for as many episodes as environments, but env.n_evaluator_episode is '
            f'{n_episode} and env.evaluator_env_num is {self._env.env_num}'
        )
    stop, infos = False, None
    if get_rank() == 0:
        with self._timer:
            infos, steps = _play(self, shares(n_episode, self._env.env_num))
        stop = _report(self, infos, steps, save_ckpt_fn, train_iter, envstep)
    if get_world_size() > 1:
        answer = [stop, infos]
        broadcast_object_list(answer, src=0)
        stop, infos = answer
    return stop, to_item(_with_means(infos))


def shares(n_episode: int, env_num: int) -> list[int]:
    """
    How many of the episodes each environment runs. The numbers are fixed beforehand, because environments begin each of
    their episodes from a seed of their own: who is done sooner must not weigh more.
    """
    return [n_episode // env_num + (env_id < n_episode % env_num) for env_id in range(env_num)]


@torch.no_grad()
def _play(evaluator: MuZeroEvaluator, remaining: list[int]) -> tuple[list[dict], int]:
    """Run the episodes. Returns what each environment says at the end of each, by environments, and all steps."""
    manager, policy = evaluator._env, evaluator._policy
    manager.reset()
    policy.reset()
    infos: list[list[dict]] = [[] for _ in remaining]
    running: dict[int, _Episode] = {}
    beginning = {env_id for env_id, share in enumerate(remaining) if share}
    steps = 0
    while running or beginning:
        for env_id, observation in first_observations(manager, beginning).items():
            frames = [observation['observation']] * evaluator.policy_config.model.frame_stack_num
            running[env_id] = _Episode(deque(frames, maxlen=len(frames)), observation)
            remaining[env_id] -= 1
        beginning = set()
        for env_id, timestep in manager.step(_actions(evaluator, running)).items():
            episode = running[env_id]
            episode.steps += 1
            steps += 1
            if policy.get_attribute('cfg').type in POLICIES_WITH_CACHES:
                policy.reset(env_id=env_id, current_steps=episode.steps, reset_init_data=False)
            episode.frames.append(timestep.obs['observation'])
            episode.observation = timestep.obs
            if timestep.done:
                policy.reset([env_id])
                episode_return = to_item(to_ndarray(timestep.info['eval_episode_return']))
                infos[env_id].append({'eval_episode_return': episode_return, **timestep.info.get('episode_info', {})})
                evaluator._logger.info(f'An episode of environment {env_id} has ended with return {episode_return}')
                del running[env_id]
                if remaining[env_id]:
                    beginning.add(env_id)
    return [info for of_environment in infos for info in of_environment], steps


def first_observations(manager: BaseEnvManager, env_ids: Collection[int]) -> dict[int, dict]:
    """
    Wait for episodes to begin, which takes a while where environments run in processes of their own; the first
    observation of each.
    """
    while True:
        ready = manager.ready_obs
        if all(env_id in ready for env_id in env_ids):
            return {env_id: ready[env_id] for env_id in sorted(env_ids)}
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _actions(evaluator: MuZeroEvaluator, running: dict[int, _Episode]) -> dict[int, Any]:
    config, ready = evaluator.policy_config, evaluator._env.ready_obs
    env_ids = [env_id for env_id in sorted(running) if env_id in ready]
    stacked = np.asarray([[to_ndarray(frame) for frame in running[env_id].frames] for env_id in env_ids])
    batch = torch.from_numpy(prepare_observation(stacked, config.model.model_type)).to(config.device).float()
    observations = [running[env_id].observation for env_id in env_ids]
    output = evaluator._policy.forward(
        batch, [to_ndarray(observation['action_mask']) for observation in observations],
        [to_ndarray(observation['to_play']) for observation in observations], ready_env_id=env_ids,
        timestep=[to_ndarray(observation.get('timestep', -1)) for observation in observations],
    )
    return {env_id: output[env_id]['action'] for env_id in env_ids}


def _report(
        evaluator: MuZeroEvaluator, infos: list[dict], steps: int, save_ckpt_fn: Optional[Callable], train_iter: int,
        envstep: int
) -> bool:
    """Log the numbers under the names that the stock evaluator gives them. Returns whether the training may stop."""
    returns = [info['eval_episode_return'] for info in infos]
    mean, seconds = np.mean(returns), evaluator._timer.value
    numbers = {
        'episode_count': len(returns), 'envstep_count': steps, 'avg_envstep_per_episode': steps / len(returns),
        'evaluate_time': seconds, 'avg_envstep_per_sec': steps / seconds,
        'avg_time_per_episode': len(returns) / seconds, 'reward_mean': mean, 'reward_std': np.std(returns),
        'reward_max': np.max(returns), 'reward_min': np.min(returns),
        **{name: number for name, number in _with_means(infos).items() if np.isscalar(number)},
    }
    shown = {'train_iter': train_iter, 'ckpt_name': f'iteration_{train_iter}.pth.tar', **numbers}
    evaluator._logger.info(evaluator._logger.get_tabulate_vars_hor(shown))
    name = evaluator._instance_name
    for key, number in numbers.items():
        evaluator._tb_logger.add_scalar(f'{name}_iter/{key}', number, train_iter)
        evaluator._tb_logger.add_scalar(f'{name}_step/{key}', number, envstep)
        if evaluator.policy_config.use_wandb:
            wandb.log({f'{name}_step/{key}': number}, step=envstep)
    if mean > evaluator._max_episode_return:
        if save_ckpt_fn:
            save_ckpt_fn('ckpt_best.pth.tar')
        evaluator._max_episode_return = mean
    return bool(mean >= evaluator._stop_value and train_iter > 0)


def _with_means(infos: list[dict]) -> dict[str, Any]:
    columns = lists_to_dicts(infos)
    means = {f'{key}_mean': np.mean(column) for key, column in columns.items() if np.isscalar(column[0])}
    return {**columns, **means}
