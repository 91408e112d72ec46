"""Ensemble scores worked by hand, and against `scores` and pysteps on raw arrays."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stormcell.forecasting.probability import (
    brier_sum,
    consistency,
    crps_sum,
    event_table,
    rank_counts,
    reliability,
    roc_area,
    roc_curve,
)


def ensemble(seed: int, members: int = 7, pixels: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Members and a truth of rain that have something in common, with many ties at 0."""
    rng = np.random.default_rng(seed)
    shared = rng.gamma(0.4, 4, pixels)
    rain = shared + rng.normal(0, 1, (members + 1, pixels)) * np.sqrt(shared)
    rain = np.where(rain < 0.3, 0, rain)
    return rain[:-1], rain[-1]


def test_crps_of_two_members_worked_by_hand() -> None:
    # mean distance to the truth (1 + 3) / 2, less half the mean distance of two members (0 + 4 + 4 + 0) / 4
    assert crps_sum(np.array([[1.0], [5.0]]), np.array([2.0])) == pytest.approx(2 - 1)
    assert crps_sum(np.array([[1.0], [5.0]]), np.array([7.0])) == pytest.approx(4 - 1)
    assert crps_sum(np.array([[1.0, 5.0]]), np.array([2.0, 7.0])) == pytest.approx(1 + 2)  # one member: the error
    assert crps_sum(np.zeros((2, 0)), np.zeros(0)) == 0


def test_a_table_and_its_scores_worked_by_hand() -> None:
    """Two members, six pixels: none, one, one, both, both, both have the event; it came in the 3rd, 4th and 5th."""
    members = np.array([[0, 1, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]], dtype=bool)
    event = np.array([0, 0, 1, 1, 1, 0], dtype=bool)
    said, came = event_table(members, event)
    assert said.tolist() == [1, 2, 3]
    assert came.tolist() == [0, 1, 2]
    assert brier_sum(said, came) == pytest.approx(1.5)  # 0, ¼, ¼, 0, 0, 1
    x, y = roc_curve(said, came)
    assert x.tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert y.tolist() == pytest.approx([0, 2 / 3, 1, 1])
    assert float(roc_area(said, came)) == pytest.approx((2 / 3 + 5 / 3 + 2) / 6)
    count, probability, frequency = reliability(said, came, 2)
    assert count.tolist() == [1, 0, 0, 0, 0, 2, 0, 0, 0, 3]
    assert probability[[0, 5, 9]].tolist() == [0, 0.5, 1]
    assert frequency[[0, 5, 9]].tolist() == pytest.approx([0, 1 / 2, 2 / 3])
    assert np.isnan(probability[1])


@pytest.mark.parametrize("members", [2, 7, 20])
def test_ensemble_scores_agree_with_the_scores_library(members: int) -> None:
    from scores.probability import brier_score_for_ensemble, crps_for_ensemble, roc_auc

    fcst, obs = ensemble(members, members)
    theirs = {"fcst": xr.DataArray(fcst, dims=("member", "pixel")), "obs": xr.DataArray(obs, dims="pixel")}
    crps = float(crps_for_ensemble(**theirs, ensemble_member_dim="member", method="ecdf"))
    assert crps_sum(fcst, obs) / obs.size == pytest.approx(crps, rel=1e-9)
    said, came = event_table(fcst >= 2, obs >= 2)
    brier = brier_score_for_ensemble(
        **theirs, ensemble_member_dim="member", event_thresholds=2.0, fair_correction=False
    )
    assert brier_sum(said, came) / obs.size == pytest.approx(float(brier.squeeze()), rel=1e-9)
    share = xr.DataArray((fcst >= 2).mean(axis=0), dims="pixel")
    area = float(roc_auc(share, xr.DataArray((obs >= 2).astype(float), dims="pixel")))
    assert float(roc_area(said, came)) == pytest.approx(area, rel=1e-9)


