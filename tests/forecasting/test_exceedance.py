"""From probabilities to fields: rates between levels, the greatest expected CSI, members and their noise."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stormcell.forecasting.exceedance import (
    best_field,
    best_probabilities,
    member_rates,
    nested,
    noise,
    rate_at,
    stratified,
)

LEVELS = (0.1, 1.0, 10.0)
HALF = torch.zeros(3, 1, 1)


def logits(*probabilities: float) -> torch.Tensor:
    return torch.logit(torch.tensor(probabilities, dtype=torch.float64))[:, None, None]


def test_a_higher_level_is_never_more_probable() -> None:
    assert torch.sigmoid(nested(logits(0.5, 0.6, 0.2))).flatten().tolist() == pytest.approx([0.5, 0.5, 0.2])


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ((0.4, 0.3, 0.1), 0.0),  # not even the lowest level
        ((0.5, 0.3, 0.1), 0.1),  # that level exactly
        ((0.9, 0.5, 0.1), 1.0),
        ((0.9, 0.8, 0.2), math.sqrt(10)),  # halfway between two, in the logarithm
        ((0.9, 0.7, 0.5), 10.0),
    ],
)
def test_the_median_by_hand(probabilities: tuple[float, ...], expected: float) -> None:
    assert float(rate_at(logits(*probabilities), HALF.double(), LEVELS)) == pytest.approx(expected, rel=1e-6)


def test_above_the_highest_level_it_goes_on_and_ends() -> None:
    higher = float(rate_at(logits(0.95, 0.9, 0.8), HALF.double(), LEVELS))
    assert 10 < higher < 1000.0001
    assert float(rate_at(logits(0.999999, 0.99999, 0.99998), HALF.double(), LEVELS)) == pytest.approx(1000)


def test_the_rule_finds_the_probability_of_greatest_expected_csi() -> None:
    """Against all probabilities tried one by one, on truth drawn from the forecast."""
    rng = np.random.default_rng(0)
    probability = rng.beta(0.3, 1.5, size=(300, 300))
    truth = rng.random((300, 300)) < probability
    field = torch.logit(torch.from_numpy(probability).clamp(1e-9, 1 - 1e-9))[None]
    best = float(torch.sigmoid(best_probabilities(field)))

    def csi(limit: float) -> float:
        said = probability >= limit
        return float((said & truth).sum() / (said | truth).sum())

    tried = np.linspace(0.02, 0.9, 80)
    found = [csi(limit) for limit in tried]
    assert csi(best) > max(found) - 0.002
    assert best == pytest.approx(csi(best) / (1 + csi(best)), abs=0.02)  # where it is greatest, as theory has it


def test_what_is_hardly_probable_is_not_forecast() -> None:
    """In a field that is equally improbable everywhere, all of it has the greatest expected CSI: nonsense."""
    assert float(best_field(torch.full((3, 50, 50), -6.0), levels=LEVELS).max()) == 0


def test_what_nothing_is_known_of_has_no_say() -> None:
    """Half of the frame outside coverage, with a probability of its own, changes no limit."""
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(3, 40, 50, generator=generator)
    seen = torch.zeros(40, 100, dtype=torch.bool)
    seen[:, :50] = True
    whole = torch.cat([known, torch.full((3, 40, 50), 1.0)], dim=2)
    torch.testing.assert_close(best_probabilities(whole, seen), best_probabilities(known))
    assert not torch.allclose(best_probabilities(whole), best_probabilities(known))


def test_the_field_exceeds_each_level_where_the_rule_says_event() -> None:
    generator = torch.Generator().manual_seed(0)
    field = nested(torch.randn(3, 80, 90, generator=generator) * 2 - torch.tensor([0.0, 1.0, 3.0])[:, None, None])
    limits = best_probabilities(field)
    rates = best_field(field, levels=LEVELS)
    for k, level in enumerate(LEVELS):
        said = (field[k:] >= limits[k:]).any(dim=0)
        torch.testing.assert_close(rates >= level * (1 - 1e-5), said)


def test_a_member_is_the_quantile_at_its_noise() -> None:
    one = logits(0.9, 0.5, 0.1)
    read = member_rates(one, torch.tensor([0.5, 0.1, 0.98], dtype=torch.float64)[:, None, None], LEVELS)
    assert read.flatten().tolist() == pytest.approx([1.0, 10.0, 0.0])


def test_each_pixel_has_one_member_in_each_part_of_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    read = stratified(torch.randn(10, 40, 50, generator=generator, dtype=torch.float64))
    parts = (read * 10).long().sort(dim=0).values
    assert torch.equal(parts, torch.arange(10)[:, None, None].expand(10, 40, 50))
    within = (read * 10 % 1).flatten()  # uniform in its part, so that every member has the whole distribution
    assert float(within.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(within.std()) == pytest.approx(12**-0.5, abs=0.01)


def test_members_keep_the_order_and_the_smoothness_of_their_noise() -> None:
    """Three fields that cross along a line: what is exceeded falls where the noise rises, and nowhere jumps."""
    across = torch.linspace(-2, 2, 40_001, dtype=torch.float64)
    normals = torch.stack([across, -across, 0.3 * across + 0.1])[:, None]
    read = stratified(normals)
    assert torch.equal(read.argsort(dim=0, descending=True), normals.argsort(dim=0))
    assert float(read.diff(dim=2).abs().max()) < 0.002
    alone = torch.randn(1, 4, 5, dtype=torch.float64)
    torch.testing.assert_close(stratified(alone), torch.special.ndtr(-alone))  # one member: its own noise


def test_members_have_the_distribution_that_was_said() -> None:
    """Each of them over all pixels, and all of them at each pixel but for a member."""
    generator = torch.Generator().manual_seed(0)
    drawn = stratified(torch.randn(20, 200, 200, generator=generator, dtype=torch.float64))
    rates = member_rates(logits(0.7, 0.4, 0.07).expand(3, 200, 200), drawn, LEVELS)
    for level, probability in zip(LEVELS, (0.7, 0.4, 0.07)):
        event = (rates >= level).double()
        torch.testing.assert_close(event.mean(dim=(1, 2)), torch.full((20,), probability).double(), rtol=0, atol=0.02)
        assert float((event.mean(dim=0) - probability).abs().max()) <= 0.05


# --- noise ---


def newest(side: int = 64) -> np.ndarray:
    y, x = np.mgrid[:side, :side]
    rng = np.random.default_rng(0)
    cells = [np.exp(-((y - a) ** 2 + (x - b) ** 2) / 30) for a, b in rng.uniform(5, side - 5, (12, 2))]
    return np.sum(cells, axis=0).astype(np.float32)


def test_noise_is_standard_normal_and_follows_from_its_seed() -> None:
    one, again, other = (list(noise(newest(), [5.0, 10.0], 4, kilometres=2.0, seed=seed)) for seed in (1, 1, 2))
    for a, b, c in zip(one, again, other):
        assert torch.equal(a, b)
        assert not torch.allclose(a, c)
        torch.testing.assert_close(a.std(dim=(1, 2)), torch.ones(4), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(a.mean(dim=(1, 2)), torch.zeros(4), rtol=0, atol=1e-4)


def test_noise_has_the_texture_of_the_newest_frame() -> None:
    """Neighbours go together as far as the cells are wide, and no farther."""
    (field,) = noise(newest(), [5.0], 30, kilometres=2.0, seed=0)

    def correlation(shift: int) -> float:
        return float((field[:, :, shift:] * field[:, :, : field.shape[2] - shift]).mean())

    assert correlation(1) > 0.9
    assert correlation(2) > correlation(5) > correlation(10)
    assert abs(correlation(25)) < 0.3
    rough = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    (white,) = noise(rough, [5.0], 30, kilometres=2.0, seed=0)
    assert abs(float((white[:, :, 1:] * white[:, :, :-1]).mean())) < 0.1


def test_noise_forgets_small_scales_first() -> None:
    rough = np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)
    kept = []
    for frame in (newest(), rough):
        first, later = noise(frame, [5.0, 35.0], 20, kilometres=2.0, seed=0)
        kept.append(float((first * later).mean()))
    assert 0.3 < kept[0] < 0.95
    assert kept[1] < kept[0] - 0.3
