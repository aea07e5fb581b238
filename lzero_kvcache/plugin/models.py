from typing import Any

from ding.utils import MODEL_REGISTRY
from lzero.model.sampled_unizero_model import SampledUniZeroModel
from lzero.model.unizero_model import UniZeroModel

from ..lightzero import installed
from ..world_model import KVCacheWorldModel

# Before any model is built, a stock one included.
installed().mend_models()


@MODEL_REGISTRY.register('UniZeroKVCacheModel')
class UniZeroKVCacheModel(UniZeroModel):
    """
    Overview:
        LightZero's ``UniZeroModel`` whose world model has the managed cache. Arguments, parameters and checkpoints are
        the stock model's; the cache is configured by ``world_model_cfg.kv_cache``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        KVCacheWorldModel.adopt(self.world_model)


@MODEL_REGISTRY.register('SampledUniZeroKVCacheModel')
class SampledUniZeroKVCacheModel(SampledUniZeroModel):
    """
    Overview:
        LightZero's ``SampledUniZeroModel`` whose world model has the managed cache. Arguments, parameters and
        checkpoints are the stock model's; the cache is configured by ``world_model_cfg.kv_cache``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        KVCacheWorldModel.adopt(self.world_model)
