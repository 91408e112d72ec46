"""The convolutions alone, as torch (oneDNN on x86, cuDNN on a GPU) computes them, and nothing pointwise: no peer, but what
they all stand on.

Forward: the input convolution over all steps at once, one recurrent convolution a step. Training also: the state's gradient,
a convolution a step; the input's gradient and both weight gradients, each over all steps at once. The forecaster's lowest
layer has no input convolution. Numbers that a real layer would compute between are normal random ones. In bfloat16 all
tensors are bfloat16 before the clock runs: nothing is cast.

Variants: "contiguous", which "" stands for; "channels_last" (all tensors in that memory format); either with "+graph" (the
whole run as one CUDA graph).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from ..cases import Case, LayerArrays, arrays
from .graphs import need_gpu, recorded

_FORMATS = {
    "": torch.contiguous_format,
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
}


def _backward(d_z: Tensor, x: Tensor, weight: Tensor, *, data: bool = False, weights: bool = False) -> None:
    pad = [weight.shape[-1] // 2] * 2
    torch.ops.aten.convolution_backward(
        d_z, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], 1, [data, weights, False]
    )


class _Place:
    """Where and how tensors lie."""

    def __init__(self, device: str, dtype: torch.dtype, memory_format: torch.memory_format) -> None:
        self.device, self.dtype, self.memory_format = device, dtype, memory_format

    def put(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device, self.dtype).contiguous(memory_format=self.memory_format)

    def normal(self, *shape: int) -> Tensor:
        values = torch.empty(shape, device=self.device, dtype=self.dtype, memory_format=self.memory_format)
        return values.normal_()


class _Layer:
    def __init__(self, values: LayerArrays, batch: int, steps: int, size: tuple[int, int], to: _Place) -> None:
        self.ih = None if values.ih is None else to.put(values.ih)
        self.hh = to.put(values.hh)
        gates, hidden = self.hh.shape[:2]
        if self.ih is not None:
            self.x = to.normal(steps * batch, self.ih.shape[1], *size)
        # time first: a step's block has no gaps
        self.h = to.normal(steps * batch, hidden, *size).unflatten(0, (steps, batch))
        self.d_z = to.normal(steps * batch, gates, *size).unflatten(0, (steps, batch))
        self.pad = self.hh.shape[-1] // 2

    def forward(self) -> None:
        if self.ih is not None:
            torch.conv2d(self.x, self.ih, padding=self.pad)
        for h in self.h:
            torch.conv2d(h, self.hh, padding=self.pad)

    def backward(self) -> None:
        for d_z, h in zip(self.d_z, self.h):
            _backward(d_z, h, self.hh, data=True)
        d_z = self.d_z.flatten(0, 1)
        _backward(d_z, self.h.flatten(0, 1), self.hh, weights=True)
        if self.ih is not None:
            _backward(d_z, self.x, self.ih, data=True, weights=True)


class Floor:
    """All convolutions of a case."""

    def __init__(self, case: Case, to: _Place) -> None:
        numbers = arrays(case)
        self.layers = [_Layer(values, case.batch, case.steps, case.size, to) for values in numbers.encoder]
        self.layers += [_Layer(values, case.batch, case.future, case.size, to) for values in numbers.forecaster]
        self.output = None
        if numbers.output is not None:
            self.output = to.put(numbers.output[0])
            self.read = to.normal(case.batch * case.future, self.output.shape[1], *case.size)
            self.d_y = to.put(numbers.d_y.reshape(-1, *numbers.d_y.shape[2:]))

    def forward(self) -> None:
        with torch.no_grad():
            for layer in self.layers:
                layer.forward()
            if self.output is not None:
                torch.conv2d(self.read, self.output)

    def training_step(self) -> None:
        self.forward()
        with torch.no_grad():
            if self.output is not None:
                _backward(self.d_y, self.read, self.output, data=True, weights=True)
            for layer in self.layers:
                layer.backward()

    def numbers(self) -> dict[str, np.ndarray]:
        return {}


class RecordedFloor:
    """The same as CUDA graphs, recorded when first asked for."""

    def __init__(self, floor: Floor) -> None:
        self.floor = floor
        self._replays: dict[str, Callable[[], None]] = {}

    def forward(self) -> None:
        self._replay("forward")

    def training_step(self) -> None:
        self._replay("training_step")

    def _replay(self, kind: str) -> None:
        if kind not in self._replays:
            graph, _ = recorded(getattr(self.floor, kind))
            self._replays[kind] = graph.replay
        self._replays[kind]()

    def numbers(self) -> dict[str, np.ndarray]:
        return {}


def build(case: Case, variant: str, device: str = "cpu", precision: str = "float32") -> Floor | RecordedFloor:
    """The convolutions of a case. Raises NotHere for a graph without a GPU."""
    memory_format, _, graph = variant.partition("+")
    if graph:
        need_gpu(device)
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    floor = Floor(case, _Place(device, dtype, _FORMATS[memory_format]))
    return RecordedFloor(floor) if graph else floor
