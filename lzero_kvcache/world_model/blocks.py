"""One transformer block over gathered keys and values."""
import logging
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from lzero.model.unizero_world_models.transformer import Block, SelfAttention
from torch import nn

from .linear import linear
from .structure import runs_its_own_forward

logger = logging.getLogger('lzero_kvcache')

Function = Callable[[torch.Tensor], Any]


def in_sequence(module: nn.Module) -> Function:
    """
    Overview:
        A module's forward in eval mode, on its own parameters, with as few calls as its structure allows. A module of
        unknown structure is called as it is.
    Arguments:
        - module (:obj:`nn.Module`): The module.
    Returns:
        - function (:obj:`Callable`): Its forward.
    """
    steps = _steps(module)
    if len(steps) == 1:
        return steps[0]

    def run(x: torch.Tensor) -> Any:
        for step in steps:
            x = step(x)
        return x

    return run


def is_plain_embedding(module: nn.Module) -> bool:
    """
    Overview:
        Whether a module does nothing but look rows of its weight up.
    Arguments:
        - module (:obj:`nn.Module`): The module.
    """
    return type(module) is nn.Embedding and module.max_norm is None and not runs_its_own_forward(module)


def _steps(module: nn.Module) -> list[Function]:
    if runs_its_own_forward(module):
        warn_of_unknown_layer(type(module).__name__)
        return [module]
    if type(module) is nn.Sequential:
        return _steps_of_sequence(list(module))
    if type(module) is nn.Dropout:
        return []
    if type(module) is nn.Linear:
        return [linear(module.weight, module.bias)]
    if is_plain_embedding(module):
        return [partial(torch.embedding, module.weight)]
    if type(module) is nn.GELU:
        return [partial(F.gelu, approximate=module.approximate)]
    if type(module) is nn.LayerNorm:
        return [partial(
            torch.layer_norm, normalized_shape=module.normalized_shape, weight=module.weight, bias=module.bias,
            eps=module.eps
        )]
    return [module]


def _steps_of_sequence(modules: list[nn.Module]) -> list[Function]:
    steps = []
    while modules:
        if _begins_with_linear_and_gelu(modules):
            steps.append(linear(modules[0].weight, modules[0].bias, modules[1].approximate))
            modules = modules[2:]
        else:
            steps += _steps(modules[0])
            modules = modules[1:]
    return steps


def _begins_with_linear_and_gelu(modules: Sequence[nn.Module]) -> bool:
    return [type(module) for module in modules[:2]] == [nn.Linear, nn.GELU] and not any(
        runs_its_own_forward(module) for module in modules[:2]
    )


def in_parallel(first: nn.Module, second: nn.Module) -> Callable[[torch.Tensor], tuple[Any, Any]]:
    """
    Overview:
        Two modules on the same input. Where both begin with a linear layer and the same activation, these two steps are
        taken at once for both.
    Arguments:
        - first, second (:obj:`nn.Module`): The modules.
    Returns:
        - function (:obj:`Callable`): Their outputs for an input.
    """
    parts = [_modules_of_sequence(module) for module in (first, second)]
    if not all(_begins_with_linear_and_gelu(part) for part in parts) or (
            parts[0][1].approximate != parts[1][1].approximate
    ):
        alone = [in_sequence(first), in_sequence(second)]
        return lambda x: (alone[0](x), alone[1](x))
    widen = _fused([parts[0][0], parts[1][0]], parts[0][1].approximate)
    rests = [in_sequence(nn.Sequential(*part[2:])) for part in parts]
    widths = [part[0].out_features for part in parts]

    def run(x: torch.Tensor) -> tuple[Any, Any]:
        states = widen(x).split(widths, dim=-1)
        return rests[0](states[0]), rests[1](states[1])

    return run


def _modules_of_sequence(module: nn.Module) -> list[nn.Module]:
    if type(module) is not nn.Sequential or runs_its_own_forward(module):
        return []
    return list(module)


class CachedBlock:
    """
    Overview:
        A stock transformer block on its own parameters, with one product for queries, keys and values. The fused
        weights are a copy of the block's: they belong to the weights of the moment.
    Arguments:
        - block (:obj:`Block`): The stock block.
    """

    def __init__(self, block: Block) -> None:
        self._num_heads = block.attn.num_heads
        self._norm_before_attention = in_sequence(block.ln1)
        self._queries_keys_values = _fused([block.attn.query, block.attn.key, block.attn.value])
        self._project = in_sequence(block.attn.proj)
        self._norm_before_mlp = in_sequence(block.ln2)
        self._mlp = in_sequence(block.mlp)
        self._gates = (block.gate1, block.gate2) if block.gru_gating else None

    def __call__(
            self, x: torch.Tensor, new: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
            mask: Optional[torch.Tensor], rotation: Optional[torch.Tensor],
            pass_on: Optional[Callable[[], None]] = None
    ) -> torch.Tensor:
        """
        Overview:
            Run tokens through the block.
        Arguments:
            - x (:obj:`torch.Tensor`): The tokens, :math:`(B, T, E)`.
            - new (:obj:`torch.Tensor`): Where their keys and values go, :math:`(B, T, 2, num_heads, head_dim)`, a view
                of the last T columns of the next two.
            - keys, values (:obj:`torch.Tensor`): Of this layer, :math:`(B, num_heads, columns, head_dim)`.
            - mask (:obj:`Optional[torch.Tensor]`): What each token attends to, :math:`(B, 1, T, columns)`; None: every
                column.
            - rotation (:obj:`Optional[torch.Tensor]`): Of rotary positions, complex,
                :math:`(B, T, 1, 1, head_dim / 2)`.
            - pass_on (:obj:`Optional[Callable]`): Called when ``new`` has been written and before it is attended to, so
                that a row can go on from an earlier one.
        Returns:
            - x (:obj:`torch.Tensor`): :math:`(B, T, E)`.
        """
        rows, tokens, width = x.shape
        states = self._queries_keys_values(self._norm_before_attention(x)).to(new.dtype)
        states = states.view(rows, tokens, 3, self._num_heads, -1)
        if rotation is not None:
            _rotate(states[:, :, :2], rotation)
        new.copy_(states[:, :, 1:])
        if pass_on is not None:
            pass_on()
        mixed = F.scaled_dot_product_attention(
            states[:, :, 0].transpose(1, 2), keys, values, attn_mask=mask
        )
        attended = self._project(mixed.transpose(1, 2).reshape(rows, tokens, width))
        if self._gates is None:
            x = x + attended
            return x + self._mlp(self._norm_before_mlp(x))
        x = self._gates[0](x, attended)
        return self._gates[1](x, self._mlp(self._norm_before_mlp(x)))


