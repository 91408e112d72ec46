"""Each radar format on a file of a few pixels: values, missing pixels, no echo, time, place; and what is wrong with files."""

from __future__ import annotations

import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stormcell import InputError, open_frames
from stormcell.data import child
from stormcell.data.child import ChildError
from stormcell.data.contract import values

from . import formats
from .formats import LEVELS, TIME

MISSING = LEVELS == 255
RATES = np.where(MISSING, np.nan, LEVELS * 0.1)
DBZ = np.where(MISSING, np.nan, LEVELS * 0.5 - 32)


def first(frames: xr.DataArray) -> np.ndarray:
    return values(frames)[0, : LEVELS.shape[0], : LEVELS.shape[1]]


def holds(frames: xr.DataArray, expected: np.ndarray, units: str, *, spacing: float) -> None:
    np.testing.assert_allclose(first(frames), expected, rtol=1e-5, atol=1e-5)
    assert frames.attrs["units"] == units
    assert frames.time.values[0] == TIME
    assert float(frames.x[1] - frames.x[0]) == pytest.approx(spacing, rel=1e-3)
    assert float(frames.y[0] - frames.y[1]) == pytest.approx(spacing, rel=1e-3)
    assert "spatial_ref" in frames.coords


@pytest.mark.parametrize(
    ("version", "nested"), [("2.0", False), ("2.1", True), ("2.2", True), ("2.3", True), ("2.4", True)]
)
@pytest.mark.parametrize(
    ("quantity", "expected", "units"), [("RATE", RATES, "mm/h"), ("ACRR", 4 * RATES, "mm/h"), ("DBZH", DBZ, "dBZ")]
)
def test_odim(tmp_path: Path, version: str, nested: bool, quantity: str, expected: np.ndarray, units: str) -> None:
    formats.odim(tmp_path / "a.h5", version=version, quantity=quantity, nested=nested)
    frames = open_frames(tmp_path / "a.h5")
    holds(frames, expected, units, spacing=2000)
    assert (float(frames.x[0]), float(frames.y[0])) == pytest.approx((1000, -1000), abs=1)
    np.testing.assert_allclose(frames.quality[0], 0.8, rtol=1e-6)


def test_odim_that_is_something_else(tmp_path: Path) -> None:
    formats.odim(tmp_path / "a.h5", object_="PVOL")
    with pytest.raises(InputError, match=r"a\.h5 is no composite but PVOL, in polar coordinates"):
        open_frames(tmp_path / "a.h5")
    formats.odim(tmp_path / "a.h5", version="7.0")
    with pytest.raises(InputError, match=r"is ODIM HDF5 of version 7\.0"):
        open_frames(tmp_path / "a.h5")
    formats.odim(tmp_path / "a.h5")
    with pytest.raises(InputError, match="has no quantity 'DBZH'; it has RATE"):
        open_frames(tmp_path / "a.h5", variable="DBZH")


def test_knmi(tmp_path: Path) -> None:
    formats.knmi(tmp_path / "a.h5")
    frames = open_frames(tmp_path / "a.h5")
    holds(frames, np.where(MISSING, np.nan, LEVELS * 0.12), "mm/h", spacing=1000)
    assert (float(frames.x[0]), float(frames.y[0])) == (500, -3_650_500)


def test_radolan(tmp_path: Path) -> None:
    formats.radolan(tmp_path / "raa01-rw_10000-1609281445-dwd---bin")
    frames = open_frames(tmp_path)
    holds(frames, RATES, "mm/h", spacing=1000)
    assert np.isnan(frames.values).mean() > 0.99
    assert frames.y[0] > frames.y[-1]


