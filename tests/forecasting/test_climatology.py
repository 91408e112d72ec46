"""Plain quantities: what is usual, anomalies, and the whole way from frames to a page without a word of rain."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scores.continuous import additive_bias, rmse

from stormcell import InputError, load, verify
from stormcell.cli import main
from stormcell.data.frames import open_frames
from stormcell.data.windows import runs_of
from stormcell.forecasting.climatology import Climatology, damped_persistence
from stormcell.forecasting.forecast import as_forecast, save_frames
from stormcell.forecasting.plan import Recipe, plan
from stormcell.forecasting.verify import hindcast, usual_rivals
from stormcell.report.page import write_report
from stormcell.report.table import score_tables

OF_RAIN = re.compile(r"\b(rain|wet|dry|dBZ|dBR|echo|CSI|POD|FAR|Brier|mm/h)\b", re.IGNORECASE)


def warm_sea(count: int = 48, width: int = 24, seed: int = 0) -> xr.DataArray:
    """Monthly temperatures around the globe, 8 rows by `width`: a yearly cycle, anomalies that last, and a column of land."""
    rng = np.random.default_rng(seed)
    anomaly, rows = np.zeros((8, width)), []
    for month in range(count):
        anomaly = 0.8 * anomaly + rng.normal(0, 0.3, size=anomaly.shape)
        rows.append(300 + 2 * np.cos(2 * np.pi * month / 12) + anomaly)
    data = np.stack(rows).astype(np.float32)
    data[:, :, 3] = np.nan
    times = (np.datetime64("2001-01") + np.arange(count)).astype("datetime64[ns]")
    coords = {
        "time": times,
        "y": ("y", np.linspace(3.5, -3.5, 8), {"units": "degrees"}),
        "x": ("x", 360 / width * np.arange(width), {"units": "degrees"}),
    }
    attrs = {"units": "K", "long_name": "sea surface temperature", "source": "a made-up sea"}
    return xr.DataArray(data, dims=("time", "y", "x"), coords=coords, attrs=attrs, name="sst")


def test_means_are_of_calendar_months_where_each_was_seen_in_two_years() -> None:
    sea = warm_sea(30)
    two_years = Climatology.of([sea.isel(time=slice(0, 24))])
    assert two_years is not None
    assert two_years.kind == "of calendar months"
    np.testing.assert_allclose(two_years.means[4], sea.values[[4, 16]].mean(axis=0), rtol=1e-6)
    np.testing.assert_array_equal(two_years.at(sea.time.values[24:26]), two_years.means[:2])
    less = Climatology.of([sea.isel(time=slice(0, 23))])
    assert less is not None
    assert less.kind == "of all frames"
    np.testing.assert_allclose(less.at(sea.time.values[:1])[0], sea.values[:23].mean(axis=0), rtol=1e-6)
    assert Climatology.of([sea, sea.isel(x=slice(0, 9))]) is None


def test_anomalies_fade_as_fast_as_they_did() -> None:
    sea = warm_sea(240)
    climatology = Climatology.of([sea])
    assert climatology is not None
    assert climatology.damping == pytest.approx(0.8, abs=0.03)
    now, later = sea.time.values[100], sea.time.values[101:104]
    fcst = damped_persistence(climatology, sea.values[99:101], now, later)
    anomaly = sea.values[100] - climatology.at(sea.time.values[100:101])[0]
    expected = climatology.at(later)[2] + climatology.damping**3 * anomaly
    np.testing.assert_allclose(fcst[2], expected, rtol=1e-6)
    assert np.isnan(fcst[:, :, 3]).all()


def test_scores_of_a_plain_quantity_are_those_of_their_formulas() -> None:
    sea = warm_sea(40)
    climatology = Climatology.of([sea.isel(time=slice(0, 30))])
    assert climatology is not None
    rng = np.random.default_rng(1)
    said = sea.values[32:35] + rng.normal(0.1, 0.5, size=(3, 8, 24)).astype(np.float32)
    fcst = as_forecast(said, sea.isel(time=slice(28, 32)), "month")
    names = ["persistence", "climatology", "damped-persistence"]
    found = verify(fcst, sea, against=names, climatology=climatology)
    own, obs = found.sel(forecaster="stormcell"), sea.isel(time=slice(32, 35))
    pixels = ["y", "x"]
    np.testing.assert_allclose(own.rmse, rmse(fcst, obs, reduce_dims=pixels), rtol=1e-5)
    np.testing.assert_allclose(own.bias, additive_bias(fcst, obs, reduce_dims=pixels), atol=1e-5)
    usual = climatology.at(obs.time.values)
    f, o = said - usual, obs.values - usual
    expected = np.nansum(f * o, axis=(1, 2)) / np.sqrt(np.nansum(f**2, axis=(1, 2)) * np.nansum(o**2, axis=(1, 2)))
    np.testing.assert_allclose(own["acc"], expected, rtol=1e-5)
    assert found["acc"].sel(forecaster="climatology").isnull().all()  # it has no anomaly
    np.testing.assert_array_equal(
        found["mean_value"].sel(forecaster="climatology"), [np.nanmean(u) for u in usual.astype(float)]
    )
    with pytest.raises(InputError, match="climatology needs the climatology of a model of a plain quantity"):
        verify(fcst, sea, against=names)
    elsewhere = sea.assign_coords(x=("x", sea.x.values + 15, {"units": "degrees"}))
    with pytest.raises(InputError, match="lie on different grids"):
        verify(fcst, elsewhere, climatology=climatology)


def test_an_ensemble_of_a_plain_quantity_has_ranks_but_no_events(tmp_path: Path) -> None:
    sea = warm_sea(12)
    members = [as_forecast(sea.values[8:10] + shift, sea.isel(time=slice(0, 8)), "month") for shift in (-0.5, 0.2)]
    found = verify(xr.concat(members, "member"), sea)
    assert found.members.values.tolist() == [2, 1]
    assert "roc_area" not in found
    assert found.rank_share.sel(forecaster="stormcell", rank=1).values == pytest.approx([1, 1])
    write_report(found, tmp_path / "r.html", samples=[], title="Sea", facts={})
    assert not OF_RAIN.findall(re.sub(r'"data:[^"]*"', "", (tmp_path / "r.html").read_text(encoding="utf-8")))
    assert "CRPS" in "".join(str(column.header) for column in score_tables(found)[0].columns)


def test_a_block_is_as_long_as_a_forecast() -> None:
    sea = warm_sea(24)
    fcsts = [as_forecast(sea.values[k + 1 : k + 4], sea.isel(time=slice(0, k + 1)), "month") for k in range(12)]
    found = verify(fcsts, sea)
    assert found.attrs["blocks"] == 4
    assert found.attrs["block_minutes"] == 3 * 28 * 1440


def test_the_climatology_knows_nothing_of_what_is_verified() -> None:
    sea = warm_sea(48)
    recipe = Recipe(past=2, future=2, hidden_channels=(4,), crop=8)
    early = plan(runs_of([sea]), recipe, test_from=sea.time.values[40]).forecaster
    changed = sea.copy(deep=True)
    changed.values[40:] += 5
    again = plan(runs_of([changed]), recipe, test_from=sea.time.values[40]).forecaster
    assert early.climatology is not None
    assert again.climatology is not None
    np.testing.assert_array_equal(early.climatology.means, again.climatology.means)
    assert early.kind == "plain"


def test_the_whole_way_without_a_word_of_rain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, model, page = (str(tmp_path / name) for name in ("sea.nc", "m.safetensors", "r.html"))
    save_frames(warm_sea(60), data)
    train = ["--past", "2", "--future", "2", "--epochs", "1", "--hidden", "4", "--test-from", "2005-01-01"]
    assert main(["train", data, "-o", model, *train]) == 0
    assert main(["verify", data, "-m", model, "-o", str(tmp_path / "s.json"), "--report", page]) == 0
    assert main(["forecast", data, "-m", model, "-o", str(tmp_path / "f.nc"), "-o", str(tmp_path / "f.png")]) == 0
    assert main(["inspect", data, model]) == 0
    said = "".join(capsys.readouterr()).replace(str(tmp_path), "")
    assert not OF_RAIN.findall(said)
    for word in ("RMSE", "ACC", "bias", "climatology", "damped-persistence"):
        assert word in said
    html = re.sub(r'"data:[^"]*"', "", Path(page).read_text(encoding="utf-8")).replace(str(tmp_path), "")
    assert not OF_RAIN.findall(html)
    assert "the mean of calendar months of the frames that the model was trained or chosen on" in html
    scores = json.loads((tmp_path / "s.json").read_text())
    assert scores["climatology"] == "of calendar months"
    assert scores["scores"][0]["acc"] is not None
    fcst = open_frames(tmp_path / "f.nc")
    assert fcst.attrs["units"] == "K"
    restored = load(model)
    assert restored.climatology is not None
    assert restored.climatology.fits(open_frames(data))
    assert usual_rivals(restored, [open_frames(data)]) == ["persistence", "climatology", "damped-persistence"]
    assert usual_rivals(restored, [open_frames(data).isel(x=slice(1, None))]) == ["persistence"]
    assert main(["verify", data, "-m", model, "-o", str(tmp_path / "s.json"), "--thresholds", "300"]) == 0
    assert "CSI (threshold in K)" in capsys.readouterr().out  # it was asked for


def test_sea_surface_temperature_of_the_tropics(real_data: Path) -> None:
    path = real_data / "other/ostia_sst_tropics_monthly.nc"
    if not path.exists():
        pytest.skip(f"no {path}: its licence keeps it out of this repository")
    sea = open_frames(path)
    recipe = Recipe(past=2, future=2, hidden_channels=(4,), crop=16)
    forecaster = plan(runs_of([sea]), recipe, test_from=np.datetime64("2010-01-01")).forecaster
    assert forecaster.kind == "plain"
    assert forecaster.climatology is not None
    found = hindcast(forecaster, runs_of([sea]), against=usual_rivals(forecaster, [sea])).scores
    error = found.rmse.isel(lead_time=0)
    assert float(error.sel(forecaster="damped-persistence")) < float(error.sel(forecaster="persistence")) < 2
    assert 0.5 < float(found["acc"].isel(lead_time=0).sel(forecaster="damped-persistence")) < 1
