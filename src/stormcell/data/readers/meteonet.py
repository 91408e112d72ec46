"""MeteoNet's rainfall (Larvor et al. 2020): `.npz` with data, and times as pickled `datetime` objects; coordinates lie beside it.

Of the pickles only arrays and dates are unpickled; anything else in them is refused.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError
from .raw import CompanionFile, stack

_UNIT_MM, _MISSING, _STEPS_AN_HOUR = 0.01, -1, 12
_ALLOWED = {
    ("datetime", "datetime"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("_codecs", "encode"),
}


class _Dates(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"its dates hold {module}.{name}")
        return super().find_class(module.replace("numpy.core", "numpy._core") if hasattr(np, "_core") else module, name)


def recognises_members(names: set[str]) -> bool:
    """By the arrays in an `.npz`."""
    return {"data", "dates", "miss_dates"} <= names or names == {"lats", "lons"}


def read(path: Path) -> xr.DataArray:
    """Raises CompanionFile for coordinates and quality codes, which are no frames."""
    with zipfile.ZipFile(path) as file:
        if "lats.npy" in file.namelist():
            raise CompanionFile(
                f"{path} holds MeteoNet's coordinates, no frames: give the file with the rain beside it"
            )
        if "quality" in path.name:
            raise CompanionFile(f"{path} holds MeteoNet's quality codes, no frames: give the file with the rain")
        data = np.lib.format.read_array(io.BytesIO(file.read("data.npy")), allow_pickle=False)
        dates = _dates(file.read("dates.npy"))
    if data.ndim != 3 or len(dates) != len(data):
        raise InputError(f"{path} has {len(dates)} dates for an array of the shape {data.shape}")
    rain = np.where(data == _MISSING, np.nan, data * np.float32(_UNIT_MM * _STEPS_AN_HOUR)).astype(np.float32)
    frames = stack(rain, path, times=[np.datetime64(date, "ns") for date in dates])
    place = _place(path, data.shape[1:])
    if place is not None:
        frames = frames.assign_coords({axis: (axis, values, {"units": "degrees"}) for axis, values in place.items()})
    crs = None if place is None else "EPSG:4326"
    frames.attrs = {"kind": "MeteoNet npz", "units": "mm/h", "precipitation": True, "crs": crs}
    return frames


def _dates(packed: bytes) -> Any:
    stream = io.BytesIO(packed)
    version = np.lib.format.read_magic(stream)
    (np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0)(stream)
    return _Dates(stream).load()


def _place(path: Path, shape: tuple[int, ...]) -> dict[str, npt.NDArray[np.float64]] | None:
    """Centres of the pixels, from the file of coordinates beside it that has this size."""
    for beside in sorted(path.parent.glob("*coords*.npz")):
        with zipfile.ZipFile(beside) as file:
            lats, lons = (
                np.lib.format.read_array(io.BytesIO(file.read(f"{name}.npy")), allow_pickle=False)
                for name in ("lats", "lons")
            )
        if lats.shape == shape:
            return {"y": lats[:, 0], "x": lons[0]}
    return None
