"""Among friends: pysteps calls our model as one of its methods, reads what we write, and we read what it writes."""

from __future__ import annotations

import re
from datetime import datetime
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from stormcell import Forecaster, InputError, load, open_frames
from stormcell.cli import main
from stormcell.data.synthetic import advected_rain
from stormcell.data.units import Transform, rain_rate_to_dbz
from stormcell.forecasting.forecast import as_forecast, save_frames
from stormcell.forecasting.motion import has_pysteps, motion_field, to_dbr
from stormcell.interop.pysteps import forecast, register

if not has_pysteps():
    pytest.skip("pysteps or OpenCV is not installed", allow_module_level=True)

POLAR = "+proj=stere +lat_0=90 +lon_0=25 +lat_ts=60 +x_0=380886.31 +y_0=3395677.92 +ellps=WGS84 +units=m"


@pytest.fixture(scope="module")
def model() -> Forecaster:
    return load("default")


@pytest.fixture(scope="module")
def storm() -> xr.DataArray:
    """12 frames, 64×64 pixels of 2 km, as the model has them; a corner was never seen."""
    frames = advected_rain(1, 12, size=64, seed=5)
    frames[:, :6, :6] = np.nan
    return frames.assign_coords(x=2 * frames.x, y=2 * frames.y)


@pytest.fixture
def now(model: Forecaster, storm: xr.DataArray) -> dict[str, Any]:
    """What a caller says beside frames, motion and time steps."""
    return {"timestep": 5, "kmperpixel": 2.0, "model": model}


# --- a nowcasting method ---


def test_pysteps_calls_it_by_name(storm: xr.DataArray, monkeypatch: pytest.MonkeyPatch) -> None:
    import pysteps
    from pysteps.blending.linear_blending import forecast as blended
    from pysteps.nowcasts import interface

    monkeypatch.setattr(interface, "_nowcast_methods", dict(interface._nowcast_methods))
    register()
    assert pysteps.nowcasts.get_method("stormcell") is forecast
    rain = storm.values[:6].astype(np.float64)
    velocity = pysteps.motion.get_method("LK")(np.ma.masked_invalid(to_dbr(rain[-3:])))
    options: dict[str, Any] = {"timestep": 5, "kmperpixel": 2.0, "transform": "dB"}
    dbr = pysteps.nowcasts.get_method("stormcell")(to_dbr(rain), velocity, 4, **options)
    assert dbr.shape == (4, 64, 64)
    # pysteps' own way of using a method, back to mm/h
    said = {"transform": "dB", "unit": "mm/h", "threshold": -10.0, "zerovalue": -15.0}
    found = blended(to_dbr(rain), said, velocity, 4, 5, "stormcell", end_blending=20, nowcast_kwargs=options)
    expected = load("default").forecast(storm.isel(time=slice(None, 6)), 4).values
    np.testing.assert_allclose(found, np.where(expected < 0.1, 0, expected), rtol=1e-4, atol=1e-4)


def test_the_entry_point_that_is_proposed_for_methods_gives_it() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    section = text.split('[project.entry-points."pysteps.plugins.nowcasts"]')[1]
    found = re.search(r'^(\w+) = "(.+)"$', section, flags=re.MULTILINE)
    assert found is not None
    assert EntryPoint(found[1], found[2], "pysteps.plugins.nowcasts").load() is forecast


def test_it_is_what_the_model_forecasts(model: Forecaster, storm: xr.DataArray, now: dict[str, Any]) -> None:
    past = storm.isel(time=slice(None, 6))
    expected = model.forecast(past, 6)
    np.testing.assert_array_equal(forecast(past.values, None, 6, **now), expected)
    np.testing.assert_array_equal(forecast(past.values, motion_field(past.values[-3:]), 6, **now), expected)
    chosen = forecast(past.values.astype(np.float64), None, [0.5, 2.0, 6.0], **now)
    np.testing.assert_allclose(chosen[1:], expected[[1, 5]], atol=0.02)  # paths are followed in other small steps
    assert chosen.dtype == np.float64
    between = np.corrcoef(np.nan_to_num(chosen[0]).ravel(), np.nan_to_num(past.values[-1]).ravel())[0, 1]
    assert between > np.corrcoef(np.nan_to_num(chosen[1]).ravel(), np.nan_to_num(past.values[-1]).ravel())[0, 1]
    np.testing.assert_array_equal(np.isnan(chosen).any(axis=0), np.isnan(past.values).all(axis=0))
    masked = np.ma.masked_invalid(past.values)
    np.testing.assert_array_equal(forecast(masked, None, 6, **now), expected)


def test_members_follow_from_the_seed(storm: xr.DataArray, now: dict[str, Any]) -> None:
    past = storm.values[:6]
    a, b = (forecast(past, None, 3, n_ens_members=4, seed=1, **now) for _ in range(2))
    assert a.shape == (4, 3, 64, 64)
    np.testing.assert_array_equal(a, b)
    c, d = (forecast(past, None, 3, n_ens_members=4, **now) for _ in range(2))
    assert not np.array_equal(c, d, equal_nan=True)
    assert forecast(past, None, 3, n_ens_members=1, **now).shape == (1, 3, 64, 64)


