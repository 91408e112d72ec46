"""The model that comes with Stormcell: it serves what its page promises, and is the default of the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stormcell import Forecaster, InputError, load, open_frames, verify
from stormcell.cli import main
from stormcell.data.synthetic import advected_rain
from stormcell.data.units import Transform
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.bundled import DEFAULT, model_file
from stormcell.forecasting.forecast import save_frames
from stormcell.forecasting.motion import has_pysteps
from stormcell.forecasting.plan import OF_THE_NETWORK, Recipe, plan

if not has_pysteps():
    pytest.skip("pysteps or OpenCV is not installed", allow_module_level=True)


def storms(frames: int = 12, **options: int) -> xr.DataArray:
    return advected_rain(1, frames, size=96, seed=5, **options)


def test_it_is_small_and_says_whose_data_it_learnt_from_and_where_it_is_worse() -> None:
    assert model_file(DEFAULT).stat().st_size <= 4e6
    model = load(DEFAULT)
    assert len(model.card["sources"]) == 7
    assert isinstance(model.card["worse_than_optical_flow"], list)
    assert {entry["role"] for entry in model.card["frames"]} == {"training", "validation"}
    assert {entry["source"] for entry in model.card["frames"]} <= set(model.card["sources"])


@pytest.mark.parametrize("minutes", [2, 5, 10, 15])
@pytest.mark.parametrize("metres", [500, 1000, 2000])
def test_steps_and_grids_that_it_serves(minutes: int, metres: int) -> None:
    frames = storms(step_minutes=minutes).assign_coords(x=np.arange(96.0) * metres, y=np.arange(96.0)[::-1] * metres)
    fcst = load(DEFAULT).forecast(frames, steps=3)
    assert fcst.shape == (3, 96, 96)
    assert np.isfinite(fcst).all()
    assert 1 < float(fcst.max()) < 3 * float(frames.max())


def test_it_beats_persistence_on_rain_that_it_does_not_know() -> None:
    frames = storms()
    fcst = load(DEFAULT).forecast(frames.isel(time=slice(None, 6)), steps=6)
    scores = verify(fcst, frames).csi.sel(threshold=2.0).isel(lead_time=-1)
    assert float(scores.sel(forecaster="stormcell")) > float(scores.sel(forecaster="persistence")) + 0.1


def test_what_it_cannot_serve_it_says() -> None:
    frames = storms()
    with pytest.raises(
        InputError, match="a frame every 60 min: the motion of rain can be followed over 15 min at most"
    ):
        load(DEFAULT).forecast(storms(step_minutes=60))
    with pytest.raises(InputError, match="a grid of 4 km, coarser than the model's of 2 km"):
        load(DEFAULT).forecast(frames.assign_coords(x=frames.x * 4, y=frames.y * 4))
    frames.attrs["units"] = "K"
    with pytest.raises(InputError, match="train one on such frames"):
        load(DEFAULT).forecast(frames)


def test_without_m_the_command_line_takes_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = storms()
    save_frames(frames, tmp_path / "rain.nc")
    assert main(["forecast", str(tmp_path / "rain.nc"), "-o", str(tmp_path / "now.nc"), "--steps", "2"]) == 0
    np.testing.assert_allclose(open_frames(tmp_path / "now.nc"), load(DEFAULT).forecast(frames, 2), atol=1e-3)
    assert "how large a pixel is" not in capsys.readouterr().err
    scores = tmp_path / "s.json"
    assert main(["verify", str(tmp_path / "rain.nc"), "-o", str(scores), "--steps", "6", "--scales", "5"]) == 0
    np.save(tmp_path / "bare.npy", frames.values)
    bare = [str(tmp_path / "bare.npy"), "--units", "mm/h", "--start", "2024-01-01T00:00", "--step-minutes", "5"]
    assert main(["forecast", *bare, "-o", str(tmp_path / "now.nc")]) == 0
    assert "the files do not say how large a pixel is; it is taken for 2 km" in capsys.readouterr().err


def test_fine_tuning_goes_on_from_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_frames(advected_rain(3, 16, size=64, seed=6), tmp_path / "rain.nc")
    output = tmp_path / "mine.safetensors"
    train = ["train", str(tmp_path / "rain.nc"), "--from", DEFAULT, "-o", str(output), "--epochs", "1", "--crop", "32"]
    assert main(train) == 2
    assert "give --coarsen 2" in capsys.readouterr().err
    assert main([*train, "--coarsen", "2"]) == 0
    mine = load(output)
    assert mine.card["recipe"]["learning_rate"] == pytest.approx(0.2 * type(mine).usual["learning_rate"])
    kept = {name: load(DEFAULT).card["recipe"][name] for name in OF_THE_NETWORK}
    assert kept == {name: mine.card["recipe"][name] for name in OF_THE_NETWORK}
    assert len(mine.card["frames"]) > len(load(DEFAULT).card["frames"])  # it remembers what both have seen


def test_what_the_network_is_cannot_be_changed_by_fine_tuning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.yaml").write_text("hidden: [16, 16]\n")
    for words in (["--past", "3"], ["--kernel-size", "5"], ["--config", str(tmp_path / "train.yaml")]):
        assert main(["train", "rain.nc", "--from", DEFAULT, "-o", str(tmp_path / "mine.safetensors"), *words]) == 2
        assert "is that of the model which --from names: leave it out" in capsys.readouterr().err


def test_a_model_that_was_never_trained_can_be_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "new.safetensors"
    Forecaster.untrained(Transform(), 5.0, 3, 2, None, hidden_channels=(8,), kernel_size=3, patch=4).save(path)
    prepared = plan(split_at_gaps(advected_rain(3, 12, size=32, seed=0)), Recipe(base=str(path), crop=32))
    assert (prepared.forecaster.past, prepared.forecaster.frames_ahead) == (3, 2)
