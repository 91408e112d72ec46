"""Tiles give the forecast of the whole frame: their halo is as wide as the network sees, and no wider."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stormcell.data.units import Transform
from stormcell.forecasting import tiles
from stormcell.forecasting.forecast import Forecaster
from stormcell.nn.forecaster import EncoderForecaster

NETS: list[dict[str, Any]] = [
    {"hidden_channels": (8, 8), "kernel_size": 3, "patch": 4},
    {"hidden_channels": (6, 5), "kernel_size": 5, "patch": 2},
    {"hidden_channels": (4,), "kernel_size": 3, "patch": 1},
    {"hidden_channels": (4, 3, 2), "kernel_size": 1, "patch": 3},
]


def forecaster(**net: Any) -> Forecaster:
    torch.manual_seed(0)
    made = Forecaster.untrained(Transform("K", 0.0, 1.0), 5.0, 4, 5, None, **net)
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter.normal_(std=0.2)
    return made


def frames(*shape: int) -> np.ndarray:
    found = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    found[:, :9, :30] = np.nan  # never seen
    found[1, 40:50, 80:100] = np.nan
    return found


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("steps", [5, [2, 4]])
def test_tiles_are_the_whole(net: dict[str, Any], steps: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that neither tiles nor patches divide."""
    made, past = forecaster(**net), frames(4, 71, 134)
    whole = made.fields(past, steps)
    monkeypatch.setattr("stormcell.forecasting.forecast.side", lambda *_: 8 * made.network.patch)
    tiled = made.fields(past, steps)
    assert np.isnan(tiled[:, :9, :30]).all()
    np.testing.assert_array_equal(np.isnan(tiled), np.isnan(whole))
    np.testing.assert_allclose(tiled, whole, rtol=0, atol=2e-5 * np.nanmax(np.abs(whole)))


def test_a_halo_one_patch_narrower_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    made, past = forecaster(**NETS[2]), frames(4, 71, 134)
    size = made.network, 4, 5
    with torch.no_grad():
        for parameter in made.network.parameters():
            parameter *= 4  # so that what is far away has a say that rounding does not hide
    whole = made.fields(past, 5)
    monkeypatch.setattr("stormcell.forecasting.forecast.side", lambda *_: 32)
    monkeypatch.setattr("stormcell.forecasting.forecast.halo", lambda *_: tiles.halo(*size) - 1)
    assert np.nanmax(np.abs(made.fields(past, 5) - whole)) > 1e-3 * np.nanmax(np.abs(whole))


def test_tiles_are_chosen_by_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    network = EncoderForecaster(2, (48, 48), 3, patch=4, peephole="channel", out_channels=1)
    assert tiles.halo(network, 4, 6) == 4 * (3 + 4 + 6 - 1)
    assert tiles.side(network, 4, 6) > 1500  # most frames are one tile
    sides = []
    for limit in (4 * 2**30, 2**30, 2**28, 0):
        monkeypatch.setattr(tiles, "LIMIT", limit)
        sides.append(tiles.side(network, 4, 6))
    assert sides == sorted(sides, reverse=True)
    assert sides[-1] == 4
    assert all(side % 4 == 0 for side in sides)


def test_a_frame_within_the_limit_is_one_tile() -> None:
    seen: list[tuple[int, ...]] = []

    def forecast(past: np.ndarray) -> np.ndarray:
        seen.append(past.shape)
        return past

    past = frames(2, 40, 90)
    np.testing.assert_array_equal(tiles.tiled(forecast, past, side=90, halo=10), past)
    assert seen == [past.shape]
    np.testing.assert_array_equal(tiles.tiled(forecast, past, side=32, halo=10), past)
    assert seen[1:] == [(2, h, w) for h in (40, 18) for w in (42, 52, 36)]
