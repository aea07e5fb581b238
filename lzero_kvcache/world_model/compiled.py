"""The step compiled: on a CPU by Inductor, on CUDA as one captured graph."""
import logging
import time
from collections.abc import Sequence
from typing import Callable, Optional, Union

import torch
import torch.nn.functional as F

from ..config import KEY_PATH, KVCacheConfig
from ..store.token_store import PADDING
from .blocks import UnknownBlock
from .cached_model import CachedModel, StepOutputs
from .captured import CapturedFunction
from .columns import for_a_compiler
from .frozen_weights import FrozenFunction
from .model_parts import ModelParts
from .precision import autocast_dtype

logger = logging.getLogger('lzero_kvcache')

# The largest difference between a compiled step and the eager one, relative to numbers above 1.
TOLERANCE = 1e-4
# Up to here, rows cost about as much as one.
FEW_ROWS = 16

Step = Callable[..., StepOutputs]


def step_of(model: CachedModel, config: KVCacheConfig, former: Optional[Step] = None) -> Step:
    """The step that ``kv_cache`` asks for. The former one stays if only weights have changed since."""
    if not config.compile:
        return model.step
    if isinstance(former, CompiledStep) and former.renew(model):
        return former
    return CompiledStep(model, compares_always=config.mode == 'validate')


