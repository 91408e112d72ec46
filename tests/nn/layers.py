"""The layers and cells by kind and dimensions, with random weights, and how exactly two ways to one number must agree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import stormcell.nn

LAYERS = {
    (kind, dims): getattr(stormcell.nn, f"Conv{kind.upper()}{dims}d") for kind in ("lstm", "gru") for dims in (1, 2, 3)
}
CELLS = {
    (kind, dims): getattr(stormcell.nn, f"Conv{kind.upper()}Cell{dims}d")
    for kind in ("lstm", "gru")
    for dims in (1, 2, 3)
}
EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}


def random_layer(layer: nn.Module, seed: int = 1) -> Any:
    """Every parameter random, biases, peepholes and gains too; convolutions with a standard deviation of 1/√fan-in."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            fan_in = parameter[0].numel() if name.startswith(("weight_ih", "weight_hh")) else 4
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) / fan_in**0.5)
    return layer


def each(change: Callable[[Tensor], Tensor], state: Any) -> Any:
    """The state with every tensor changed: (h, c) of an LSTM, h of a GRU."""
    return tuple(change(value) for value in state) if isinstance(state, tuple) else change(state)


def in_torch(ours: Any, theirs: Any) -> Any:
    """torch's layer or cell with our weights: the centre taps of the kernels.

    All of an LSTM's bias goes into the first of torch's two; a GRU's four parts r, z, n, m into (r, z, n) and (0, 0, m).
    """
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if name.startswith("weight"):
                centre = (slice(None), slice(None), *(size // 2 for size in parameter.shape[2:]))
                getattr(theirs, name).copy_(parameter[centre])
                continue
            first, second = parameter, torch.zeros_like(parameter)
            if ours.cell == "gru":
                r, z, n, m = parameter.chunk(4)
                first, second = torch.cat([r, z, n]), torch.cat([0 * r, 0 * z, m])
            getattr(theirs, name.replace("bias", "bias_ih")).copy_(first)
            getattr(theirs, name.replace("bias", "bias_hh")).copy_(second)
    return theirs
