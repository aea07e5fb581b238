"""LightZero's searches, handed the numbers of nodes in place of their latent states."""
import copy
import logging
from functools import cache, wraps
from typing import Any, Callable, Optional

import numpy as np
from lzero.mcts import SampledUniZeroMCTSCtree, UniZeroMCTSCtree
from lzero.model.sampled_unizero_model import SampledUniZeroModel
from lzero.model.unizero_model import UniZeroModel
from lzero.policy.scaling_transform import InverseScalarTransform

from ..lightzero import installed
from ..world_model import KVCacheWorldModelMixin
from ..world_model.search_model import NumberedModel

logger = logging.getLogger('lzero_kvcache')

STOCK_INFERENCES = (UniZeroModel.recurrent_inference, SampledUniZeroModel.recurrent_inference)


@cache
def number_nodes() -> None:
    """
    Overview:
        Let the searches of policies and of the replay buffer hand a managed world model the numbers of nodes. Such a
        search never looks into a latent state, it carries it. All other searches run as they are.
    """
    for tree_class in (UniZeroMCTSCtree, SampledUniZeroMCTSCtree):
        tree_class.search = _numbered(tree_class.search)
    installed().reanalyse_at_once(lambda model: _managed_world_model(model) is not None)


def _numbered(stock_search: Callable) -> Callable:

    @wraps(stock_search)
    def search(self: Any, roots: Any, model: Any, latent_state_roots: Any, *args: Any, **kwargs: Any) -> Any:
        world_model = _managed_world_model(model)
        if world_model is None:
            return stock_search(self, roots, model, latent_state_roots, *args, **kwargs)
        reason, begun = _other_parts(self, model, world_model), None
        if reason is None:
            begun = world_model.kv_cache_inference.search_from(latent_state_roots)
            reason = 'its roots are not those of the last root inference'
        if begun is None:
            _say_that_latents_are_handed(reason)
            return stock_search(self, roots, model, latent_state_roots, *args, **kwargs)
        numbered = copy.copy(self)
        numbered._cfg = _OnHost(self._cfg)
        for name in installed().scalar_transforms:
            setattr(numbered, name, _as_it_is)
        numbers = np.arange(len(latent_state_roots))
        result = stock_search(numbered, roots, NumberedModel(model, world_model, begun), numbers, *args, **kwargs)
        return installed().search_result(result, lambda number: begun.tensors.latents[number].clone())

    return search


class _OnHost:
    """A search's config, but for the device, on which it would put numbers only to fetch them again."""
    device = 'cpu'

    def __init__(self, config: Any) -> None:
        self._config = config

    def __getattr__(self, name: str) -> Any:
        return getattr(self._config, name)


def _as_it_is(scalars: Any) -> Any:
    return scalars


def _managed_world_model(model: Any) -> Optional[KVCacheWorldModelMixin]:
    world_model = getattr(model, 'world_model', None)
    is_managed = (
        isinstance(world_model, KVCacheWorldModelMixin) and world_model.kv_cache_inference.manager is not None
    )
    return world_model if is_managed else None


def _other_parts(tree: Any, model: Any, world_model: KVCacheWorldModelMixin) -> Optional[str]:
    """Which part of a search is not the stock one, which numbers would pass by."""
    for name in installed().scalar_transforms:
        transform = getattr(tree, name)
        if type(transform) is not InverseScalarTransform:
            return f'its {name} is not the stock one'
        support = transform.value_support.flatten().tolist() if transform.categorical_distribution else [0.]
        size = len(support)
        if size != world_model.support_size:
            return f'its support has {size} bins, but the world model {world_model.support_size}'
        if support != [float(place - size // 2) for place in range(size)]:
            return f'its support goes from {support[0]:g} to {support[-1]:g}, not about 0 in steps of 1'
    if getattr(model.recurrent_inference, '__func__', None) not in STOCK_INFERENCES:
        return f'recurrent_inference of {type(model).__name__} is not the stock one'
    own = getattr(world_model.forward_recurrent_inference, '__func__', None)
    if own is not KVCacheWorldModelMixin.forward_recurrent_inference:
        return f'{type(world_model).__name__} has a forward_recurrent_inference of its own'
    return None


@cache
def _say_that_latents_are_handed(reason: str) -> None:
    logger.warning(
        f'A search hands its nodes over as latent states, for {reason}: they are looked up by every bit, which is '
        'exact but slower. Said once.'
    )
