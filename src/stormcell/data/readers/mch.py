"""MeteoSwiss' GIF composites: a palette index a pixel stands for an amount (pysteps' importer has to be told which)."""

from __future__ import annotations

import io
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr
from PIL import Image

from ...errors import InputError, reason
from .raw import Header, content, lazily

_PRODUCT = re.compile(rb"PRDT=(?P<name>AQC|CPC)(?P<year>\d\d)(?P<day>\d{3})(?P<hour>\d\d)(?P<minute>\d\d)")
_MINUTES = re.compile(rb"ACCUm?=(\d+)")
_SHAPE = (640, 710)
_CRS = (
    "+proj=somerc +lon_0=7.43958333333333 +lat_0=46.9524055555556 +k_0=1 +x_0=600000 +y_0=200000 +ellps=bessel "
    "+towgs84=674.374,15.056,405.346,0,0,0,0 +units=m +no_defs"
)
_WEST, _NORTH = 255_000.0, 480_000.0  # edges, in metres
_ZR = (316.0, 1.5)
_DRY_BELOW, _MISSING = 2, 255


def recognises(start: bytes) -> bool:
    return start.startswith(b"GIF8") and b"Meteoswiss" in start and _PRODUCT.search(start) is not None


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    data = content(path)
    match = _PRODUCT.search(data[:4096])
    minutes = _MINUTES.search(data[:4096])
    if match is None or minutes is None or int(minutes[1]) < 1:
        raise InputError(f"{path} does not say which product it is, and over how many minutes")
    start = np.datetime64(f"20{match['year'].decode()}-01-01T{match['hour'].decode()}:{match['minute'].decode()}", "ns")
    time = start + np.timedelta64(int(match["day"]) - 1, "D")
    with Image.open(io.BytesIO(data)) as image:
        shape = image.size[1], image.size[0]
    x = y = None
    if shape == _SHAPE:
        x, y = _WEST + 1000 * (np.arange(shape[1]) + 0.5), _NORTH - 1000 * (np.arange(shape[0]) + 0.5)
    product = match["name"].decode()
    attrs = {"units": "mm/h", "precipitation": True, "crs": _CRS if x is not None else None, "quantity": product}
    attrs |= {"zr_a": _ZR[0], "zr_b": _ZR[1]}
    header = Header(f"MeteoSwiss GIF ({product})", [60 / int(minutes[1])], shape, [time], x, y, "m", attrs)
    return lazily(path, header, decode)


def decode(path: Path, key: float) -> npt.NDArray[np.float32]:
    """Rain rate in mm/h; `key` steps make an hour."""
    try:
        with Image.open(io.BytesIO(content(path))) as image:
            index = np.asarray(image)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{path} breaks off or is damaged ({reason(error)}): take it out or fetch it again") from error
    return _amounts()[index] * np.float32(key)


def _amounts() -> npt.NDArray[np.float32]:
    """mm a step by palette index: reflectivity in steps of half a dB, through Z = 316 R^1.5; 251 to 254 are no rain either."""
    index = np.arange(256)
    found = (10.0 ** ((index - 71.5) / 20.0) / _ZR[0]) ** (1 / _ZR[1])
    found[(index < _DRY_BELOW) | (index > 250)] = 0
    found[_MISSING] = np.nan
    return found.astype(np.float32)
