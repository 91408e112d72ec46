"""KNMI's own HDF5 layout: images with a calibration formula, all in one file (Roozekrans and Holleman, KNMI TR-274).

pysteps' importer gives no time and has to be told the quantity; a test holds our values against it.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ...errors import InputError
from .raw import Header

if TYPE_CHECKING:
    import h5py

_FORMULA = re.compile(r"GEO\s*=\s*([-+.\deE]+)\s*\*\s*PV\s*\+?\s*([-+.\deE]+)")
_MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def recognises(file: h5py.File) -> bool:
    return {"overview", "geographic", "image1"} <= set(file)


def describe(file: h5py.File, path: Path, variable: str | None) -> Header:
    names = sorted((name for name in file if re.fullmatch(r"image\d+", name)), key=lambda name: int(name[5:]))
    quantity = _text(file[names[0]].attrs["image_geo_parameter"])
    names = [name for name in names if _text(file[name].attrs["image_geo_parameter"]) == quantity]
    if variable is not None and variable != quantity:
        raise InputError(f"{path} has no quantity {variable!r}; it has {quantity}")
    unit = quantity.rpartition("[")[2].rstrip("]")
    start, end = (_time(file["overview"].attrs[f"product_datetime_{k}"]) for k in ("start", "end"))
    rate = 1.0
    if unit == "MM" and end > start:
        unit, rate = "mm/h", float(np.timedelta64(1, "h") / (end - start))
    valid = [file[name].attrs.get("image_datetime_valid") for name in names]
    times = [end if said is None else _time(said) for said in valid]
    geo = {key: np.ravel(value)[0] for key, value in file["geographic"].attrs.items()}
    rows, columns = file[names[0]]["image_data"].shape
    x = (float(geo["geo_column_offset"]) + 0.5 + np.arange(columns)) * float(geo["geo_pixel_size_x"])
    y = (float(geo["geo_row_offset"]) + 0.5 + np.arange(rows)) * float(geo["geo_pixel_size_y"])
    projection = _text(file["geographic/map_projection"].attrs["projection_proj4_params"])
    grid_units = _text(geo["geo_dim_pixel"]).split(",")[0].lower()
    attrs = {"units": "dBZ" if unit == "DBZ" else unit, "precipitation": True, "crs": projection, "quantity": quantity}
    keys = [(name, rate) for name in names]
    return Header("KNMI HDF5", keys, (rows, columns), times, x, y, grid_units, attrs)


def decode(file: h5py.File, key: tuple[str, float]) -> npt.NDArray[np.float32]:
    name, rate = key
    calibration = {k: np.ravel(value)[0] for k, value in file[f"{name}/calibration"].attrs.items()}
    match = _FORMULA.search(_text(calibration["calibration_formulas"]).upper())
    if match is None:
        raise ValueError(f"its calibration is not understood: {_text(calibration['calibration_formulas'])}")
    raw = file[f"{name}/image_data"][...]
    missing = [
        calibration[f"calibration_{k}"] for k in ("missing_data", "out_of_image") if f"calibration_{k}" in calibration
    ]
    value = (raw * float(match[1]) + float(match[2])) * rate
    return np.where(np.isin(raw, missing), np.nan, value).astype(np.float32)


def _time(value: Any) -> np.datetime64:
    """26-AUG-2010;00:00:00.000, with months in English whatever the language of this machine."""
    text = _text(value)
    day, month, rest = text.split("-", 2)
    numbers = f"{rest[:4]}-{_MONTHS.index(month.upper()) + 1:02d}-{day} {rest.partition(';')[2]}"
    return np.datetime64(datetime.strptime(numbers, "%Y-%m-%d %H:%M:%S.%f"), "ns")


def _text(value: Any) -> str:
    value = np.ravel(value)[0]
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)