def test_reliability_and_roc_agree_with_pysteps() -> None:
    pytest.importorskip("pysteps", reason="the cross-check needs pysteps")
    from pysteps.verification.probscores import ROC_curve, reldiag

    fcst, obs = ensemble(3)
    said, came = event_table(fcst >= 2, obs >= 2)
    share = (fcst >= 2).mean(axis=0)
    with np.errstate(invalid="ignore"):  # two of the ten bins are empty
        probability, frequency = reldiag(share, obs, 2.0, n_bins=10)
    _, ours, came_then = reliability(said, came, 7)
    np.testing.assert_allclose(ours, probability, rtol=1e-9)
    np.testing.assert_allclose(came_then, frequency, rtol=1e-9)
    pofd, pod = ROC_curve(share, obs, 2.0, n_prob_thrs=8)  # at 0, 1/7, … 1
    x, y = roc_curve(said, came)
    np.testing.assert_allclose(np.sort(x[1:]), np.sort(pofd), rtol=1e-9)
    np.testing.assert_allclose(np.sort(y[1:]), np.sort(pod), rtol=1e-9)


def test_ranks_worked_by_hand_and_against_pysteps() -> None:
    pytest.importorskip("pysteps", reason="the cross-check needs pysteps")
    from pysteps.verification.ensscores import rankhist

    rng = np.random.default_rng(0)
    members = np.array([[0.0, 1.0, 5.0, 0.0], [0.0, 3.0, 6.0, 0.05]])
    obs = np.array([0.0, 2.0, 4.0, 7.0])
    assert rank_counts(members, obs, low=0.1, rng=rng).tolist() == [1, 1, 1]  # the first pixel is dry in all
    fcst, truth = np.random.default_rng(1).gamma(1, 2, (2, 9, 5000))
    fcst, truth = fcst[:8], truth[0]
    ours = rank_counts(fcst, truth, low=0.5, rng=rng)
    np.random.seed(0)  # noqa: NPY002
    theirs = rankhist(fcst[:, None], truth[None], X_min=0.5, normalize=False)
    assert ours.sum() == theirs.sum()
    np.testing.assert_allclose(ours, theirs, atol=4 * np.sqrt(ours.max()))  # ties, below 0.5, fall at random


def test_a_truth_like_the_members_has_every_rank_as_often() -> None:
    fcst, obs = ensemble(5, 9, 40_000)
    counts = rank_counts(fcst, obs, low=0.3, rng=np.random.default_rng(0))
    assert counts.sum() < 0.9 * obs.size
    np.testing.assert_allclose(counts, counts.mean(), atol=4 * np.sqrt(counts.mean()))


def blocks_of(bias: float, count: int = 12) -> tuple[np.ndarray, np.ndarray]:
    """Tables (B, 11) of blocks whose chance of rain is their own, seen by ten members with a bias."""
    rng = np.random.default_rng(0)
    tables = []
    for _ in range(count):
        chance = np.clip(rng.uniform(0, 1, 3000) + rng.normal(0, 0.03), 0, 1)
        members = rng.uniform(size=(10, 3000)) < np.clip(chance + bias, 0, 1)
        tables.append(event_table(members, rng.uniform(size=3000) < chance))
    said, came = (np.stack(part) for part in zip(*tables))
    return said, came


def test_the_band_of_consistency_goes_along_the_diagonal() -> None:
    """An ensemble of ten that is reliable but for its size; and one that says too much."""
    draws = np.random.default_rng(1).multinomial(12, np.full(12, 1 / 12), size=1000).astype(float)
    said, came = blocks_of(0.0)
    low, high = np.moveaxis(consistency(said, came, 10, draws, fewest=5), -1, 0)
    _, probability, frequency = reliability(said.sum(axis=0), came.sum(axis=0), 10)
    assert ((low <= probability) & (probability <= high)).all()
    assert (high - low < 0.1).all()
    biased_said, biased_came = blocks_of(0.2)
    low, high = np.moveaxis(consistency(biased_said, biased_came, 10, draws, fewest=5), -1, 0)
    _, probability, frequency = reliability(biased_said.sum(axis=0), biased_came.sum(axis=0), 10)
    assert (frequency < low)[3:9].all()
    few = biased_said.copy()
    few[4:, 9] = few[4:, 10] = 0
    band = consistency(few, np.minimum(biased_came, few), 10, draws, fewest=5)
    assert np.isnan(band[9]).all()  # four blocks are not enough
    assert np.isfinite(band[:9]).all()
