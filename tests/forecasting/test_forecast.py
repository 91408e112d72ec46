"""Forecasts from a model file: no truth, any length, any size, and every mismatch in one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors import safe_open

from stormcell import Forecaster, InputError, load, open_frames
from stormcell.data.units import rain_rate_to_dbz
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.forecast import save_frames

from ..conftest import make_frames


@pytest.fixture
def storm(rain: xr.DataArray) -> xr.DataArray:
    return split_at_gaps(rain)[27]


def test_a_forecast_is_frames(model: Forecaster, storm: xr.DataArray) -> None:
    fcst = model.forecast(storm, steps=7)
    assert fcst.dims == ("time", "y", "x")
    assert fcst.shape == (7, 32, 32)
    assert fcst.attrs["units"] == "mm/h"
    reference = storm.time.values[-1]
    assert fcst.forecast_reference_time.values == reference
    np.testing.assert_array_equal(fcst.time, reference + np.arange(1, 8) * np.timedelta64(5, "m"))
    np.testing.assert_array_equal(fcst.lead_time, np.arange(1, 8) * np.timedelta64(5, "m"))
    assert np.isfinite(fcst).all()
    assert fcst.min() == 0
    assert model.forecast(storm).sizes["time"] == model.future


def test_only_the_newest_frames_count(model: Forecaster, storm: xr.DataArray) -> None:
    whole, end = model.forecast(storm), model.forecast(storm.isel(time=slice(-model.past, None)))
    np.testing.assert_array_equal(whole, end)


def test_it_takes_any_frame_size(model: Forecaster, storm: xr.DataArray) -> None:
    assert model.forecast(storm.isel(y=slice(0, 29), x=slice(0, 18))).shape[1:] == (29, 18)


def test_dbz_in_dbz_out(model: Forecaster, storm: xr.DataArray) -> None:
    """The same storm in either unit has the same forecast; no echo stays no echo."""
    dbz = storm.copy(data=rain_rate_to_dbz(storm.values))
    dbz.attrs = {**storm.attrs, "units": "dBZ"}
    in_dbz, in_rate = model.forecast(dbz), model.forecast(storm)
    assert in_dbz.attrs["units"] == "dBZ"
    np.testing.assert_array_equal(in_dbz == -32, in_rate == 0)
    np.testing.assert_allclose(in_dbz, rain_rate_to_dbz(in_rate.values), atol=0.01)


def test_missing_only_where_nothing_was_ever_seen(model: Forecaster, storm: xr.DataArray) -> None:
    holes = storm.copy(deep=True)
    holes[-1, :5, :5] = np.nan  # seen in an earlier frame
    holes[:, 20:, 20:] = np.nan  # never seen
    fcst = model.forecast(holes)
    expected = np.zeros((32, 32), dtype=bool)
    expected[20:, 20:] = True
    for frame in fcst.values:
        np.testing.assert_array_equal(np.isnan(frame), expected)
    dry = holes.fillna(0)
    assert not np.array_equal(model.forecast(dry).values[:, :5, :5], fcst.values[:, :5, :5])  # missing is not dry


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_it_is_written_in_the_words_of_cf(model: Forecaster, storm: xr.DataArray, tmp_path: Path, suffix: str) -> None:
    save_frames(storm, tmp_path / "storm.nc")
    frames = open_frames(tmp_path / "storm.nc", crs="EPSG:3067")
    path = tmp_path / f"now{suffix}"
    fcst = model.forecast(frames, steps=4)
    save_frames(fcst, path)
    opened = (
        xr.open_dataset(path, decode_timedelta=False) if suffix == ".nc" else xr.open_zarr(path, decode_timedelta=False)
    )
    with opened as written:
        rain = written["rain_rate"]
        assert written.attrs["Conventions"] == "CF-1.11"
        assert rain.attrs["units"] == "mm/h"
        assert rain.attrs["standard_name"] == "lwe_precipitation_rate"
        assert written.lead_time.values.tolist() == [5, 10, 15, 20]
        assert written.lead_time.attrs == {"standard_name": "forecast_period", "units": "minutes"}
        assert written.forecast_reference_time.values == storm.time.values[-1]
        assert written.x.attrs == {"units": "m", "axis": "X", "standard_name": "projection_x_coordinate"}
        assert "ETRS89" in written.spatial_ref.attrs["crs_wkt"]
        mapping = {**rain.attrs, **rain.encoding}["grid_mapping"]
        assert mapping == "spatial_ref"
        np.testing.assert_array_equal(rain, fcst)
    np.testing.assert_array_equal(open_frames(path), fcst)


def test_the_model_file_says_what_made_it(model_path: Path, rain: xr.DataArray) -> None:
    with safe_open(model_path, framework="pt") as file:
        card = json.loads(file.metadata()["stormcell"])
    assert card["architecture"]["hidden_channels"] == [6, 4]
    assert (card["past"], card["future"], card["step"], card["grid_spacing_m"]) == (3, 2, 5.0, 1000.0)
    assert card["transform"]["units"] == "mm/h"
    assert card["command"] == "made by a test"
    assert {entry["role"] for entry in card["frames"]} == {"training", "validation"}
    assert sum(entry["count"] for entry in card["frames"]) == 25 * 12
    assert 0 < card["validation"]["loss"] < 1
    assert card["validation"]["reference_loss"] > 0


def test_a_saved_model_forecasts_the_same(model: Forecaster, storm: xr.DataArray, tmp_path: Path) -> None:
    model.save(tmp_path / "copy.safetensors")
    np.testing.assert_array_equal(load(tmp_path / "copy.safetensors").forecast(storm), model.forecast(storm))
    assert list(tmp_path.iterdir()) == [tmp_path / "copy.safetensors"]


def refused(message: str, model: Forecaster, frames: xr.DataArray, **how: Any) -> None:
    with pytest.raises(InputError, match=message):
        model.forecast(frames, **how)


def test_what_does_not_fit_the_model_is_refused(model: Forecaster, storm: xr.DataArray) -> None:
    kelvin = storm.copy()
    kelvin.attrs = {"units": "K", "source": "cold.nc"}
    refused(r"cold\.nc is in K, which does not convert to the model's unit \(rain, mm/h or dBZ\)", model, kelvin)
    refused(r"ends with 2 frames without a gap; the model needs 3", model, storm.isel(time=slice(0, 2)))
    gap = storm.isel(time=[0, 1, 2, 3, 4, 5, 9, 10])
    refused(r"ends with 2 frames without a gap", model, gap)
    refused("--steps must be 1 or more, not 0", model, storm, steps=0)
    slow = make_frames(np.zeros((4, 8, 8)), step_minutes=10)
    refused("a frame every 10 min, the model one every 5 min: use a model trained on that step", model, slow)
    fast = make_frames(np.zeros((4, 8, 8)), step_minutes=1)
    refused("give --step-minutes 5 to thin them", model, fast)
    fine = make_frames(np.zeros((4, 8, 8)), spacing=500)
    refused("a grid of 0.5 km, the model one of 1 km: give --coarsen 2, or --any-grid", model, fine)
    model.forecast(fine, any_grid=True)
    model.forecast(make_frames(np.zeros((4, 8, 8)), spacing=1200))
    refused("use a model trained on that grid", model, make_frames(np.zeros((4, 8, 8)), spacing=3000))


def test_files_that_are_no_model_are_refused(tmp_path: Path, model_path: Path) -> None:
    with pytest.raises(InputError, match="is not there; train a model first"):
        load(tmp_path / "no.safetensors")
    whole = model_path.read_bytes()
    for name, content in (("empty", b""), ("rubbish", b"x" * 100), ("half", whole[: len(whole) // 2])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=f"{name} is not a model file of Stormcell, or breaks off"):
            load(tmp_path / name)
    from safetensors.torch import save_file

    save_file({}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="is not a model file of Stormcell"):
        load(tmp_path / "other.safetensors")
    save_file({}, tmp_path / "newer.safetensors", metadata={"stormcell": json.dumps({"format": 99})})
    with pytest.raises(InputError, match="has format 99; this version of Stormcell reads 1"):
        load(tmp_path / "newer.safetensors")


def test_a_failed_write_leaves_nothing(
    model: Forecaster, storm: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="expected a file that ends in"):
        save_frames(storm, tmp_path / "storm.txt")
    with pytest.raises(InputError, match="the folder .*nowhere does not exist"):
        model.save(tmp_path / "nowhere" / "m.safetensors")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(InputError, match="cannot be written .No space left on device"):
        save_frames(storm, tmp_path / "storm.nc")
    with pytest.raises(InputError, match="cannot be written .No space left on device"):
        model.save(tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())
