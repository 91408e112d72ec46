"""A training store as it is read: Zarr that `forecasting/archive.py` writes, and the index of its rain, which lies in it.

Crops are read past dask, whose graph of a long archive costs more than the crop. The index says of each frame which share of
each cell is wet and which is valid, half a byte for a thousand pixels, so that crops can be chosen without reading.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..errors import InputError, reason
from .units import is_rain, to_rain_rate

MARK = "stormcell_store"  # attribute of a store's group; in the encoding of frames: the store they are a stretch of
FRAMES, PIXELS = 12, 128  # of a chunk: an hour of radar, and the side of a crop
CELL = 64  # pixels
INDEX = ".stormcell-index"
WET_MM_H = 0.1  # what verification calls wet
_FULL = 255
_PROBES = 3


def is_store(path: Path) -> bool:
    """Whether a folder is a store of ours."""
    try:
        return MARK in json.loads((path / ".zattrs").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False


def linked(frames: xr.DataArray, path: str | Path) -> xr.DataArray:
    """The same frames, which know that they are values of a store, as they are. What is computed from them does not."""
    frames = frames.copy(deep=False)
    frames.encoding = {**frames.encoding, MARK: str(path)}
    return frames


@functools.lru_cache(maxsize=8)
def _opened(path: str, changed: int) -> xr.DataArray:
    """Values on disk, without dask."""
    dataset = xr.open_dataset(path, engine="zarr", chunks=None, cache=False, mask_and_scale=False)
    return dataset[str(dataset.attrs[MARK])]


def opened(path: str | Path) -> xr.DataArray:
    """The frames of a store, from disk with each look. Raises InputError if it is damaged."""
    try:
        return _opened(str(path), (Path(path) / ".zmetadata").stat().st_mtime_ns)
    except Exception as error:  # zarr raises what it likes
        raise InputError(f"{path} breaks off or is damaged ({reason(error)})") from error


@dataclass(frozen=True)
class Stretch:
    """The frames of a store from `first` on, as many as a run has."""

    path: str
    first: int

    def read(self, time: slice, y: slice, x: slice) -> npt.NDArray[np.float32]:
        """Raises InputError where a chunk is damaged."""
        time = slice(self.first + time.start, self.first + time.stop)
        try:
            return np.asarray(opened(self.path).variable[time, y, x], dtype=np.float32)
        except Exception as error:  # codecs raise what they like
            raise InputError(f"{self.path} breaks off or is damaged ({reason(error)})") from error


def stretch_of(run: xr.DataArray) -> Stretch | None:
    """Where a run lies in the store that it comes from; None for frames that are not a stretch of one, as they are."""
    path = run.encoding.get(MARK)
    if path is None or run.chunks is None:
        return None
    stored, times = opened(path), run.time.values
    first = int(np.searchsorted(stored.time.values, times[0]))
    whole = stored.shape[1:] == run.shape[1:]
    same = whole and np.array_equal(stored.time.values[first : first + len(times)], times)
    return Stretch(path, first) if same else None


# --- the index ---


def record(shape: tuple[int, ...]) -> np.dtype[Any]:
    """What the index says of a frame (Y, X): its time, and of each cell the shares, of 255."""
    cells = tuple(-(-n // CELL) for n in shape[-2:])
    return np.dtype([("time", "<i8"), ("wet", "u1", cells), ("valid", "u1", cells)])


def records(frames: npt.NDArray[np.float32], times: npt.NDArray[np.datetime64], attrs: Any) -> npt.NDArray[Any]:
    """Of frames (T, Y, X); any rain at all makes a cell's share of it 1 of 255 at least. What is not rain is never wet."""
    found = np.zeros(len(frames), record(frames.shape))
    found["time"] = times.astype("datetime64[ns]").astype(np.int64)
    found["valid"] = np.floor(_FULL * _shares(np.isfinite(frames)))
    if is_rain(attrs["units"]):
        rates = to_rain_rate(frames, attrs["units"], (attrs["zr_a"], attrs["zr_b"]))
        found["wet"] = np.ceil(_FULL * _shares(rates >= WET_MM_H))
    return found


def _shares(where: npt.NDArray[np.bool_]) -> npt.NDArray[np.float64]:
    """Of the pixels of each cell; cells at the end may be smaller."""
    sums = where.astype(np.int32)
    sizes = []
    for axis in (1, 2):
        starts = np.arange(0, where.shape[axis], CELL)
        sums = np.add.reduceat(sums, starts, axis=axis)
        sizes.append(np.diff([*starts, where.shape[axis]]))
    return sums / np.outer(*sizes)


def index_of(path: str | Path) -> npt.NDArray[Any]:
    """A record for each frame of a store, from the file beside its values; made anew where that is not of these frames.

    It is if it has their times, and says of a few of them what they say.
    """
    stored = opened(path)
    kept = read_index(path)
    times = stored.time.values.astype("datetime64[ns]").astype(np.int64)
    kept = kept[: len(times)]
    probes = np.linspace(0, len(kept) - 1, min(_PROBES, len(kept))).astype(int)
    true = np.array_equal(kept["time"], times[: len(kept)]) and all(
        _counted(stored, k, k + 1) == kept[k] for k in probes
    )
    if true and len(kept) == len(times):
        return kept
    first = len(kept) if true else 0
    parts = [_counted(stored, k, k + FRAMES) for k in range(first, len(times), FRAMES)]
    whole = np.concatenate([kept[:first], *parts])
    part = Path(path) / f"{INDEX}.{os.getpid()}"  # several processes may find it missing at once
    with contextlib.suppress(OSError):  # a store that one may only read
        part.write_bytes(whole.tobytes())
        part.replace(Path(path) / INDEX)
    return whole


def read_index(path: str | Path) -> npt.NDArray[Any]:
    """The whole records in its file, none where there is no file."""
    kind, file = record(opened(path).shape), Path(path) / INDEX
    count = file.stat().st_size // kind.itemsize if file.exists() else 0
    return np.memmap(file, kind, "r", shape=(count,)) if count else np.zeros(0, kind)


def _counted(stored: xr.DataArray, first: int, last: int) -> npt.NDArray[Any]:
    part = stored[first:last]
    return records(part.values, part.time.values, stored.attrs)
