"""Definitions of the scores, fixed by numbers that can be done by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from stormcell.comparing.scores import IMAGE_SCORES, Score, cross_entropy, frame_scores, image_sums, joined

BY_NAME = {score.name: score for score in IMAGE_SCORES}


def test_cross_entropy_is_natural_and_summed_over_a_sequence() -> None:
    """Half sure of every pixel: 64 · 64 · 10 · ln 2 a sequence, whatever the truth."""
    truth = torch.rand(3, 10, 1, 64, 64).round()
    sums = image_sums(torch.zeros(3, 10, 1, 64, 64), truth)
    assert float(BY_NAME["cross_entropy"].of(sums)) == pytest.approx(64 * 64 * 10 * math.log(2))
    by_lead = BY_NAME["cross_entropy"].of(sums, by_lead=True)
    np.testing.assert_allclose(by_lead, 64 * 64 * math.log(2))


def test_cross_entropy_of_grey_pixels() -> None:
    p, y = 0.8, 0.3
    logits = torch.full((1, 1, 1, 1, 1), math.log(p / (1 - p)), dtype=torch.float64)
    found = float(cross_entropy(logits, torch.full_like(logits, y)))
    assert found == pytest.approx(-(y * math.log(p) + (1 - y) * math.log(1 - p)))


def test_errors_are_summed_over_a_frame_and_averaged_over_frames() -> None:
    shown, truth = np.full((2, 3, 7, 10), 0.5, np.float32), np.zeros((2, 3, 7, 10), np.float32)
    truth[1, 2] = 1.5  # outside the unit range: errors are not cut off
    sums = frame_scores(shown, truth)
    np.testing.assert_allclose(sums["mse"], [[17.5, 17.5, 17.5], [17.5, 17.5, 70]])
    np.testing.assert_allclose(sums["mae"], [[35, 35, 35], [35, 35, 70]])
    assert float(BY_NAME["mse"].of(sums)) == pytest.approx((5 * 17.5 + 70) / 6)
    assert float(BY_NAME["mae"].of(sums)) == pytest.approx((5 * 35 + 70) / 6)


def test_psnr_of_a_frame() -> None:
    shown, truth = np.full((1, 1, 8, 8), 0.1, np.float32), np.zeros((1, 1, 8, 8), np.float32)
    assert frame_scores(shown, truth)["psnr"][0, 0] == pytest.approx(20, abs=1e-5)
    assert frame_scores(truth, truth)["psnr"][0, 0] == math.inf
    assert frame_scores(truth - 3, truth)["psnr"][0, 0] == math.inf  # forecasts are cut off at 0 and 1


def test_ssim_has_windows_of_seven_pixels_and_a_range_of_two() -> None:
    """Wang et al. 2004 with uniform windows and sample covariance, written out."""
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 1, 9, 9), dtype=np.float32)
    values = []
    for y in range(3):
        for x in range(3):
            u, v = (field[0, 0, y : y + 7, x : x + 7].astype(np.float64).ravel() for field in (a, b))
            (uu, uv), (_, vv) = np.cov(u, v)
            c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
            values.append(
                (2 * u.mean() * v.mean() + c1) * (2 * uv + c2) / ((u.mean() ** 2 + v.mean() ** 2 + c1) * (uu + vv + c2))
            )
    assert frame_scores(a, b)["ssim"][0, 0] == pytest.approx(np.mean(values), abs=1e-5)
    assert frame_scores(a, a)["ssim"][0, 0] == pytest.approx(1)


def test_a_score_is_a_ratio_of_sums() -> None:
    sums = {"hits": np.array([[1.0, 2], [3, 0]]), "misses": np.array([[1.0, 0], [0, 0]]), "n": np.zeros((2, 2))}
    csi = Score("csi", "CSI", "hits", ("hits", "misses"), better="high")
    assert float(csi.of(sums)) == pytest.approx(6 / 7)
    np.testing.assert_allclose(csi.of(sums, by_lead=True), [4 / 5, 1])
    assert math.isnan(float(Score("x", "x", "hits", ("n",)).of(sums)))
    both = joined([sums, sums])
    assert both["hits"].shape == (4, 2)
    assert float(csi.of(both)) == pytest.approx(6 / 7)
