"""What is computed: sizes, weights and inputs, the same numbers for every peer.

Arrays are float32 numpy in our layouts, x (B, T, C, Y, X) and weights (4F, C, kY, kX) with gates in the order i, f, g, o; each
peer turns them into its own before the clock runs. Imports numpy only, so that no peer has another's library in its process.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class Case(NamedTuple):
    """One size of the problem. With several entries in `hidden` it is the encoder–forecaster of Shi et al. 2015."""

    name: str
    batch: int
    steps: int
    in_channels: int
    hidden: tuple[int, ...]  # the encoder's layers, from the frames upwards; one entry: a single layer
    size: tuple[int, int]  # Y, X
    kernel: int
    future: int = 0  # steps of the forecaster; 0: there is none
    streaming: bool = False  # one step with a state given, forward only

    @property
    def title(self) -> str:
        """For people: batch, steps, channels, map, kernel."""
        height, width = self.size
        what = f"{height}×{width}, {self.kernel}×{self.kernel}"
        if self.future:
            nets = "-".join(map(str, self.hidden))
            return f"net {nets}, {self.batch} × {self.steps} → {self.future} steps, {self.in_channels} channels, {what}"
        steps = "one step of a stream" if self.streaming else f"{self.batch} × {self.steps} steps"
        return f"{steps}, {self.in_channels}→{self.hidden[0]}, {what}"

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is timed."""
        return ("forward",) if self.streaming else ("forward", "train")


def from_json(values: dict) -> Case:
    """The case that `Case._asdict` became on its way through JSON."""
    return Case(**{**values, "hidden": tuple(values["hidden"]), "size": tuple(values["size"])})


def _layer(name: str, batch: int, steps: int, channels: tuple[int, int], side: int, kernel: int) -> Case:
    return Case(name, batch, steps, channels[0], (channels[1],), (side, side), kernel)


CASES = {
    case.name: case
    for case in (
        _layer("5x5", 8, 10, (16, 64), 16, 5),
        _layer("3x3", 8, 10, (16, 64), 16, 3),
        _layer("map64-batch2", 2, 10, (16, 64), 64, 3),
        _layer("map64-batch4", 4, 10, (16, 64), 64, 3),
        # "convlstm-5x5-128-64-64" of the paper folds frames of 64×64 into 4×4 patches: 16 channels on 16×16 pixels
        Case("paper", 4, 10, 16, (128, 64, 64), (16, 16), 5, future=10),
        Case("stream", 1, 1, 16, (64,), (128, 128), 3, streaming=True),
        _layer("map512", 1, 4, (1, 32), 512, 3),
    )
}
QUICK = Case("quick", 2, 4, 4, (8,), (16, 16), 3)
# Small, and with nothing equal or even that could hide a wrong axis: every peer must give our numbers here.
SAME = (
    Case("same", 2, 3, 5, (6,), (9, 11), 3),
    Case("same-step", 2, 1, 5, (6,), (9, 11), 3, streaming=True),
    Case("same-net", 2, 3, 5, (6, 4), (9, 11), 3, future=2),
)
_BASE = _layer("base", 4, 10, (16, 32), 32, 3)
GROWTH = {
    "steps": [_BASE._replace(name=f"steps={n}", steps=n) for n in (5, 10, 20, 40)],
    "pixels": [_BASE._replace(name=f"pixels={n * n}", size=(n, n)) for n in (16, 32, 64, 128)],
    "hidden": [_BASE._replace(name=f"hidden={n}", hidden=(n,)) for n in (16, 32, 64, 128)],
}
QUICK_GROWTH = {
    "steps": [QUICK._replace(name=f"steps={n}", steps=n) for n in (2, 4)],
    "pixels": [QUICK._replace(name=f"pixels={n * n}", size=(n, n)) for n in (8, 16)],
    "hidden": [QUICK._replace(name=f"hidden={n}", hidden=(n,)) for n in (4, 8)],
}


class LayerArrays(NamedTuple):
    """Weights of one ConvLSTM layer. `ih` is None in the forecaster's lowest layer, which runs on its state alone."""

    ih: np.ndarray | None  # (4F, C, k, k)
    hh: np.ndarray  # (4F, F, k, k)
    bias: np.ndarray  # (4F,)


class Arrays(NamedTuple):
    """All numbers of a case."""

    x: np.ndarray  # (B, T, C, Y, X)
    d_y: np.ndarray  # the output's gradient, of the output's shape
    encoder: list[LayerArrays]
    forecaster: list[LayerArrays]  # empty for a single layer
    output: (
        tuple[np.ndarray, np.ndarray] | None
    )  # weight (C, sum of hidden, 1, 1) and bias of the net's last convolution
    state: tuple[np.ndarray, np.ndarray] | None  # h, c (B, F, Y, X) of a streaming case


# Keep the numbers of the last case. Only where many peers share a process: elsewhere they would count as a peer's memory.
keep_arrays = False


def arrays(case: Case) -> Arrays:
    """The numbers of a case, the same each time: normal inputs, weights of variance 1 / (values that are summed)."""
    return _kept(case) if keep_arrays else _drawn(case)


def _drawn(case: Case) -> Arrays:
    rng = np.random.default_rng(20151113)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return scale * rng.standard_normal(shape, dtype=np.float32)

    def layer(inputs: int, hidden: int) -> LayerArrays:
        k = case.kernel
        scale = float((inputs + hidden) * k * k) ** -0.5
        ih = normal(4 * hidden, inputs, k, k, scale=scale) if inputs else None
        return LayerArrays(ih, normal(4 * hidden, hidden, k, k, scale=scale), normal(4 * hidden, scale=0.1))

    height, width = case.size
    x = normal(case.batch, case.steps, case.in_channels, height, width)
    encoder = [layer(*sizes) for sizes in zip((case.in_channels, *case.hidden[:-1]), case.hidden)]
    if not case.future:
        shape = (case.batch, case.hidden[0], height, width)
        state = (normal(*shape, scale=0.5), normal(*shape)) if case.streaming else None
        return Arrays(x, normal(case.batch, case.steps, case.hidden[0], height, width), encoder, [], None, state)
    backwards = case.hidden[::-1]
    forecaster = [layer(*sizes) for sizes in zip((0, *backwards[:-1]), backwards)]
    read = sum(case.hidden)
    output = (normal(case.in_channels, read, 1, 1, scale=read**-0.5), normal(case.in_channels, scale=0.1))
    return Arrays(
        x, normal(case.batch, case.future, case.in_channels, height, width), encoder, forecaster, output, None
    )


_kept = lru_cache(maxsize=1)(_drawn)


def parameter_count(numbers: Arrays) -> int:
    """Values in all weights and biases."""
    layers = [part for layer in (*numbers.encoder, *numbers.forecaster) for part in layer if part is not None]
    return sum(part.size for part in (*layers, *(numbers.output or ())))
