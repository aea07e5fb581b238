"""A function captured as one CUDA graph."""
from collections.abc import Sequence
from typing import Callable, Optional

import torch


class CapturedFunction:
    """A function of tensors, which never waits for the device, as one CUDA graph, for inputs of one shape each. It
    changes the first input in place, and is captured again when that one lies elsewhere. It also reads ``weights``.
    """

    def __init__(
            self, function: Callable[..., tuple[torch.Tensor, ...]], inputs: Sequence[torch.Tensor],
            weights: Sequence[torch.Tensor]
    ) -> None:
        self._function = function
        self.weights = weights
        self._inputs = [each.clone() for each in inputs[1:]]
        self._address: Optional[int] = None
        self._capture(inputs[0])

    def __call__(self, changed: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        for mine, given in zip(self._inputs, inputs):
            mine.copy_(given, non_blocking=True)
        if changed.data_ptr() != self._address:
            self._capture(changed)
        self._graph.replay()
        # The next call writes to the same memory.
        return tuple(output.clone() for output in self._outputs)

    def write(self, weights: Sequence[torch.Tensor]) -> None:
        """Compute with other weights from now on, given in the same order."""
        for mine, other in zip(self.weights, weights):
            if mine.data_ptr() != other.data_ptr():
                mine.copy_(other)

    def _capture(self, changed: torch.Tensor) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        # Libraries prepare themselves in the first calls, which cannot be captured.
        with torch.no_grad(), torch.cuda.stream(side):
            for _ in range(3):
                self._function(changed, *self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        with torch.no_grad(), torch.cuda.graph(self._graph):
            self._outputs = self._function(changed, *self._inputs)
        self._address = changed.data_ptr()
