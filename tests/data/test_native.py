"""Radar products as their services write them, against events decoded elsewhere, and against rasterio, wradlib and pysteps."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from stormcell import open_frames
from stormcell.data.axes import area
from stormcell.data.contract import values
from stormcell.data.units import NO_ECHO_DBZ

from . import formats

# A run of original files, the event they are, and the box of it (rows, columns) where the event is a part of them.
RUNS = {
    "mch_gif_20150515": ("mch_20150515", None),
    "mch_gif_20160711": ("mch_20160711", None),
    "fmi_pgm_20160928": ("fmi_20160928_dbz", None),
    "knmi_hdf5_20100826": ("knmi_20100826", None),
    "bom_melbourne_20180616_nc": ("bom_melbourne_20180616", None),
    "opera_odim_20180824": ("opera_20180824_england", (894, 1406, 394, 906)),
    "mrms_grib2_20190610": ("mrms_20190610_indiana", (1494, 2006, 4294, 4806)),
    "radolan_yw": ("dwd_yw_20170816", None),
    "meteonet_npz_nw": ("meteonet_nw_201608_gaps", None),
}
NEEDS = {"mrms_grib2_20190610": "eccodes"}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_original_files_is_its_event(real_data: Path, run: str) -> None:
    if run in NEEDS:
        formats.needs(NEEDS[run])
    event, box = RUNS[run]
    native, expected = open_frames(real_data / "native" / run), open_frames(real_data / "events" / f"{event}.nc")
    expected = expected.sel(time=native.time)
    assert native.attrs["units"] == expected.attrs["units"]
    assert "spatial_ref" in native.coords
    if box is not None:
        native = native.isel(y=slice(box[0], box[1]), x=slice(box[2], box[3]))
    spacing = abs(float(expected.x[1] - expected.x[0]))
    assert native.x.attrs == expected.x.attrs
    np.testing.assert_allclose(native.x, expected.x, rtol=0, atol=0.02 * spacing)
    np.testing.assert_allclose(native.y, expected.y, rtol=0, atol=0.02 * spacing)
    np.testing.assert_allclose(area(native), area(expected), rtol=0, atol=0.02)
    assert float(native.y[0]) > float(native.y[-1])
    digits = 0.011 if event.startswith(("opera", "mch")) else 0.0051  # events are stored in steps of 0.01 or 0.02 mm/h
    for k in range(native.sizes["time"]):
        ours, theirs = values(native[k : k + 1]), values(expected[k : k + 1])
        np.testing.assert_array_equal(np.isnan(ours), np.isnan(theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=digits)
    assert native.sizes["time"] >= 3


def test_hourly_radolan_by_the_formula(real_data: Path) -> None:
    """After the byte 3, 16 bits a pixel from south to north: tenths of mm in the lower 12, bit 0x2000 for missing."""
    files = sorted((real_data / "native" / "radolan_rw").iterdir())
    frames = open_frames(files)
    assert frames.sizes["time"] == len(files) == 24
    for k, path in enumerate(files):
        data = gzip.decompress(path.read_bytes())
        raw = np.frombuffer(data[data.index(b"\x03") + 1 :], "<u2").reshape(900, 900)[::-1]
        expected = np.where(raw & 0x2000, np.nan, (raw & 0xFFF) * 0.1)
        np.testing.assert_allclose(values(frames[k : k + 1])[0], expected, rtol=1e-6)


def test_a_geotiff_by_the_formula(real_data: Path) -> None:
    rasterio = pytest.importorskip("rasterio", reason="GeoTIFF needs rasterio")
    (path,) = (real_data / "native" / "fmi_geotiff_20160928").iterdir()
    frames = open_frames(path)
    with rasterio.open(path) as file:
        raw, west, north = file.read(1), file.transform.c, file.transform.f
    expected = np.where(raw == 255, np.nan, np.where(raw == 0, NO_ECHO_DBZ, raw * 0.5 - 32))
    np.testing.assert_array_equal(frames.values[0], expected.astype(np.float32))
    assert frames.time.values[0] == np.datetime64("2016-09-28T14:45")
    assert float(frames.x[0]) == pytest.approx(west + 125, abs=0.1)
    assert float(frames.y[0]) == pytest.approx(north - 125, abs=0.1)
    assert "3067" in frames.spatial_ref.attrs["crs_wkt"]
