"""Rain that is made, not measured: elliptical cells that drift with a wind, grow and decay. For the demo and for tests."""

from __future__ import annotations

import numpy as np
import xarray as xr

LIGHTEST_MM_H = 0.1  # what is weaker is no rain, as in radar products


def advected_rain(
    sequences: int = 100,
    frames: int = 12,
    *,
    size: int = 64,
    step_minutes: int = 5,
    seed: int = 0,
    start: str = "2024-01-01T00:00",
) -> xr.DataArray:
    """Rain rate in mm/h on a 1 km grid, dims (time, y, x): `sequences` events of `frames` frames, six hours apart or more.

    Each event has one wind, up to 3 pixels a step, and eight cells in view on average; each cell rises and falls as sin² over its
    life of 8 to 30 steps. All values are valid; rain below 0.1 mm/h is 0.
    """
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.arange(size, dtype=np.float32), np.arange(size, dtype=np.float32), indexing="ij")
    rain = np.zeros((sequences, frames, size, size), dtype=np.float32)
    for event in rain:
        speed, heading = rng.uniform(0.8, 3.0), rng.uniform(0, 2 * np.pi)
        wind = speed * np.array([np.sin(heading), np.cos(heading)])
        margin = 3.0 * frames
        cells = rng.poisson(8 * ((size + 2 * margin) / size) ** 2)
        for _ in range(cells):
            birth, life = rng.uniform(-20, frames), rng.uniform(8, 30)
            cy, cx = rng.uniform(-margin, size + margin, 2)
            drift = wind + rng.normal(0, 0.15, 2)
            long, wide, turn = rng.uniform(3, 9), rng.uniform(2, 4), rng.uniform(0, np.pi)
            peak = min(rng.lognormal(1.6, 0.7), 40.0)
            for t in range(frames):
                age = (t - birth) / life
                if not 0 < age < 1:
                    continue
                dy, dx = y - (cy + drift[0] * t), x - (cx + drift[1] * t)
                along, across = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
                shape = np.exp(-0.5 * ((along / long) ** 2 + (across / wide) ** 2))
                event[t] += np.float32(peak * np.sin(np.pi * age) ** 2) * shape
    rain[rain < LIGHTEST_MM_H] = 0
    events = np.datetime64(start, "ns") + np.arange(sequences) * np.timedelta64(
        -(-(frames * step_minutes + 360) // 60), "h"
    )
    times = events[:, None] + np.arange(frames) * np.timedelta64(step_minutes, "m")
    metres = np.arange(size) * 1000.0 + 500.0
    return xr.DataArray(
        rain.reshape(-1, size, size),
        dims=("time", "y", "x"),
        coords={
            "time": times.ravel(),
            "y": ("y", metres[::-1].copy(), {"units": "m"}),
            "x": ("x", metres, {"units": "m"}),
        },
        attrs={"units": "mm/h", "source": "synthetic rain", "zr": (200.0, 1.6)},
        name="rain_rate",
    )
