"""ODIM HDF5 composites, versions 2.0 to 2.4 (EUMETNET OPERA, Michelson et al.), as national services and OPERA write them.

A raw value means missing (`nodata`), no echo (`undetect`), or gain · raw + offset. pysteps' importer has to be told the quantity,
gives no time and no quality for a part of the versions; a test holds our values against it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from ..units import NO_ECHO_DBZ
from .raw import Header, centres, choose

if TYPE_CHECKING:
    import h5py

# Quantities of ODIM (table 16 of version 2.4) with the unit of their values.
_UNITS = {"RATE": "mm/h", "ACRR": "mm", "VIL": "kg m-2", "HGHT": "km", "ETOP": "km", "QIND": "1"}
_UNITS |= dict.fromkeys(("TH", "TV", "DBZH", "DBZV", "DBZ"), "dBZ")
_QUALITY = "QIND"


def recognises(file: h5py.File) -> bool:
    return _text(file.attrs.get("Conventions", "")).startswith("ODIM_H5") or {"what", "where", "dataset1"} <= set(file)


def describe(file: h5py.File, path: Path, variable: str | None) -> Header:
    """Raises InputError for what is no composite, an unknown version, or several quantities."""
    what, where = dict(file["what"].attrs), dict(file["where"].attrs)
    version = _text(what.get("version", "H5rad 2.0")).removeprefix("H5rad ")
    if not version.startswith("2."):
        raise InputError(f"{path} is ODIM HDF5 of version {version}: versions 2.0 to 2.4 can be read")
    if _text(what.get("object", "COMP")) not in ("COMP", "IMAGE", "CVOL"):
        raise InputError(
            f"{path} is no composite but {_text(what['object'])}, in polar coordinates: give frames on a grid"
        )
    found, quality = _quantities(file)
    variable = choose(path, found, variable, what="quantity", prefix="the quantities ", none="none")
    group, data = found[variable]
    about = _what(file, group, data)
    start, end = (_time(about.get(f"{k}date"), about.get(f"{k}time")) for k in ("start", "end"))
    time = _time(what["date"], what["time"])
    unit = _UNITS.get(variable, variable)
    rate = 1.0
    if unit == "mm" and start is not None and end is not None and end > start:
        unit, rate, time = "mm/h", float(np.timedelta64(1, "h") / (end - start)), end
    rows, columns = file[f"{group}/{data}/data"].shape
    x, y = _grid({**where, **dict(file[group].get("where", file["where"]).attrs)}, rows, columns)
    attrs: dict[str, Any] = {"units": unit, "precipitation": True, "crs": _text(where["projdef"]), "quantity": variable}
    if time is None:
        raise InputError(f"{path} does not say when it was taken: its what/date and what/time are no time")
    others = {} if quality is None else {"quality": [(*quality, 1.0)]}
    return Header("ODIM HDF5", [(group, data, rate)], (rows, columns), [time], x, y, "m", attrs, others)


def decode(file: h5py.File, key: tuple[str, str, float]) -> npt.NDArray[np.float32]:
    group, data, rate = key
    about = _what(file, group, data)
    raw = file[f"{group}/{data}/data"][...]
    nothing = NO_ECHO_DBZ if _UNITS.get(_text(about.get("quantity", _QUALITY))) == "dBZ" else 0.0
    value = (raw * float(about["gain"]) + float(about["offset"])) * rate
    value = np.where(raw == about["undetect"], nothing, value) if "undetect" in about else value
    return np.where(raw == about["nodata"], np.nan, value).astype(np.float32) if "nodata" in about else value


def _quantities(file: h5py.File) -> tuple[dict[str, tuple[str, str]], tuple[str, str] | None]:
    """Groups of each quantity, the first of its name, and of the quality index, wherever it lies."""
    found: dict[str, tuple[str, str]] = {}
    for group in sorted((name for name in file if name.startswith("dataset")), key=_number):
        parts = sorted((name for name in file[group] if name.startswith(("data", "quality"))), key=_number)
        nested = [f"{part}/{name}" for part in parts for name in file[f"{group}/{part}"] if name.startswith("quality")]
        for data in [*parts, *nested]:
            if "data" in file[f"{group}/{data}"]:
                usual = _QUALITY if "quality" in data else ""
                found.setdefault(_text(_what(file, group, data).get("quantity", usual)), (group, data))
    quality = found.pop(_QUALITY, None)
    first = next(iter(found.values()), None)
    if quality and first and file["/".join((*quality, "data"))].shape != file["/".join((*first, "data"))].shape:
        quality = None
    return found, quality


def _what(file: h5py.File, group: str, data: str) -> dict[str, Any]:
    """Of a field: what it says itself comes before what its dataset says; quality has only its own."""
    said: dict[str, Any] = {"gain": 1.0, "offset": 0.0}
    for place in (f"{group}/{data}",) if "quality" in data else (group, f"{group}/{data}"):
        if "what" in file[place]:
            said |= dict(file[place]["what"].attrs)
    return said


def _grid(where: dict[str, Any], rows: int, columns: int) -> tuple[Any, Any]:
    """Pixel centres in metres. The corners are given in degrees, at the outer edges of the pixels."""
    from pyproj import Proj

    projection = Proj(_text(where["projdef"]))
    west, south = projection(float(where["LL_lon"]), float(where["LL_lat"]))
    north = projection(float(where["UL_lon"]), float(where["UL_lat"]))[1] if "UL_lat" in where else None
    dx, dy = float(where["xscale"]), float(where["yscale"])
    top = south + dy * rows if north is None else north
    return centres(west, dx, columns), centres(top, -dy, rows)


def _time(date: Any, time: Any) -> np.datetime64 | None:
    d, t = _text(date or ""), _text(time or "").ljust(6, "0")
    try:
        return np.datetime64(f"{d[:4]}-{d[4:6]}-{d[6:8]}T{t[:2]}:{t[2:4]}:{t[4:6]}", "ns")
    except ValueError:
        return None


def _text(value: Any) -> str:
    value = value.item() if isinstance(value, np.ndarray) and value.size == 1 else value
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _number(name: str) -> tuple[str, int]:
    digits = name[len(name.rstrip("0123456789")) :]
    return name[: len(name) - len(digits)], int(digits or 0)
