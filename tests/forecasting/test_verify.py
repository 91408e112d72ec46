"""Verification of one forecast and of a model over all cases: units, baselines, fingerprints, mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr

from stormcell import Forecaster, InputError, verify
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.baselines import BASELINES, persistence
from stormcell.forecasting.forecast import as_forecast
from stormcell.forecasting.tally import scores_to_json
from stormcell.forecasting.verify import hindcast, seen

from ..conftest import make_frames


def fields(seed: int, shape: tuple[int, ...] = (2, 40, 50)) -> np.ndarray:
    return np.random.default_rng(seed).gamma(0.4, 4, size=shape).astype(np.float32)


# --- the public function ---


def test_verify_one_forecast(rain: xr.DataArray) -> None:
    storm = split_at_gaps(rain)[0]
    past, future = storm.isel(time=slice(0, 4)), storm.isel(time=slice(4, 7))
    perfect = as_forecast(future.values, past, 5.0)
    scores = verify(perfect, storm)
    assert scores.forecaster.values.tolist() == ["stormcell", "persistence"]
    assert (scores.mse.sel(forecaster="stormcell") == 0).all()
    assert (scores.mse.sel(forecaster="persistence") > 0).all()
    assert float(scores.csi.sel(forecaster="stormcell", threshold=0.5).min()) == 1
    np.testing.assert_array_equal(scores.lead_time, np.array([5, 10, 15]) * np.timedelta64(1, "m"))
    np.testing.assert_allclose(scores.scale_km, scores.scale)
    later = storm.isel(time=slice(4, None))
    with pytest.raises(InputError, match="baselines need the observed frames up to the reference time"):
        verify(perfect, later)
    assert verify(perfect, later, against=()).sizes["forecaster"] == 1
    with pytest.raises(InputError, match="no observed frame has a valid time"):
        verify(perfect, past, against=())
    with pytest.raises(InputError, match="different grids"):
        verify(perfect.isel(y=slice(1, None)), storm)
    with pytest.raises(InputError, match="is it a forecast"):
        verify(future, storm)
    with pytest.raises(InputError, match="of 3 and of 2 steps cannot be pooled"):
        verify([perfect, perfect.isel(time=slice(0, 2))], storm)
    with pytest.raises(InputError, match="there is no forecast"):
        verify([], storm)


def test_verify_an_ensemble(rain: xr.DataArray) -> None:
    storm = split_at_gaps(rain)[0]
    past, truth = storm.isel(time=slice(0, 4)), storm.isel(time=slice(4, 6))
    fcsts = [as_forecast(factor * truth.values, past, 5.0) for factor in (0.5, 0.5, 2.0)]
    ensemble = xr.concat(fcsts, dim=xr.DataArray([0, 1, 2], dims="member", name="member"))
    scores = verify(ensemble, storm)
    assert scores.members.values.tolist() == [3, 1]
    np.testing.assert_allclose(scores.mse.sel(forecaster="stormcell"), 0, atol=1e-9)  # the mean is the truth
    # errors of 0.5, 0.5 and 1 times the value, less half the mean distance of any two: twice 0, 1.5 and 1.5 of nine
    expected = ((0.5 + 0.5 + 1) / 3 - (0 + 1.5 + 1.5) / 9) * scores.observed_mean
    np.testing.assert_allclose(scores.crps.sel(forecaster="stormcell"), expected, rtol=1e-6)
    again = verify(ensemble.transpose("time", "y", "member", "x"), storm)
    xr.testing.assert_identical(again, scores)
    with pytest.raises(InputError, match="stormcell has 3 members in one case and 1 in another"):
        verify([ensemble, fcsts[0]], storm)


def test_a_plain_quantity_has_thresholds_only_where_they_are_asked_for() -> None:
    frames = make_frames(280 + fields(0, (8, 20, 20)), units="K")
    fcst = as_forecast(frames.values[4:6], frames.isel(time=slice(0, 4)), 5.0)
    scores = verify(fcst, frames)
    assert scores.attrs["units"] == "K"
    assert not {"csi", "fss", "wet_area", "brier"} & set(scores)
    assert not json.loads(scores_to_json(scores))["scores"][0]["thresholds"]
    assert verify(fcst, frames, thresholds=[282]).csi.sel(forecaster="stormcell").min() == 1


# --- a model on all cases ---


def test_hindcast_is_forecast_and_verify_from_every_start(model: Forecaster, rain: xr.DataArray) -> None:
    runs = split_at_gaps(rain)[25:]
    found = hindcast(model, runs, scales=(5,))
    assert found.scores.attrs["cases"] == 5 * (12 - 5 + 1)
    fcsts = [model.forecast(run.isel(time=slice(t, t + 3))) for run in runs for t in range(8)]
    alone = verify(fcsts, rain, past=3, scales=(5,))
    for name in ("csi", "mse", "fss", "wet_area", "csi_interval"):
        np.testing.assert_allclose(found.scores[name], alone[name], rtol=1e-5, equal_nan=True)
    assert found.scores.attrs["left_out_cases"] == 0
    assert [len(rows) for _, rows in found.samples] == [3, 3, 3]


def test_hindcast_against_ensembles(model: Forecaster, rain: xr.DataArray) -> None:
    pytest.importorskip("pysteps", reason="STEPS needs pysteps")
    runs = [run.isel(time=slice(0, 6)) for run in split_at_gaps(rain)[25:27]]
    found = hindcast(model, runs, against=["persistence", "optical-flow", "s-prog", "steps"], scales=(5,))
    scores = found.scores
    assert scores.members.values.tolist() == [1, 1, 1, 1, 20]
    assert scores.crps.notnull().all()
    assert scores.relative_power.notnull().all()
    assert scores.roc_area.sel(threshold=0.5, forecaster="steps").notnull().all()
    assert list(found.samples[0][1])[-2:] == ["steps, mean", "steps, a member"]
    rivals = json.loads(scores_to_json(scores))["rivals"]
    assert list(rivals) == ["optical-flow", "s-prog", "steps"]
    assert rivals["steps"]["members"] == 20
    assert rivals["steps"]["spacing_km"] == 1
    assert rivals["steps"]["seed"] == 0
    again = hindcast(model, runs, against=["persistence", "optical-flow", "s-prog", "steps"], scales=(5,)).scores
    xr.testing.assert_identical(scores, again)


def test_hindcast_against_a_rival_of_ones_own(model: Forecaster, rain: xr.DataArray) -> None:
    runs = split_at_gaps(rain)[25:26]
    own = hindcast(model, runs, against={"mine": persistence}, scales=(5,)).scores
    known = hindcast(model, runs, scales=(5,)).scores
    assert own.forecaster.values.tolist() == ["stormcell", "mine"]
    np.testing.assert_array_equal(own.csi.sel(forecaster="mine"), known.csi.sel(forecaster="persistence"))


def test_frames_the_model_was_made_with_are_left_out(model: Forecaster, rain: xr.DataArray) -> None:
    found = hindcast(model, split_at_gaps(rain))
    assert found.scores.attrs["cases"] == 5 * 8
    assert found.scores.attrs["left_out_cases"] == 25 * 8
    assert found.scores.attrs["left_out_frames"] == 25 * 12
    with pytest.raises(InputError, match="all 200 cases have frames that this model was trained or chosen on"):
        hindcast(model, split_at_gaps(rain)[:25])


def test_another_area_at_the_same_time_was_not_seen() -> None:
    card = {"frames": [{"start": "2024-06-01T12:00:00", "end": "2024-06-01T12:10:00", "area": [5.0, 50.0, 7.0, 52.0]}]}

    def at(longitude: float) -> xr.DataArray:
        return make_frames(np.zeros((4, 10, 10))).assign_coords(
            y=("y", 51 - 0.01 * np.arange(10), {"units": "degrees"}),
            x=("x", longitude + 0.01 * np.arange(10), {"units": "degrees"}),
        )

    assert seen(at(6.0), card).tolist() == [True, True, True, False]
    assert seen(at(366.0), card).tolist() == [True, True, True, False]  # the same meridian
    assert not seen(at(8.0), card).any()
    nowhere = make_frames(np.zeros((4, 10, 10)))
    assert seen(nowhere, card).tolist() == [True, True, True, False]  # an unknown place may be the same place


def test_no_case_says_why(model: Forecaster, rain: xr.DataArray) -> None:
    short = split_at_gaps(rain)[27].isel(time=slice(0, 4))
    with pytest.raises(
        InputError, match="a case takes 3 past and 2 future frames without a gap, and the longest run has 4"
    ):
        hindcast(model, [short])


def test_json_holds_the_scores(model: Forecaster, rain: xr.DataArray) -> None:
    scores = hindcast(model, split_at_gaps(rain)[25:], scales=(5,)).scores
    document = json.loads(scores_to_json(scores))
    assert document["cases"] == 40
    row = next(r for r in document["scores"] if r["forecaster"] == "stormcell" and r["lead_minutes"] == 10)
    at = scores.sel(forecaster="stormcell", lead_time=np.timedelta64(10, "m"))
    assert row["mse"] == pytest.approx(float(at.mse))
    entry = next(e for e in row["thresholds"] if e["threshold"] == 2)
    assert entry["csi"] == pytest.approx(float(at.csi.sel(threshold=2)))
    assert entry["hits"] == int(at.hits.sel(threshold=2))
    assert entry["fss"][0]["fss"] == pytest.approx(float(at.fss.sel(threshold=2, scale=5)))
    assert row["cases"] == 40


def test_a_model_of_a_plain_quantity_is_verified_without_events(model: Forecaster) -> None:
    from dataclasses import replace

    from stormcell.data.units import Transform

    frames = make_frames(280 + fields(0, (9, 16, 16)), units="K")
    kelvin = replace(model, transform=Transform("K", 281.23456, 283.5), card={})
    found = hindcast(kelvin, [frames], scales=(5,))
    assert found.scores.threshold.size == 0
    assert found.scores.rmse.notnull().all()
    assert found.scores.attrs["units"] == "K"
    with pytest.raises(InputError, match="optical-flow needs rain frames"):
        hindcast(kelvin, [frames], against=("optical-flow",))


def test_a_baseline_that_fails_is_an_error(
    model: Forecaster, rain: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(past: np.ndarray, steps: int) -> np.ndarray:
        raise ZeroDivisionError("no motion at all")

    monkeypatch.setitem(BASELINES, "persistence", broken)
    with pytest.raises(
        InputError, match=r"persistence failed from 2024-01-08 .* UTC \(no motion at all\); leave it out"
    ):
        hindcast(model, split_at_gaps(rain)[25:])


def test_questions_asked_twice_or_for_nothing(model: Forecaster, rain: xr.DataArray) -> None:
    runs = split_at_gaps(rain)[25:27]
    again = hindcast(model, runs, against=["persistence"] * 2, thresholds=[1, 1], scales=[5, 5]).scores
    assert (again.sizes["forecaster"], again.sizes["threshold"], again.sizes["scale"]) == (2, 1, 1)
    with pytest.raises(InputError, match="--steps must be 1 or more, not 0"):
        hindcast(model, runs, steps=0)
    with pytest.raises(InputError, match="no pixel is valid"):
        hindcast(model, [run.where(run < 0) for run in runs])
    scores = verify(model.forecast(runs[0].isel(time=slice(0, 6))), runs[0], thresholds=np.array([1.0, 2.0]))
    assert scores.sizes["threshold"] == 2
