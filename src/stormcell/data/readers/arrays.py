"""NumPy files: `.npy` with frames (time, y, x) or one frame (y, x); `.npz` with such an array and, if there, time, x, y, units.

Nothing is unpickled: an array of Python objects is refused.
"""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from ...errors import InputError
from . import meteonet
from .raw import stack

SUFFIXES = (".npy", ".npz")
_LARGEST_BYTES = 2**30
_MAGIC = {b"\x93NUMPY": ".npy", b"PK\x03\x04": ".npz"}


def recognises(start: bytes) -> bool:
    return start.startswith(tuple(_MAGIC))


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """Frames of one file; a `.npy` is mapped, not loaded. What is in the file counts, not its suffix.

    Raises InputError if it is no NumPy file, holds Python objects, or if it is not clear which array is meant.
    """
    with path.open("rb") as stream:
        start = stream.read(6)
    kind = next((kind for magic, kind in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None:
        raise InputError(f"{path} is not a NumPy file: save frames with numpy.save or numpy.savez")
    try:
        if kind == ".npy":
            return _frames(np.load(path, mmap_mode="r", allow_pickle=False), path)
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            _check_archive(path)
            if meteonet.recognises_members(set(file.files)):
                return meteonet.read(path)
            return _from_npz(file, path, variable)
    except InputError:
        raise
    except ValueError as error:
        if "allow_pickle" not in str(error) and "objects" not in str(error).lower():
            raise
        raise InputError(f"{path} holds Python objects, which are not unpickled: save plain numbers") from error


def _check_archive(path: Path) -> None:
    """Raise InputError for more than a person wants in memory at once, ValueError for entries that its directory has lost."""
    with zipfile.ZipFile(path) as file:
        entries = file.infolist()
        for entry in entries:  # its name must be spelt the same in both places
            file.open(entry).close()
    size = sum(entry.file_size for entry in entries)
    if size > _LARGEST_BYTES:
        raise InputError(
            f"{path} unpacks to {size / 2**30:.1f} GB, and an .npz is read as a whole: save frames as .npy, NetCDF or Zarr"
        )
    with path.open("rb") as stream:
        stream.seek(-22, 2)
        signature, count = struct.unpack("<4s6xH10x", stream.read(22))
    if signature == b"PK\5\6" and count not in (len(entries), 0xFFFF):
        raise ValueError(f"its directory has {len(entries)} of {count} entries")


def _frames(array: Any, path: Path) -> xr.DataArray:
    if array.ndim == 2:
        array = array[None]
    if array.ndim != 3 or array.dtype.kind not in "biuf":
        raise InputError(f"{path} must hold numbers as (time, y, x) or (y, x); it holds {array.dtype} {array.shape}")
    return stack(array, path)


def _from_npz(file: Any, path: Path, variable: str | None) -> xr.DataArray:
    headers = {name: file[name] for name in file.files if name in ("time", "times", "x", "y", "units")}
    names = [name for name in file.files if name not in headers]
    if variable is not None and variable not in names:
        raise InputError(f"{path} has no array {variable!r}; it has {', '.join(names) or 'none'}")
    if variable is None and len(names) != 1:
        raise InputError(f"{path} holds {', '.join(names) or 'no array'}: choose one with --variable")
    frames = _frames(file[variable or names[0]], path)
    times = headers.get("time", headers.get("times"))
    if times is not None:
        if times.dtype.kind != "M" or times.shape != (frames.sizes["time"],):
            raise InputError(f"{path}: time must be datetime64 with one entry a frame, not {times.dtype} {times.shape}")
        frames = frames.assign_coords(time=times.astype("datetime64[ns]"))
    for axis in ("x", "y"):
        if axis in headers:
            frames = frames.assign_coords({axis: headers[axis]})
    if "units" in headers and headers["units"].size == 1:
        frames.attrs["units"] = str(headers["units"].item())
    return frames