@pytest.mark.parametrize("with_velocity", [True, False])
def test_rows_come_back_in_their_order(storm: xr.DataArray, now: dict[str, Any], with_velocity: bool) -> None:
    past = storm.values[:6]
    velocity = motion_field(past) if with_velocity else None
    turned = None if velocity is None else velocity[:, ::-1] * np.array([1, -1])[:, None, None]
    upper = forecast(past, velocity, 3, **now)
    np.testing.assert_array_equal(forecast(past[:, ::-1], turned, 3, yorigin="lower", **now)[:, ::-1], upper)


@pytest.mark.parametrize("kmperpixel", [2.0, 1.0, None])
def test_rain_moves_along_the_velocity(now: dict[str, Any], kmperpixel: float | None) -> None:
    """Two pixels a step to the right and one down, as given; and where none is, as seen."""
    y, x = np.mgrid[:96, :96]
    past = np.stack([8 * np.exp(-((y - 40.0 - k) ** 2 + (x - 40.0 - 2 * k) ** 2) / 60) for k in range(-3, 1)])
    velocity = np.stack([np.full((96, 96), 2.0), np.full((96, 96), 1.0)])

    def centre(given: np.ndarray | None) -> tuple[float, float]:
        last = forecast(past, given, 6, **{**now, "kmperpixel": kmperpixel})[-1]
        return (last * y).sum() / last.sum(), (last * x).sum() / last.sum()

    assert centre(velocity) == pytest.approx((46, 52), abs=0.5)
    assert centre(None) == pytest.approx((46, 52), abs=1.5)
    assert centre(0 * velocity)[1] < 45


def test_a_plain_model_serves_too_and_knows_whole_steps_only(storm: xr.DataArray) -> None:
    plain = Forecaster.untrained(Transform(), 5.0, 3, 2, 2000.0, hidden_channels=(4,), kernel_size=3, patch=4)
    now: dict[str, Any] = {"timestep": 5, "kmperpixel": 2, "model": plain}
    found = forecast(storm.values[:6], np.ones((2, 64, 64)), 4, **now)
    np.testing.assert_array_equal(found, plain.forecast(storm.isel(time=slice(None, 6)), 4))
    np.testing.assert_array_equal(forecast(storm.values[:6], None, [1, 4], **now), found[[0, 3]])
    with pytest.raises(InputError, match=r"this model forecasts whole steps of 5 min, not \[0\.5, 1\.0\]"):
        forecast(storm.values[:6], None, [0.5, 1], **now)


def test_what_does_not_fit_is_one_sentence(storm: xr.DataArray, now: dict[str, Any]) -> None:
    past = storm.values[:6]

    def refused(message: str, precip: Any = past, velocity: Any = None, timesteps: Any = 3, **other: Any) -> None:
        with pytest.raises(InputError, match=message):
            forecast(precip, velocity, timesteps, **{**now, **other})

    refused("expected|must have the axes time, y, x, the newest frame last", past[-1])
    refused(r'values below 0, which no rain rate has: is it in dBR\? Give transform="dB"', to_dbr(past))
    refused('transform must be None .* or "dB"', transform="BoxCox")
    refused('yorigin must be "upper" or "lower"', yorigin="north")
    refused("n_ens_members must be None, or 1 or more", n_ens_members=0)
    refused(r"velocity must be finite, of the shape \(2, 64, 64\)", velocity=np.zeros((2, 9, 9)))
    refused("velocity must be finite", velocity=np.full((2, 64, 64), np.nan))
    refused("precip ends with 2 frames without a gap; the model needs 3", past[:2])
    refused("precip has a frame every 60 min", timestep=60)
    refused("precip has a grid of 4 km, coarser than the model's of 2 km", kmperpixel=4)
    refused("--steps must be 1 or more, not 0", timesteps=0)
    refused(r"steps must ascend from above 0, not \[0\.0, 1\.0\]", timesteps=[0, 1])
    refused(r"steps must ascend from above 0, not \[2\.0, 1\.0\]", timesteps=[2, 1])


# --- files ---


@pytest.fixture
def io() -> Any:
    pytest.importorskip("netCDF4", reason="netCDF4, which pysteps needs to read and write files, is not installed")
    import pysteps

    return pysteps.io


