"""One transformer block over gathered keys and values."""
import logging
from collections.abc import Sequence
from functools import cache, partial
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from lzero.model.common import SimNorm
from lzero.model.unizero_world_models.slicer import Head, PolicyHeadCont
from lzero.model.unizero_world_models.transformer import Block, SelfAttention
from torch import nn

from ..lightzero import installed
from .columns import LayerColumns
from .linear import is_packed, linear, one_call_is_cheaper
from .precision import autocast_dtype
from .structure import runs_its_own_forward

logger = logging.getLogger('lzero_kvcache')

Function = Callable[[torch.Tensor], Any]

# Its GELU is the number itself, and dividing by a power of two is exact.
ALWAYS = 8.0
# Products of such multiples are fast.
ADDED_UNITS = 8


def in_sequence(module: nn.Module) -> Function:
    """A module's eval-mode forward on its own parameters, from [N, in], in as few calls as its structure allows."""
    steps = _steps(module)
    if len(steps) == 1:
        return steps[0]

    def run(x: torch.Tensor) -> Any:
        for step in steps:
            x = step(x)
        return x

    return run


def is_plain_embedding(module: nn.Module) -> bool:
    """Whether a module only looks up rows of its weight."""
    return type(module) is nn.Embedding and module.max_norm is None and not runs_its_own_forward(module)


def _steps(module: nn.Module) -> list[Function]:
    if runs_its_own_forward(module):
        warn_of_unknown_layer(type(module).__name__)
        return [partial(_as_it_is, module)]
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
    if type(module) is SimNorm:
        return [partial(_simplices, dim=module.dim)]
    return [partial(_as_it_is, module)]


def _as_it_is(module: nn.Module, x: torch.Tensor) -> Any:
    # The stock code calls it on [B, T, ...].
    y = module(x[:, None])
    return {name: part[:, 0] for name, part in y.items()} if isinstance(y, dict) else y[:, 0]


def _simplices(x: torch.Tensor, dim: int) -> torch.Tensor:
    return torch.softmax(x.view(len(x), -1, dim), -1).view(x.shape)


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
    first = modules[:2]
    return [type(module) for module in first] == [nn.Linear, nn.GELU] and not any(map(runs_its_own_forward, first))


def in_parallel(first: nn.Module, second: nn.Module) -> Callable[[torch.Tensor], tuple[Any, Any]]:
    """Two modules on the same input. One call runs the linear layers and activations with which both begin and, if a
    call costs more than a product, the linear layers that follow.
    """
    parts = [_modules_of_sequence(first), _modules_of_sequence(second)]
    if not all(map(_begins_with_linear_and_gelu, parts)) or parts[0][1].approximate != parts[1][1].approximate:
        alone = [in_sequence(first), in_sequence(second)]
        return lambda x: (alone[0](x), alone[1](x))
    steps = [_fused([parts[0][0], parts[1][0]], parts[0][1].approximate)]
    done, last = 2, [part[0] for part in parts]
    following = [part[2] if len(part) > 2 else None for part in parts]
    if all(map(_is_product, following)) and one_call_is_cheaper(*(layer.weight for layer in following)):
        done, last = 3, following
        weights, biases = zip(*((layer.weight, layer.bias) for layer in last))
        steps.append(linear(torch.block_diag(*weights), torch.cat(biases)))
    rests = [in_sequence(nn.Sequential(*part[done:])) for part in parts]
    widths = [layer.out_features for layer in last]

    def run(x: torch.Tensor) -> tuple[Any, Any]:
        for step in steps:
            x = step(x)
        first, second = x.split(widths, dim=-1)
        return rests[0](first), rests[1](second)

    return run


def _is_product(module: Optional[nn.Module]) -> bool:
    return type(module) is nn.Linear and module.bias is not None and not runs_its_own_forward(module)


def _modules_of_sequence(module: nn.Module) -> list[nn.Module]:
    return list(module) if type(module) is nn.Sequential and not runs_its_own_forward(module) else []


class CachedBlock:
    """A stock transformer block with one product for queries, keys and values, on copies of their weights."""

    def __init__(self, block: Block) -> None:
        self._num_heads = block.attn.num_heads
        self._norm_before_attention = in_sequence(block.ln1)
        self._queries_keys_values = _fused([block.attn.query, block.attn.key, block.attn.value])
        self._project = in_sequence(block.attn.proj)
        self._norm_before_mlp = in_sequence(block.ln2)
        mlp = installed().feed_forward(block)
        self._gates = (block.gate1, block.gate2) if block.gru_gating else None
        self._mlp = in_sequence(mlp) if block.gru_gating else None
        self._add_mlp = None if block.gru_gating else _added(mlp)

    def __call__(
            self, x: torch.Tensor, columns: LayerColumns, mask: Optional[torch.Tensor], rotation: Optional[torch.Tensor]
    ) -> torch.Tensor:
        """Run tokens, [B * T, E], through the block; returns the last rows, those that ``columns`` wants.

        Args:
            columns: Receives their keys and values, and holds what they attend to.
            mask: Added to each token's attention, [B, 1, T, columns]; None: it attends to every column.
            rotation: Of rotary positions, complex, [B, T, 1, 1, head_dim / 2], or cosines and sines in one more
                dimension.
        """
        rows, tokens = columns.new.shape[:2]
        states = self._queries_keys_values(self._norm_before_attention(x)).to(columns.new.dtype)
        states = states.view(rows, tokens, 3, self._num_heads, -1)
        if rotation is not None:
            _rotate(states[:, :, :2], rotation)
        mixed = columns.attend(states, mask)
        if len(mixed) < rows:
            x = x[len(x) - len(mixed) * tokens:]
        if not len(mixed):
            return x
        attended = self._project(mixed.reshape(x.shape))
        if self._gates is None:
            x = x + attended
            return self._add_mlp(x, self._norm_before_mlp(x))
        x = self._gates[0](x, attended)
        return self._gates[1](x, self._mlp(self._norm_before_mlp(x)))


