"""GeoTIFF through rasterio, in a process of its own: values by the file's scale and offset, or by what FMI writes in its tags."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError
from ..child import apart, call
from .raw import Header, centres, lazily, plain_file, time_in_name

SUFFIXES = (".tif", ".tiff")
_ITEM = re.compile(r'<Item name="([^"]+)"([^>]*)>([^<]*)</Item>')


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    return lazily(path, call(describe, path), apart(decode))


def describe(path: Path) -> Header:
    try:
        import rasterio
    except ImportError:
        raise InputError(
            f"{path} is a GeoTIFF: pip install 'stormcell[radar]' brings rasterio, which reads it"
        ) from None
    with plain_file(path) as plain, rasterio.open(plain) as file:
        said = {
            name.lower(): (more, text.strip())
            for name, more, text in _ITEM.findall(file.tags().get("GDAL_METADATA", ""))
        }
        unit = re.search(r'unit="([^"]*)"', said.get("quantity", ("", ""))[0])
        units = file.units[0] or (unit[1] if unit else "")
        place = file.transform
        if place.b or place.d:
            raise InputError(f"{path} has a grid that is turned: warp it to rows from north to south first")
        known = file.crs is not None
        x = centres(place.c, place.a, file.width) if known else None
        y = centres(place.f, place.e, file.height) if known else None
        degrees = known and file.crs.is_geographic
        stamp = said.get("observation time", ("", ""))[1] or file.tags().get("TIFFTAG_DATETIME", "")
        time = time_in_name(Path(stamp.replace(":", "-", 2) if stamp.count(":") > 3 else stamp)) or time_in_name(path)
        code = file.nodata if file.nodata is not None else _number(said, "nodata")
        gain, offset = (
            _number(said, name, usual) for name, usual in (("gain", file.scales[0]), ("offset", file.offsets[0]))
        )
        nothing = _number(said, "undetect")
        attrs = {
            "units": units,
            "precipitation": bool(re.search("dBZ|mm", units)),
            "crs": file.crs.to_wkt() if known else None,
        }
        keys = [(band, code, gain, offset, nothing, units == "dBZ") for band in range(1, file.count + 1)]
        times = [time] if time is not None and file.count == 1 else None
        return Header("GeoTIFF", keys, (file.height, file.width), times, x, y, "degrees" if degrees else "m", attrs)


def decode(path: Path, key: tuple[Any, ...]) -> npt.NDArray[np.float32]:
    import rasterio

    band, code, gain, offset, nothing, dbz = key
    with plain_file(path) as plain, rasterio.open(plain) as file:
        raw = file.read(band)
        hidden = file.read_masks(band) == 0 if code is None else raw == code
    value = raw.astype(np.float32) * np.float32(gain) + np.float32(offset)
    if nothing is not None:
        value[raw == nothing] = min(offset, -32.0) if dbz else 0.0
    value[hidden] = np.nan
    return value


def _number(said: dict[str, tuple[str, str]], name: str, usual: float | None = None) -> float | None:
    try:
        return float(said[name][1]) if name in said else usual
    except ValueError:
        return usual
