"""NetCDF and Zarr through xarray: which variable, which axes, what it says of itself. Values stay on disk."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import xarray as xr

from ...errors import InputError
from .. import store
from .raw import start_of, time_in_name

SUFFIXES = (".nc", ".nc4", ".cdf", ".netcdf", ".zarr")
_AXES = {
    "time": ("time", "valid_time", "t", "datetime"),
    "y": ("y", "lat", "latitude", "yc", "northing", "south_north", "rlat"),
    "x": ("x", "lon", "longitude", "xc", "easting", "west_east", "rlon"),
}
_NONE = xr.DataArray([np.nan])
_PRECIPITATION = re.compile(r"precip|rain|prcp|\btp\b|reflectivity|dbz", re.IGNORECASE)


def recognises(start: bytes) -> bool:
    return start.startswith(b"CDF")


def open_dataset(path: Path) -> xr.Dataset:
    """Open lazily, by libraries that a damaged file does not take down: netCDF-C would be, by the header of a classic one."""
    import pyproj  # noqa: F401 — before xarray loads what joins it: a PROJ that cfgrib brings would take pyproj's away

    if path.is_dir():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # a store without consolidated metadata is fine
            # A training store has many small chunks, and dask takes seconds over a graph of all of them.
            chunks = {"time": store.FRAMES, "y": -1, "x": -1} if store.is_store(path) else {}
            return xr.open_zarr(path, chunks=chunks, decode_timedelta=False)
    start = start_of(path, 4)
    engine = "h5netcdf" if start == b"\x89HDF" else "netcdf4" if start == b"CDF\x05" else "scipy"
    return xr.open_dataset(path, engine=engine, chunks={}, decode_timedelta=False)


def _role(dataset: xr.Dataset, name: str) -> str | None:
    coordinate = dataset[name] if name in dataset.variables else None
    attrs = coordinate.attrs if coordinate is not None else {}
    axis = {"T": "time", "Y": "y", "X": "x"}.get(str(attrs.get("axis", "")).upper())
    if axis:
        return axis
    if coordinate is not None and coordinate.dtype.kind == "M":
        return "time"
    return next((role for role, names in _AXES.items() if name.lower() in names), None)


def _choose(dataset: xr.Dataset, path: Path, variable: str | None) -> str:
    bounds = {str(v.attrs.get("bounds")) for v in dataset.variables.values()}
    candidates = [
        str(name)
        for name, value in dataset.data_vars.items()
        if value.ndim >= 2 and value.dtype.kind in "biuf" and str(name) not in bounds
    ]
    if variable is not None:
        if variable not in candidates:
            raise InputError(f"{path} has no variable {variable!r}; it has {', '.join(candidates) or 'none'}")
        return variable
    second_names = {dataset[name].attrs.get("also_named") for name in candidates}
    candidates = [name for name in candidates if name not in second_names]
    if len(candidates) > 1:
        rain = [n for n in candidates if is_precipitation(dataset[n], n)]
        candidates = rain if len(rain) == 1 else candidates
    if len(candidates) != 1:
        raise InputError(f"{path} holds {', '.join(candidates) or 'no variable with frames'}: choose with --variable")
    return candidates[0]


def is_precipitation(value: xr.DataArray, name: str) -> bool:
    """Whether a variable calls itself precipitation, by its name, standard name or unit."""
    words = " ".join([name, *(str(value.attrs.get(key, "")) for key in ("standard_name", "long_name", "units"))])
    return bool(_PRECIPITATION.search(words))


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """One variable with axes (time, y, x), raw but for CF's scale, offset and fill value.

    Attributes handed on: units, precipitation (whether it calls itself that), forecast (whether it is one that this
    program made, or pysteps), and the CRS as CF attributes or a string.
    Raises InputError if it is not clear which variable or axes are meant.
    """
    dataset = open_dataset(path)
    name = _choose(dataset, path, variable)
    frames = dataset[name]
    names: dict[str, str] = {}
    for dim in map(str, frames.dims):
        role = _role(dataset, dim)
        if role is not None and role not in names.values():
            names[dim] = role
    free = [str(d) for d in frames.dims if str(d) not in names and frames.sizes[d] > 1]
    for role in ("x", "y"):  # the last unnamed axes are the grid
        if role not in names.values() and free:
            names[free.pop()] = role
    if free or not {"y", "x"} <= set(names.values()):
        one = ", ".join(f"{dim}=0" for dim in free)
        advice = f". Take one: xarray.open_dataset({str(path)!r}).isel({one}).to_netcdf('one.nc')" if one else ""
        raise InputError(
            f"{path}: {name} has the axes {', '.join(map(str, dataset[name].dims))}; frames need time, y and x{advice}"
        )
    frames = frames.squeeze([d for d in frames.dims if str(d) not in names], drop=False)
    frames = frames.rename({dim: role for dim, role in names.items() if dim != role and dim in frames.dims})
    if "time" not in frames.dims:
        frames = _with_time(frames, dataset, path)
    frames = frames.transpose("time", "y", "x")
    for dim, axis in names.items():
        if dim.lower() in ("lat", "latitude", "lon", "longitude") and axis in frames.coords:
            frames[axis].attrs.setdefault("units", "degrees")
    pair = {key: frames.attrs[key] for key in ("zr_a", "zr_b") if isinstance(frames.attrs.get(key), (float, np.number))}
    frames.attrs = {
        "units": frames.attrs.get("units", ""),
        "precipitation": is_precipitation(frames, name),
        "crs": _crs(dataset, dataset[name]),
        "period_minutes": _period(dataset),
        "store": store.is_store(path),
        "forecast": dataset.attrs.get("title") == "pysteps-generated nowcast"
        or ("lead_time" in dataset.coords and dataset.coords.get("forecast_reference_time", _NONE).ndim == 0),
        **pair,
        **{key: frames.attrs[key] for key in ("long_name", "standard_name") if key in frames.attrs},
    }
    keep = {"time", "y", "x"}
    return frames.drop_vars([c for c in frames.coords if c not in keep]).rename(name)


def _with_time(frames: xr.DataArray, dataset: xr.Dataset, path: Path) -> xr.DataArray:
    """A file with one frame: its time is a scalar of the dataset, or stands in the file's name."""
    scalars = [
        dataset[key].values
        for key in ("valid_time", "time", "end_time")
        if key in dataset.variables and dataset[key].size == 1 and dataset[key].dtype.kind == "M"
    ]
    time = np.datetime64(scalars[0].reshape(()).item(), "ns") if scalars else time_in_name(path)
    frames = frames.drop_vars("time", errors="ignore").expand_dims("time")
    return frames if time is None else frames.assign_coords(time=[time])


