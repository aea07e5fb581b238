"""Models that LightZero's main branch describes, but cannot build: mended by the names that they are called by."""
import logging
from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any

import torch
from lzero.model import unizero_model
from lzero.model.common import RepresentationNetworkMLP
from lzero.model.unizero_world_models import transformer

logger = logging.getLogger('lzero_kvcache')

# Arguments as main passes them, and by what names the classes know them.
RENAMED = (
    (unizero_model, 'RepresentationNetworkMLP', {'layer_num': 'num_layers'}),
    (unizero_model, 'VectorDecoderForMemoryEnv', {'output_shape': 'output_dim'}),
    (transformer, 'GRUGatingUnit', {'bias_init': 'bg'}),
)


@cache
def mend_models() -> None:
    """
    Overview:
        Let main build models of vector observations and transformers with gates: it passes arguments to three classes
        by names that these do not know. Encoders of vectors work in the dtype of their parameters, not in float32
        alone. For the rest of this process, and for the stock models, too.
    """
    RepresentationNetworkMLP.forward = _in_own_dtype(RepresentationNetworkMLP.forward)
    for module, name, names in RENAMED:
        setattr(module, name, _renaming(getattr(module, name), names))


def _in_own_dtype(stock_forward: Callable) -> Callable:

    @wraps(stock_forward)
    def forward(self: RepresentationNetworkMLP, x: torch.Tensor) -> torch.Tensor:
        dtype = next(self.parameters()).dtype
        if dtype == torch.float32:
            return stock_forward(self, x)
        return self.norm(self.fc_representation(x.to(dtype)))

    return forward


def _renaming(built: type, names: Mapping[str, str]) -> Callable[..., Any]:

    @wraps(built, updated=())
    def build(*args: Any, **kwargs: Any) -> Any:
        for passed in names.keys() & kwargs.keys():
            _say_that_models_are_mended()
            kwargs[names[passed]] = kwargs.pop(passed)
        return built(*args, **kwargs)

    return build


@cache
def _say_that_models_are_mended() -> None:
    logger.info(
        "LightZero's main branch is mended: models of vector observations and gated transformers can be built. Said "
        'once.'
    )