@pytest.mark.parametrize("members", [None, 3])
@pytest.mark.parametrize("units", ["mm/h", "dBZ"])
def test_pysteps_reads_our_forecasts(io: Any, storm: xr.DataArray, tmp_path: Path, units: str, members: int) -> None:
    past = storm.isel(time=slice(None, 6))
    if units == "dBZ":
        past = past.copy(data=rain_rate_to_dbz(past.values))
        past.attrs["units"] = "dBZ"
    save_frames(past, tmp_path / "radar.nc")
    output = tmp_path / "now.nc"
    ensemble = [] if members is None else ["--members", str(members)]
    reads = [str(tmp_path / "radar.nc"), "--crs", POLAR]
    assert main(["forecast", *reads, "-o", str(output), "--steps", "4", *ensemble]) == 0

    values, said = io.import_netcdf_pysteps(str(output), onerror="raise")
    with xr.open_dataset(output, decode_timedelta=False) as written:
        np.testing.assert_array_equal(values, written["rain_rate"])
        np.testing.assert_array_equal(values, written["precip_intensity" if units == "mm/h" else "reflectivity"])
        np.testing.assert_array_equal(said["timestamps"].astype("M8[s]"), written.time)
    assert values.shape == ((4, 64, 64) if members is None else (3, 4, 64, 64))
    assert np.isnan(values[..., :6, :6]).all()
    assert np.isfinite(values[..., 6:, 6:]).all()
    assert said["unit"] == units
    assert said["transform"] == (None if units == "mm/h" else "dB")
    assert said["leadtimes"].tolist() == [5, 10, 15, 20]
    assert said["accutime"] == 5
    assert said["zerovalue"] == (0 if units == "mm/h" else -32)
    assert said["threshold"] > said["zerovalue"]
    assert [said[key] for key in ("x1", "y1", "x2", "y2")] == pytest.approx([0, 0, 128_000, 128_000])
    assert (said["xpixelsize"], said["ypixelsize"], said["yorigin"]) == (2000, 2000, "upper")
    assert re.findall(r"\+(\w+)=([^ ]+)", said["projection"]) == [
        ("proj", "stere"), ("lon_0", "25.0"), ("lat_0", "90.0"), ("lat_ts", "60.0"),
        ("x_0", "380886.31"), ("y_0", "3395677.92"),
    ]  # fmt: skip
    if members is None:
        np.testing.assert_array_equal(open_frames(output), values)


def exported(io: Any, folder: Path, field: np.ndarray, *, yorigin: str, projection: str) -> Path:
    said = {
        "x1": 0.0, "x2": 20_000.0, "y1": 0.0, "y2": 16_000.0, "yorigin": yorigin, "unit": "mm/h",
        "cartesian_unit": "m", "projection": projection,
    }  # fmt: skip
    members = len(field) if field.ndim == 4 else 1
    exporter = io.initialize_forecast_exporter_netcdf(
        str(folder), "steps", datetime(2024, 6, 1, 12), 5, field.shape[-3], (8, 10), said, n_ens_members=members
    )
    io.export_forecast_dataset(field, exporter)
    io.close_forecast_files(exporter)
    return folder / "steps.nc"


@pytest.mark.parametrize("yorigin", ["upper", "lower"])
@pytest.mark.parametrize("projection", [POLAR, "+proj=tmerc +lat_0=0 +lon_0=27 +ellps=GRS80"])
def test_we_read_forecasts_of_pysteps(io: Any, tmp_path: Path, yorigin: str, projection: str) -> None:
    field = np.random.default_rng(0).gamma(0.5, 3, size=(3, 8, 10)).astype(np.float32)
    field[:, 1, 2] = np.nan
    path = exported(io, tmp_path, field, yorigin=yorigin, projection=projection)
    frames = open_frames(path)
    np.testing.assert_array_equal(frames, field if yorigin == "upper" else field[:, ::-1])
    assert frames.attrs["units"] == "mm/h"
    assert frames.time.values.astype("M8[m]").astype(str).tolist() == [f"2024-06-01T12:{m:02}" for m in (5, 10, 15)]
    assert frames.y.values.tolist() == [*range(15_000, 0, -2000)]
    assert frames.x.values.tolist() == [*range(1000, 20_000, 2000)]
    assert ("polar" if projection == POLAR else "transverse") in frames.spatial_ref.attrs["grid_mapping_name"]
    save_frames(frames.assign_coords(time=frames.time + np.timedelta64(1, "h")), tmp_path / "seen.nc")
    with pytest.raises(InputError, match="steps.nc is a forecast among observed frames"):
        open_frames([path, tmp_path / "seen.nc"])


def test_an_ensemble_of_pysteps_says_how_to_take_a_member(
    io: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    field = np.random.default_rng(0).gamma(0.5, 3, size=(4, 3, 8, 10)).astype(np.float32)
    path = exported(io, tmp_path, field, yorigin="upper", projection=POLAR)
    with pytest.raises(InputError, match="has the axes ens_number, time, y, x; frames need time, y and x") as caught:
        open_frames(path)
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split("Take one: ")[1], {"xarray": xr})
    np.testing.assert_array_equal(open_frames("one.nc"), field[0])


@pytest.mark.filterwarnings("ignore:In a future version, xarray will not decode:FutureWarning")
def test_so_does_ours(storm: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = np.stack([storm.values[6:8], storm.values[8:10]])
    save_frames(as_forecast(members, storm.isel(time=slice(None, 6)), 5.0), tmp_path / "now.nc")
    with pytest.raises(InputError, match="has the axes member, time, y, x") as caught:
        open_frames(tmp_path / "now.nc")
    monkeypatch.chdir(tmp_path)
    exec(str(caught.value).split("Take one: ")[1], {"xarray": xr})
    np.testing.assert_array_equal(open_frames("one.nc"), members[0])