def test_radolan_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    formats.radolan(path)
    whole = path.read_bytes()
    for damaged, message in (
        (whole[:-5], r"900×900 pixels of 2 bytes are 1620000, and it has 1619995"),
        (whole.replace(b"GP 900x 900", b"GP 900x xyz"), "does not say the size"),
        (whole.replace(b"RW281445", b"RW321445"), "is damaged: its header has the time"),
        (whole[:90].replace(b"\x03", b""), "its header does not end"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=message):
            open_frames(path)


def test_fmi_pgm(tmp_path: Path) -> None:
    formats.pgm(tmp_path / "a.pgm")
    frames = open_frames(tmp_path / "a.pgm")
    holds(frames, np.where(MISSING, np.nan, (LEVELS.astype(float) - 64) / 2), "dBZ", spacing=1000)
    assert frames.attrs["zr"] == (223.0, 1.53)


def test_mch_gif(tmp_path: Path) -> None:
    formats.mch(tmp_path / "a.gif")
    frames = open_frames(tmp_path / "a.gif")
    mm = (10 ** ((LEVELS.astype(float) - 71.5) / 20) / 316) ** (1 / 1.5)
    holds(frames, np.where(MISSING, np.nan, np.where(LEVELS < 2, 0, 12 * mm)), "mm/h", spacing=1000)


def test_geotiff(tmp_path: Path) -> None:
    pytest.importorskip("rasterio", reason="GeoTIFF needs rasterio")
    formats.geotiff(tmp_path / "a.tif")
    frames = open_frames(tmp_path / "a.tif")
    holds(frames, DBZ, "dBZ", spacing=250)
    assert (float(frames.x[0]), float(frames.y[0])) == (100_125, 6_999_875)


@pytest.mark.parametrize("edition", [1, 2])
def test_grib(tmp_path: Path, edition: int) -> None:
    formats.needs("eccodes")
    formats.grib(tmp_path / "a.grib", edition=edition, name="tp" if edition == 1 else "tprate", messages=3)
    frames = open_frames(tmp_path / "a.grib", units="mm/h")
    holds(frames, np.where(MISSING, np.nan, LEVELS), "mm/h", spacing=0.5)
    assert frames.sizes["time"] == 3
    assert (float(frames.x[0]), float(frames.y[0])) == (-10, 50)


def test_amounts_in_grib(tmp_path: Path) -> None:
    """Over an hour each they are rates; from the beginning of a forecast on they are not taken for it."""
    formats.needs("eccodes")
    formats.grib(tmp_path / "a.grib", edition=1, name="tp", messages=2, steps="0-3,3-6")
    frames = open_frames(tmp_path / "a.grib")
    np.testing.assert_allclose(first(frames), np.where(MISSING, np.nan, LEVELS * 1000.0 / 3), rtol=1e-5)
    np.testing.assert_array_equal(frames.time, np.array(["2016-09-28T03", "2016-09-28T06"], "M8[ns]"))
    formats.grib(tmp_path / "b.grib", edition=1, name="tp", messages=2, steps="0-3,0-6")
    with pytest.raises(InputError, match="the amounts of tp are over 180 to 360 minutes"):
        open_frames(tmp_path / "b.grib")


def test_mrms(tmp_path: Path) -> None:
    formats.needs("eccodes")
    formats.grib(tmp_path / "a.grib2", mrms=True)
    holds(open_frames(tmp_path / "a.grib2"), np.where(MISSING, np.nan, LEVELS), "mm/h", spacing=0.5)
    with pytest.raises(InputError, match="has no variable 'tp'; it has PrecipRate"):
        open_frames(tmp_path / "a.grib2", variable="tp")


def test_meteonet_and_its_companions(tmp_path: Path) -> None:
    formats.meteonet(tmp_path / "rainfall_NW.npz")
    shutil.copy(tmp_path / "rainfall_NW.npz", tmp_path / "rainfall_mean_quality-code_NW.npz")
    frames = open_frames(tmp_path)
    holds(frames, np.where(MISSING, np.nan, LEVELS * 0.12), "mm/h", spacing=0.01)
    assert frames.sizes["time"] == 3
    with pytest.raises(InputError, match="holds MeteoNet's coordinates, no frames"):
        open_frames(tmp_path / "radar_coords_NW.npz")
    with pytest.raises(InputError, match="holds MeteoNet's quality codes, no frames"):
        open_frames(tmp_path / "rainfall_mean_quality-code_NW.npz")


class Evil:
    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.system, ("touch pwned",)


def test_no_pickle_is_obeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    formats.meteonet(tmp_path / "rainfall.npz", dates=formats.pickled(Evil()))
    with pytest.raises(InputError, match=r"its dates hold (posix|nt)\.system"):
        open_frames(tmp_path / "rainfall.npz")
    assert not (tmp_path / "pwned").exists()


@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning"
)  # of imageio-ffmpeg
def test_videos(tmp_path: Path) -> None:
    formats.video(tmp_path / "film_201609281445.mp4")
    frames = open_frames(tmp_path / "film_201609281445.mp4", units="mm/h", step_minutes=5)
    assert frames.shape == (3, 32, 32)
    ramp = np.add.outer(np.arange(32), 4 * np.arange(32))
    assert np.abs(frames.values[2] - (ramp + 20)).mean() < 4  # lossy
    formats.video(tmp_path / "b.mp4", colour=True)
    with pytest.raises(InputError, match=r"b\.mp4 is a video in colour"):
        open_frames(tmp_path / "b.mp4", units="mm/h", start="2016-09-28", step_minutes=5)
    (tmp_path / "c.mp4").write_bytes((tmp_path / "film_201609281445.mp4").read_bytes()[:200])
    with pytest.raises(InputError, match=r"c\.mp4 is no video that ffmpeg can read"):
        open_frames(tmp_path / "c.mp4", units="mm/h", start="2016-09-28", step_minutes=5)


