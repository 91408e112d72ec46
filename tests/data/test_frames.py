"""The door: every format into one contract, and every mistake into one sentence that names the file."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from stormcell import InputError, coarsen, open_frames
from stormcell.data.axes import MONTH, area, grid_spacing, time_step
from stormcell.data.contract import check_frames, values, zr_pair
from stormcell.data.frames import open_runs
from stormcell.data.reading import Reading
from stormcell.data.units import NO_ECHO_DBZ
from stormcell.forecasting.forecast import save_frames

from ..conftest import make_frames


@pytest.fixture
def data() -> np.ndarray:
    field = np.random.default_rng(0).gamma(0.5, 3, size=(6, 7, 9)).astype(np.float32)
    field[:, 0, 0] = np.nan
    field[:, 1, 1] = 0
    return field


def times(count: int, minutes: int = 5) -> np.ndarray:
    return np.datetime64("2024-06-01T12:00", "ns") + np.arange(count) * np.timedelta64(minutes, "m")


# --- formats ---


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
@pytest.mark.parametrize("units", ["mm/h", "dBZ", "K"])
def test_what_is_saved_comes_back(tmp_path: Path, data: np.ndarray, suffix: str, units: str) -> None:
    frames = make_frames(data if units != "dBZ" else np.maximum(data * 9 - 40, NO_ECHO_DBZ), units=units)
    frames.attrs["zr"] = (223.0, 1.53)
    save_frames(frames, tmp_path / f"rain{suffix}")
    back = open_frames(tmp_path / f"rain{suffix}")
    np.testing.assert_array_equal(values(back), frames.values)
    assert back.attrs["units"] == units
    assert zr_pair(back) == ((223.0, 1.53) if units != "K" else (200.0, 1.6))
    for axis in ("time", "y", "x"):
        np.testing.assert_array_equal(back[axis], frames[axis])


def test_values_stay_on_disk_until_they_are_used(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(data), tmp_path / "rain.nc")
    assert open_frames(tmp_path / "rain.nc").chunks is not None


def test_npy_and_npz(tmp_path: Path, data: np.ndarray) -> None:
    np.save(tmp_path / "rain.npy", data)
    frames = open_frames(tmp_path / "rain.npy", units="mm/h", start="2024-06-01T12:00", step_minutes=5)
    np.testing.assert_array_equal(values(frames), data)
    np.testing.assert_array_equal(frames.time, times(6))
    assert frames.x.attrs["units"] == "1"
    np.savez(tmp_path / "rain.npz", rain=data, time=times(6), units="mm/h")
    np.testing.assert_array_equal(values(open_frames(tmp_path / "rain.npz")), data)
    np.savez(tmp_path / "two.npz", a=data, b=data + 1, time=times(6), units="mm/h")
    np.testing.assert_array_equal(values(open_frames(tmp_path / "two.npz", variable="b")), data + 1)


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".png", np.uint8), (".gif", np.uint8), (".tif", np.float32), (".png", np.uint16)]
)
def test_a_folder_of_pictures_with_times_in_their_names(tmp_path: Path, suffix: str, dtype: type) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, size=(4, 7, 9)).astype(dtype)
    pixels[:, 2, 3] = 255
    names = ["radar_20240601_1215", "radar_202406011200", "radar-2024-06-01T12-05", "2024.06.01.12.10.00"]
    for name, k in zip(names, (3, 0, 1, 2)):
        Image.fromarray(pixels[k]).save(tmp_path / f"{name}{suffix}")
    (tmp_path / "README.txt").write_text("not a frame")
    frames = open_frames(tmp_path, units="dBZ", gain=0.5, offset=-32, missing=255)
    np.testing.assert_array_equal(frames.time, times(4))
    expected = np.where(pixels == 255, np.nan, pixels * 0.5 - 32).astype(np.float32)
    np.testing.assert_array_equal(values(frames), expected)


def test_every_frame_of_an_animated_gif(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 250, size=(3, 8, 8)).astype(np.uint8)
    images = [Image.fromarray(p) for p in pixels]
    images[0].save(tmp_path / "film_202406011200.gif", save_all=True, append_images=images[1:])
    frames = open_frames(tmp_path / "film_202406011200.gif", units="mm/h", step_minutes=5)
    np.testing.assert_array_equal(values(frames), pixels)
    np.testing.assert_array_equal(frames.time, times(3))


def test_a_palette_in_colours_gives_its_index(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).permutation(256).reshape(16, 16).astype(np.uint8)
    image = Image.fromarray(pixels).convert("P")
    image.putdata(pixels.ravel())
    image.putpalette(np.random.default_rng(1).permutation(768).astype(np.uint8).tobytes())
    image.save(tmp_path / "radar_202406011200.gif")
    np.testing.assert_array_equal(values(open_frames(tmp_path / "radar_202406011200.gif", units="mm/h"))[0], pixels)


def test_rows_run_from_north_to_south_and_kilometres_become_metres(tmp_path: Path, data: np.ndarray) -> None:
    dataset = xr.Dataset(
        {
            "rain": (
                ("time", "lat", "lon"),
                data,
                {"units": "mm h-1", "proj4": "+proj=stere +lat_0=90 +a=6378.137 +b=6356.752"},
            )
        },
        coords={
            "time": times(6),
            "lat": ("lat", np.arange(7.0), {"units": "km", "axis": "Y"}),
            "lon": ("lon", np.arange(9.0), {"units": "km", "axis": "X"}),
        },
    )
    dataset.to_netcdf(tmp_path / "up.nc")
    frames = open_frames(tmp_path / "up.nc")
    assert frames.dims == ("time", "y", "x")
    assert frames.y.values.tolist() == [6000, 5000, 4000, 3000, 2000, 1000, 0]
    np.testing.assert_array_equal(values(frames), data[:, ::-1])
    assert frames.x.attrs["units"] == "m"
    assert grid_spacing(frames) == 1000
    assert float(frames.spatial_ref.attrs["semi_major_axis"]) == pytest.approx(6378137)


def test_amounts_become_rates(tmp_path: Path, data: np.ndarray) -> None:
    attrs = {"units": "kg m-2", "standard_name": "precipitation_amount"}
    for k in range(6):  # one file a frame, the time a scalar beside it
        xr.Dataset({"precipitation": (("y", "x"), data[k], attrs), "valid_time": ((), times(6, 6)[k])}).to_netcdf(
            tmp_path / f"{k}.nc"
        )
    for opened in (open_frames(tmp_path), open_runs(sorted(tmp_path.iterdir()))[0]):
        assert opened.attrs["units"] == "mm/h"
        np.testing.assert_allclose(values(opened), data * 10, rtol=1e-6)
    with pytest.raises(InputError, match=r"0\.nc holds one amount.*--step-minutes"):
        open_frames(tmp_path / "0.nc")
    np.testing.assert_allclose(values(open_frames(tmp_path / "0.nc", step_minutes=6)), data[:1] * 10, rtol=1e-6)


def test_rain_below_zero_is_a_missing_code(tmp_path: Path, data: np.ndarray) -> None:
    data[2, 3, 3] = -1
    save_frames(make_frames(data), tmp_path / "rain.nc")
    assert np.isnan(values(open_frames(tmp_path / "rain.nc"))[2, 3, 3])
    save_frames(make_frames(data, units="K"), tmp_path / "cold.nc")
    assert values(open_frames(tmp_path / "cold.nc"))[2, 3, 3] == -1


# --- time ---


def test_thinning_counts_back_from_the_newest_frame_and_starts_anew_at_gaps(tmp_path: Path) -> None:
    stamps = np.concatenate([times(5), times(8) + np.timedelta64(2, "h")])
    frames = make_frames(np.arange(13.0)[:, None, None] * np.ones((1, 4, 4)))
    save_frames(frames.assign_coords(time=stamps), tmp_path / "rain.nc")
    thinned = open_frames(tmp_path / "rain.nc", step_minutes=15)
    assert values(thinned)[:, 0, 0].tolist() == [1, 4, 6, 9, 12]
    with pytest.raises(
        InputError, match="cannot be thinned to one every 12 min; --step-minutes must be a multiple of 5"
    ):
        open_frames(tmp_path / "rain.nc", step_minutes=12)


# --- space ---


def test_coarsening_is_done_in_mm_h_over_valid_pixels() -> None:
    block = np.array([[0, 4], [np.nan, 2]], dtype=np.float32)
    under_half = np.array([[np.nan, np.nan], [np.nan, 3]], dtype=np.float32)
    data = np.zeros((1, 5, 4), dtype=np.float32)
    data[0, :2, :2], data[0, :2, 2:] = block, under_half
    coarse = coarsen(make_frames(data), 2)
    assert coarse.shape == (1, 2, 2)
    assert coarse.values[0, 0, 0] == 2
    assert np.isnan(coarse.values[0, 0, 1])
    assert coarse.values[0, 1].tolist() == [0, 0]
    assert grid_spacing(coarse) == 2000
    from stormcell.data.units import dbz_to_rain_rate, rain_rate_to_dbz

    dbz = coarsen(make_frames(rain_rate_to_dbz(data), units="dBZ"), 2)
    assert dbz.attrs["units"] == "dBZ"
    assert dbz.values[0, 1, 0] == NO_ECHO_DBZ
    np.testing.assert_allclose(dbz_to_rain_rate(dbz.values), coarse.values, rtol=1e-5)
    with pytest.raises(InputError, match="5×4 pixels cannot be coarsened by 9"):
        coarsen(make_frames(data), 9)


def test_a_crs_is_kept_or_refused(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(data), tmp_path / "rain.nc")
    frames = open_frames(tmp_path / "rain.nc", crs="EPSG:3067")
    assert "ETRS89" in frames.spatial_ref.attrs["crs_wkt"]
    save_frames(frames, tmp_path / "again.nc")
    assert open_frames(tmp_path / "again.nc").spatial_ref.attrs["crs_wkt"] == frames.spatial_ref.attrs["crs_wkt"]
    with pytest.raises(InputError, match="the CRS 'EPSG:none' is not understood"):
        open_frames(tmp_path / "rain.nc", crs="EPSG:none")


# --- several files ---


def test_files_named_one_by_one_are_joined_where_they_continue(tmp_path: Path, data: np.ndarray) -> None:
    late, far = "2024-06-01T12:30", "2024-07-01T00:00"
    save_frames(make_frames(data), tmp_path / "a.nc")
    save_frames(make_frames(data, start=late), tmp_path / "b.nc")
    save_frames(make_frames(data, start=far), tmp_path / "c.nc")
    save_frames(make_frames(data, spacing=500), tmp_path / "d.nc")
    runs = open_runs([tmp_path / f"{n}.nc" for n in "cdab"])
    assert sorted(run.sizes["time"] for run in runs) == [6, 18]
    whole = open_frames([tmp_path / "b.nc", tmp_path / "a.nc"])
    assert time_step(whole.time.values) == 5
    assert np.all(np.diff(whole.time.values) == np.timedelta64(5, "m"))
    assert open_frames(str(tmp_path / "[ab].nc")).sizes["time"] == 12


def test_series_of_one_time_stay_apart(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(data), tmp_path / "a.nc")
    save_frames(make_frames(data + 1), tmp_path / "b.nc")
    assert [run.sizes["time"] for run in open_runs([tmp_path / "a.nc", tmp_path / "b.nc"])] == [6, 6]


def test_a_file_that_is_named_twice_counts_once(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(data), tmp_path / "a.nc")
    (tmp_path / "link.nc").symlink_to(tmp_path / "a.nc")
    runs = open_runs([tmp_path / "a.nc", f"{tmp_path}/./a.nc", tmp_path / "link.nc", tmp_path])
    assert [run.sizes["time"] for run in runs] == [6]


def test_frame2_comes_before_frame10(tmp_path: Path) -> None:
    for k in range(12):
        np.save(tmp_path / f"frame{k}.npy", np.full((3, 3), k, dtype=np.float32))
    said = {"units": "mm/h", "start": "2024-06-01T12:00", "step_minutes": 5.0}
    assert values(open_frames(tmp_path, **said))[:, 0, 0].tolist() == list(range(12))  # type: ignore[arg-type]
    one_by_one = open_runs([tmp_path / f"frame{k}.npy" for k in range(12)], Reading(**said))  # type: ignore[arg-type]
    assert len(one_by_one) == 1
    assert values(one_by_one[0])[:, 0, 0].tolist() == list(range(12))


def test_forecasts_are_not_taken_for_what_was_observed(tmp_path: Path, data: np.ndarray) -> None:
    from stormcell.forecasting.forecast import as_forecast

    frames = make_frames(data)
    save_frames(frames, tmp_path / "a.nc")
    save_frames(as_forecast(data[:2], frames, 5.0), tmp_path / "now.nc")
    for opening in (open_frames, lambda path: open_runs([path]), lambda path: open_runs(sorted(path.iterdir()))):
        with pytest.raises(InputError, match=r"now\.nc is a forecast among observed frames"):
            opening(tmp_path)  # type: ignore[no-untyped-call]
    assert open_frames(tmp_path / "now.nc").sizes["time"] == 2  # by itself it is frames


def test_overviews_in_a_tiff_are_no_frames(tmp_path: Path) -> None:
    page = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    page.save(tmp_path / "a_202406011200.tif", save_all=True, append_images=[page.resize((4, 4)), page.resize((2, 2))])
    assert open_frames(tmp_path / "a_202406011200.tif", units="mm/h").shape == (1, 8, 8)


def test_infinite_values(tmp_path: Path, data: np.ndarray) -> None:
    data[0, 2, 2], data[0, 3, 3] = np.inf, -np.inf
    for units, plus, minus in (("mm/h", True, True), ("dBZ", True, False), ("K", True, True)):
        save_frames(make_frames(data, units=units), tmp_path / "a.nc")
        frame = values(open_frames(tmp_path / "a.nc"))[0]
        assert (np.isnan(frame[2, 2]), np.isnan(frame[3, 3])) == (plus, minus)


def test_latitudes_without_units_are_degrees(tmp_path: Path, data: np.ndarray) -> None:
    coords = {"time": times(6), "lat": np.arange(7.0), "lon": np.arange(9.0)}
    xr.Dataset({"t": (("time", "lat", "lon"), data, {"units": "K"})}, coords).to_netcdf(tmp_path / "a.nc")
    frames = open_frames(tmp_path / "a.nc")
    assert frames.x.attrs["units"] == "degrees"
    np.testing.assert_array_equal(values(frames), data[:, ::-1])


# --- what people get wrong ---


def refused(message: str, path: object, **options: object) -> None:
    with pytest.raises(InputError, match=message) as caught:
        values(open_frames(path, **options))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_nothing_there(tmp_path: Path) -> None:
    refused("does not exist, or no file with frames matches", tmp_path / "no.nc")
    refused("is a folder without frames; known are NetCDF, Zarr", tmp_path)
    refused("does not exist", str(tmp_path / "*.nc"))
    (tmp_path / "notes.docx").write_bytes(b"x")
    refused("notes.docx has no known format", tmp_path / "notes.docx")
    refused("no file was named", [])


@pytest.mark.parametrize("suffix", [".nc", ".npy", ".npz", ".png", ".gif", ".tif"])
def test_rubbish_and_empty_files(tmp_path: Path, suffix: str) -> None:
    for name, content in (("rubbish", b"this is no frame" * 9), ("empty", b"")):
        path = tmp_path / f"{name}_202406011200{suffix}"
        path.write_bytes(content)
        refused(re.escape(path.name), path, units="mm/h")


def test_truncated_files(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(np.random.default_rng(0).random((20, 60, 60))), tmp_path / "rain.nc")
    np.save(tmp_path / "rain.npy", data)
    np.savez(tmp_path / "rain.npz", rain=data, time=times(6), units="mm/h")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 80)).astype(np.uint8)).save(
        tmp_path / "rain_202406011200.png"
    )
    for path in sorted(tmp_path.iterdir()):
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        refused(re.escape(path.name), path, units="mm/h", start="2024-01-01", step_minutes=5)


def test_a_damaged_chunk_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "rain.nc"
    save_frames(make_frames(np.random.default_rng(0).random((20, 60, 60))), path)
    whole = bytearray(path.read_bytes())
    middle = len(whole) // 2
    whole[middle : middle + 2000] = b"\xff" * 2000
    path.write_bytes(bytes(whole))
    refused(r"rain\.nc", path)


def test_sizes_units_and_times_that_do_not_fit(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(data), tmp_path / "a.nc")
    save_frames(make_frames(data[:, 1:], start="2024-06-02T00:00"), tmp_path / "b.nc")
    refused(r"a\.nc has frames of 7×9 pixels and .*b\.nc of 6×9", tmp_path)
    save_frames(make_frames(data, units="dBZ", start="2024-06-02T00:00"), tmp_path / "b.nc")
    refused(r"a\.nc is in mm/h and .*b\.nc in dBZ", tmp_path)
    save_frames(make_frames(data, start="2024-06-01T12:10"), tmp_path / "b.nc")
    refused(r"a\.nc and .*b\.nc both have a frame at or before 2024-06-01 12:25", tmp_path)
    shuffled = make_frames(data).isel(time=[0, 2, 1, 3, 4, 5])
    save_frames(shuffled, tmp_path / "c.nc")
    refused(
        "c.nc: times are out of order or doubled: 2024-06-01 12:05:00 comes after 2024-06-01 12:10", tmp_path / "c.nc"
    )
    save_frames(make_frames(data).isel(time=[0, 1, 1, 2]), tmp_path / "c.nc")
    refused("2024-06-01 12:05:00 occurs twice", tmp_path / "c.nc")


def test_files_of_two_places_are_no_series(tmp_path: Path, data: np.ndarray) -> None:
    save_frames(make_frames(data), tmp_path / "a.nc")
    there = make_frames(data, start="2024-06-02T00:00")
    save_frames(there.assign_coords(x=there.x + 9e5), tmp_path / "b.nc")
    refused(r"a\.nc and .*b\.nc lie in different places", tmp_path)
    assert len(open_runs([tmp_path / "a.nc", tmp_path / "b.nc"])) == 2


def test_files_that_are_not_what_they_seem(tmp_path: Path, data: np.ndarray) -> None:
    np.savez(tmp_path / "really.npz", rain=data, time=times(6), units="mm/h")
    (tmp_path / "really.npz").rename(tmp_path / "really.npy")
    np.testing.assert_array_equal(values(open_frames(tmp_path / "really.npy")), data)
    (tmp_path / "text.npy").write_text("1 2 3")
    refused("text.npy has no known format, or is damaged from its first byte", tmp_path / "text.npy", units="mm/h")
    (tmp_path / "text.nc").write_text("netcdf text {}")
    refused("text.nc has no known format, or is damaged from its first byte", tmp_path / "text.nc")
    refused("cannot be opened", "x" * 5000 + ".nc")
    grid = {"y": np.arange(7.0), "x": np.arange(9.0)}
    xr.Dataset({"a": (("time", "y", "x"), data, {"units": "K"})}, {"time": np.arange(6), **grid}).to_netcdf(
        tmp_path / "numbers.nc"
    )
    refused("numbers.nc: its times are no dates of the standard calendar", tmp_path / "numbers.nc")
    member = np.stack([data, data])
    xr.Dataset({"a": (("member", "time", "y", "x"), member, {"units": "K"})}, {"time": times(6), **grid}).to_netcdf(
        tmp_path / "members.nc"
    )
    refused("members.nc: a has the axes member, time, y, x; frames need time, y and x", tmp_path / "members.nc")
    xr.Dataset({"a": (("time", "y", "x"), data[:0], {"units": "K"})}, {"time": times(0), **grid}).to_netcdf(
        tmp_path / "none.nc"
    )
    refused("none.nc holds no frames", tmp_path / "none.nc")


def test_what_files_do_not_say_is_asked_for(tmp_path: Path, data: np.ndarray) -> None:
    np.save(tmp_path / "rain.npy", data)
    when = {"start": "2024-01-01", "step_minutes": 5}
    refused("does not say in what unit it is: give --units", tmp_path / "rain.npy", **when)
    refused(
        "does not say when its frames were taken: give --start and --step-minutes", tmp_path / "rain.npy", units="mm/h"
    )
    refused("--start 'noon' is not a time", tmp_path / "rain.npy", units="mm/h", start="noon", step_minutes=5)
    np.savez(tmp_path / "two.npz", a=data, b=data)
    refused("two.npz holds a, b: choose one with --variable", tmp_path / "two.npz", units="mm/h")
    refused("two.npz has no array 'c'; it has a, b", tmp_path / "two.npz", units="mm/h", variable="c")
    xr.Dataset({n: (("time", "y", "x"), data, {"units": "K"}) for n in "ab"}, {"time": times(6)}).to_netcdf(
        tmp_path / "two.nc"
    )
    refused("two.nc holds a, b: choose with --variable", tmp_path / "two.nc")
    refused("two.nc has no variable 'c'", tmp_path / "two.nc", variable="c")


def test_pickles_and_colour_pictures_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "evil.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    refused("holds Python objects, which are not unpickled", tmp_path / "evil.npy", units="mm/h")
    Image.fromarray(np.zeros((4, 4, 3), dtype=np.uint8)).save(tmp_path / "map_202406011200.png")
    refused("is a colour picture", tmp_path / "map_202406011200.png", units="mm/h")


def test_arrays_that_a_caller_made_are_checked() -> None:
    good = make_frames(np.zeros((2, 3, 4)))
    assert check_frames(good.astype(np.float64)).dtype == np.float32
    with pytest.raises(InputError, match="expected the axes time, y, x"):
        check_frames(good.isel(time=0))
    with pytest.raises(InputError, match='attrs\\["units"\\] is missing'):
        check_frames(good.drop_attrs())
    with pytest.raises(InputError, match="out of order"):
        check_frames(good.isel(time=[1, 0]))
    with pytest.raises(InputError, match="time coordinate of datetime64"):
        check_frames(good.assign_coords(time=[0, 1]))


# --- real files ---


@pytest.mark.parametrize("name", ["fmi_20160928", "knmi_20100826", "bom_melbourne_20180616", "opera_20180824_england"])
def test_real_events_keep_values_times_and_missing_pixels(real_data: Path, name: str) -> None:
    path = real_data / "events" / f"{name}.nc"
    frames = open_frames(path)
    raw = xr.open_dataset(path).rain_rate
    np.testing.assert_array_equal(values(frames.isel(time=3)), raw.isel(time=3).values.astype(np.float32))
    np.testing.assert_array_equal(frames.time, raw.time)
    assert area(frames) is not None


def test_real_dbz_and_mm_h_are_one_event(real_data: Path) -> None:
    """FMI's own pair makes its dBZ file the mm/h file, no echo and all."""
    dbz = open_frames(real_data / "events/fmi_20160928_dbz.nc", zr=(223, 1.53)).isel(time=5)
    rate = values(open_frames(real_data / "events/fmi_20160928.nc").isel(time=5))
    from stormcell.data.units import to_rain_rate

    converted = to_rain_rate(values(dbz), "dBZ", zr_pair(dbz))
    np.testing.assert_array_equal(np.isnan(converted), np.isnan(rate))
    np.testing.assert_allclose(converted, rate, rtol=0.01, atol=0.006)  # the file's own resolution is 0.01 mm/h


def test_real_months_are_one_step(real_data: Path) -> None:
    frames = open_frames(real_data / "other/ostia_monthly.nc")
    assert time_step(frames.time.values) == MONTH
    assert float(frames.y[0]) > float(frames.y[-1])
    assert frames.attrs["units"] == "K"


def test_real_files_of_one_frame(real_data: Path) -> None:
    folder = real_data / "native/bom_melbourne_20180616_nc"
    runs = open_runs(sorted(folder.iterdir())[:5], Reading())
    assert len(runs) == 1
    event = open_frames(real_data / "events/bom_melbourne_20180616.nc").isel(time=slice(0, 5))
    np.testing.assert_allclose(values(runs[0]), values(event), atol=1e-5)
    np.testing.assert_array_equal(runs[0].time, event.time)
