"""The scalars that a search reads from categorical logits."""
from typing import Any

import numpy as np
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
            - scalars (:obj:`torch.Tensor`): On the host, where the search wants them, :math:`(B, 1)`.
        """
        scaled = torch.softmax(logits, 1).mul_(self._support).sum(1, keepdim=True).cpu().numpy()
        # So few numbers are faster in NumPy, which computes the same to the last bit, but for the root.
        root = np.abs(scaled)
        root += 1
        root += epsilon
        root *= 4 * epsilon
        root += 1
        scalars = torch.from_numpy(root).sqrt_()
        root -= 1
        root /= 2 * epsilon
        root *= root
        root -= 1
        root *= np.sign(scaled)
        return scalars


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
