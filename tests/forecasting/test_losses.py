"""The loss of probabilities: by hand, over valid pixels only, lowest for the truth."""

from __future__ import annotations

import math

import pytest
import torch

from stormcell.forecasting.losses import exceedance_error, mean

LEVELS = torch.tensor([0.2, 0.6])
WEIGHTS = (1.5, 1.7)


def exceedance_loss(logits: torch.Tensor, batch: dict[str, torch.Tensor], levels: torch.Tensor) -> torch.Tensor:
    return mean(*exceedance_error(logits, batch, levels))


def batch(value: float, valid: bool = True) -> dict[str, torch.Tensor]:
    y = torch.full((1, 1, 1, 2, 2), value)
    return {"y": y, "valid": torch.full(y.shape, valid)}


def logits(*probabilities: float) -> torch.Tensor:
    return torch.logit(torch.tensor(probabilities)).view(1, 1, 2, 1, 1).expand(1, 1, 2, 2, 2)


def test_by_hand() -> None:
    """0.4 exceeds the lower level and not the higher one."""
    found = float(exceedance_loss(logits(0.9, 0.3), batch(0.4), LEVELS))
    expected = -(1.5 * math.log(0.9) + 1.7 * math.log(0.7)) / sum(WEIGHTS)
    assert found == pytest.approx(expected, rel=1e-5)


def test_missing_pixels_have_no_say() -> None:
    one = batch(0.4)
    one["valid"][..., 0, :] = False
    one["y"][..., 0, :] = 0.9
    expected = exceedance_loss(logits(0.9, 0.3), batch(0.4), LEVELS)
    torch.testing.assert_close(exceedance_loss(logits(0.9, 0.3), one, LEVELS), expected)
    assert float(exceedance_loss(logits(0.9, 0.3), batch(0.4, valid=False), LEVELS)) == 0


def test_it_is_lowest_for_the_true_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.rand(1, 1, 1, 300, 300, generator=generator)  # 0.8 of it above 0.2, 0.4 above 0.6
    drawn = {"y": y, "valid": torch.ones_like(y, dtype=torch.bool)}

    def loss(low: float, high: float) -> float:
        said = torch.logit(torch.tensor([low, high])).view(1, 1, 2, 1, 1).expand(1, 1, 2, 300, 300)
        return float(exceedance_loss(said, drawn, LEVELS))

    best = loss(0.8, 0.4)
    for low, high in ((0.75, 0.4), (0.85, 0.4), (0.8, 0.35), (0.8, 0.45)):
        assert loss(low, high) > best
