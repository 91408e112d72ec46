"""The forecaster in the storm's coordinates: it learns, is saved and read, serves other steps and grids, makes ensembles."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from stormcell import Forecaster, InputError, load
from stormcell.data.synthetic import advected_rain
from stormcell.data.units import Transform
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.aligned import AlignedWindows
from stormcell.forecasting.lagrangian import LagrangianForecaster, aligned, frames_needed
from stormcell.forecasting.motion import has_pysteps
from stormcell.forecasting.plan import plan
from stormcell.forecasting.train import train
from stormcell.forecasting.verify import hindcast

from ..conftest import make_frames
from .conftest import RECIPE

if not has_pysteps():
    pytest.skip("pysteps or OpenCV is not installed", allow_module_level=True)

LAGRANGIAN = replace(RECIPE, model="lagrangian", future=3, epochs=3)
UNMOVED = Transform(zr=(200.0, 1.6))


@pytest.fixture(scope="module")
def storms() -> list[xr.DataArray]:
    return split_at_gaps(advected_rain(26, 9, size=48, seed=3))


@pytest.fixture(scope="module")
def moving_path(storms: list[xr.DataArray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("moving") / "m.safetensors"
    train(plan(storms[:18], LAGRANGIAN), path, progress=False, command="made by a test")
    return path


@pytest.fixture
def moving(moving_path: Path) -> LagrangianForecaster:
    forecaster = load(moving_path)
    assert isinstance(forecaster, LagrangianForecaster)
    return forecaster


def translated(
    count: int, pixels: float, *, side: int = 64, step_minutes: float = 5.0, spacing: float = 1000
) -> xr.DataArray:
    """Cells of 8 mm/h that keep their shape and move to the right, `pixels` a frame."""
    y, x = np.mgrid[:side, :side].astype(np.float32)
    rain = np.zeros((count, side, side), np.float32)
    for k in range(count):
        for cy, cx in ((12, 5), (30, 14), (50, 8), (22, 28), (44, 30)):
            rain[k] += 8 * np.exp(-((y - cy) ** 2 + (x - cx - pixels * k) ** 2) / 18)
    return make_frames(np.where(rain < 0.1, 0, rain), step_minutes=step_minutes, spacing=spacing)


# --- alignment ---


def test_aligned_frames_of_what_only_moves_are_all_the_same() -> None:
    frames = translated(4, 2.0).values
    motion = torch.zeros(1, 2, 64, 64)
    motion[:, 0] = 2.0 / 5
    fields = aligned(frames, [-15, -10, -5, 0], motion, [-15, -7.5, 0])
    inside = np.isfinite(fields).all(axis=0)
    assert inside.mean() > 0.85
    for field in fields:
        np.testing.assert_allclose(field[inside], frames[-1][inside], atol=0.35)  # of 8 mm/h, by interpolation
    np.testing.assert_array_equal(fields[-1], frames[-1])


def test_before_the_first_frame_it_is_repeated() -> None:
    frames = np.stack([np.full((8, 8), 1.0, np.float32), np.full((8, 8), 3.0, np.float32)])
    fields = aligned(frames, [-5, 0], torch.zeros(1, 2, 8, 8), [-10, -5, -2.5, 0])
    np.testing.assert_allclose(fields[:, 4, 4], [1, 1, 2, 3])


def test_what_is_missing_now_is_what_was_last_seen_there() -> None:
    frames = np.full((3, 6, 6), 2.0, np.float32)
    frames[0, :, 0] = np.nan
    frames[2, 3:] = np.nan
    fields = aligned(frames, [-10, -5, 0], torch.zeros(1, 2, 6, 6), [-10, -5, 0])
    assert np.isnan(fields[0, :, 0]).all()
    assert (fields[1:] == 2).all()


def test_how_many_frames_are_needed() -> None:
    ages = (-10.0, -5.0, 0.0)
    assert [frames_needed(step, ages) for step in (2, 5, 6, 10, 15)] == [6, 3, 3, 3, 3]
    assert frames_needed(5, (-25.0, 0.0)) == 6


def test_training_windows_hold_still() -> None:
    run = translated(10, 2.0)
    windows = AlignedWindows([run], UNMOVED, ages=(-10, -5, 0), leads=(5, 10, 15), crop=64, fixed=4)
    sample = windows[1]
    assert sample["x"].shape == (3, 2, 64, 64)
    now, later, valid = sample["x"][-1, 0], sample["y"][-1, 0], sample["valid"][-1, 0]
    assert valid.float().mean() > 0.4
    wet = valid & (now > 0.3)
    assert wet.sum() > 50
    assert float((later - now)[wet].abs().mean()) < 0.05  # it moved 6 pixels, and was brought back


def test_lead_times_without_a_frame_are_missing() -> None:
    run = translated(8, 3.0, step_minutes=15)
    windows = AlignedWindows([run], UNMOVED, ages=(-10, -5, 0), leads=(10, 20, 30), crop=32, fixed=2)
    valid = windows[0]["valid"]
    assert not valid[:2].any()  # frames are 15 and 30 minutes away
    assert valid[2].any()


# --- the forecaster ---


def test_it_learns_and_beats_the_baselines(moving: LagrangianForecaster, storms: list[xr.DataArray]) -> None:
    validation = moving.card["validation"]
    assert validation["reference"] == "first guess"
    assert validation["loss"] <= validation["reference_loss"] * 1.02
    scores = hindcast(moving, storms[18:], against=("persistence", "optical-flow"), scales=(5,)).scores
    csi = scores.csi.sel(threshold=[0.5, 2]).isel(lead_time=-1).mean("threshold")
    assert float(csi.sel(forecaster="stormcell")) > float(csi.sel(forecaster="persistence"))
    assert float(csi.sel(forecaster="stormcell")) > 0.95 * float(csi.sel(forecaster="optical-flow"))


def test_a_model_file_gives_the_same_forecast(
    moving: LagrangianForecaster, storms: list[xr.DataArray], tmp_path: Path
) -> None:
    moving.save(tmp_path / "again.safetensors")
    again = load(tmp_path / "again.safetensors")
    past = storms[20].isel(time=slice(None, 4))
    xr.testing.assert_equal(moving.forecast(past), again.forecast(past))
    assert again.card["model"] == "lagrangian"


def test_rain_arrives_where_the_motion_takes_it(moving: LagrangianForecaster) -> None:
    """6 pixels a frame are more than any kernel of the net reaches."""
    frames = translated(10, 3.0)
    fcst = moving.forecast(frames.isel(time=slice(None, 4)), steps=4)
    truth = frames.isel(time=slice(4, 8))
    last = frames.isel(time=3)
    assert float(abs(fcst - truth.values).mean()) < 0.6 * float(abs(last - truth).mean())


def test_other_steps_grids_and_units(moving: LagrangianForecaster) -> None:
    fine = translated(8, 1.5, side=128, step_minutes=2.5, spacing=500)
    fcst = moving.forecast(fine, steps=5)
    assert fcst.shape == (5, 128, 128)
    assert fcst.lead_time.values[-1] == np.timedelta64(750, "s")
    assert np.isfinite(fcst.values).all()
    dbz = fine.copy(
        data=np.where(fine > 0, 10 * np.log10(200 * fine.values.clip(0.001) ** 1.6), -32).astype(np.float32)
    )
    dbz.attrs["units"] = "dBZ"
    again = moving.forecast(dbz, steps=5)
    assert again.attrs["units"] == "dBZ"
    np.testing.assert_allclose(again.values.max(), 10 * np.log10(200 * float(fcst.max()) ** 1.6), atol=0.1)


def test_what_it_cannot_serve_is_said(moving: LagrangianForecaster) -> None:
    with pytest.raises(InputError, match="a grid of 4 km, coarser than the model's of 1 km"):
        moving.forecast(translated(8, 1.0, spacing=4000))
    with pytest.raises(InputError, match="a frame every 60 min: the motion of rain can be followed over 15 min"):
        moving.forecast(translated(8, 1.0, step_minutes=60))
    with pytest.raises(InputError, match="ends with 2 frames without a gap; the model needs 3"):
        moving.forecast(translated(2, 1.0))
    kelvin = translated(4, 1.0)
    kelvin.attrs["units"] = "K"
    with pytest.raises(InputError, match="does not convert to the model's unit"):
        moving.forecast(kelvin)
    warm = translated(30, 1.0)
    warm.attrs["units"] = "K"
    with pytest.raises(InputError, match="use --model plain"):
        plan([warm], LAGRANGIAN)
    with pytest.raises(InputError, match="over 15 min at most, and frames are 60 min apart"):
        plan(split_at_gaps(translated(40, 1.0, step_minutes=60)), LAGRANGIAN)
    with pytest.raises(InputError, match="--model knows auto, plain, lagrangian, not 'best'"):
        plan([translated(20, 1.0)], replace(LAGRANGIAN, model="best"))


def test_rain_that_moves_is_forecast_in_the_storms_coordinates_unless_told_otherwise() -> None:
    auto = replace(LAGRANGIAN, model="auto", past=2, future=2)
    kelvin = translated(30, 1.0)
    kelvin.attrs["units"] = "K"
    for frames, kind in (
        (translated(30, 1.0), "lagrangian"),
        (kelvin, "plain"),
        (translated(40, 1.0, step_minutes=60), "plain"),
    ):
        found = plan(split_at_gaps(frames), auto)
        assert found.forecaster.kind == found.recipe.model == kind
        assert found.recipe.patch == type(found.forecaster).usual["patch"]


def test_missing_only_where_nothing_was_seen(moving: LagrangianForecaster) -> None:
    frames = translated(6, 2.0)
    frames[:, :, 50:] = np.nan
    frames[-1, 10:20] = np.nan
    fcst = moving.forecast(frames)
    assert np.isnan(fcst.values[:, :, 50:]).all()
    assert np.isfinite(fcst.values[:, :, :50]).all()


def test_what_flows_in_is_no_smear_of_the_edge(moving: LagrangianForecaster) -> None:
    """Rain at the upwind edge is not drawn out into bands across the part that nothing is known of."""
    frames = translated(4, 4.0)
    frames[:] = np.where(np.arange(64)[:, None] < 40, frames.values, 0)
    frames[-1, 20:24, :3] = 8.0
    member = moving.forecast(frames, steps=4, members=1).isel(member=0, time=-1).values
    inflow = member[:, :14]
    assert np.isfinite(inflow).all()
    assert np.abs(np.diff(inflow, axis=1)).max() > 0 or inflow.max() == 0


def test_dry_frames_give_a_dry_forecast(moving: LagrangianForecaster) -> None:
    fcst = moving.forecast(translated(6, 2.0) * 0 + xr.zeros_like(translated(6, 2.0)))
    assert float(fcst.max()) == 0


def test_training_goes_on_from_a_model(moving_path: Path, moving: LagrangianForecaster, tmp_path: Path) -> None:
    other = split_at_gaps(advected_rain(8, 9, size=48, seed=9, start="2025-03-01T00:00"))
    prepared = plan(other, replace(LAGRANGIAN, base=str(moving_path), epochs=1))
    for name, weight in prepared.network.state_dict().items():
        assert torch.equal(weight, moving.network.state_dict()[name])
    tuned = train(prepared, tmp_path / "tuned.safetensors", progress=False)
    assert any(not torch.equal(w, moving.network.state_dict()[n]) for n, w in tuned.network.state_dict().items())
    years = {entry["start"][:4] for entry in tuned.card["frames"]}
    assert years == {"2024", "2025"}  # verification leaves out what either has seen
    coarse = split_at_gaps(translated(30, 1.0, spacing=500))
    with pytest.raises(InputError, match=r"a grid of 0\.5 km, and .* was trained on one of 1 km: give --coarsen 2"):
        plan(coarse, replace(LAGRANGIAN, base=str(moving_path)))


def test_the_default_number_of_steps_is_the_time_it_was_trained_for(moving: LagrangianForecaster) -> None:
    assert moving.forecast(translated(8, 1.0)).sizes["time"] == 3
    assert moving.forecast(translated(8, 1.0, step_minutes=2.5)).sizes["time"] == 6


# --- ensembles ---


def test_an_ensemble_follows_from_its_seed(moving: LagrangianForecaster, storms: list[xr.DataArray]) -> None:
    past = storms[21].isel(time=slice(None, 4))
    a, b = (moving.forecast(past, members=6, seed=1) for _ in range(2))
    assert a.dims == ("member", "time", "y", "x")
    xr.testing.assert_equal(a, b)
    other = moving.forecast(past, members=6, seed=2)
    assert float(abs(a - other).mean()) > 0
    assert float(a.std("member").mean()) > 0


def test_members_keep_the_probabilities(moving: LagrangianForecaster, storms: list[xr.DataArray]) -> None:
    """Over many members, a level is exceeded as often as the net says."""
    past = np.asarray(storms[21].values[:4])
    suited = moving.suited(storms[21])
    assert isinstance(suited, LagrangianForecaster)
    past = past[-suited.past :]
    members = suited.ensemble(past, 3, members=300, seed=0)
    storm = suited._storm(past, 3)
    logits = list(suited._logits(storm))[-1]
    said = suited._placed(torch.sigmoid(logits)[:, None].expand(-1, 3, -1, -1), storm, past)[1, -1]
    found = (members[:, -1] >= 0.5).mean(axis=0)
    assert abs(float(found.mean()) - float(said.mean())) < 0.03
    assert np.corrcoef(found.ravel(), said.ravel())[0, 1] > 0.95


def test_a_plain_model_makes_no_ensemble(model: Forecaster, rain: xr.DataArray) -> None:
    with pytest.raises(InputError, match="train one with --model lagrangian"):
        model.forecast(split_at_gaps(rain)[20], members=3)
