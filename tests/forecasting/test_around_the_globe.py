"""Grids that go around the globe: recognised by their longitudes, cropped across the seam, forecast without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from stormcell import InputError, load
from stormcell.data.axes import wraps
from stormcell.data.contract import coarsen
from stormcell.data.units import Transform
from stormcell.data.windows import Windows
from stormcell.forecasting.plan import Recipe, plan

from .test_climatology import warm_sea

RECIPE = Recipe(past=2, future=2, hidden_channels=(4, 3), crop=6)


def turned(frames: xr.DataArray, columns: int) -> xr.DataArray:
    """The same globe, cut open elsewhere."""
    return frames.copy(data=np.roll(frames.values, columns, axis=-1))


def test_longitudes_say_whether_they_go_around() -> None:
    sea = warm_sea(3)
    assert wraps(sea)
    assert wraps(sea.assign_coords(x=("x", sea.x.values - 180, {"units": "degrees"})))
    assert wraps(sea.isel(x=slice(None, None, -1)))
    assert wraps(coarsen(sea, 2))
    assert not wraps(coarsen(sea, 7))  # three columns of 105°, and a rest that is left off
    assert not wraps(sea.isel(x=slice(1, None)))
    assert not wraps(sea.assign_coords(x=("x", sea.x.values, {"units": "m"})))
    uneven = sea.x.values.copy()
    uneven[5] += 5
    assert not wraps(sea.assign_coords(x=("x", uneven, {"units": "degrees"})))


def test_crops_cross_the_seam() -> None:
    sea = warm_sea(12)
    sea.values[:] = np.arange(24, dtype=np.float32)  # each column its number
    windows = Windows([sea], Transform("K", 0, 1), past=2, future=1, crop=6, periodic=True)
    drawn = [windows[k]["x"][0, 0, 0].numpy().round().astype(int) for k in range(len(windows))]
    assert {tuple((row - row[0]) % 24) for row in drawn} == {tuple(range(24))}
    assert len({row[0] for row in drawn}) > 4
    assert windows[0]["y"].shape == (1, 1, 6, 24)
    fixed = Windows([sea], Transform("K", 0, 1), past=2, future=1, crop=6, periodic=True, fixed=3)
    assert fixed[1]["x"][0, 0, 0, 0] == 0


def test_a_globe_cut_open_elsewhere_has_the_same_forecast(tmp_path: Path) -> None:
    sea = warm_sea(40)
    planned = plan([sea], RECIPE)
    assert planned.network.periodic_x
    planned.forecaster.save(tmp_path / "m.safetensors")
    model = load(tmp_path / "m.safetensors")
    fcst, again = model.forecast(sea), model.forecast(turned(sea, 8))
    np.testing.assert_allclose(np.roll(fcst.values, 8, axis=-1), again.values, rtol=2e-7)
    regional = plan([sea.isel(x=slice(0, 20))], RECIPE)
    assert not regional.network.periodic_x
    with pytest.raises(InputError, match="has 20 columns, which do not go around the globe"):
        model.forecast(sea.isel(x=slice(0, 20)))


def test_a_patch_divides_the_columns() -> None:
    sea = warm_sea(40, width=15)
    planned = plan([sea], RECIPE)
    assert planned.recipe.patch == 3
    with pytest.raises(
        InputError, match="--patch 4 does not divide the 15 columns that go around the globe: --patch 3 does"
    ):
        plan([sea], Recipe(past=2, future=2, patch=4))
