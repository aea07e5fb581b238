"""A function compiled by Inductor with its weights as constants, and how to write new weights into these constants.
Inductor stores them in the order in which its products read them. This leans on private parts of PyTorch.
"""
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import GraphModule

# Inductor writes the numbers of shorter vectors into its code.
SHORTEST_CONSTANT = 9

# Where a weight has to be written: as it is, and in blocks, transposed or not.
Plan = tuple[Optional[torch.Tensor], list[tuple[torch.Tensor, bool]]]


class FrozenFunction:
    """A function of tensors, compiled for inputs of one shape each. It does not check shapes: tensors that it reads and
    writes by index may have any length. Raises what PyTorch does where it cannot compile, or a LookupError if a
    constant of the compiled function is no weight in a known order.
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor]) -> None:
        import torch._inductor.config as settings
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch.fx.experimental.proxy_tensor import make_fx

        graph = make_fx(function)(*inputs)
        names = list(dict.fromkeys(node.target for node in graph.graph.nodes if node.op == 'get_attr'))
        self.weights = [getattr(graph, name) for name in names]
        values = self._give_values_of_their_own(graph, names)
        compiled: list[Any] = []

        def compile_inner(*arguments: Any, **options: Any) -> Any:
            compiled.append(compile_fx_inner(*arguments, **options))
            return compiled[-1]

        with settings.patch({
            'freezing': True, 'max_autotune': True, 'size_asserts': False, 'assert_indirect_indexing': False,
            # Other backends store weights in an unknown order.
            'max_autotune_gemm_backends': 'CPP',
            # Without it, code for another number of threads may come out of Inductor's cache.
            'cpp.threads': torch.get_num_threads(),
        }), _quiet():
            self._run = compile_fx(graph, [*inputs, *self._inputs], inner_compile=compile_inner)
        constants = [
            constant for constant in compiled[-1].current_callable.__globals__.values()
            if isinstance(constant, torch.Tensor)
        ]
        self._plan = _plan(values, constants)

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self._run(*inputs, *self._inputs)

    def write(self, weights: Sequence[torch.Tensor]) -> None:
        """Compute with other weights from now on, given in the order of ``weights``."""
        for weight, (whole, in_blocks) in zip(weights, self._plan):
            if whole is not None:
                whole.copy_(weight)
            for constant, is_transposed in in_blocks:
                constant.copy_(_blocks(weight.t() if is_transposed else weight, constant.shape[2]))

    def _give_values_of_their_own(self, graph: GraphModule, names: Sequence[str]) -> list[torch.Tensor]:
        """Tell weights apart by values, the same ones in each process, so that Inductor finds its cache."""
        generator = torch.Generator().manual_seed(0)
        nodes = list(graph.graph.nodes)
        last_input = [node for node in nodes if node.op == 'placeholder'][-1]
        self._inputs, values = [], []
        for name, weight in zip(names, self.weights):
            value = torch.empty_like(weight)
            value.copy_(torch.randn(weight.shape, generator=generator) * 0.1 + 1)
            values.append(value)
            delattr(graph, name)
            if weight.numel() >= SHORTEST_CONSTANT:
                graph.register_parameter(name, nn.Parameter(value, requires_grad=False))
                continue
            with graph.graph.inserting_after(last_input):
                last_input = graph.graph.placeholder(f'{name}_given')
            self._inputs.append(value)
            for node in nodes:
                if node.op == 'get_attr' and node.target == name:
                    node.replace_all_uses_with(last_input)
                    graph.graph.erase_node(node)
        graph.recompile()
        return values


def _blocks(weight: torch.Tensor, size: int) -> torch.Tensor:
    """A weight, [in, out], in blocks of ``size`` outputs, [blocks, in, size]."""
    return F.pad(weight, (0, -weight.shape[1] % size)).unflatten(1, (-1, size)).transpose(0, 1)


def _plan(values: Sequence[torch.Tensor], constants: Sequence[torch.Tensor]) -> list[Plan]:
    """For each weight, where to write it."""
    storages = {value.untyped_storage().data_ptr(): number for number, value in enumerate(values)}
    in_blocks: list[list[tuple[torch.Tensor, bool]]] = [[] for _ in values]
    # Short vectors are no constants, but given in each call.
    used = {number for number, value in enumerate(values) if value.numel() < SHORTEST_CONSTANT}
    for constant in constants:
        if constant.layout is not torch.strided:
            raise LookupError(f'a constant of shape {tuple(constant.shape)} is in an order that is not known')
        number = storages.get(constant.untyped_storage().data_ptr())
        if number is not None:
            used.add(number)
            continue
        found = [
            (number, is_transposed) for number, value in enumerate(values) if value.dim() == 2
            for is_transposed in (False, True) if _holds(constant, value.t() if is_transposed else value)
        ]
        if len(found) != 1:
            raise LookupError(f'a constant of shape {tuple(constant.shape)} is {len(found)} of its weights')
        in_blocks[found[0][0]].append((constant, found[0][1]))
    return [(value if number in used else None, in_blocks[number]) for number, value in enumerate(values)]


def _holds(constant: torch.Tensor, weight: torch.Tensor) -> bool:
    if constant.dim() != 3 or constant.shape[1] != weight.shape[0]:
        return False
    blocks = _blocks(weight, constant.shape[2])
    return blocks.shape == constant.shape and torch.equal(blocks, constant)


@contextmanager
def _quiet() -> Iterator[None]:
    # LightZero sets the root logger to DEBUG, and Inductor locks hundreds of files.
    logger = logging.getLogger('filelock')
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)
