"""A verdict has teeth and no bias: it finds what is there, and seldom what is not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stormcell.comparing.scores import Score, Sums
from stormcell.comparing.verdict import Scored, by_unit, difference, interval, summary, verdict

LOSS = Score("loss", "loss", "loss", ("weight",))
WHOLE = Score("ce", "cross entropy", "ce", whole=True)


def row(
    name: str,
    rng: np.random.Generator,
    *,
    mean: float,
    seeds: int = 3,
    by_seed: float = 0.0,
    cases: int = 40,
    shared: np.ndarray,
) -> Scored:
    """Losses of cases: what all nets have in common, this net's mean, its seeds' luck, and noise."""
    found = []
    for _ in range(seeds):
        loss = mean + by_seed * rng.normal() + shared[:, None] + 0.05 * rng.normal(size=(cases, 2))
        found.append({"loss": loss, "weight": np.ones((cases, 2))})
    return Scored(name, found)


def shared(rng: np.random.Generator, cases: int = 40) -> np.ndarray:
    return rng.normal(size=cases)


def test_cases_that_both_find_hard_do_not_blur_a_difference() -> None:
    rng = np.random.default_rng(0)
    hard = shared(rng)
    a, b = (row(name, rng, mean=mean, shared=hard) for name, mean in (("a", 1.0), ("b", 1.2)))
    unit = np.arange(40)
    alone, paired = interval(LOSS, a, unit), difference(LOSS, a, b, unit)
    assert alone.high - alone.low > 0.3
    assert paired.high - paired.low < 0.1
    found = verdict(LOSS, a, b, unit, "cases")
    assert found.decision == "better"
    assert found.text.startswith("a is better than b: loss ")
    assert "3 seeds, 40 cases" in found.text
    assert verdict(LOSS, b, a, unit, "cases").decision == "worse"
    high = Score("csi", "CSI", "loss", ("weight",), better="high")
    assert verdict(high, b, a, unit, "cases").decision == "better"


def test_the_luck_of_seeds_is_not_merit() -> None:
    """Two entries of one net, whose seeds scatter by far more than cases tell them apart: seldom decided."""
    decided = 0
    for k in range(200):
        rng = np.random.default_rng(k)
        hard = shared(rng)
        a, b = (row(name, rng, mean=1.0, by_seed=0.3, shared=hard) for name in "ab")
        decided += verdict(LOSS, a, b, np.arange(40), "cases").decision != "not decided"
    assert decided <= 20  # 5 % is 10


def test_without_the_scatter_of_seeds_the_same_nets_would_be_told_apart() -> None:
    rng = np.random.default_rng(1)
    hard = shared(rng)
    a, b = (row(name, rng, mean=mean, by_seed=0.0, shared=hard) for name, mean in (("a", 1.0), ("b", 1.3)))
    assert verdict(LOSS, a, b, np.arange(40), "cases").decision == "better"
    lucky = Scored("b", [{**b.seeds[0], "loss": b.seeds[0]["loss"] + shift} for shift in (-0.5, 0, 0.5)])
    assert verdict(LOSS, a, lucky, np.arange(40), "cases").decision == "not decided"


def test_cases_of_one_hour_are_one_unit() -> None:
    rng = np.random.default_rng(2)
    weather = np.repeat(rng.normal(size=8), 5)
    a = row("a", rng, mean=1.0, shared=np.zeros(40))
    b = Scored("b", [{**sums, "loss": sums["loss"] + 0.1 + weather[:, None]} for sums in a.seeds])
    each, hours = np.arange(40), np.repeat(np.arange(8), 5)
    wide, narrow = difference(LOSS, a, b, hours), difference(LOSS, a, b, each)
    assert wide.high - wide.low > 1.6 * (narrow.high - narrow.low)
    assert wide.value == pytest.approx(narrow.value)


def test_too_few_units_decide_nothing() -> None:
    rng = np.random.default_rng(3)
    hard = shared(rng)
    a, b = (row(name, rng, mean=mean, shared=hard) for name, mean in (("a", 1.0), ("b", 9.0)))
    found = verdict(LOSS, a, b, np.repeat(np.arange(4), 10), "blocks of an hour or more")
    assert found.decision == "not decided"
    assert "too few for an interval: 4 blocks of an hour or more, 5 are needed" in found.text
    assert math.isnan(found.difference.low)
    assert math.isnan(interval(LOSS, a, np.repeat(np.arange(4), 10)).low)
    assert math.isfinite(interval(LOSS, a, np.repeat(np.arange(5), 8)).low)


def test_one_seed_decides_nothing() -> None:
    rng = np.random.default_rng(4)
    hard = shared(rng)
    a, b = (row(name, rng, mean=mean, seeds=1, shared=hard) for name, mean in (("a", 1.0), ("b", 9.0)))
    assert "one seed cannot tell luck from merit" in verdict(LOSS, a, b, np.arange(40), "cases").text


def test_a_baseline_has_no_seeds() -> None:
    rng = np.random.default_rng(5)
    hard = shared(rng)
    a = row("a", rng, mean=1.0, by_seed=0.02, shared=hard)
    baseline = Scored("persistence", row("b", rng, mean=2.0, seeds=1, shared=hard).seeds)
    assert verdict(LOSS, a, baseline, np.arange(40), "cases").decision == "better"


def test_intervals_cover_the_truth() -> None:
    """Of 200 experiments with known means, about 95 % of the intervals hold the true difference."""
    held = 0
    for k in range(200):
        rng = np.random.default_rng(1000 + k)
        hard = shared(rng)
        a, b = (row(name, rng, mean=mean, by_seed=0.1, seeds=4, shared=hard) for name, mean in (("a", 1.0), ("b", 1.5)))
        found = difference(LOSS, a, b, np.arange(40))
        held += found.low <= -0.5 <= found.high
    assert 180 <= held <= 199


def test_sums_of_whole_sequences() -> None:
    sums: Sums = {"ce": np.array([[1.0, 2], [3, 4], [5, 6]])}
    assert interval(WHOLE, Scored("a", [sums]), np.arange(3)).value == pytest.approx(21 / 3)
    twice = {"ce": np.concatenate([sums["ce"]] * 2)}
    found = interval(WHOLE, Scored("a", [twice]), np.arange(6))
    assert found.low < 7 < found.high
    np.testing.assert_allclose(by_unit(sums, np.array([0, 0, 1]))["ce"], [[4, 6], [5, 6]])


def test_a_summary_says_losses_too() -> None:
    rng = np.random.default_rng(6)
    hard = shared(rng)
    a, b, c, d = (
        row(name, rng, mean=mean, by_seed=0.01, shared=hard) for name, mean in zip("abcd", (1.0, 2.0, 0.5, 1.0))
    )
    said = summary([verdict(LOSS, a, other, np.arange(40), "cases") for other in (b, c, d)], "After 9 updates")
    assert said == "After 9 updates: a is better than b and worse than c; not decided at this budget: a or d."
