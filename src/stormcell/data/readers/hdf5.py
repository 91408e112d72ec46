"""HDF5 files, each read in a process of its own: which kind it is, and NetCDF-4 to xarray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..child import apart, call
from . import cf, knmi, odim
from .raw import Header, kept_copy, lazily, plain_file

SUFFIXES = (".h5", ".hdf", ".hdf5", ".he5")
_RADAR = (odim, knmi)


def recognises(start: bytes) -> bool:
    return start.startswith(b"\x89HDF\r\n\x1a\n")


def read(path: Path, variable: str | None = None) -> xr.DataArray:
    """Frames of one file. Raises InputError if it is not clear which of its quantities is meant."""
    header = call(describe, path, variable)
    return cf.read(kept_copy(path), variable) if header is None else lazily(path, header, apart(decode))


def describe(path: Path, variable: str | None) -> Header | None:
    """None for NetCDF-4; all of its structure has been read by then, so that it can be opened without fear."""
    import h5py

    with plain_file(path) as plain, h5py.File(plain) as file:
        for kind in _RADAR:
            if kind.recognises(file):
                return kind.describe(file, path, variable)
        file.visititems(lambda name, item: list(item.attrs.items()) and None)
    return None


def decode(path: Path, key: Any) -> npt.NDArray[np.float32]:
    """One field (y, x) of a radar product."""
    import h5py

    with plain_file(path) as plain, h5py.File(plain) as file:
        kind = next(kind for kind in _RADAR if kind.recognises(file))
        return kind.decode(file, key)
