"""The convolutions alone, as torch (oneDNN on x86) computes them, and nothing pointwise: no peer, but what they all stand on.

Forward: the input convolution over all steps at once, one recurrent convolution a step. Training also: the state's gradient,
a convolution a step; the input's gradient and both weight gradients, each over all steps at once. The forecaster's lowest
layer has no input convolution. Numbers that a real layer would compute between are normal random ones.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..cases import Case, LayerArrays, arrays


def _backward(d_z: Tensor, x: Tensor, weight: Tensor, *, data: bool = False, weights: bool = False) -> None:
    pad = [weight.shape[-1] // 2] * 2
    torch.ops.aten.convolution_backward(
        d_z, x, weight, None, [1, 1], pad, [1, 1], False, [0, 0], 1, [data, weights, False]
    )


class _Layer:
    def __init__(self, values: LayerArrays, batch: int, steps: int, size: tuple[int, int], device: str) -> None:
        self.ih = None if values.ih is None else torch.from_numpy(values.ih).to(device)
        self.hh = torch.from_numpy(values.hh).to(device)
        gates, hidden = self.hh.shape[:2]
        if self.ih is not None:
            self.x = torch.randn(steps * batch, self.ih.shape[1], *size, device=device)
        self.h = torch.randn(steps, batch, hidden, *size, device=device)  # time first: a step's block is contiguous
        self.d_z = torch.randn(steps, batch, gates, *size, device=device)
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

    def __init__(self, case: Case, device: str) -> None:
        numbers = arrays(case)
        self.layers = [_Layer(values, case.batch, case.steps, case.size, device) for values in numbers.encoder]
        self.layers += [_Layer(values, case.batch, case.future, case.size, device) for values in numbers.forecaster]
        self.output = None
        if numbers.output is not None:
            self.output = torch.from_numpy(numbers.output[0]).to(device)
            self.read = torch.randn(case.batch * case.future, self.output.shape[1], *case.size, device=device)
            self.d_y = torch.from_numpy(numbers.d_y).to(device).flatten(0, 1)

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


def build(case: Case, variant: str, device: str = "cpu") -> Floor:
    return Floor(case, device)
