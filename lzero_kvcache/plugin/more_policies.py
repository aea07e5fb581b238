"""Policies that LightZero's main branch has beside UniZero and Sampled UniZero."""
from typing import Any

from ding.utils import MODEL_REGISTRY, POLICY_REGISTRY
from easydict import EasyDict
from lzero.model.unizero_ppo_model import UniZeroPPOModel
from lzero.model.unizero_world_models.ppo_world_model import PPOWorldModel
from lzero.policy.unizero_ppo import UniZeroPPOPolicy

from ..world_model import KVCacheWorldModelMixin, adoptable
from .policy_hook import KVCachePolicyMixin

SEVERAL_TASKS = ('unizero_multitask', 'sampled_unizero_multitask')


@adoptable(PPOWorldModel)
class PPOKVCacheWorldModel(KVCacheWorldModelMixin, PPOWorldModel):
    """
    Overview:
        LightZero's world model of UniZero with PPO, with the managed cache.
    """


@MODEL_REGISTRY.register('UniZeroPPOKVCacheModel')
class UniZeroPPOKVCacheModel(UniZeroPPOModel):
    """
    Overview:
        LightZero's ``UniZeroPPOModel`` whose world model has the managed cache.
    """

    world_model_cls = PPOKVCacheWorldModel


@POLICY_REGISTRY.register('unizero_ppo', force_overwrite=True)
class UniZeroPPOKVCachePolicy(KVCachePolicyMixin, UniZeroPPOPolicy):
    """
    Overview:
        LightZero's ``UniZeroPPOPolicy`` with the managed cache, under the name that the stock entries insist on. It
        collects without a search: root contexts are all that it asks for then.
    """
    stock_policy = UniZeroPPOPolicy
    model_name = 'UniZeroPPOKVCacheModel'


class SeveralTasks:
    """
    Overview:
        Stands for the policies of several tasks, which have no managed cache.
    """

    @classmethod
    def default_config(cls) -> EasyDict:
        """
        Overview:
            There is none: a ValueError.
        """
        raise ValueError(
            f"policy.type is one of {', '.join(SEVERAL_TASKS)}, which have no managed cache: their world model has "
            'inferences of its own, with a task and its tokens in every context. Leave kv_cache out and take '
            "policy.import_names=['lzero.policy.<type>'], or train one task with policy.type='unizero'"
        )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.default_config()


for _name in SEVERAL_TASKS:
    POLICY_REGISTRY.register(_name, SeveralTasks, force_overwrite=True)