def _period(dataset: xr.Dataset) -> float | None:
    """Minutes over which an amount was taken, where the file says when they began."""
    if {"start_time", "valid_time"} <= set(dataset.variables):  # the Australian Bureau of Meteorology's way
        span = np.ravel(dataset["valid_time"].values - dataset["start_time"].values)[:1]
    else:
        bounds = dataset.variables.get(dataset["time"].attrs.get("bounds")) if "time" in dataset.variables else None
        span = np.diff(bounds.values[:1]).ravel() if bounds is not None and bounds.ndim == 2 else np.zeros(0)
    if span.size != 1 or span.dtype.kind != "m" or not span[0] > np.timedelta64(0):
        return None
    return float(span[0] / np.timedelta64(1, "s")) / 60


def _crs(dataset: xr.Dataset, frames: xr.DataArray) -> object:
    mapping = frames.attrs.get("grid_mapping", frames.encoding.get("grid_mapping"))
    if mapping in dataset.variables:
        return dict(dataset[mapping].attrs)
    for name in ("spatial_ref", "crs"):
        if name in dataset.variables and dataset[name].attrs:
            return dict(dataset[name].attrs)
    for attrs in (frames.attrs, dataset.attrs):
        for key in ("crs_wkt", "grid_mapping_proj4", "proj4", "projection", "crs"):
            if isinstance(attrs.get(key), str):
                return attrs[key]
    return None
