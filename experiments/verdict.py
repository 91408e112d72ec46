"""Has the verdict of `stormcell compare` teeth, and no bias? Three checks with known answers.

    python experiments/verdict.py            all, into experiments/results/verdict.json; a quarter of an hour on two cores
    python experiments/verdict.py moving     one of them: same, moving, still

same     one net entered twice, under different seeds, 20 times: "not decided" is right, and wrong once in twenty times.
moving   rain that moves 2 pixels a frame, seen through 1×1 kernels: only recurrent kernels can carry it. ConvLSTM is better.
still    each pixel oscillates by itself and nothing moves: ConvLSTM has nothing to win, and must not be found better.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr

from stormcell import __version__
from stormcell.comparing.entries import Shape
from stormcell.comparing.experiment import Settings, compare
from stormcell.comparing.tasks import folds_of
from stormcell.data.synthetic import advected_rain
from stormcell.data.windows import split_at_gaps

RESULT = Path(__file__).parent / "results" / "verdict.json"
LENGTHS: dict[str, Any] = {"past": 6, "future": 4, "seed": 0, "against": ["persistence"]}
EVENTS, FRAMES = 60, 10


def frames(data: np.ndarray, units: str) -> xr.DataArray:
    """Events (N, T, Y, X), seven hours apart, as frames."""
    start = np.datetime64("2024-01-01T00:00", "ns")
    events = start + np.arange(len(data)) * np.timedelta64(7, "h")
    times = events[:, None] + np.arange(data.shape[1]) * np.timedelta64(5, "m")
    height, width = data.shape[2:]
    coords = {
        "time": times.ravel(),
        "y": ("y", 1000.0 * np.arange(height, 0, -1), {"units": "m"}),
        "x": ("x", 1000.0 * np.arange(width), {"units": "m"}),
    }
    attrs = {"units": units, "source": "made by experiments/verdict.py"}
    return xr.DataArray(
        data.reshape(-1, height, width).astype(np.float32), dims=("time", "y", "x"), coords=coords, attrs=attrs
    )


def moving(seed: int = 0, size: int = 24) -> xr.DataArray:
    """Showers that move 2 pixels to the east a frame, round the edge, and change in nothing else."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    data = np.zeros((EVENTS, FRAMES, size, size))
    for event in data:
        field = np.zeros((size, size))
        for _ in range(6):
            cy, cx = rng.uniform(0, size, 2)
            dy, dx = ((axis - centre + size / 2) % size - size / 2 for axis, centre in ((y, cy), (x, cx)))
            field += rng.lognormal(1.5, 0.5) * np.exp(-(dy**2 + dx**2) / (2 * rng.uniform(1.2, 2.5) ** 2))
        field[field < 0.1] = 0
        for t, frame in enumerate(event):
            frame[:] = np.roll(field, 2 * t, axis=1)
    return frames(data, "mm/h")


def still(seed: int = 0, size: int = 24) -> xr.DataArray:
    """Each pixel a wave with a period and a phase of its own."""
    rng = np.random.default_rng(seed)
    period = rng.uniform(4, 10, (EVENTS, 1, size, size))
    phase = rng.uniform(0, 2 * np.pi, (EVENTS, 1, size, size))
    data = np.sin(2 * np.pi * np.arange(FRAMES)[:, None, None] / period + phase)
    return frames(data + rng.normal(0, 0.02, data.shape), "anomaly")


def run(data: xr.DataArray, crop: int, settings: Settings) -> dict[str, Any]:
    """The first verdict and what it rests on."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        (task,) = folds_of(split_at_gaps(data), crop=crop, cases=60, **LENGTHS)
        result = compare([task], settings, Path(folder) / "runs").result
    first = result["verdicts"][0]
    nets = [{key: row[key] for key in ("name", "net", "parameters", "learning_rates")} for row in result["rows"]]
    return {
        "decision": first["decision"],
        "text": first["text"],
        "models": nets,
        "updates": result["rows"][0]["updates"],
        "seeds": result["seeds"],
        "run_seconds": round(time.perf_counter() - began),
    }


def same() -> dict[str, Any]:
    data = advected_rain(EVENTS, FRAMES, size=32, seed=5)
    found = []
    for k in range(20):
        settings = Settings(
            ("convlstm-3x3-8", "convlstm-3x3-8"), Shape(patch=4), updates=60, learning_rates=(3e-3,), batch=4, seed=k
        )
        found.append(run(data, 32, settings))
        print(f"same, {k + 1} of 20: {found[-1]['decision']}", flush=True)
    undecided = sum(one["decision"] == "not decided" for one in found)
    return {"undecided": undecided, "of": len(found), "runs": found}


def _pair(first: str, data: xr.DataArray) -> dict[str, Any]:
    shape = Shape(hidden=(16,), kernel=1, patch=1)
    settings = Settings((first, "conv2d-lstm"), shape, updates=600, learning_rates=(3e-3, 1e-2), batch=4)
    return run(data, 24, settings)


CHECKS = {
    "same": same,
    "moving": lambda: _pair("convlstm-1x1-5x5-16", moving()),
    "still": lambda: _pair("convlstm-1x1-5x5-16", still()),
}


def main(names: list[str]) -> None:
    unknown = set(names) - set(CHECKS)
    if unknown:
        sys.exit(f"known checks: {', '.join(CHECKS)}")
    kept = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    RESULT.parent.mkdir(exist_ok=True)
    for name in names or CHECKS:
        found = CHECKS[name]()
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False
        ).stdout.strip()
        where = {
            "stormcell": __version__,
            "commit": commit,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        kept[name] = {**where, **found}
        RESULT.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(name, found.get("text") or f"{found['undecided']} of {found['of']} not decided")


if __name__ == "__main__":
    main(sys.argv[1:])
