"""What the cache asks of a LightZero."""
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Callable, Optional

import torch
from torch import nn

from ..config import KVCacheConfig
from .stock_entries import StockEntries


class LastSteps(ABC):
    """
    Overview:
        Over a policy: where it keeps the last observations and actions, which a root inference goes on from.
    """

    @abstractmethod
    def _hand_last_steps(self, observations: torch.Tensor, actions: list) -> None:
        """
        Overview:
            Let the next root inference be given these.
        Arguments:
            - observations (:obj:`torch.Tensor`): The last ones, :math:`(B, ...)`.
            - actions (:obj:`list`): The actions since, B of them.
        """

    @abstractmethod
    def _take_last_steps_back(self) -> None:
        """
        Overview:
            Forget them.
        """


class LightZero(ABC):
    """
    Overview:
        A LightZero, as far as it differs from others. The cache knows none by its name or version, and asks here.
    """

    name: str
    last_steps: type[LastSteps]
    # Modules of the package that register policies which it alone has.
    more_policies: Sequence[str] = ()
    # Its own caches, for mode 'validate'.
    stock_entries: StockEntries
    # The searches' functions from logits to scalars, by the names of the attributes that hold them.
    scalar_transforms: Sequence[str]
    # The entries of a policy's config that say how many simulations its searches have.
    simulation_keys: Sequence[str]
    # Whether its evaluator can run only one episode per environment.
    evaluates_one_episode_each: bool
    # Whether its segment collector needs timesteps in observations, and hands down those of the round's first step.
    needs_timesteps_in_segments: bool

    @abstractmethod
    def cache_config(self, world_model_cfg: Any) -> Optional[KVCacheConfig]:
        """
        Overview:
            Find the cache's config in a ``world_model_cfg``.
        Arguments:
            - world_model_cfg (:obj:`Any`): An EasyDict, a dict or any object with the same attributes.
        Returns:
            - config (:obj:`Optional[KVCacheConfig]`): The checked config, or None where the user asks for no cache.
        Raises:
            - ValueError: On a value that is not allowed, with its full key path.
        """

    def num_simulations(self, policy: Mapping[str, Any]) -> int:
        """
        Overview:
            The simulations of the longest search of a policy.
        Arguments:
            - policy (:obj:`Mapping[str, Any]`): The policy's config, defaults included.
        """
        return max(policy[name] for name in self.simulation_keys if policy.get(name) is not None)

    @abstractmethod
    def check_settings(self, policy: Mapping[str, Any], fields: Collection[str], entry: Optional[str] = None) -> None:
        """
        Overview:
            Refuse what this LightZero would die of.
        Arguments:
            - policy (:obj:`Mapping[str, Any]`): The policy's config, defaults included.
            - fields (:obj:`Collection[str]`): Those of the policy that will be used.
            - entry (:obj:`Optional[str]`): The entry that will run, if it is known.
        Raises:
            - ValueError: With key paths, values and the remedy.
        """

    @abstractmethod
    def mend_models(self) -> None:
        """
        Overview:
            Let models be built that this LightZero describes, but cannot build. For the rest of this process and for
            the stock models, too.
        """

    @abstractmethod
    def reanalyse_at_once(self, is_managed: Callable[[Any], bool]) -> None:
        """
        Overview:
            Let the replay buffer reanalyse all roots of a batch in one search. For the rest of this process.
        Arguments:
            - is_managed (:obj:`Callable[[Any], bool]`): Whether a model has a managed cache, which has room for them.
        """

    @abstractmethod
    def feed_forward(self, block: nn.Module) -> nn.Module:
        """
        Overview:
            What a transformer block does after its attention.
        """

    @abstractmethod
    def policy_control(self, world_model: Any) -> Optional[Callable[[torch.Tensor], torch.Tensor]]:
        """
        Overview:
            What a world model does to the logits of its policy head, (..., size); None: nothing.
        """

    @abstractmethod
    def environments_of(self, obs_act_dict: Mapping[str, Any]) -> Optional[Sequence[int]]:
        """
        Overview:
            The environments that a root inference is told of with its observations; None: it is not told.
        """

    @abstractmethod
    def search_result(self, result: Any, latents_of: Callable[[int], torch.Tensor]) -> Any:
        """
        Overview:
            What a search returns that has been handed the numbers of nodes, with latent states in their place.
        Arguments:
            - result (:obj:`Any`): What it has returned.
            - latents_of (:obj:`Callable`): The latent state of a node, by its number.
        """