def _added(mlp: nn.Module) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Of x and y, ``x + mlp(y)``."""
    parts = _modules_of_sequence(mlp)
    if (
            not _begins_with_linear_and_gelu(parts) or [type(part) for part in parts[2:3]] != [nn.Linear]
            or _steps(nn.Sequential(*parts[3:])) or runs_its_own_forward(parts[2])
            or parts[0].bias is None or parts[2].bias is None or is_packed(parts[0].weight)
            or autocast_dtype(mlp[0].weight.device.type) is not None
    ):
        run = in_sequence(mlp)
        return lambda x, y: x + run(y)
    # A product can add x or the bias. So the bias comes from one more unit, whose GELU is its input exactly.
    up, down, units = parts[0], parts[2], torch.zeros(ADDED_UNITS).to(parts[0].bias)
    units[0] = ALWAYS
    bias = torch.zeros_like(down.weight[:, :ADDED_UNITS])
    bias[:, 0] = down.bias / ALWAYS
    weight = torch.cat([down.weight, bias], 1).detach().t()
    widen = linear(
        torch.cat([up.weight, torch.zeros_like(up.weight[:ADDED_UNITS])]), torch.cat([up.bias, units]),
        parts[1].approximate
    )
    return lambda x, y: torch.addmm(x, widen(y), weight)


def _rotate(states: torch.Tensor, rotation: torch.Tensor) -> None:
    pairs = states.unflatten(-1, (-1, 2))
    if not rotation.is_complex():
        (even, odd), (cosine, sine) = pairs.unbind(-1), rotation.unbind(-1)
        pairs.copy_(torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], -1))
    elif states.dtype in (torch.float32, torch.float64):
        torch.view_as_complex(pairs).mul_(rotation)
    else:
        pairs.copy_(torch.view_as_real(torch.view_as_complex(pairs.float()) * rotation))


class UnknownBlock:
    """A block of unknown structure, by its own forward, row by row: exact, but slow. Called as ``CachedBlock``."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block

    def __call__(
            self, x: torch.Tensor, columns: LayerColumns, mask: Optional[torch.Tensor], rotation: Optional[torch.Tensor]
    ) -> torch.Tensor:
        new, keys, values = columns.new, columns.keys, columns.values
        tokens = x.view(*new.shape[:2], -1)
        outputs = torch.zeros_like(tokens)
        before = keys.shape[2] - new.shape[1]
        for row in range(len(new)):
            seen = torch.ones(keys.shape[2], dtype=torch.bool, device=x.device)
            if mask is not None:
                # The last token is never padding, and sees what its row consists of.
                seen = mask[row % len(mask), 0, -1] == 0
            own = seen[before:]
            context = seen.clone()
            context[before:] = False
            cache = _RowCache(keys[row][:, context], values[row][:, context])
            turn = None if rotation is None else rotation[row, own, 0, 0][None]
            outputs[row, own] = self._block(tokens[row, own][None], cache, None, turn)[0].to(x.dtype)
            for index, states in enumerate(cache.new):
                new[row, own, index] = states[0].transpose(0, 1).to(new.dtype)
            if columns.pass_on is not None:
                columns.pass_on()
        return outputs.view(x.shape)


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
    """The fastest way to run a block that is exact."""
    if type(block).forward is Block.forward and type(block.attn).forward is SelfAttention.forward and not any(
            runs_its_own_forward(module) for module in (block, block.attn)
    ) and not _steps(block.attn.attn_drop) + _steps(block.attn.resid_drop):
        return CachedBlock(block)
    _warn_of_unknown_block(type(block).__name__)
    return UnknownBlock(block)


class _HeadAtOneToken(nn.Module):
    """A head with a forward of its own, called as the stock code calls it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = head
        # The place in a block whose predictions this head makes, so that its slicing lets the token through.
        self._place = next(place for place in range(head.block_size) if len(head.compute_slice(1, place)))

    def forward(self, x: torch.Tensor) -> Any:
        return self._head(x, num_steps=1, prev_steps=self._place)


def head_of(head: nn.Module) -> nn.Module:
    """What a head computes at one token, as a module."""
    if type(head).forward in (Head.forward, PolicyHeadCont.forward) and not runs_its_own_forward(head):
        return head.head_module
    warn_of_unknown_layer(type(head).__name__)
    return _HeadAtOneToken(head)


@cache
def _warn_of_unknown_block(name: str) -> None:
    logger.warning(
        f'A transformer block of this model ({name}) is not built like the stock one, or has hooks: its own forward is '
        'called, row by row, which is exact but slow. Said once.'
    )


@cache
def warn_of_unknown_layer(name: str) -> None:
    """Warn once for each kind of layer that is called as it is."""
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
