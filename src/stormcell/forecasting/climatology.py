"""What is usual at each pixel, from the frames that a model was made with: the reference of anomalies, and a forecast to beat.

A mean for each calendar month where every month was seen in two years or more, else one of all frames. It lies in the model
file, so that nothing of what is verified goes into it. Plain quantities only: rain is mostly none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..data.axes import TOLERANCE, same_grid
from ..data.contract import values
from .motion import Array

Times = npt.NDArray[np.datetime64]
_YEARS = 2  # in which a month was seen, to have a mean of its own


def _months(times: Times) -> npt.NDArray[np.int64]:
    return times.astype("M8[M]").astype(np.int64) % 12


@dataclass(frozen=True, eq=False)
class Climatology:
    """Means of frames, and how long anomalies last.

    Attributes:
        means: (12, Y, X), January first, or (1, Y, X); NaN where nothing was seen.
        y, x: places of the first and the last pixel.
        damping: correlation of anomalies with those a step later.
    """

    means: Array
    y: tuple[float, float]
    x: tuple[float, float]
    damping: float

    @classmethod
    def of(cls, runs: Sequence[xr.DataArray]) -> Climatology | None:
        """Of runs of frames (time, y, x); None if they lie on different grids."""
        if not all(same_grid(run, runs[0]) for run in runs):
            return None
        times = np.unique(np.concatenate([run.time.values for run in runs]).astype("M8[M]"))
        monthly = np.bincount(_months(times), minlength=12).min() >= _YEARS
        sums, counts = (np.zeros((12 if monthly else 1, *runs[0].shape[-2:])) for _ in range(2))
        for run in runs:
            for k, month in enumerate(_months(run.time.values)):
                frame, row = values(run.isel(time=k)), month if monthly else 0
                sums[row] += np.nan_to_num(frame)
                counts[row] += np.isfinite(frame)
        means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
        places = {a: (float(runs[0][a][0]), float(runs[0][a][-1])) for a in ("y", "x")}
        without = cls(means, **places, damping=0.0)
        return cls(means, **places, damping=without._persistence_of_anomalies(runs))

    def _persistence_of_anomalies(self, runs: Sequence[xr.DataArray]) -> float:
        now = then = both = 0.0
        for run in runs:
            before: Array | None = None
            for k in range(run.sizes["time"]):
                anomaly = values(run.isel(time=k)) - self.at(run.time.values[k : k + 1])[0]
                if before is not None:
                    valid = np.isfinite(before) & np.isfinite(anomaly)
                    a, b = before[valid].astype(np.float64), anomaly[valid].astype(np.float64)
                    now, then, both = now + (a**2).sum(), then + (b**2).sum(), both + (a * b).sum()
                before = anomaly
        return float(np.clip(both / np.sqrt(now * then), 0, 1)) if now * then > 0 else 0.0

    @property
    def kind(self) -> str:
        return "of calendar months" if len(self.means) == 12 else "of all frames"

    def at(self, times: Times) -> Array:
        """What is usual at these times (T, Y, X)."""
        return self.means[_months(times)] if len(self.means) == 12 else np.repeat(self.means, len(times), axis=0)

    def fits(self, frames: xr.DataArray) -> bool:
        """Whether frames lie on its grid, but for a tenth of a pixel."""
        if frames.shape[-2:] != self.means.shape[1:]:
            return False
        for axis, own in (("y", self.y), ("x", self.x)):
            step = abs(own[1] - own[0]) / max(frames.sizes[axis] - 1, 1) or 1.0
            if not np.allclose(frames[axis].values[[0, -1]], own, rtol=0, atol=TOLERANCE * step):
                return False
        return True

    def to_json(self) -> dict[str, Any]:
        """All but the means."""
        return {"y": list(self.y), "x": list(self.x), "damping": self.damping}


def usual(climatology: Climatology, past: Array, now: np.datetime64, later: Times) -> Array:
    """The climatology itself."""
    return climatology.at(later)


def damped_persistence(climatology: Climatology, past: Array, now: np.datetime64, later: Times) -> Array:
    """The anomaly of the last of `past` (P, Y, X), seen at `now`, that fades by `damping` a step."""
    fading = climatology.damping ** np.arange(1, len(later) + 1)
    anomaly = past[-1] - climatology.at(np.array([now]))[0]
    return (climatology.at(later) + fading[:, None, None] * anomaly).astype(np.float32)


CLIMATOLOGICAL: dict[str, Callable[[Climatology, Array, np.datetime64, Times], Array]] = {
    "climatology": usual,
    "damped-persistence": damped_persistence,
}
"""Baselines that know what is usual, by name."""
