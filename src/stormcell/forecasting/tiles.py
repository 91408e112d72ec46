"""Frames larger than memory allows: forecast in tiles, each with a halo as wide as the network sees.

What a pixel is forecast to be follows from what lies within the receptive field (`nn/costs.py`), so that tiles give what the
whole frame would, but for rounding. Not so the lagrangian model: its optical flow, and the means of its first guess, are of the
whole frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import sqrt

import numpy as np
import numpy.typing as npt

from ..nn.costs import forecast_reach
from ..nn.forecaster import EncoderForecaster

LIMIT = 4 * 2**30  # bytes that a network's numbers may take in a forecast; frames themselves are not counted
Array = npt.NDArray[np.float32]


def halo(network: EncoderForecaster, past: int, steps: int) -> int:
    """Pixels around a pixel that have a say in its forecast: the oldest frame has the widest."""
    return int(forecast_reach(network, steps + past - 1)) * network.patch


def side(network: EncoderForecaster, past: int, steps: int) -> int:
    """Of the tiles that keep to LIMIT, in pixels, a whole number of patches."""
    widest = max(network.hidden_channels)
    read = past * (2 * network.in_channels * network.patch**2 + 6 * widest)  # folded, four gates, output and cell
    said = steps * (2 * sum(network.hidden_channels) + 6 * widest + 2 * network.out_channels * network.patch**2)
    patches = int(sqrt(LIMIT / 4 / (read + said))) - 2 * halo(network, past, steps) // network.patch
    return max(patches, 1) * network.patch


def tiled(forecast: Callable[[Array], Array], past: Array, *, side: int, halo: int) -> Array:
    """What `forecast` makes of frames (past, …, Y, X), (steps, Y, X), a tile of side × side pixels at a time."""
    height, width = past.shape[-2:]
    if max(height, width) <= side:
        return forecast(past)
    found: Array | None = None
    for top, bottom, above in _parts(height, side, halo):
        for left, right, before in _parts(width, side, halo):
            tile = past[..., above : bottom + halo, before : right + halo]
            made = forecast(tile)[:, top - above : bottom - above, left - before : right - before]
            found = np.empty((len(made), height, width), made.dtype) if found is None else found
            found[:, top:bottom, left:right] = made
    assert found is not None
    return found


def _parts(size: int, side: int, halo: int) -> Iterator[tuple[int, int, int]]:
    """Beginning and end of each tile along an axis, and where its halo begins."""
    for begin in range(0, size, side):
        yield begin, min(begin + side, size), max(begin - halo, 0)
