"""A small model, trained once for all tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import xarray as xr

from stormcell import Forecaster, load
from stormcell.data.windows import split_at_gaps
from stormcell.forecasting.plan import Recipe, plan
from stormcell.forecasting.train import train

RECIPE = Recipe(model="plain", past=3, future=2, epochs=2, crop=32, batch=8, hidden_channels=(6, 4), device="cpu")


@pytest.fixture(scope="session")
def model_path(rain: xr.DataArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the first 25 storms; the others it has not seen."""
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    train(plan(split_at_gaps(rain)[:25], RECIPE), path, progress=False, command="made by a test")
    return path


@pytest.fixture
def model(model_path: Path) -> Forecaster:
    return load(model_path)
