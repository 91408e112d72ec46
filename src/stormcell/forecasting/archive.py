"""Raw files of any kind → a training store (`data/store.py`), which grows at its end and is whole at every moment.

Frames are written a block at a time, as long as a chunk: beside the store's values, from where its chunks are moved in among
them, then the times, at last the consolidated metadata, which says how many frames there are. So whatever ends the program leaves
the store as it was before the block. Values stay the float32 that was read, nothing is rounded: Blosc's zstd makes little of
what is dry or has few levels.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
import zarr
from numcodecs import Blosc

from ..data.axes import same_grid
from ..data.contract import coarsen as coarsened
from ..data.contract import in_memory, zr_pair
from ..data.frames import find_files, in_turn, newer, open_frames
from ..data.reading import Reading
from ..data.store import FRAMES, INDEX, MARK, PIXELS, is_store, record, records
from ..errors import InputError
from ..writing import check_writable, whole_file
from .forecast import to_cf

_SCRATCH = ".block"
# Times are read as a whole: a year of 5-minute frames in a chunk.
_TIME = {"chunks": (2**17,), "units": "seconds since 1970-01-01", "dtype": "int64"}
_BLOSC = Blosc("zstd", 5, Blosc.SHUFFLE)
Progress = Callable[[Sequence[Any]], Iterator[Any]]


class Archive:
    """A store that frames are added to, or one that is not there yet.

    Attributes:
        times: of its frames.

    Raises InputError if something else is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.times: npt.NDArray[np.datetime64] = np.zeros(0, dtype="datetime64[ns]")
        self.waiting: list[xr.DataArray] = []  # from the last whole block on
        self.like: xr.DataArray | None = None
        if path.suffix != ".zarr":
            raise InputError(f"{path}: a store is a folder that ends in .zarr")
        if not path.exists():
            check_writable(path)
            return
        if not is_store(path):
            raise InputError(f"{path} is there already, and `stormcell store` has not made it: give another name")
        shutil.rmtree(path / _SCRATCH, ignore_errors=True)
        frames = open_frames(path)
        self.times, self.like = frames.time.values, frames.isel(time=slice(0, 1))
        whole = len(self.times) // FRAMES * FRAMES
        if whole < len(self.times):
            self.waiting = [in_memory(frames.isel(time=slice(whole, None)))]

    @property
    def newest(self) -> np.datetime64 | None:
        return self.times[-1] if len(self.times) else None

    def add(self, frames: xr.DataArray) -> None:
        """Write all whole blocks; the rest waits for more, or for `finish`. Raises InputError for another grid or unit."""
        self.like = like = frames.isel(time=slice(0, 1)) if self.like is None else self.like
        self._check(frames, like)
        at = 0
        while at < frames.sizes["time"]:
            room = FRAMES - sum(part.sizes["time"] for part in self.waiting)
            part = in_memory(frames.isel(time=slice(at, at + room)))
            self.waiting.append(part.assign_coords(x=like.x, y=like.y).rename(like.name))
            at += room
            if part.sizes["time"] == room:
                self._write()
                self.waiting = []

    def finish(self) -> None:
        """Write what waits."""
        if self.waiting and self.waiting[-1].time.values[-1] != self.newest:
            self._write()

    def _check(self, frames: xr.DataArray, like: xr.DataArray) -> None:
        source = frames.attrs["source"]
        if not same_grid(frames, like):
            raise InputError(
                f"{source} has another grid ({frames.sizes['y']}×{frames.sizes['x']} pixels) than {self.path} "
                f"({like.sizes['y']}×{like.sizes['x']}), or lies elsewhere: a store has one grid"
            )
        if frames.attrs["units"] != like.attrs["units"] or zr_pair(frames) != zr_pair(like):
            here, there = (f"{f.attrs['units']} with Z–R pair {zr_pair(f)}" for f in (frames, like))
            raise InputError(f"{source} is in {here}, and {self.path} in {there}: a store has one unit")

    def _write(self) -> None:
        block = xr.concat(
            self.waiting, "time", combine_attrs="override", coords="minimal", compat="override", join="override"
        )
        number = len(self.times) // FRAMES
        times = np.concatenate([self.times[: number * FRAMES], block.time.values])
        pair = dict(zip(("zr_a", "zr_b"), zr_pair(block)))
        said = records(block.values, block.time.values, {**block.attrs, **pair}).tobytes()
        if not len(self.times):
            with whole_file(self.path) as temporary:
                _write_zarr(block, temporary)
                (temporary / INDEX).write_bytes(said)
        else:
            scratch = self.path / _SCRATCH
            try:
                _write_zarr(block, scratch)
                _write_times(times, scratch / "times")
                self._take(scratch, number, len(times), said)
            except OSError as error:
                raise InputError(f"{self.path} cannot be written ({error.strerror or error})") from error
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        self.times = times

    def _take(self, scratch: Path, number: int, count: int, said: bytes) -> None:
        """A block that lies in `scratch`, and what the index says of it, in the order that keeps the store whole."""
        metadata = json.loads((self.path / ".zmetadata").read_text(encoding="utf-8"))
        arrays, name = metadata["metadata"], metadata["metadata"][".zattrs"][MARK]
        for chunk in (scratch / name).glob("[0-9]*"):
            _move(chunk, self.path / name / f"{number}.{chunk.name.partition('.')[2]}")
        for chunk in (scratch / "times" / "time").glob("[0-9]*"):
            _move(chunk, self.path / "time" / chunk.name)
        self._index(said, number * FRAMES * record(tuple(arrays[f"{name}/.zarray"]["shape"])).itemsize)
        for array in (name, "time"):
            arrays[f"{array}/.zarray"]["shape"][0] = count
        _replace(self.path / ".zmetadata", metadata)
        for array in (name, "time"):  # for readers that do not ask the consolidated one
            _replace(self.path / array / ".zarray", arrays[f"{array}/.zarray"])

    def _index(self, said: bytes, at: int) -> None:
        file = self.path / INDEX
        if file.exists() and file.stat().st_size >= at:  # else it is made anew where it is read
            with file.open("r+b") as stream:
                stream.seek(at)
                stream.write(said)
                stream.truncate()


