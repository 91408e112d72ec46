"""One small file a kind of file: each turns one file into a `(time, y, x)` DataArray, as raw as the file holds it.

A kind is recognised by the first bytes of a file, packed with gzip or not; the name of a file only says that it may hold frames
at all. A reader has `recognises(start)` and `read(path, variable)`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import xarray as xr

from ...errors import InputError, reason
from . import arrays, cf, geotiff, grib, hdf5, images, mch, pgm, radolan, video
from .raw import is_packed, kept_copy, start_of, unpacked_name


class Reader(Protocol):
    def recognises(self, start: bytes) -> bool: ...
    def read(self, path: Path, variable: str | None = None) -> xr.DataArray: ...


# What is special comes before what is general: FMI's PGM before any PGM.
_READERS: tuple[Reader, ...] = (hdf5, grib, radolan, pgm, mch, arrays, images, video, cf)
_KINDS: dict[Reader, str] = {hdf5: "NetCDF", cf: "NetCDF", arrays: "NumPy"}
_UNPACK_THEMSELVES: tuple[Reader, ...] = (hdf5, grib, radolan, pgm, mch)
SUFFIXES = tuple(
    dict.fromkeys(
        suffix
        for module in (cf, hdf5, grib, radolan, pgm, arrays, images, geotiff, video)
        for suffix in module.SUFFIXES
    )
)
FORMATS = "NetCDF, Zarr, HDF5 (ODIM, KNMI), GRIB, RADOLAN, GeoTIFF, PGM, .npy, .npz, PNG, JPEG, GIF, TIFF, MP4"


def is_zarr(path: Path) -> bool:
    return path.is_dir() and (
        path.suffix.lower() == ".zarr" or any((path / name).exists() for name in ("zarr.json", ".zgroup", ".zarray"))
    )


def may_hold_frames(path: Path) -> bool:
    """By its name, or, where that says nothing, by its first bytes."""
    if path.name.startswith("."):
        return False
    if path.is_dir():
        return is_zarr(path)
    return Path(unpacked_name(path)).suffix in SUFFIXES or _reader_of(path) is not None


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """Frames of one file, by the reader that recognises it. Raises InputError if there is none, and what that raises."""
    reader = cf if is_zarr(path) else _reader_of(path)
    if reader is None:
        raise InputError(f"{path} has no known format, or is damaged from its first byte; known are {FORMATS}")
    plain = path if reader in _UNPACK_THEMSELVES or path.is_dir() else kept_copy(path)
    try:
        frames = reader.read(plain, variable)
        kind = frames.attrs.setdefault(
            "kind", "Zarr" if path.is_dir() else _KINDS.get(reader, plain.suffix[1:].upper())
        )
        frames.attrs["kind"] = kind + (", packed with gzip" if is_packed(path) else "")
        return frames
    except InputError as error:
        raise type(error)(str(error).replace(str(plain), str(path))) from error


def _reader_of(path: Path) -> Reader | None:
    try:
        start = start_of(path)
    except (OSError, EOFError) as error:
        if not path.is_file():
            raise InputError(f"{path} cannot be opened ({reason(error)})") from error
        return None
    return next((reader for reader in _READERS if reader.recognises(start)), None)
