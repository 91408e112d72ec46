"""RADOLAN and RADKLIM composites of Deutscher Wetterdienst: a line of text, then a byte or two a pixel, south to north.

After DWD's descriptions (RADOLAN/RADVOR-OP composite formats, version 2.5; RADKLIM). wradlib decodes the same, but needs a
hundred megabytes of libraries for it; pysteps' importer guesses the size of the header from that of the file. A test holds our
values against wradlib's.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError
from .raw import Header, content, lazily

SUFFIXES = (".bin",)
_START = re.compile(
    rb"(?P<product>[A-Z]{2})(?P<day>\d\d)(?P<hour>\d\d)(?P<minute>\d\d)\d{5}(?P<month>\d\d)(?P<year>\d\d)BY"
)
_SPHERE = "+proj=stere +lat_0=90 +lat_ts=60 +lon_0=10 +a=6370040 +b=6370040 +no_defs"
# Lower left corner, in km, of each grid by (rows, columns): table 2.4 there.
_CORNERS = {
    (900, 900): (-523.4622, -4658.645),
    (1100, 900): (-443.4622, -4758.645),
    (1500, 1400): (-673.4656656, -5008.645),
}
_CORNERS |= {(1200, 1100): (-543.4622, -4822.589)}
_VALUE, _NO_DATA, _NEGATIVE = 0x0FFF, 0x2000, 0x4000  # further bits flag clutter and secondary data, whose values stay
_PRODUCTS = (
    "RX",
    "WX",
    "EX",
    "RZ",
    "RY",
    "RV",
    "RH",
    "RB",
    "RL",
    "RW",
    "RU",
    "RS",
    "RQ",
    "RE",
    "SF",
    "SH",
    "SQ",
    "YW",
    "WN",
)
_BYTES = {"RX": 1, "WX": 1, "EX": 1}  # reflectivity in a byte: dBZ = value / 2 - 32.5
_BYTE_CLUTTER, _BYTE_MISSING = 249, 250
_LARGEST_HEADER = 4096


def recognises(start: bytes) -> bool:
    return _START.match(start) is not None


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    header, _, _ = _described(path, content(path))
    if variable not in (None, header.attrs["quantity"]):
        raise InputError(f"{path} holds {header.attrs['quantity']}, not {variable}")
    return lazily(path, header, decode)


def decode(path: Path, key: float) -> npt.NDArray[np.float32]:
    """One frame, times `key`."""
    data = content(path)
    header, start, width = _described(path, data)
    raw = np.frombuffer(data, "<u2" if width == 2 else "u1", offset=start).reshape(header.shape)
    if width == 1:
        dbz = raw / np.float32(2) - np.float32(32.5)
        return np.where((raw == _BYTE_CLUTTER) | (raw == _BYTE_MISSING), np.nan, dbz).astype(np.float32)
    value = (raw & _VALUE) * np.where(raw & _NEGATIVE, -key, key)
    return np.where(raw & _NO_DATA, np.nan, value).astype(np.float32)


def _described(path: Path, data: bytes) -> tuple[Header, int, int]:
    """What the header says, where the pixels begin, and how many bytes each has."""
    end = data.find(b"\x03", 0, _LARGEST_HEADER)
    match = _START.match(data)
    if end < 0 or match is None:
        raise InputError(f"{path} breaks off, or is damaged: its header does not end")
    text = data[match.end() : end].decode("latin-1")
    part = {key: value.decode() for key, value in match.groupdict().items()}
    product = part["product"]
    if product not in _PRODUCTS:
        raise InputError(f"{path} is a RADOLAN product {product}, which is not known; known are {', '.join(_PRODUCTS)}")
    size, precision, interval = (_found(pattern, text, path) for pattern in
                                 (r"GP\s*(\d+)x\s*(\d+)", r"PR\s*E([-+]\d+)", r"INT\s*(\d+)"))  # fmt: skip
    rows, columns = int(size[1]), int(size[2])
    width = _BYTES.get(product, 2)
    if len(data) - end - 1 != rows * columns * width:
        raise InputError(
            f"{path} breaks off, or is damaged: {rows}×{columns} pixels of {width} bytes are {rows * columns * width}, and it "
            f"has {len(data) - end - 1}"
        )
    year = 2000 + int(part["year"]) if int(part["year"]) < 80 else 1900 + int(part["year"])
    try:
        time = np.datetime64(f"{year}-{part['month']}-{part['day']}T{part['hour']}:{part['minute']}", "ns")
    except ValueError:
        raise InputError(f"{path} is damaged: its header has the time {match[0].decode()}") from None
    minutes = int(interval[1]) * (10 if re.search(r"U1(?!\d)", text) else 1)
    scale = 10.0 ** int(precision[1])
    rate = scale if width == 1 else scale * 60 / max(minutes, 1)
    if (rows, columns) not in _CORNERS:
        raise InputError(f"{path} has {rows}×{columns} pixels: that is none of the grids of DWD's composites")
    west, south = _CORNERS[rows, columns]
    x, y = ((edge + 0.5 + np.arange(count)) * 1000 for edge, count in ((west, columns), (south, rows)))
    units = "dBZ" if width == 1 else "mm/h"
    attrs = {"units": units, "precipitation": True, "crs": _SPHERE, "quantity": product}
    return Header(f"RADOLAN {product}", [rate], (rows, columns), [time], x, y, "m", attrs), end + 1, width


def _found(pattern: str, text: str, path: Path) -> re.Match[str]:
    match = re.search(pattern, text)
    if match is None:
        raise InputError(f"{path} is damaged: its header {text[:60]!r} does not say the size, precision and interval")
    return match
