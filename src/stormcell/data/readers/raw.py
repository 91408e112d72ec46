"""What a reader hands over: the array as the file holds it, with the names of its axes settled."""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import math
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ...errors import InputError

LARGEST_FRAME = 2**26  # pixels of a radar product: five times more than of the largest there are
LARGEST_UNPACKED = 2**29  # bytes
_GZIP = b"\x1f\x8b"

# 20160928_1445, 2016-09-28T14:45, 201609281445, 20160928.144500 … A longer run of digits is no time.
_TIME = re.compile(
    r"(?<!\d)(?P<Y>(?:19|20)\d\d)[-_.]?(?P<m>0[1-9]|1[0-2])[-_.]?(?P<d>0[1-9]|[12]\d|3[01])"
    r"[-_.T ]?(?P<H>[01]\d|2[0-3])[-_.h:]?(?P<M>[0-5]\d)(?:[-_.m:]?(?P<S>[0-5]\d))?(?!\d)"
)


class CompanionFile(InputError):
    """A file that belongs to frames but holds none: coordinates, quality. A folder of frames may hold it."""


# --- bytes, packed or not ---


def unpacked_name(path: Path) -> str:
    """The name without .gz, in lower case."""
    name = path.name.lower()
    return name.removesuffix(".gz")


def is_packed(path: Path) -> bool:
    if path.is_dir():
        return False
    with path.open("rb") as stream:
        return stream.read(2) == _GZIP


def start_of(path: Path, size: int = 4096) -> bytes:
    """The first bytes of a file; of what is inside, if it is packed with gzip. Raises OSError, or EOFError for a broken one."""
    with path.open("rb") as stream:
        start = stream.read(size)
    if not start.startswith(_GZIP):
        return start
    with gzip.open(path) as stream:
        return stream.read(size)


def content(path: Path) -> bytes:
    """All bytes, unpacked. Raises InputError if they are more than any frame."""
    with io.BytesIO() as whole:
        _unpack(path, whole)
        return whole.getvalue()


def _unpack(path: Path, into: IO[bytes]) -> None:
    """Raises InputError as soon as it is more than any frame; at its end the checksum is compared."""
    size = 0
    with gzip.open(path) if is_packed(path) else path.open("rb") as stream:
        while part := stream.read(2**20):
            size += len(part)
            if size > LARGEST_UNPACKED:
                raise InputError(f"{path} unpacks to more than {LARGEST_UNPACKED // 2**20} MB: no file of frames does")
            into.write(part)


def _unpacked_into(path: Path, folder: str) -> Path:
    copy = Path(folder) / unpacked_name(path)
    with copy.open("wb") as stream:
        _unpack(path, stream)
    return copy


@contextlib.contextmanager
def plain_file(path: Path) -> Iterator[Path]:
    """The file itself, or for as long as it is needed an unpacked copy, for libraries that read no gzip."""
    if not is_packed(path):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        yield _unpacked_into(path, folder)


_copies: dict[Path, Path] = {}


def kept_copy(path: Path) -> Path:
    """The file itself, or an unpacked copy that lasts as long as this program, for values that stay on disk."""
    if not is_packed(path):
        return path
    if path not in _copies:
        _copies[path] = _unpacked_into(path, tempfile.mkdtemp(dir=_scratch().name))
    return _copies[path]


def forget_copy(path: Path) -> None:
    """Remove the copy, where there is one, of a file whose values have been read."""
    if path in _copies:
        shutil.rmtree(_copies.pop(path).parent, ignore_errors=True)


@functools.cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="stormcell-")  # goes when the program ends


# --- times in names ---


def time_in_name(path: Path) -> np.datetime64 | None:
    """The time that a file's name bears, or None."""
    match = _TIME.search(path.name)
    if match is None:
        return None
    part = match.groupdict(default="00")
    try:
        return np.datetime64(f"{part['Y']}-{part['m']}-{part['d']}T{part['H']}:{part['M']}:{part['S']}", "ns")
    except ValueError:  # 31 February
        return None


# --- arrays ---


def choose(path: Path, found: Collection[str], variable: str | None, *, what: str, prefix: str = "", none: str) -> str:
    """The one that is asked for, or the only one. Raises InputError with all that there are, or `none`."""
    if variable is None and len(found) == 1:
        return next(iter(found))
    names = ", ".join(found) or none
    if variable is None:
        raise InputError(f"{path} holds {prefix}{names}: choose with --variable")
    if variable not in found:
        raise InputError(f"{path} has no {what} {variable!r}; it has {names}")
    return variable


def stack(data: Any, path: Path, *, times: Sequence[np.datetime64] | None = None) -> xr.DataArray:
    """(time, y, x) values without coordinates → DataArray; the time of a single frame may stand in the file's name."""
    frames = xr.DataArray(data, dims=("time", "y", "x"))
    if times is None and frames.sizes["time"] == 1:
        named = time_in_name(path)
        times = None if named is None else [named]
    if times is not None:
        frames = frames.assign_coords(time=np.asarray(times, dtype="datetime64[ns]"))
    return frames


@dataclass
class Header:
    """What a file says of its frames, read without their values.

    Attributes:
        kind: of the file, as people call it.
        keys: of each frame, which `decode` takes.
        shape: (y, x).
        times: of the frames, None where the file does not say.
        x, y: of pixel centres, in `grid_units`; None where the place is unknown.
        attrs: units, precipitation, crs, zr_a, zr_b.
        others: keys of further fields of the same shape, by the name of their coordinate.
    """

    kind: str
    keys: list[Any]
    shape: tuple[int, int]
    times: list[np.datetime64] | None
    x: npt.NDArray[Any] | None = None
    y: npt.NDArray[Any] | None = None
    grid_units: str = "m"
    attrs: dict[str, Any] = field(default_factory=dict)
    others: dict[str, list[Any]] = field(default_factory=dict)


Decode = Callable[[Path, Any], npt.NDArray[np.float32]]


def lazily(path: Path, header: Header, decode: Decode) -> xr.DataArray:
    """Frames whose values are read when they are used: `decode(path, key)` gives one (y, x), NaN where missing."""
    import dask
    import dask.array

    if not 1 <= math.prod(header.shape) <= LARGEST_FRAME:
        rows, columns = header.shape
        raise InputError(
            f"{path} says that its frames have {rows}×{columns} pixels, as those of no radar: is it damaged?"
        )

    def whole(path: Path, key: Any) -> npt.NDArray[np.float32]:
        field = decode(path, key)
        if field.shape != header.shape:
            raise ValueError(f"a frame has {field.shape[0]}×{field.shape[1]} pixels, and {header.shape} were promised")
        return field.astype(np.float32, copy=False)

    def planes(keys: Sequence[Any]) -> Any:
        late = dask.delayed(whole, pure=False)
        return dask.array.stack(
            [dask.array.from_delayed(late(path, key), header.shape, dtype=np.float32) for key in keys]
        )

    frames = stack(planes(header.keys), path, times=header.times)
    for axis, values in (("x", header.x), ("y", header.y)):
        if values is not None:
            frames = frames.assign_coords({axis: (axis, values, {"units": header.grid_units})})
    for name, keys in header.others.items():
        frames = frames.assign_coords({name: (("time", "y", "x"), planes(keys))})
    frames.attrs = {"kind": header.kind, **header.attrs}
    return frames


def centres(first_edge: float, spacing: float, count: int) -> npt.NDArray[Any]:
    """Of `count` pixels that begin at an edge; a negative spacing descends."""
    return first_edge + spacing * (np.arange(count) + 0.5)
