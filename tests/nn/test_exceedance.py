"""Probabilities of exceedance: the first guess by hand, what the net adds, lead times between its steps."""

from __future__ import annotations

import pytest
import torch

from stormcell.nn.exceedance import ExceedanceForecaster, FirstGuess, means

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


def test_means_by_hand() -> None:
    value = torch.zeros(1, 1, 16, 16)
    value[..., 8:] = 1.0
    pixel, around, wider = means(value, torch.ones(1, 1, 16, 16), octaves=2)[0, 0]
    torch.testing.assert_close(pixel, value[0, 0], rtol=0, atol=1e-3)
    # Halved by (1, 3, 3, 1)/8: 0, 1/8, 7/8, 1 for two columns each, and between their centres linearly.
    columns = torch.tensor([0.0, 0.03125, 0.09375, 0.3125, 0.6875, 0.90625, 0.96875, 1.0])
    torch.testing.assert_close(around[:, 4:12], columns.expand(16, 8), rtol=0, atol=1e-3)
    assert 0.05 < wider[8, 4] < 0.15 < wider[8, 6] < 0.5 < wider[8, 9] < 0.85 < wider[8, 11] < 0.95


def test_surroundings_are_about_gaussian_and_double_in_width() -> None:
    value = torch.zeros(1, 1, 256, 256)
    value[..., 126:130, 126:130] = 1.0
    spread = []
    for around in means(value, torch.ones(1, 1, 256, 256), octaves=4)[0, 0, 1:]:
        share = around.sum(dim=0) / around.sum()
        spread.append(float((share * (torch.arange(256) - 127.5) ** 2).sum()) ** 0.5)
    expected = [(1.3**2 * 4**k + 1.25) ** 0.5 for k in range(4)]  # and the variance of four pixels in a row
    assert spread == pytest.approx(expected, rel=0.05)


def test_shares_are_means_of_events() -> None:
    guess = FirstGuess(LEVELS, octaves=1)
    value = torch.rand(2, 1, 9, 13, generator=torch.Generator().manual_seed(0))
    shares = guess.shares(value, torch.ones_like(value))
    assert shares.shape == (2, 2, 2, 9, 13)
    torch.testing.assert_close(shares[:, 1, 0], (value[:, 0] >= 0.5).float(), rtol=0, atol=1e-3)
    assert shares[:, :, 1].mean(dim=(0, 2, 3)).tolist() == pytest.approx([0.8, 0.5], abs=0.05)


def test_a_missing_pixel_is_not_dry() -> None:
    guess = FirstGuess(LEVELS, octaves=1)
    value, valid = torch.full((1, 1, 2, 2), 0.9), torch.ones(1, 1, 2, 2)
    value[..., 0, 0], valid[..., 0, 0] = 0, 0
    torch.testing.assert_close(guess.shares(value, valid), torch.ones(1, 2, 2, 2, 2), rtol=0, atol=3e-3)


def test_where_nothing_is_valid_the_surroundings_speak() -> None:
    value, valid = torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)
    value[..., :4] = 0.3
    valid[..., 0, :] = 0
    pixel, around = means(value >= 0.2, valid, octaves=1)[0, 0]
    torch.testing.assert_close(pixel[0], around[0], rtol=0, atol=1e-3)
    torch.testing.assert_close(pixel[1], torch.tensor([1.0] * 4 + [0.0] * 4), rtol=0, atol=1e-3)


def test_the_guess_mixes_by_level_and_lead() -> None:
    guess = FirstGuess(LEVELS, octaves=1)
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
