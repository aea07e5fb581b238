"""Policies whose searches a benchmark times: LightZero's own and the plugin's, the same weights in both."""
from typing import Any, Optional

import numpy as np
import torch
from ding.utils import deep_merge_dicts
from easydict import EasyDict
from lzero.policy.unizero import UniZeroPolicy

from ..lightzero import installed
from ..plugin import UniZeroKVCachePolicy

NUM_ACTIONS = 6
# Large enough that a context matters, small enough that wide models do not saturate.
WEIGHT_SCALE = 2.0


class Searcher:
    """One policy with random weights on random observations.

    Args:
        embed_dim: Width of the model, which has 2 layers.
        context_length: Its window in tokens.
        kv_cache: The plugin's ``kv_cache`` entry; None: LightZero's own policy.
        observation: 'vector' or 'image'.
        rotary: Rotary positions instead of learned ones.
        env_num: Environments.
        num_simulations: Simulations per search.
    """

    def __init__(
            self, embed_dim: int, context_length: int, kv_cache: Optional[dict] = None, observation: str = 'vector',
            rotary: bool = False, env_num: int = 8, num_simulations: int = 50
    ) -> None:
        policy_class = UniZeroPolicy if kv_cache is None else UniZeroKVCachePolicy
        self._shape = (5, ) if observation == 'vector' else (3, 64, 64)
        blocks = max(10, context_length)
        world_model = dict(
            obs_type=observation, rotary_emb=rotary, action_space_size=NUM_ACTIONS, continuous_action_space=False,
            embed_dim=embed_dim, num_heads=max(4, embed_dim // 96), num_layers=2, env_num=env_num, max_blocks=blocks,
            max_tokens=2 * blocks, context_length=context_length, device='cpu', num_simulations=num_simulations,
            **({} if kv_cache is None else dict(kv_cache=kv_cache)),
        )
        changes = dict(
            device='cpu', cuda=False, use_wandb=False, collect_with_pure_policy=False, collector_env_num=env_num,
            evaluator_env_num=env_num, game_segment_length=50,
            **dict.fromkeys(installed().simulation_keys, num_simulations),
            model=dict(
                observation_shape=self._shape if len(self._shape) > 1 else self._shape[0],
                action_space_size=NUM_ACTIONS, continuous_action_space=False,
                model_type='mlp' if observation == 'vector' else 'conv', norm_type='BN', world_model_cfg=world_model,
            ),
        )
        torch.manual_seed(0)
        self.policy = policy_class(deep_merge_dicts(policy_class.default_config(), EasyDict(changes)))
        self.world_model = self.policy._model.world_model
        self._randomise()
        self._env_num = env_num
        self._timestep = 0

    def _randomise(self) -> None:
        # The stock heads begin at zero, which would let every search visit the same few nodes.
        generator = torch.Generator().manual_seed(1)
        for name, parameter in self.world_model.named_parameters():
            if parameter.dim() > 1 and not name.startswith('tokenizer'):
                scale = WEIGHT_SCALE / parameter.shape[-1] ** 0.5
                parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        if not self.world_model.config.rotary_emb:
            self.world_model.precompute_pos_emb_diff_kv()

    def observations(self) -> torch.Tensor:
        """What all environments show at the present step, (env_num, ...)."""
        generator = torch.Generator().manual_seed(self._timestep)
        return torch.rand(self._env_num, *self._shape, generator=generator)

    def collect(self) -> Any:
        """One collect step of all environments, search included; two searchers see equal observations."""
        output = self.policy.collect_mode.forward(
            self.observations(), [np.ones(NUM_ACTIONS)] * self._env_num, 1.,
            [-1] * self._env_num, 0.25, ready_env_id=list(range(self._env_num)),
            timestep=[np.array(self._timestep)] * self._env_num
        )
        self._timestep += 1
        return output