def _write_zarr(block: xr.DataArray, folder: Path) -> None:
    dataset = to_cf(block)
    name = str(block.name or "frames")
    dataset.attrs[MARK] = name
    codec: dict[str, Any] = {"compressor": _BLOSC} if zarr.__version__.startswith("2.") else {"compressors": (_BLOSC,)}
    encoding = {
        name: {"chunks": (FRAMES, PIXELS, PIXELS), "_FillValue": np.float32(np.nan), **codec},
        "time": _TIME,
    }
    for variable in dataset.variables.values():
        variable.encoding = {}
    dataset.to_zarr(folder, mode="w", zarr_format=2, consolidated=True, encoding=encoding)


def _write_times(times: npt.NDArray[np.datetime64], folder: Path) -> None:
    xr.Dataset(coords={"time": times}).to_zarr(folder, mode="w", zarr_format=2, encoding={"time": _TIME})


def _replace(path: Path, value: Any) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(json.dumps(value, indent=1), encoding="utf-8")
    _move(part, path)


def _move(source: Path, target: Path) -> None:
    """At once, in the place of what is there."""
    source.replace(target)


def fill(
    archive: Archive,
    data: str | Sequence[str],
    reading: Reading | None = None,
    *,
    coarsen: int = 1,
    progress: Progress = iter,
) -> int:
    """Add the frames of files, folders and globs that are newer than those of the store; returns how many.

    Only a few files are open at a time. Files are taken in the order in which they are named, in folders by their names, and
    must ascend in time. `progress` wraps the list of files, or where there is one, of its blocks, to show a bar.

    Raises InputError as `open_frames` does, and for frames of another grid or unit than those before, or out of order.
    """
    reading = reading or Reading()
    files: Sequence[Path] = [path for path in find_files(data) if path.resolve() != archive.path.resolve()]
    if archive.newest is not None:
        files = newer(files, reading, archive.newest)
    before, alone = len(archive.times), len(files) == 1
    for frames in in_turn(files if alone else progress(files), reading, after=archive.newest, at_least=FRAMES):
        frames = coarsened(frames, coarsen)
        blocks = range(0, frames.sizes["time"], FRAMES)
        for at in progress(blocks) if alone else blocks:
            archive.add(frames.isel(time=slice(at, at + FRAMES)))
    archive.finish()
    if archive.newest is None:
        raise InputError(f"{', '.join([data] if isinstance(data, str) else data)}: no file has frames")
    return len(archive.times) - before
