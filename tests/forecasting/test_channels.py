"""Several channels in, one out: what the network sees, what it is asked for again, and what it cannot know."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from stormcell import InputError, load, open_frames, verify
from stormcell.cli import main
from stormcell.data.channels import channels_of, described, first_channel, stacked, with_static
from stormcell.data.contract import check_frames, coarsen
from stormcell.data.frames import open_runs
from stormcell.data.inspection import inspected
from stormcell.data.reading import Reading
from stormcell.data.windows import runs_of
from stormcell.forecasting.plan import Recipe, plan
from stormcell.forecasting.verify import hindcast

from ..conftest import make_frames
from .test_climatology import warm_sea

RECIPE = Recipe(past=2, future=2, hidden_channels=(4,), crop=8)
TRAIN = ["--past", "2", "--future", "2", "--epochs", "1", "--hidden", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """sea.nc with sst and wind; depth.nc and shallow.nc with fields that do not change, under the same name."""
    folder = tmp_path_factory.mktemp("channels")
    sea = warm_sea(40)
    wind = (
        (sea[:, :, ::-1] * 0 + np.arange(40.0)[:, None, None]).assign_attrs(units="m s-1", long_name="wind").fillna(3)
    )
    xr.Dataset({"sst": sea, "wind": wind.astype(np.float32)}).drop_attrs(deep=False).to_netcdf(folder / "sea.nc")
    for name, factor in (("depth", 1.0), ("shallow", 0.1)):
        field = xr.DataArray(
            factor * np.arange(8.0 * 24).reshape(8, 24), sea.isel(time=0, drop=True).coords, ("y", "x")
        )
        xr.Dataset({"depth": field.assign_attrs(units="m"), "other": field}).to_netcdf(folder / f"{name}.nc")
    return folder


def opened(folder: Path, *static: str) -> xr.DataArray:
    return open_frames(folder / "sea.nc", variable=["sst", "wind"], static=[str(folder / one) for one in static])


# --- frames ---


def test_channels_lie_side_by_side(folder: Path) -> None:
    frames = opened(folder, "depth.nc:depth")
    assert frames.dims == ("time", "channel", "y", "x")
    assert described(frames) == [("sst", "K", False), ("wind", "m s-1", False), ("depth", "m", True)]
    assert frames.attrs["units"] == "K"
    sst, wind, depth = channels_of(frames)
    xr.testing.assert_equal(
        sst.drop_vars("spatial_ref", errors="ignore"), open_frames(folder / "sea.nc", variable="sst")
    )
    assert float(wind.isel(time=7).max()) == 7
    assert "long_name" not in wind.attrs
    assert depth.isel(time=3, y=0, x=5) == depth.isel(time=0, y=0, x=5) == 5
    assert described(check_frames(frames.transpose("y", "x", "time", "channel"))) == described(frames)
    assert described(open_runs([folder / "sea.nc"], Reading(variable=["sst", "wind"]))[0]) == described(frames)[:2]
    assert [name.rsplit(": ")[1] for name, _ in inspected([folder / "sea.nc"], Reading(variable=["sst", "wind"]))] == [
        "sst",
        "wind",
    ]


def test_each_channel_is_coarsened_in_its_own_unit() -> None:
    dbz, plain = make_frames(np.full((2, 4, 4), 30.0), units="dBZ"), make_frames(np.zeros((2, 4, 4)), units="K")
    plain.values[:, ::2] = 2
    dbz.values[:, ::2] = -32
    both = coarsen(stacked([plain.rename("t"), dbz.rename("z")]), 2)
    assert described(both) == [("t", "K", False), ("z", "dBZ", False)]
    xr.testing.assert_allclose(
        both.isel(channel=1, drop=True).drop_vars(["channel_units", "channel_static", "channel"], errors="ignore"),
        coarsen(dbz, 2),
    )
    np.testing.assert_allclose(first_channel(both).values, 1)


def test_channels_are_there_when_all_are() -> None:
    a, b = (make_frames(np.zeros((6, 4, 4)), units="K").rename(name) for name in "ab")
    assert stacked([a.isel(time=slice(0, 4)), b.isel(time=slice(2, 6))]).sizes["time"] == 2
    with pytest.raises(InputError, match="a, b have no time in common"):
        stacked([a.isel(time=slice(0, 2)), b.isel(time=slice(2, 6))])
    with pytest.raises(InputError, match="b and a lie on different grids"):
        stacked([a, b.isel(x=slice(1, None))])
    with pytest.raises(InputError, match="two channels are called a"):
        stacked([a, a])
    with pytest.raises(InputError, match="depth and a lie on different grids"):
        with_static(a, [b.isel(time=0, x=slice(1, None)).rename("depth")])


# --- the network ---


def test_the_network_sees_value_and_validity_of_each_and_forecasts_the_first(folder: Path) -> None:
    frames = opened(folder, "depth.nc:depth")
    planned = plan(runs_of([frames]), RECIPE)
    sample = planned.training[0]
    assert sample["x"].shape == (2, 6, 8, 24)
    assert sample["y"].shape == (2, 1, 8, 24)
    value, valid = sample["x"][:, 0::2], sample["x"][:, 1::2]
    assert valid[:, 1:].all()  # wind and depth are known on land too
    assert (valid[:, 0] == 0).sum() == 2 * 8  # where sst is not
    assert (value[0, 2] == value[1, 2]).all()
    transform = planned.forecaster.beside[1].transform
    assert transform.low == pytest.approx(95.5)  # of depth, 0 to 191
    assert planned.network.in_channels == 6
    assert planned.recipe.model == "plain"


def test_a_forecast_follows_from_all_channels_but_knows_the_past_alone(folder: Path) -> None:
    frames = opened(folder)
    model = replace(plan(runs_of([frames]), RECIPE).forecaster, card={})
    past = frames.isel(time=slice(0, 10))
    fcst = model.forecast(past)
    assert fcst.dims == ("time", "y", "x")
    assert fcst.attrs["units"] == "K"
    assert fcst.name == "sst"
    assert fcst.isel(x=3).isnull().all()  # land, though the wind is known there
    windier = past.copy(deep=True)
    windier[:, 1] += 10
    assert not np.allclose(model.forecast(windier), fcst, equal_nan=True)
    later = frames.copy(deep=True)
    later[10:, 1] = np.nan  # of the future no channel is read
    changed = hindcast(model, [later.isel(time=slice(0, 12))]).scores
    xr.testing.assert_equal(changed.rmse, hindcast(model, [frames.isel(time=slice(0, 12))]).scores.rmse)
    own = verify(fcst, frames, past=2)
    np.testing.assert_allclose(own.rmse, verify(fcst, first_channel(frames), past=2).rmse)


def test_rain_beside_another_channel_is_plain_and_unturned() -> None:
    rain = make_frames(np.random.default_rng(0).gamma(0.5, 3, size=(30, 16, 16)))
    planned = plan([stacked([rain, rain.rename("steady").assign_attrs(units="K")])], RECIPE)
    assert planned.recipe.model == "plain"
    assert planned.forecaster.transform.rain
    with torch.no_grad():
        assert torch.isfinite(
            planned.forecaster.errors(planned.training[0] | {k: v[None] for k, v in planned.training[0].items()})[0]
        )
    with pytest.raises(InputError, match="--model lagrangian reads rain alone, without other channels"):
        plan([stacked([rain, rain.rename("b")])], Recipe(model="lagrangian", past=2, future=2))


# --- the command line ---


def test_a_model_asks_for_its_channels_again(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model, sea = tmp_path / "m.safetensors", str(folder / "sea.nc")
    both, depth = ["--variable", "sst,wind"], ["--static", f"{folder / 'depth.nc'}:depth"]
    assert main(["train", sea, "-o", str(model), *both, *depth, *TRAIN, "--test-from", "2003-10-01"]) == 0
    restored = load(model)
    assert [(c.name, c.transform.units, c.digest is None) for c in restored.beside] == [
        ("wind", "m s-1", True),
        ("depth", "m", False),
    ]
    forecast = ["forecast", sea, "-m", str(model), "-o", str(tmp_path / "f.nc")]
    assert main([*forecast, *both, *depth]) == 0
    assert open_frames(tmp_path / "f.nc").dims == ("time", "y", "x")
    verify_it = ["verify", sea, "-m", str(model), "-o", str(tmp_path / "s.json"), *both]
    assert main([*verify_it, *depth]) == 0
    assert "RMSE" in capsys.readouterr().out
    for arguments, message in (
        (
            verify_it,
            "the model reads depth beside the frames, and none is given: give --static FILE:depth, as in training",
        ),
        ([*forecast, *both], "give --static FILE:depth, as in training"),
        ([*forecast, "--variable", "sst", *depth], "the model reads 2 of its variables: give --variable sst,wind"),
        ([*forecast, "--variable", "wind,sst", *depth], "is in m s-1, which does not convert to the model's unit (K)"),
        (
            [*forecast, *both, "--static", f"{folder / 'shallow.nc'}:depth"],
            "depth is another field than the one of that name in training",
        ),
        (
            [*forecast, *both, "--static", f"{folder / 'depth.nc'}:other"],
            "the model reads depth beside the frames, and other is given",
        ),
        ([*forecast, *both, "--static", "nowhere.nc"], "--static nowhere.nc: nowhere.nc does not exist"),
        ([*forecast, *both, "--static", f"{folder / 'depth.nc'}"], "holds depth, other: choose with --variable"),
        ([*forecast, "--variable", "sst,sst"], "--variable takes names with commas between, each once"),
        (
            ["compare", sea, *both, "--updates", "1", "--past", "2", "--future", "2", "-o", str(tmp_path / "c.json")],
            "stormcell compare reads one variable",
        ),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err.replace("\n", " ")
    assert main([*forecast, *both, "--static", f"{folder / 'shallow.nc'}:depth", "--any-grid"]) == 0


def test_a_model_of_one_variable_takes_no_more(folder: Path) -> None:
    alone = open_frames(folder / "sea.nc", variable="sst")
    model = plan(runs_of([alone]), RECIPE).forecaster
    with pytest.raises(InputError, match="the model reads 1 of its variables: give --variable sst"):
        model.forecast(opened(folder))
    with pytest.raises(InputError, match="and depth is given: leave --static out"):
        model.forecast(open_frames(folder / "sea.nc", variable="sst", static=[f"{folder / 'depth.nc'}:depth"]))
