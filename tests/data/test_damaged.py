"""Some six hundred damaged files: each is refused in one sentence, or read; none hangs, fills the memory or ends the program."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import struct
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from stormcell import open_frames
from stormcell.cli import main
from stormcell.data.contract import values
from stormcell.errors import InputError
from stormcell.forecasting.forecast import save_frames

from ..conftest import make_frames
from . import formats

VARIANTS = 32  # of each kind of file
SECONDS, MEGABYTES = 10.0, 2048
STAMP = "201609281445"
_RAIN = np.random.default_rng(0).gamma(0.5, 3, size=(4, 30, 40)).astype(np.float32)


def _netcdf(path: Path) -> None:
    save_frames(make_frames(_RAIN), path)


def _classic(path: Path) -> None:
    make_frames(_RAIN).to_dataset(name="rain").to_netcdf(path, engine="scipy", format="NETCDF3_64BIT")


def _npz(path: Path) -> None:
    times = np.datetime64("2016-09-28T14:45", "ns") + np.arange(4) * np.timedelta64(5, "m")
    np.savez_compressed(path, rain=_RAIN, time=times, units="mm/h")


def _picture(path: Path) -> None:
    Image.fromarray((_RAIN[0] * 9).clip(0, 255).astype(np.uint8)).save(path)


def _packed(path: Path) -> None:
    formats.pgm(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


KINDS: dict[str, Callable[[Path], None]] = {
    "odim.h5": formats.odim,
    "knmi.h5": formats.knmi,
    "radolan.bin": formats.radolan,
    "fmi.pgm": formats.pgm,
    "packed.pgm.gz": _packed,
    "mch.gif": formats.mch,
    "geo.tif": formats.geotiff,
    "one.grib": lambda path: formats.grib(path, edition=1, name="tp"),
    "two.grib2": formats.grib,
    "meteonet.npz": formats.meteonet,
    "rain.nc": _netcdf,
    "classic.nc": _classic,
    "rain.npy": lambda path: np.save(path, _RAIN),
    "rain.npz": _npz,
    f"grey_{STAMP}.png": _picture,
    f"grey_{STAMP}.gif": _picture,
    f"grey_{STAMP}.tif": _picture,
    f"grey_{STAMP}.jpg": _picture,
    "film.mp4": formats.video,
}
CHECKED = {"packed.pgm.gz", "meteonet.npz", "rain.npz", f"grey_{STAMP}.png"}
"""Formats with a checksum over every value: what is read from a damaged file is what was in it."""
NEEDS = {"geo.tif": "rasterio", "one.grib": "eccodes", "two.grib2": "eccodes"}
OPTIONS = {"units": "mm/h", "start": "2016-09-28T14:45", "step_minutes": 5.0}
AS_TYPED = ["--units", "mm/h", "--start", "2016-09-28T14:45", "--step-minutes", "5"]


def damaged(whole: bytes, rng: np.random.Generator) -> bytes:
    """Cut off, bytes changed anywhere or at the beginning, a stretch of zeros, a number in the header made huge."""
    data = bytearray(whole)
    how = rng.integers(5)
    if how == 0:
        return bytes(data[: rng.integers(len(data))])
    if how == 1:
        for place in rng.integers(len(data), size=rng.integers(1, 20)):
            data[place] ^= int(rng.integers(1, 256))
    elif how == 2:
        for place in rng.integers(min(len(data), 200), size=rng.integers(1, 6)):
            data[place] = int(rng.integers(256))
    elif how == 3:
        start = int(rng.integers(len(data)))
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    else:
        numbers = [match.span() for match in re.finditer(rb"\d{2,4}", bytes(data[:2000]))]
        if numbers:
            start, end = numbers[rng.integers(len(numbers))]
            data[start:end] = b"9" * (end - start)
        else:
            place = int(rng.integers(4, min(len(data), 64)))
            data[place : place + 4] = struct.pack("<I", 0x7FFFFFFF)
    return bytes(data)


@pytest.fixture
def watched() -> Iterator[None]:
    """Fails a test that takes too long or, with what it calls, too much memory."""
    began = time.monotonic()
    yield
    assert time.monotonic() - began < SECONDS
    resource = pytest.importorskip("resource", reason="memory is measured on Linux and macOS")
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        assert resource.getrusage(who).ru_maxrss < MEGABYTES * 1024


def one_sentence(path: Path, capsys: pytest.CaptureFixture[str]) -> bool:
    """Whether `stormcell inspect` reads it; if not, it says in a sentence which file it is, and its exit code is 2."""
    code = main(["inspect", str(path), *AS_TYPED])
    said = capsys.readouterr()
    if code == 0:
        return True
    assert code == 2
    assert said.err.count("\n") == 1
    assert path.name in said.err
    assert said.err.startswith("stormcell: ")
    return False


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(VARIANTS))
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.usefixtures("watched")
def test_a_damaged_file(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, name: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    if name in NEEDS:
        formats.needs(NEEDS[name])
    healthy = tmp_path_factory.getbasetemp() / f"healthy-{name}"
    if not healthy.exists():
        KINDS[name](healthy)
    whole = healthy.read_bytes()
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    path = tmp_path / name
    path.write_bytes(damaged(whole, rng))
    if not one_sentence(path, capsys):
        return
    try:
        found = values(open_frames(path, **OPTIONS))
    except InputError:
        return
    if name in CHECKED:
        np.testing.assert_array_equal(found, values(open_frames(healthy, **OPTIONS)))


RUNS = (
    "bom_melbourne_20180616_nc",
    "fmi_geotiff_20160928",
    "fmi_pgm_20160928",
    "knmi_hdf5_20100826",
    "mch_gif_20150515",
    "meteonet_npz_nw",
    "mrms_grib2_20190610",
    "opera_odim_20180824",
    "radolan_rw",
    "radolan_yw",
)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("run", RUNS)
@pytest.mark.usefixtures("watched")
def test_a_damaged_original(
    real_data: Path, tmp_path: Path, run: str, seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(path for path in (real_data / "native" / run).iterdir() if "coords" not in path.name)
    original = files[seed % len(files)]
    rng = np.random.default_rng([seed, zlib.crc32(run.encode())])
    path = tmp_path / original.name
    path.write_bytes(damaged(original.read_bytes(), rng))
    if one_sentence(path, capsys) and path.suffix == ".gz":
        with contextlib.suppress(InputError):
            np.testing.assert_array_equal(values(open_frames(path)), values(open_frames(original)))


def _bomb(path: Path) -> None:
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"P5\n# obstime 201609281445\n")
        for _ in range(1100):
            stream.write(bytes(2**20))


def _npz_bomb(path: Path) -> None:
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (400, 1000, 1000)})
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open("rain.npy", "w", force_zip64=True) as stream,
    ):
        stream.write(header.getvalue())
        for _ in range(3052):
            stream.write(bytes(2**20))


def _huge_npy(path: Path) -> None:
    with path.open("wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**5, 10**4)}
        )


def _huge_png(path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(bytes(2**20), 1)
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))


def _huge_hdf5(path: Path) -> None:
    import h5py

    formats.odim(path)
    with h5py.File(path, "a") as file:
        del file["dataset1/data1/data"]
        file["dataset1/data1"].create_dataset(
            "data", shape=(200_000, 200_000), dtype="f8", chunks=(1000, 1000), compression=1
        )


BOMBS = {
    "bomb.pgm.gz": _bomb,
    "bomb.npz": _npz_bomb,
    "huge.npy": _huge_npy,
    f"huge_{STAMP}.png": _huge_png,
    "huge.h5": _huge_hdf5,
}
UNKNOWN = {
    "odim.h5": lambda path: formats.odim(path, version="9.0"),
    "radolan.bin": lambda path: formats.radolan(path, product="ZZ"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_what_unfolds_to_more_than_memory(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    BOMBS[name](tmp_path / name)
    began = time.monotonic()
    assert not one_sentence(tmp_path / name, capsys)
    assert time.monotonic() - began < SECONDS
    resource = pytest.importorskip("resource", reason="memory is measured on Linux and macOS")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < MEGABYTES * 1024


@pytest.mark.parametrize("name", UNKNOWN)
def test_unknown_versions_and_products(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    UNKNOWN[name](tmp_path / name)
    assert not one_sentence(tmp_path / name, capsys)
