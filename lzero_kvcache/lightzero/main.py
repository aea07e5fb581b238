"""LightZero's main branch, as of August 2026."""
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Optional

import torch
from torch import nn

from ..config import KVCacheConfig
from .adapter import LastSteps, LightZero
from .main_config import cache_config
from .main_models import mend_models
from .main_reanalysis import search_all_roots_at_once
from .stock_entries import MainEntries


class LastStepsOfEnvironments(LastSteps):
    """
    Overview:
        Main asks for them by two methods in UniZero, and in Sampled UniZero keeps them as the release does.
    """

    # Sampled UniZero does not set it, and a checkpoint asks for it.
    use_adaptive_entropy_weight = False
    _kv_cache_last_steps: Optional[tuple[torch.Tensor, list]] = None

    def _create_model(self, cfg: Mapping[str, Any], model: Optional[nn.Module] = None) -> nn.Module:
        # Main itself sets it when it makes the learner, and a policy that does not learn reads it all the same.
        self.pad_token_id = -1 if cfg['model']['model_type'] == 'conv' else 0
        return super()._create_model(cfg, model)

    def _hand_last_steps(self, observations: torch.Tensor, actions: list) -> None:
        self._kv_cache_last_steps = self.last_batch_obs, self.last_batch_action = observations, actions

    def _take_last_steps_back(self) -> None:
        self._kv_cache_last_steps = self.last_batch_obs = self.last_batch_action = None

    def _select_last_infer_inputs(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, list]:
        if self._kv_cache_last_steps is not None:
            return self._kv_cache_last_steps
        return super()._select_last_infer_inputs(*args, **kwargs)

    def _update_last_infer_inputs(self, *args: Any, **kwargs: Any) -> None:
        if self._kv_cache_last_steps is None:
            super()._update_last_infer_inputs(*args, **kwargs)


class FirstLatents(Mapping):
    """
    Overview:
        The latent states that a root's actions lead to, by action; None where the search has not taken an action, which
        exploration by chance may choose.
    Arguments:
        - numbers (:obj:`Mapping`): The nodes that they lead to.
        - latents_of (:obj:`Callable`): The latent state of a node.
    """

    def __init__(self, numbers: Mapping[Any, Any], latents_of: Callable[[int], torch.Tensor]) -> None:
        self._numbers = numbers
        self._latents_of = latents_of

    def __getitem__(self, action: Any) -> Optional[torch.Tensor]:
        number = self._numbers.get(action)
        return None if number is None else self._latents_of(int(number))

    def __iter__(self) -> Iterator:
        return iter(self._numbers)

    def __len__(self) -> int:
        return len(self._numbers)


class Main(LightZero):
    """
    Overview:
        LightZero's main branch, as of August 2026.
    """

    name = "LightZero's main branch"
    more_policies = ('lzero_kvcache.plugin.more_policies', )
    stock_entries = MainEntries()
    scalar_transforms = ('value_inverse_scalar_transform_handle', 'reward_inverse_scalar_transform_handle')
    simulation_keys = ('num_simulations', 'collect_num_simulations', 'eval_num_simulations')
    last_steps = LastStepsOfEnvironments
    evaluates_one_episode_each = False
    needs_timesteps_in_segments = False

    def cache_config(self, world_model_cfg: Any) -> Optional[KVCacheConfig]:
        """
        Overview:
            As ``LightZero.cache_config``.
        """
        return cache_config(world_model_cfg)

    def check_settings(self, policy: Mapping[str, Any], fields: Collection[str], entry: Optional[str] = None) -> None:
        """
        Overview:
            Nothing: which settings it cannot run is not known.
        """

    def mend_models(self) -> None:
        """
        Overview:
            As ``LightZero.mend_models``, for models of vector observations and gated transformers.
        """
        mend_models()

    def reanalyse_at_once(self, is_managed: Callable[[Any], bool]) -> None:
        """
        Overview:
            As ``LightZero.reanalyse_at_once``.
        """
        search_all_roots_at_once(is_managed)

    def feed_forward(self, block: nn.Module) -> nn.Module:
        """
        Overview:
            As ``LightZero.feed_forward``: dense, or a mixture of experts.
        """
        return block.feed_forward

    def policy_control(self, world_model: Any) -> Optional[Callable[[torch.Tensor], torch.Tensor]]:
        """
        Overview:
            As ``LightZero.policy_control``.
        """
        return world_model._apply_policy_logits_control if world_model.use_policy_logits_clip else None

    def environments_of(self, obs_act_dict: Mapping[str, Any]) -> Optional[Sequence[int]]:
        """
        Overview:
            As ``LightZero.environments_of``.
        """
        return obs_act_dict.get('ready_env_id')

    def search_result(self, result: Any, latents_of: Callable[[int], torch.Tensor]) -> Any:
        """
        Overview:
            As ``LightZero.search_result``: UniZero's searches return what the actions of each root lead to.
        """
        if result is None:
            return None
        return {row: FirstLatents(numbers, latents_of) for row, numbers in result.items()}
