"""Where crops of an archive lie, and how likely each is drawn: rain more often than it occurs, chosen by the index of the store.

In a year of radar one crop in twenty may be wet; by these weights half of those drawn are. Places are where a crop touches as few
chunks as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from .store import CELL, PIXELS, Stretch, index_of

ENOUGH_WET, ENOUGH_VALID = 0.05, 0.5  # from where on more is not better
DRY = 1 / 16  # how often a crop without rain is drawn, for each with enough
WEIGHTS = (
    f"a crop with rain on {ENOUGH_WET:.0%} of its pixels or more weighs {1 / DRY:.0f} times as much as a dry one, in proportion "
    f"between; with under {ENOUGH_VALID:.0%} of them valid it weighs less, in proportion"
)
_AT_ONCE = 4096


class Places:
    """Windows of runs from stores, and places of crops in them.

    Args:
        stretches: where each run lies.
        starts: of each run the first frames of its windows, which reach to its end.
        rain: whether wet crops are wanted, not only valid ones.
    """

    def __init__(
        self,
        runs: Sequence[xr.DataArray],
        stretches: Sequence[Stretch],
        starts: Sequence[range],
        *,
        crop: int,
        rain: bool,
    ) -> None:
        self.corners = [(_along(run.sizes["y"], crop), _along(run.sizes["x"], crop)) for run in runs]
        indices = {path: index_of(path) for path in {stretch.path for stretch in stretches}}
        self.weights = [
            _weights(
                indices[stretch.path][stretch.first : stretch.first + run.sizes["time"]],
                windows,
                crop,
                corners,
                rain=rain,
            )
            for run, stretch, windows, corners in zip(runs, stretches, starts, self.corners)
        ]
        self.windows = np.cumsum(np.concatenate([weights.sum(axis=1, dtype=np.float64) for weights in self.weights]))
        self.first = np.cumsum([0, *map(len, self.weights)])

    def window(self, share: float) -> int:
        """The window up to which lies this share, in [0, 1), of the weight of all."""
        return int(np.searchsorted(self.windows, share * self.windows[-1], side="right"))

    def place(self, window: int, share: float) -> tuple[int, int]:
        """The place in a window, by its share of the window's weight."""
        run = int(np.searchsorted(self.first, window, side="right")) - 1
        weights = np.cumsum(self.weights[run][window - self.first[run]], dtype=np.float64)
        place = min(int(np.searchsorted(weights, share * weights[-1], side="right")), len(weights) - 1)
        ys, xs = self.corners[run]
        return ys[place // len(xs)], xs[place % len(xs)]


def places_of(
    runs: Sequence[xr.DataArray],
    stretches: Sequence[Stretch | None],
    starts: Sequence[range],
    *,
    crop: int,
    rain: bool,
) -> Places | None:
    """None where some run is not a stretch of a store, or all is missing."""
    known = [stretch for stretch in stretches if stretch is not None]
    if len(known) < len(runs):
        return None
    places = Places(runs, known, starts, crop=crop, rain=rain)
    return places if places.windows[-1] > 0 else None


def _along(size: int, crop: int) -> list[int]:
    """Beginnings of crops along an axis: those that touch the fewest chunks, and the last one."""
    every = range(0, size - crop + 1, min(CELL, crop))
    touched = [(k + crop - 1) // PIXELS - k // PIXELS for k in every]
    return sorted({*(k for k, count in zip(every, touched) if count == min(touched)), size - crop})


def _weights(
    index: npt.NDArray[Any],
    windows: range,
    crop: int,
    corners: tuple[list[int], list[int]],
    *,
    rain: bool,
) -> npt.NDArray[np.float32]:
    """(windows, places), from three frames of each window."""
    length = len(index) - len(windows) + 1
    seen = np.arange(length)[:: max(length // 2, 1)]
    boxes = [(slice(y // CELL, -(-(y + crop) // CELL)), slice(x // CELL, -(-(x + crop) // CELL)))
             for y in corners[0] for x in corners[1]]  # fmt: skip
    found = np.empty((len(windows), len(boxes)), dtype=np.float32)
    for at in range(0, len(windows), _AT_ONCE):
        frames = np.asarray(windows[at : at + _AT_ONCE])[:, None] + seen
        shares = {name: index[name][frames].mean(axis=1) / 255 for name in ("wet", "valid")}
        for k, box in enumerate(boxes):
            wet, valid = (shares[name][(slice(None), *box)].mean(axis=(1, 2)) for name in ("wet", "valid"))
            wanted = DRY + (1 - DRY) * np.minimum(wet / ENOUGH_WET, 1) if rain else 1.0
            found[at : at + _AT_ONCE, k] = wanted * np.minimum(valid / ENOUGH_VALID, 1)
    return found
