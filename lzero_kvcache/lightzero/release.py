"""LightZero 0.2.0."""
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from ..broken_settings import check_settings
from ..config import KVCacheConfig
from .adapter import LastSteps, LightZero
from .stock_entries import StockEntries


class LastStepsOfBatch(LastSteps):
    """
    Overview:
        The release keeps them for the rows of the last batch.
    """

    def _hand_last_steps(self, observations: torch.Tensor, actions: list) -> None:
        self.last_batch_obs, self.last_batch_action = observations, actions

    def _take_last_steps_back(self) -> None:
        self.last_batch_obs = self.last_batch_action = None


class Release(LightZero):
    """
    Overview:
        LightZero 0.2.0, as PyPI has it.
    """

    name = 'LightZero 0.2.0'
    stock_entries = StockEntries()
    scalar_transforms = ('inverse_scalar_transform_handle', )
    simulation_keys = ('num_simulations', )
    last_steps = LastStepsOfBatch
    evaluates_one_episode_each = True
    needs_timesteps_in_segments = True

    def cache_config(self, world_model_cfg: Any) -> Optional[KVCacheConfig]:
        """
        Overview:
            As ``LightZero.cache_config``.
        """
        return KVCacheConfig.from_world_model_config(world_model_cfg)

    def check_settings(self, policy: Mapping[str, Any], fields: Collection[str], entry: Optional[str] = None) -> None:
        """
        Overview:
            As ``LightZero.check_settings``.
        """
        check_settings(policy, fields, entry)

    def mend_models(self) -> None:
        """
        Overview:
            Nothing: it can build the models that it describes.
        """

    def reanalyse_at_once(self, is_managed: Callable[[Any], bool]) -> None:
        """
        Overview:
            Nothing: it does so by itself.
        """

    def feed_forward(self, block: nn.Module) -> nn.Module:
        """
        Overview:
            As ``LightZero.feed_forward``.
        """
        return block.mlp

    def policy_control(self, world_model: Any) -> Optional[Callable[[torch.Tensor], torch.Tensor]]:
        """
        Overview:
            None: it leaves logits as they are.
        """

    def environments_of(self, obs_act_dict: Mapping[str, Any]) -> Optional[Sequence[int]]:
        """
        Overview:
            None: it goes by the rows of the batch.
        """

    def search_result(self, result: Any, latents_of: Callable[[int], torch.Tensor]) -> Any:
        """
        Overview:
            As it is: its searches return nothing.
        """
        return result
