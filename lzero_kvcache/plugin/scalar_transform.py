"""The scalars that a search reads from categorical logits."""
from typing import Any

import torch
from lzero.policy.scaling_transform import InverseScalarTransform


class LogitsToScalars:
    """
    Overview:
        Does what LightZero's ``InverseScalarTransform`` does, to the last bit, for logits of a categorical
        distribution, with a third of the calls. A search needs it twice per simulation. LightZero takes logits whose
        sum happens to be 1 for probabilities; logits are never taken for anything else here. The scale is that of
        "Observe and Look Further: Achieving Consistent Performance on Atari" (https://arxiv.org/abs/1805.11593),
        Proposition A.2.
    Arguments:
        - stock (:obj:`InverseScalarTransform`): LightZero's own, whose support is taken over.
    """

    def __init__(self, stock: InverseScalarTransform) -> None:
        self._support = stock.value_support

    @torch.no_grad()
    def __call__(self, logits: torch.Tensor, epsilon: float = 0.001) -> torch.Tensor:
        """
        Overview:
            Turn logits into scalars.
        Arguments:
            - logits (:obj:`torch.Tensor`): :math:`(B, support_size)`.
            - epsilon (:obj:`float`): Of the scale.
        Returns:
            - scalars (:obj:`torch.Tensor`): :math:`(B, 1)`.
        """
        scaled = torch.softmax(logits, 1).mul_(self._support).sum(1, keepdim=True)
        root = scaled.abs().add_(1).add_(epsilon).mul_(4 * epsilon).add_(1).sqrt_().sub_(1).div_(2 * epsilon)
        return root.mul_(root).sub_(1).mul_(scaled.sign_())


def read_scalars_lean(tree: Any) -> None:
    """
    Overview:
        Let a search read its scalars by ``LogitsToScalars``, where it reads them by LightZero's own transform.
    Arguments:
        - tree (:obj:`Any`): LightZero's search, e.g. ``UniZeroMCTSCtree``.
    """
    stock = getattr(tree, 'inverse_scalar_transform_handle', None)
    if type(stock) is InverseScalarTransform and stock.categorical_distribution:
        tree.inverse_scalar_transform_handle = LogitsToScalars(stock)
