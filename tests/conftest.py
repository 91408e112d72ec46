"""What several rooms' tests need: rain that is made up, a small trained model, real data where it is."""

from __future__ import annotations

import os
from pathlib import Path

from stormcell.cli import share_cores

SIDE_BY_SIDE = "PYTEST_XDIST_WORKER" in os.environ
share_cores()  # before torch is imported: tests may run beside other work
if SIDE_BY_SIDE:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # of programs that tests start, too
os.environ.setdefault("KERAS_BACKEND", "torch")  # before keras is imported

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
import xarray as xr  # noqa: E402

from stormcell.data.synthetic import advected_rain  # noqa: E402

torch.set_num_threads(1 if SIDE_BY_SIDE else 2)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before triton is imported
REAL_DATA = Path(os.environ.get("STORMCELL_TEST_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.fixture
def real_data() -> Path:
    """Folder of real radar events. Licences differ, so they are no part of this repository."""
    if not (REAL_DATA / "events").is_dir():
        pytest.skip(f"no real data at {REAL_DATA}: set STORMCELL_TEST_DATA to a folder with events/*.nc")
    return REAL_DATA


@pytest.fixture(scope="session")
def rain() -> xr.DataArray:
    """30 storms of 12 frames, 32×32 pixels of 1 km, 5 minutes."""
    return advected_rain(30, 12, size=32, seed=3)


def make_frames(
    data: np.ndarray,
    *,
    units: str = "mm/h",
    start: str = "2024-06-01T12:00",
    step_minutes: float = 5,
    spacing: float = 1000.0,
) -> xr.DataArray:
    """Frames under the contract around an array (time, y, x)."""
    count, height, width = data.shape
    times = np.datetime64(start, "ns") + np.arange(count) * np.timedelta64(round(60 * step_minutes), "s")
    return xr.DataArray(
        data.astype(np.float32),
        dims=("time", "y", "x"),
        coords={
            "time": times,
            "y": ("y", spacing * np.arange(height, 0, -1.0), {"units": "m"}),
            "x": ("x", spacing * np.arange(width, dtype=float), {"units": "m"}),
        },
        attrs={"units": units, "source": "made frames"},
        name="frames",
    )
