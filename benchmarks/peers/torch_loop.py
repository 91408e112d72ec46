"""The loop that everyone copies: conv(cat[x, h]) → chunk → sigmoid and tanh, one step after the other.

Variants: "eager"; "channels_last" (weights and frames in that memory format); "compile" (torch.compile of the whole loop);
"compile_step" (of one step, called in a Python loop); "reduce-overhead" and "max-autotune" (modes of torch.compile, of the
whole loop).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..cases import Case, LayerArrays, arrays
from .autograd import AutogradRun


class Cell(nn.Module):
    """One step with one convolution over input and state together."""

    def __init__(self, values: LayerArrays) -> None:
        super().__init__()
        gates, self.hidden, k, _ = values.hh.shape
        joint = values.hh if values.ih is None else np.concatenate([values.ih, values.hh], axis=1)
        self.conv = nn.Conv2d(joint.shape[1], gates, k, padding=k // 2)
        with torch.no_grad():
            self.conv.weight.copy_(torch.from_numpy(joint))
            self.conv.bias.copy_(torch.from_numpy(values.bias))

    def forward(self, x: Tensor | None, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = self.conv(h if x is None else torch.cat([x, h], dim=1))
        i, f, g, o = torch.chunk(z, 4, dim=1)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


class Loop(nn.Module):
    """The cell over a sequence (B, T, C, Y, X)."""

    def __init__(self, values: LayerArrays, *, compile_step: bool) -> None:
        super().__init__()
        self.cell = Cell(values)
        self.hidden = self.cell.hidden
        if compile_step:
            self.cell = torch.compile(self.cell, fullgraph=True, dynamic=False)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        if state is None:
            h = x.new_zeros(x.shape[0], self.hidden, *x.shape[3:])
            c = h
        else:
            h, c = state
        outputs = []
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], h, c)
            outputs.append(h)
        return torch.stack(outputs, dim=1), (h, c)

    def run_on(self, state: tuple[Tensor, Tensor], steps: int) -> Tensor:
        """Without input: the paper's lowest forecaster layer."""
        h, c = state
        outputs = []
        for _ in range(steps):
            h, c = self.cell(None, h, c)
            outputs.append(h)
        return torch.stack(outputs, dim=1)


class Net(nn.Module):
    """The encoder–forecaster of the paper."""

    def __init__(self, case: Case, *, compile_step: bool) -> None:
        super().__init__()
        numbers = arrays(case)
        self.future = case.future
        self.encoder = nn.ModuleList(Loop(values, compile_step=compile_step) for values in numbers.encoder)
        self.forecaster = nn.ModuleList(Loop(values, compile_step=compile_step) for values in numbers.forecaster)
        weight, bias = (torch.from_numpy(value) for value in numbers.output)
        self.output = nn.Conv2d(weight.shape[1], weight.shape[0], 1)
        self.output.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, x: Tensor) -> Tensor:
        states = []
        for layer in self.encoder:
            x, state = layer(x)
            states.append(state)
        outputs = []
        for layer, state in zip(self.forecaster, reversed(states)):
            outputs.append(layer(outputs[-1], state)[0] if outputs else layer.run_on(state, self.future))
        read = torch.cat(outputs, dim=2)
        return self.output(read.flatten(0, 1)).unflatten(0, read.shape[:2])


def _frames_channels_last(x: Tensor) -> Tensor:
    """The same (B, T, C, Y, X), each frame in channels_last."""
    return x.transpose(-3, -2).transpose(-2, -1).contiguous().transpose(-2, -1).transpose(-3, -2)


_MODES = {"compile": None, "reduce-overhead": "reduce-overhead", "max-autotune": "max-autotune"}


def build(case: Case, variant: str, device: str = "cpu", precision: str = "float32") -> AutogradRun:
    """A run of the loop, or of the cell where the case streams."""
    numbers = arrays(case)
    if (
        variant == "compile_step"
    ):  # every layer's cell is one piece of code, compiled for each size, first and later steps
        torch._dynamo.config.recompile_limit = 64
    x, d_y = torch.from_numpy(numbers.x).to(device), torch.from_numpy(numbers.d_y).to(device)
    last = variant == "channels_last"
    if last:
        x, d_y = _frames_channels_last(x), _frames_channels_last(d_y)
    if case.streaming:
        h, c = (torch.from_numpy(value).to(device) for value in numbers.state)
        if last:
            h, c = (value.contiguous(memory_format=torch.channels_last) for value in (h, c))
        model: nn.Module = Cell(numbers.encoder[0])
        x, d_y = x[:, 0], d_y[:, 0]
    elif case.future:
        model = Net(case, compile_step=variant == "compile_step")
    else:
        model = Loop(numbers.encoder[0], compile_step=variant == "compile_step")
    model = model.to(device)
    if last:
        model = model.to(memory_format=torch.channels_last)
    parameters = list(model.parameters())
    if variant in _MODES or (case.streaming and variant == "compile_step"):
        model = torch.compile(model, fullgraph=True, dynamic=False, mode=_MODES.get(variant))

    def compute(x: Tensor) -> Tensor:
        if case.streaming:
            return model(x, h, c)[0]
        return model(x) if case.future else model(x)[0]

    return AutogradRun(
        compute,
        x,
        d_y,
        parameters,
        streaming=case.streaming,
        precision=precision,
        trees=variant in ("reduce-overhead", "max-autotune"),
    )
