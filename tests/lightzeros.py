"""What tests ask of LightZero itself, under the names that the installed one has for it."""
from typing import Any

import pytest
import torch
from lzero.policy.scaling_transform import DiscreteSupport, InverseScalarTransform

from lzero_kvcache.lightzero import installed

IS_MAIN = installed().name != 'LightZero 0.2.0'
MLP = 'feed_forward' if IS_MAIN else 'mlp'
SCALAR_TRANSFORM = installed().scalar_transforms[0]


def of_release(reason: str) -> pytest.MarkDecorator:
    """Of what only the release has or does."""
    return pytest.mark.skipif(IS_MAIN, reason=f'{reason}: of the release alone')


def stock_transform(scale: int, categorical: bool = True) -> InverseScalarTransform:
    """From logits over -scale, ..., scale to scalars, as a search makes them."""
    if IS_MAIN:
        return InverseScalarTransform(DiscreteSupport(-scale, scale + 1), categorical)
    return InverseScalarTransform(scale, categorical_distribution=categorical)


def stock_scalars(logits: torch.Tensor, scale: int) -> torch.Tensor:
    """The scalars of logits (B, 2 * scale + 1), (B, 1), as the replay buffer makes them."""
    from lzero.policy.scaling_transform import inverse_scalar_transform

    return inverse_scalar_transform(logits, DiscreteSupport(-scale, scale + 1) if IS_MAIN else scale)


def support_options(scale: int) -> dict[str, Any]:
    """What a policy's model config says of a support of -scale, ..., scale."""
    if not IS_MAIN:
        return dict(support_scale=scale)
    limits = (-float(scale), scale + 1., 1.)
    return dict(value_support_range=limits, reward_support_range=limits)


def simulations(count: int) -> dict[str, int]:
    """What a policy's config says of the number of simulations, of all searches."""
    return dict.fromkeys(installed().simulation_keys, count)