class CompiledStep:
    """A model's step, compiled when a batch size first comes; smaller batches are filled up. A compiled step is
    compared with the eager one before it is used, with ``compares_always`` also when weights have changed. If they
    differ, or nothing can be compiled, the step runs eager, and the log says why.
    """

    def __init__(self, model: CachedModel, compares_always: bool) -> None:
        self._compares_always = compares_always
        self._model = model
        self._parts = ModelParts(model)
        # By rows and threads.
        self._sizes: dict[tuple[int, int], _CompiledSize] = {}
        # Mask and places where all rows are full, by rows and width.
        self._full: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
        self._runs_eager = False
        reason = _why_not(model, self._parts)
        if reason is not None:
            self._run_eager(f'it cannot be compiled, for {reason}')

    def renew(self, model: CachedModel) -> bool:
        """Go on with a model made anew; False if more than its weights has changed."""
        parts = ModelParts(model)
        if parts.structure != self._parts.structure:
            return False
        self._model, self._parts = model, parts
        for size in self._sizes.values():
            size.is_written = False
            size.is_compared = size.is_compared and not self._compares_always
        return True

    def __call__(
            self, slab: torch.Tensor, index: torch.Tensor, actions: torch.Tensor, mask: Optional[torch.Tensor],
            places: Optional[torch.Tensor], rotation: Optional[torch.Tensor]
    ) -> StepOutputs:
        """Arguments and result as ``CachedModel.step``."""
        given = (index, actions, mask, places, rotation)
        rows = len(index)
        if self._runs_eager or index.shape[1] > self._model.num_places:
            return self._model.step(slab, *given)
        number = self._size_for(rows)
        inputs = self._filled_up(number, *given)
        size = self._sizes.get((number, torch.get_num_threads()))
        if size is None:
            size = self._compile(number, slab, inputs)
            if size is None:
                return self._model.step(slab, *given)
        if not size.is_written:
            size.write(self._parts)
        outputs = StepOutputs(*size.run(slab, *inputs))
        if rows < number:
            outputs = StepOutputs(*(output[:rows] for output in outputs))
        if size.is_compared:
            return outputs
        new = index[:, -self._model.tokens_per_step:]
        written = slab[new]
        expected = self._model.step(slab, *given)
        difference = _difference([*outputs, written], [*expected, slab[new]])
        size.is_compared = True
        if not difference <= TOLERANCE:
            self._run_eager(f'its predictions were {difference:.1g} from those without compiling')
        return expected

    def _size_for(self, rows: int) -> int:
        threads = torch.get_num_threads()
        sizes = [number for number, of_threads in self._sizes if of_threads == threads]
        fitting = [number for number in sizes if rows <= number <= max(FEW_ROWS, 2 * rows)]
        if fitting:
            return min(fitting)
        return 1 << (rows - 1).bit_length() if sizes else rows

    def _filled_up(
            self, number: int, index: torch.Tensor, actions: torch.Tensor, mask: Optional[torch.Tensor],
            places: Optional[torch.Tensor], rotation: Optional[torch.Tensor]
    ) -> list[torch.Tensor]:
        rows, end = index.shape
        width, missing = end - self._model.tokens_per_step, self._model.num_places - end
        if mask is None:
            if (rows, width) not in self._full:
                self._full[rows, width] = (
                    torch.ones(rows, 1, 1, width, dtype=torch.bool, device=index.device),
                    torch.arange(width, end, device=index.device).repeat(rows, 1)
                )
            mask, places = self._full[rows, width]
        where = places.expand(rows, -1) if rotation is None else torch.view_as_real(rotation)
        if missing:
            padding = index.new_full((rows, missing), PADDING)
            index, mask = torch.cat([index[:, :width], padding, index[:, width:]], 1), F.pad(mask, (0, missing))
        inputs = [index, actions, mask, where]
        if rows < number:
            # The rest repeats the first row, and so writes what that writes.
            first = torch.arange(number, device=index.device)
            first[rows:] = 0
            inputs = [each[first] for each in inputs]
        return [each.contiguous() for each in inputs]

    def _compile(self, number: int, slab: torch.Tensor, inputs: Sequence[torch.Tensor]) -> Optional['_CompiledSize']:
        model = self._model

        def step(slab: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            *inputs, where = inputs
            return tuple(model.step(slab, *inputs, *((None, where) if model.uses_rotary else (where, None))))

        start = time.perf_counter()
        if not slab.is_cuda:
            logger.info(
                f'Compiling the search step for {number} rows, which takes about a minute; less where it has been '
                'compiled before.'
            )
        try:
            with torch.no_grad():
                size = _CompiledSize(step, slab, inputs, self._parts)
        # A compiler may raise anything; the search goes on without it.
        except Exception as error:
            reason = str(error).strip().split('\n')[0]
            self._run_eager(f'it cannot be compiled ({type(error).__name__}: {reason})')
            return None
        logger.info(f'The search step for {number} rows has been compiled in {time.perf_counter() - start:.0f} s.')
        self._sizes[number, torch.get_num_threads()] = size
        return size

    def _run_eager(self, reason: str) -> None:
        self._runs_eager = True
        self._sizes = {}
        logger.warning(f'{KEY_PATH}.compile is True, but the search step runs as without: {reason}. Said once.')


class _CompiledSize:
    """The step for one size of batch."""

    def __init__(
            self, step: Callable[..., tuple[torch.Tensor, ...]], slab: torch.Tensor, inputs: Sequence[torch.Tensor],
            parts: ModelParts
    ) -> None:
        self.is_written = self.is_compared = False
        self.run: Union[FrozenFunction, CapturedFunction]
        if slab.is_cuda:
            self.run = CapturedFunction(step, [slab, *inputs], parts.tensors)
            self._places = list(range(len(parts.tensors)))
        else:
            with for_a_compiler():
                self.run = FrozenFunction(step, [slab, *inputs])
            self._places = [parts.place_of(weight) for weight in self.run.weights]

    def write(self, parts: ModelParts) -> None:
        self.run.write([parts.tensors[place] for place in self._places])
        self.is_written = True


def _why_not(model: CachedModel, parts: ModelParts) -> Optional[str]:
    device = model.like.device.type
    if device not in ('cpu', 'cuda'):
        return f'the model is on {device}: allowed are cpu and cuda'
    if parts.hooked:
        return f'a layer ({parts.hooked}) has hooks or a forward of its own'
    if any(isinstance(block, UnknownBlock) for block in model.blocks):
        return 'a block of the transformer is not built like the stock one'
    if device == 'cpu' and (model.like.dtype != torch.float32 or autocast_dtype(device) is not None):
        return 'the model does not compute in float32'
    return None


def _difference(outputs: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    return max(
        float((output - other).abs().max() / other.abs().max().clamp(min=1)) for output, other in zip(outputs, expected)
    )