def _rotate(states: torch.Tensor, rotation: torch.Tensor) -> None:
    pairs = states.unflatten(-1, (-1, 2))
    if states.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(pairs).mul_(rotation)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))


class UnknownBlock:
    """
    Overview:
        A block whose structure is not the stock's, run by its own forward on rows of equal length, over what looks like
        the stock cache. Exact, but slow. Arguments of a call as ``CachedBlock``.
    Arguments:
        - block (:obj:`nn.Module`): The block.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __call__(
            self, x: torch.Tensor, new: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
            mask: Optional[torch.Tensor], rotation: Optional[torch.Tensor],
            pass_on: Optional[Callable[[], None]] = None
    ) -> torch.Tensor:
        """
        Overview:
            Run tokens through the block. Arguments and result as ``CachedBlock``.
        """
        outputs = torch.zeros_like(x)
        before = keys.shape[2] - x.shape[1]
        for row in range(len(x)):
            seen = torch.ones(keys.shape[2], dtype=torch.bool, device=x.device)
            if mask is not None:
                # The last token is never padding, and sees what its row consists of.
                seen = mask[row % len(mask), 0, -1]
            own = seen[before:]
            context = seen.clone()
            context[before:] = False
            cache = _RowCache(keys[row][:, context], values[row][:, context])
            turn = None if rotation is None else rotation[row, own, 0, 0][None]
            outputs[row, own] = self._block(x[row, own][None], cache, None, turn)[0].to(x.dtype)
            for index, states in enumerate(cache.new):
                new[row, own, index] = states[0].transpose(0, 1).to(new.dtype)
            if pass_on is not None:
                pass_on()
        return outputs


class _RowCache:
    """What stock attention asks of its cache, for one row."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.new: tuple[torch.Tensor, torch.Tensor] = keys[None, :, :0], values[None, :, :0]
        self._keys, self._values = keys[None], values[None]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._keys.shape)

    def update(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.new = keys, values
        self._keys, self._values = torch.cat([self._keys, keys], 2), torch.cat([self._values, values], 2)

    def get(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self._keys, self._values


def block_of(block: nn.Module) -> Callable:
    """
    Overview:
        The fastest way to run a block that is exact.
    Arguments:
        - block (:obj:`nn.Module`): A block of the transformer.
    """
    if type(block).forward is Block.forward and type(block.attn).forward is SelfAttention.forward and not any(
            runs_its_own_forward(module) for module in (block, block.attn)
    ) and not _steps(block.attn.attn_drop) + _steps(block.attn.resid_drop):
        return CachedBlock(block)
    _warn_of_unknown_block(type(block).__name__)
    return UnknownBlock(block)


@cache
def _warn_of_unknown_block(name: str) -> None:
    logger.warning(
        f'A transformer block of this model ({name}) is not built like the stock one, or has hooks: its own forward is '
        'called, row by row, which is exact but slow. Said once.'
    )


@cache
def warn_of_unknown_layer(name: str) -> None:
    """
    Overview:
        Say, once for each kind, that a layer is called as it is.
    Arguments:
        - name (:obj:`str`): Its class.
    """
    logger.warning(
        f'A layer of this model ({name}) has hooks or a forward of its own: it is called as it is, which is exact but '
        'slower. Said once.'
    )


def _fused(projections: Sequence[nn.Module], gelu: Optional[str] = None) -> Function:
    biases = [getattr(projection, 'bias', None) for projection in projections]
    alike = all(bias is None for bias in biases) or not any(bias is None for bias in biases)
    if not alike or any(type(each) is not nn.Linear or runs_its_own_forward(each) for each in projections):
        alone = [in_sequence(projection) for projection in projections]
        activate = (lambda x: x) if gelu is None else partial(F.gelu, approximate=gelu)
        return lambda x: activate(torch.cat([function(x) for function in alone], dim=-1))
    return linear(
        torch.cat([projection.weight for projection in projections]),
        None if biases[0] is None else torch.cat(biases), gelu
    )
