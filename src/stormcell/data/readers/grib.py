"""GRIB 1 and 2 through ecCodes, in a process of its own (`child.py`): MRMS, ERA5, and any field on a grid.

cfgrib is not used: once installed it joins xarray, and then every `open_dataset` loads ecCodes, whose PROJ takes pyproj's away.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError
from ..child import apart, call
from .raw import LARGEST_FRAME, Header, choose, lazily, plain_file

SUFFIXES = (".grib", ".grib2", ".grb", ".grb2", ".grib1")
_MRMS, _MRMS_RATE = 161, (209, 6, 1)  # centre NSSL; discipline, category, number, which ecCodes does not know
_MRMS_NO_COVERAGE = -3.0


def recognises(start: bytes) -> bool:
    return b"GRIB" in start[:64]  # bulletins have a header before it


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """All messages of one variable; choose it by its short name. Raises InputError if there are several, or no ecCodes."""
    return lazily(path, call(describe, path, variable), apart(decode))


def describe(path: Path, variable: str | None) -> Header:
    found: dict[str, list[dict[str, Any]]] = {}
    for message, number in _messages(path):
        about = _about(message, number)
        found.setdefault(about["name"], []).append(about)
    variable = choose(path, found, variable, what="variable", none="no field")
    fields = found[variable]
    first = fields[0]
    if any(one["grid"] != first["grid"] for one in fields):
        raise InputError(f"{path}: the fields of {variable} lie on different grids")
    times = [one["time"] for one in fields]
    if len(set(times)) < len(times):
        raise InputError(f"{path} has several levels or members of {variable} at one time: keep one of them")
    periods = {one["period"] for one in fields}
    if len(periods) > 1:
        raise InputError(
            f"{path}: the amounts of {variable} are over {min(periods):g} to {max(periods):g} minutes, as from the "
            "beginning of a forecast on: take the differences of one to the next first"
        )
    attrs = {
        "period_minutes": first["period"] or None,
        "units": first["units"],
        "precipitation": first["precipitation"],
        "crs": first["crs"],
        "quantity": variable,
    }
    order = np.argsort(times, kind="stable")
    keys = [(fields[k]["number"], fields[k]["missing"]) for k in order]
    shape = len(first["y"]), len(first["x"])
    return Header(
        f"GRIB {first['edition']}",
        keys,
        shape,
        [times[k] for k in order],
        first["x"],
        first["y"],
        first["grid_units"],
        attrs,
    )


def decode(path: Path, key: tuple[int, float | None]) -> npt.NDArray[np.float32]:
    import eccodes

    wanted, missing = key
    for message, number in _messages(path):
        if number != wanted:
            continue
        eccodes.codes_set(message, "missingValue", 9.96921e36)  # no value of any field
        width, height = (eccodes.codes_get(message, name) for name in ("Nx", "Ny"))
        values = eccodes.codes_get_values(message).astype(np.float32)
        values = values.reshape((width, height)).T if eccodes.codes_get(message, "jPointsAreConsecutive") else values.reshape(
            (height, width)
        )  # fmt: skip
        gone = values > 9e36
        return np.where(gone if missing is None else gone | (values == np.float32(missing)), np.nan, values)
    raise ValueError(f"field {wanted} is not there any more")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    with plain_file(path) as plain, plain.open("rb") as stream:
        yield stream


def _messages(path: Path) -> Iterator[tuple[Any, int]]:
    try:
        import eccodes
    except (ImportError, RuntimeError):
        raise InputError(
            f"{path} is a GRIB file: pip install 'stormcell[radar]' brings ecCodes, which reads it"
        ) from None
    with _opened(path) as stream:
        for number in range(10**6):
            message = eccodes.codes_grib_new_from_file(stream)
            if message is None:
                return
            try:
                yield message, number
            finally:
                eccodes.codes_release(message)


def _about(message: Any, number: int) -> dict[str, Any]:
    import eccodes

    def get(name: str, usual: Any = None, kind: Any = None) -> Any:
        try:
            return eccodes.codes_get(message, name, kind)
        except eccodes.KeyValueNotFoundError:
            return usual

    name, units, edition = get("shortName"), get("units"), get("edition")
    mrms = get("centre", kind=int) == _MRMS and get("discipline") == _MRMS_RATE[0]
    if mrms and (get("discipline"), get("parameterCategory"), get("parameterNumber")) == _MRMS_RATE:
        name, units = "PrecipRate", "mm/h"
    date, clock = int(get("validityDate")), int(get("validityTime"))
    x, y, grid_units, crs = _grid(get)
    return {
        "number": number,
        "edition": edition,
        "name": name,
        "units": units,
        "precipitation": name in ("PrecipRate", "tp", "cp", "lsp", "prate", "tprate", "tcrw", "rprate")
        or "precipitation" in str(get("name", "")).lower(),
        "time": np.datetime64(f"{date // 10000:04d}-{date // 100 % 100:02d}-{date % 100:02d}", "m").astype("M8[ns]")
        + np.timedelta64(clock // 100, "h")
        + np.timedelta64(clock % 100, "m"),
        "period": _minutes(get) if get("stepType") == "accum" else 0.0,
        "missing": _MRMS_NO_COVERAGE if mrms else None,
        "x": x,
        "y": y,
        "grid_units": grid_units,
        "crs": crs,
        "grid": (len(x), len(y), float(x[0]), float(y[0]), float(x[-1]), float(y[-1])),
    }


def _minutes(get: Any) -> float:
    """Over which an amount was taken."""
    first, last = get("startStep", 0), get("endStep", 0)
    unit = {"m": 1, "h": 60, "D": 1440, "s": 1 / 60}.get(
        str(last)[-1:], {0: 1, 1: 60, 2: 1440}.get(get("stepUnits", 1), 60)
    )
    numbers = [float(str(step).rstrip("mhDs")) for step in (first, last)]
    return (numbers[1] - numbers[0]) * unit


def _grid(get: Any) -> tuple[npt.NDArray[Any], npt.NDArray[Any], str, str | None]:
    """Centres of the pixels: x, y, their unit, CRS. An unknown projection leaves pixels."""
    columns, rows, kind = int(get("Nx", 0) or 0), int(get("Ny", 0) or 0), get("gridType")
    if columns < 1 or rows < 1:
        raise ValueError(f"its grid ({kind}) has no rows and columns: interpolate it to a regular one first")
    if columns * rows > LARGEST_FRAME:
        raise ValueError(f"it says that its fields have {rows}×{columns} pixels, as those of no model")
    right, up = (-1 if get("iScansNegatively") else 1), (1 if get("jScansPositively") else -1)
    first = float(get("longitudeOfFirstGridPointInDegrees")), float(get("latitudeOfFirstGridPointInDegrees"))
    if kind == "regular_ll":
        dx, dy = (float(get(f"{k}DirectionIncrementInDegrees", 0.0)) for k in "ij")
        west = first[0] - 360 if first[0] > 180 else first[0]
        return west + right * dx * np.arange(columns), first[1] + up * dy * np.arange(rows), "degrees", "EPSG:4326"
    projection = _projection(get, kind)
    if projection is None:
        return np.arange(columns, dtype=float), up * np.arange(rows, dtype=float), "1", None
    from pyproj import Proj

    x, y = Proj(projection)(*first)
    dx, dy = (float(get(f"D{k}InMetres", get(f"{k.upper()}DirectionGridLengthInMetres", 0.0))) for k in "xy")
    return x + right * dx * np.arange(columns), y + up * dy * np.arange(rows), "m", projection


def _projection(get: Any, kind: str) -> str | None:
    earth = {0: "+R=6367470", 6: "+R=6371229"}.get(get("shapeOfTheEarth", 0), "+ellps=WGS84")
    if kind == "lambert":
        first, second = get("Latin1InDegrees"), get("Latin2InDegrees")
        middle = f"+lat_0={get('LaDInDegrees', first)} +lon_0={get('LoVInDegrees')}"
        return f"+proj=lcc +lat_1={first} +lat_2={second} {middle} {earth}"
    if kind == "polar_stereographic":
        pole = -90 if get("projectionCentreFlag", 0) & 128 else 90
        middle = f"+lat_ts={get('LaDInDegrees', 60)} +lon_0={get('orientationOfTheGridInDegrees')}"
        return f"+proj=stere +lat_0={pole} {middle} {earth}"
    return None
