"""Training windows in the storm's coordinates: past and future moved to the present along the motion of the past."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import xarray as xr

from ..data.axes import time_step
from ..data.contract import zr_pair
from ..data.places import WEIGHTS
from ..data.units import Transform
from ..data.windows import MEMORY_LIMIT, Windows
from ..nn.advection import paths, sample
from .lagrangian import aligned, frames_needed
from .motion import motion_field


class AlignedWindows(Windows):
    """Windows whose samples are fields at fixed ages and lead times, whatever the step of each run.

    Each window is moved once and kept. Of more than memory holds, windows are taken evenly: those a frame apart are
    nearly the same. Of a training store they are drawn in proportion to their rain (`data/places.py`), others in each epoch.

    Args:
        ages, leads: minutes before and after the newest past frame; a lead time without a frame near it is missing, and a
            window has the first half of them at least.
    """

    def __init__(
        self,
        runs: Sequence[xr.DataArray],
        transform: Transform,
        *,
        ages: Sequence[float],
        leads: Sequence[float],
        **options: Any,
    ) -> None:
        self.ages, self.leads = tuple(ages), tuple(leads)
        super().__init__(runs, transform, past=len(ages), future=len(leads), **options)
        largest = max(run.sizes["y"] * run.sizes["x"] for run in self.runs) * 2 * (self.past + self.future)
        thinning = max(math.ceil(len(self.windows) * largest / MEMORY_LIMIT), 1)
        self.drawn = self.places if thinning > 1 else None
        self.places = None  # crops are drawn from what has been moved
        how = f"windows of the store are drawn by the weight of their crops: {WEIGHTS}"
        self.sampling = how if self.drawn else None
        self.every = self.windows
        self.windows = self.windows[::thinning]
        self._renewed: int | None = None
        if self.fixed is not None:
            self.fixed = min(self.fixed, len(self.windows) * self.crops_a_window)
        self._moved: dict[tuple[int, int], npt.NDArray[np.float16]] = {}

    def window(self, index: int) -> tuple[int, int]:
        epoch = 0 if self.fixed else self.epoch
        if self.drawn is not None and self._renewed != epoch:
            self._renewed, count = epoch, len(self.windows)
            shares = (np.arange(count) + np.random.default_rng([self.seed, epoch]).random()) / count
            self.windows = [self.every[self.drawn.window(share)] for share in shares]
            self._moved = {window: self._moved[window] for window in self.windows if window in self._moved}
        return super().window(index)

    def starts(self, run: xr.DataArray) -> range:
        step = self._step(run)
        if step is None:
            return range(0)
        enough = math.ceil(self.leads[(len(self.leads) - 1) // 2] / step - 1e-6)
        return range(run.sizes["time"] - frames_needed(step, self.ages) - enough + 1)

    @staticmethod
    def _step(run: xr.DataArray) -> float | None:
        step = time_step(run.time.values)
        return None if isinstance(step, str) else step

    def frames(self, run: int, start: int) -> npt.NDArray[np.floating[Any]]:
        if (run, start) not in self._moved:
            self._moved[run, start] = self._move(run, start)
        return self._moved[run, start]

    def _rates(self, run: int, time: slice) -> npt.NDArray[np.float32]:
        """Frames of a run, mm/h."""
        if self.in_memory:
            return self.transform.decode(self.read(run, time)[:, 0], "mm/h")
        frames = self.runs[run]
        return self.transform.rates(self.stored(run, time), frames.attrs["units"], zr_pair(frames))

    def _move(self, run: int, start: int) -> npt.NDArray[np.float16]:
        step = self._step(self.runs[run])
        assert step is not None
        past = frames_needed(step, self.ages)
        span = past + math.ceil(self.leads[-1] / step - 1e-6)
        rates = self._rates(run, slice(start, start + span))
        seen, later = rates[:past], rates[past:]
        motion = torch.from_numpy((motion_field(seen) / step).astype(np.float32))[None]
        fields = list(aligned(seen, [step * (k + 1 - past) for k in range(past)], motion, self.ages))
        near = (self.leads[1] - self.leads[0] if len(self.leads) > 1 else step) / 4
        nearest = [min(max(round(lead / step) - 1, 0), len(later) - 1) for lead in self.leads]
        seen_at = [step * (k + 1) for k in nearest]
        places = paths(motion, seen_at)
        for number, (lead, k) in enumerate(zip(self.leads, nearest)):
            if abs(seen_at[number] - lead) > near:
                fields.append(np.full_like(fields[0], np.nan))
            else:
                field = torch.from_numpy(later[k])[None, None]
                fields.append(sample(field, places[:, number], mode="nearest")[0, 0].numpy())
        return self.transform.encode(np.stack(fields), "mm/h").astype(np.float16)[:, None]
