"""FMI's radar composites as PGM: reflectivity in a byte, and in comments where and when (pysteps' importer gives no time)."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError
from .raw import Header, content, lazily

SUFFIXES = (".pgm",)
_HEADER = re.compile(rb"P5\s(?P<comments>(?:\s*#[^\n]*\n)*)\s*(?P<width>\d+)\s+(?P<height>\d+)\s+(?P<most>\d+)\s")
# Not said in the files: FMI's sphere and false origin (as in pysteps), and its Z–R relation.
_EARTH = "+a=6371288 +x_0=380886.310 +y_0=3395677.920 +no_defs"
_ZR = (223.0, 1.53)
_ZERO_DBZ, _STEPS_A_DBZ = 64, 2


def recognises(start: bytes) -> bool:
    return start.startswith(b"P5") and b"# obstime" in start


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    return lazily(path, _described(path, content(path))[0], decode)


def decode(path: Path, key: int) -> npt.NDArray[np.float32]:
    """dBZ; `key` is the code of missing pixels."""
    data = content(path)
    header, start = _described(path, data)
    raw = np.frombuffer(data, np.uint8, offset=start).reshape(header.shape)
    dbz = (raw.astype(np.float32) - _ZERO_DBZ) / _STEPS_A_DBZ
    return np.where(raw == key, np.nan, dbz).astype(np.float32)


def _described(path: Path, data: bytes) -> tuple[Header, int]:
    """What its comments say, and where the pixels begin."""
    match = _HEADER.match(data)
    if match is None:
        raise InputError(f"{path} is damaged: its header cannot be read")
    lines = [line.strip("# \r").split() for line in match["comments"].decode("latin-1").split("\n")]
    said = {line[0]: line[1:] for line in lines if len(line) > 1}
    height, width = int(match["height"]), int(match["width"])
    if len(data) - match.end() != height * width:
        raise InputError(
            f"{path} breaks off, or is damaged: {height}×{width} pixels, and {len(data) - match.end()} bytes"
        )
    stamp = said.get("obstime", [""])[0]
    try:
        if len(stamp) != 12:
            raise ValueError
        time = np.datetime64(f"{stamp[:4]}-{stamp[4:6]}-{stamp[6:8]}T{stamp[8:10]}:{stamp[10:]}", "ns")
    except ValueError:
        raise InputError(f"{path} is damaged: its obstime is {stamp!r}") from None
    x = y = crs = None
    if said.get("type") == ["stereographic"]:
        from pyproj import Proj

        crs = "+proj=stere +lon_0={}E +lat_0={}N +lat_ts={} ".format(
            *(said[key][0] for key in ("centrallongitude", "centrallatitude", "truelatitude"))
        )
        crs += _EARTH
        longitude, latitude = said["bottomleft"]
        west, south = Proj(crs)(float(longitude), float(latitude))
        dx, dy = (float(said[f"metersperpixel_{axis}"][0]) for axis in "xy")
        x, y = west + dx * (np.arange(width) + 0.5), south + dy * (height - 0.5 - np.arange(height))
    attrs = {"units": "dBZ", "precipitation": True, "crs": crs, "zr_a": _ZR[0], "zr_b": _ZR[1]}
    return Header("FMI PGM", [int(match["most"])], (height, width), [time], x, y, "m", attrs), match.end()
