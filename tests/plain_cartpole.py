"""An environment without ``default_config``, which DI-engine allows."""
from ding.envs import BaseEnv
from ding.utils import ENV_REGISTRY, deep_merge_dicts
from easydict import EasyDict
from zoo.classic_control.cartpole.envs.cartpole_lightzero_env import CartPoleEnv


@ENV_REGISTRY.register('plain_cartpole')
class PlainCartPole(BaseEnv):

    def __init__(self, cfg: dict) -> None:
        self._env = CartPoleEnv(deep_merge_dicts(CartPoleEnv.default_config(), EasyDict(cfg)))
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self.reward_space = self._env.reward_space

    def reset(self):
        return self._env.reset()

    def step(self, action):
        return self._env.step(action)

    def seed(self, seed, dynamic_seed=True):
        self._env.seed(seed, dynamic_seed)

    def close(self):
        self._env.close()

    def __repr__(self):
        return 'PlainCartPole'
