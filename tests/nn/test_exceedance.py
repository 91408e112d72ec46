"""Probabilities of exceedance: the first guess by hand, what the net adds, lead times between its steps."""

from __future__ import annotations

import pytest
import torch

from stormcell.nn.exceedance import ExceedanceForecaster, FirstGuess

LEVELS = (0.2, 0.5)


def net(**options: object) -> ExceedanceForecaster:
    torch.manual_seed(0)
    return ExceedanceForecaster(LEVELS, 2, hidden_channels=(6, 4), told=3, width=8, **options)  # type: ignore[arg-type]


def frames(batch: int = 2, height: int = 20, width: int = 28) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    value = torch.rand(batch, 2, 1, height, width, generator=generator)
    return torch.cat([value, torch.ones_like(value)], dim=2)


def spoken(model: ExceedanceForecaster) -> ExceedanceForecaster:
    """With a head that says something."""
    torch.nn.init.normal_(model.add.weight)
    return model


def test_shares_by_hand() -> None:
    guess = FirstGuess(LEVELS, scales=(1, 2))
    value = torch.tensor([[0.0, 0.3, 0.6, 0.6], [0.3, 0.3, 0.6, 0.1]])[None, None]
    shares = guess.shares(value, torch.ones_like(value))
    assert shares.shape == (1, 2, 2, 2, 4)
    assert shares[0, :, 0].round(decimals=3).tolist() == [
        [[0, 1, 1, 1], [1, 1, 1, 0]],
        [[0, 0, 1, 1], [0, 0, 1, 0]],
    ]
    # Blocks of 2×2 hold 3/4 and 3/4 of the first level, 0 and 3/4 of the second; a quarter of the way between two.
    near = {"rtol": 0, "atol": 1e-3}
    torch.testing.assert_close(shares[0, 0, 1], torch.full((2, 4), 0.75), **near)
    torch.testing.assert_close(shares[0, 1, 1], torch.tensor([0.0, 0.1875, 0.5625, 0.75]).expand(2, 4), **near)


def test_a_missing_pixel_is_not_dry() -> None:
    guess = FirstGuess(LEVELS, scales=(2,))
    value, valid = torch.full((1, 1, 2, 2), 0.9), torch.ones(1, 1, 2, 2)
    value[..., 0, 0], valid[..., 0, 0] = 0, 0
    torch.testing.assert_close(guess.shares(value, valid), torch.ones(1, 2, 1, 2, 2), rtol=0, atol=3e-4)


def test_where_nothing_is_valid_the_wider_block_speaks() -> None:
    guess = FirstGuess(LEVELS, scales=(1, 4))
    value, valid = torch.zeros(1, 1, 4, 4), torch.ones(1, 1, 4, 4)
    value[..., :2] = 0.3
    valid[..., 0, :] = 0
    shares = guess.shares(value, valid)[0, 0]
    torch.testing.assert_close(shares[0, 0], torch.full((4,), 0.5), rtol=0, atol=1e-3)
    torch.testing.assert_close(shares[0, 1], torch.tensor([1.0, 1.0, 0.0, 0.0]), rtol=0, atol=1e-3)


def test_the_guess_mixes_by_level_and_lead() -> None:
    guess = FirstGuess(LEVELS, scales=(1, 2))
    with torch.no_grad():
        guess.weight.zero_()
        guess.weight[0, :, -1] = -50  # no climate
        guess.weight[1, :, 0] = -1.0  # the pixel itself counts less with every hour
    shares = torch.zeros(1, 2, 2, 1, 1)
    shares[:, :, 0] = 1.0
    for minutes in (30.0, 60.0, 120.0):
        found = torch.sigmoid(guess(shares, minutes))
        expected = torch.sigmoid(torch.tensor(-minutes / 60))  # softmax of (-hours, 0)
        torch.testing.assert_close(found, expected.expand(1, 2, 1, 1))


def test_untrained_it_is_its_first_guess() -> None:
    model, x = net(), frames()
    torch.testing.assert_close(model(x, [5.0, 10.0]), model(x, [5.0, 10.0], guess_only=True))
    assert not torch.allclose(spoken(model)(x, [10.0]), model(x, [10.0], guess_only=True))


def test_what_it_says_at_a_lead_time_does_not_hang_on_the_others() -> None:
    model, x = spoken(net()), frames()
    together = model(x, [5.0, 10.0, 25.0, 40.0])
    for k, minutes in enumerate((5.0, 10.0, 25.0, 40.0)):
        torch.testing.assert_close(model(x, [minutes])[:, 0], together[:, k], rtol=1e-4, atol=1e-5)


def test_between_two_steps_it_is_told_the_mean() -> None:
    model = net(lead_minutes=10.0)
    told = torch.randn(1, 3, 3, 2, 2)
    torch.testing.assert_close(model._between(told, 20.0), told[:, 1])
    torch.testing.assert_close(model._between(told, 25.0), (told[:, 1] + told[:, 2]) / 2, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model._between(told, 5.0), told[:, 0] / 2, rtol=1e-4, atol=1e-5)


def test_any_frame_size_and_gradients_for_every_weight() -> None:
    model = spoken(net())
    for height, width in ((5, 7), (33, 20)):
        logits = model(frames(1, height, width), [10.0, 20.0])
        assert logits.shape == (1, 2, 2, height, width)
    logits.square().sum().backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().sum() > 0, name


def test_strips_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stormcell.nn.exceedance._STRIP", 70)  # two rows and a half
    model, x = spoken(net()), frames()
    whole = model(x, [10.0, 15.0])
    with torch.no_grad():
        torch.testing.assert_close(model(x, [10.0, 15.0]), whole)


def test_levels_ascend() -> None:
    with pytest.raises(ValueError, match=r"levels must ascend\. Received: \(0\.5, 0\.2\)"):
        ExceedanceForecaster((0.5, 0.2), 2)