WRITERS = {
    "odim.h5": formats.odim,
    "knmi.h5": formats.knmi,
    "rw.bin": formats.radolan,
    "fmi.pgm": formats.pgm,
    "mch.gif": formats.mch,
    "geo.tif": formats.geotiff,
}


@pytest.mark.parametrize("name", WRITERS)
def test_packed_and_misnamed_files_are_what_is_in_them(tmp_path: Path, name: str) -> None:
    if name == "geo.tif":
        pytest.importorskip("rasterio", reason="GeoTIFF needs rasterio")
    WRITERS[name](tmp_path / name)
    expected = open_frames(tmp_path / name)
    packed = tmp_path / f"{name}.gz"
    packed.write_bytes(gzip.compress((tmp_path / name).read_bytes()))
    shutil.copy(tmp_path / name, tmp_path / "nameless")
    for path in (packed, tmp_path / "nameless"):
        found = open_frames(path)
        np.testing.assert_array_equal(found.values, expected.values)
        assert found.time.values == expected.time.values
        assert found.attrs["source"] == str(path)
    damaged = bytearray(packed.read_bytes())
    damaged[-6] ^= 1  # of its checksum
    packed.write_bytes(damaged)
    with pytest.raises(InputError, match=rf"{name}\.gz"):
        values(open_frames(packed))


def test_what_unpacks_to_more_than_any_frame_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stormcell.data.readers.raw.LARGEST_UNPACKED", 1000)
    formats.pgm(tmp_path / "a.pgm")
    (tmp_path / "a.pgm").write_bytes(gzip.compress((tmp_path / "a.pgm").read_bytes() + bytes(5000)))
    with pytest.raises(InputError, match="unpacks to more than"):
        open_frames(tmp_path / "a.pgm")


# --- a process of its own ---


def sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


def die() -> None:
    os.abort()


def fill() -> None:
    np.ones(2**33)


def greet(name: str) -> str:
    print("libraries print")
    return f"hello {name}"


def test_calls_in_a_process_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert child.call(greet, "you") == "hello you"
    with pytest.raises(ChildError, match="came to a sudden end"):
        child.call(die)
    assert child.call(greet, "again") == "hello again"
    monkeypatch.setenv("STORMCELL_READ_SECONDS", "0.3")
    with pytest.raises(ChildError, match=r"took longer than 0\.3 s"):
        child.call(sleep, 60)
    monkeypatch.delenv("STORMCELL_READ_SECONDS")
    assert child.call(greet, "still") == "hello still"
    monkeypatch.chdir(tmp_path)
    assert child.call(os.getcwd) == str(tmp_path)
    with pytest.raises(ChildError, match="takes 1 positional argument"):
        child.call(greet, "a", "b")  # type: ignore[call-arg]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is limited on Linux only")
def test_a_call_has_so_much_memory_and_no_more() -> None:
    with pytest.raises(ChildError, match=r"too much memory|allocate"):
        child.call(fill)
    assert child.call(greet, "you") == "hello you"
