"""What a difference is worth: intervals of scores and of paired differences, and the verdict in words.

Two things are uncertain, and both count. The test cases: independent units of them (sequences, hours of weather) are drawn again
with replacement, the same for both nets of a pair. The training: scores of several seeds scatter, which Student's t turns into
an interval for their mean (Welch's, for two nets). Half widths add up as squares, each side by itself.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .scores import Score, Sums

FEWEST_UNITS = 5
_RESAMPLES = 1000


@dataclass(frozen=True)
class Scored:
    """Test sums of one row: of each seed, or of the one forecast of a baseline."""

    name: str
    seeds: list[Sums]

    @property
    def trained(self) -> bool:
        return len(self.seeds) > 1


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % interval; NaN bounds where there are too few units."""

    value: float
    low: float
    high: float


def by_unit(sums: Sums, unit: npt.NDArray[np.int64]) -> Sums:
    """Sums (cases, leads) → (units, leads)."""
    count = int(unit.max()) + 1
    found = {}
    for name, value in sums.items():
        found[name] = np.zeros((count, value.shape[1]))
        np.add.at(found[name], unit, value)
    return found


def interval(score: Score, row: Scored, unit: npt.NDArray[np.int64]) -> Interval:
    """A row's score over seeds and cases."""
    values, drawn = _values(score, row, unit)
    return _combined(float(np.mean(values)), drawn, _spread([values]), unit)


def difference(score: Score, first: Scored, second: Scored, unit: npt.NDArray[np.int64]) -> Interval:
    """First less second, on the same cases."""
    a, drawn_a = _values(score, first, unit)
    b, drawn_b = _values(score, second, unit)
    return _combined(float(np.mean(a) - np.mean(b)), drawn_a - drawn_b, _spread([a, b]), unit)


def _values(
    score: Score, row: Scored, unit: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The score of each seed; and of units drawn again, the mean over seeds: the same draws for every row."""
    count = int(unit.max()) + 1
    draws = _draws(count)
    cases = np.bincount(unit, minlength=count).astype(np.float64)
    values, drawn = [], np.zeros(_RESAMPLES)
    for sums in row.seeds:
        values.append(float(score.of(sums)))
        units = by_unit({name: sums[name] for name in (score.over, *score.under)}, unit)
        above = draws @ units[score.over].sum(axis=1)
        leads = units[score.over].shape[1]
        below = [draws @ units[name].sum(axis=1) for name in score.under]
        below = below or [draws @ cases * (1 if score.whole else leads)]
        drawn += score.ratio(above, below) / len(row.seeds)
    return np.array(values), drawn


@functools.lru_cache(maxsize=2)
def _draws(count: int) -> npt.NDArray[np.float64]:
    """How often each of `count` units is drawn, in each resample."""
    return np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)


def _spread(rows: Sequence[npt.NDArray[np.float64]]) -> float:
    """Half the 95 % interval of a mean, or of a difference of means, for the scatter of seeds; 0 without any."""
    from scipy.stats import t

    parts = [(row.var(ddof=1) / len(row), len(row) - 1) for row in rows if len(row) > 1]
    variance = sum(part for part, _ in parts)
    if not variance > 0:
        return 0.0
    freedom = variance**2 / sum(part**2 / n for part, n in parts)
    return float(t.ppf(0.975, freedom) * math.sqrt(variance))


def _combined(value: float, drawn: npt.NDArray[np.float64], spread: float, unit: npt.NDArray[np.int64]) -> Interval:
    few = int(unit.max()) + 1 < FEWEST_UNITS
    if few or not math.isfinite(value) or not np.isfinite(drawn).any():
        return Interval(value, math.nan, math.nan)
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return Interval(value, value - math.hypot(value - low, spread), value + math.hypot(high - value, spread))


# --- words ---


@dataclass(frozen=True)
class Verdict:
    """The first row against another by one score.

    Attributes:
        decision: "better" or "worse", of the first; or "not decided".
        text: the same as a sentence.
    """

    first: str
    second: str
    score: str
    difference: Interval
    decision: str
    text: str


def verdict(score: Score, first: Scored, second: Scored, unit: npt.NDArray[np.int64], units: str) -> Verdict:
    """Decide between two rows: only if the interval of their difference leaves out 0 and rests on enough units."""
    found = difference(score, first, second, unit)
    values = {row.name: float(np.mean([score.of(sums) for sums in row.seeds])) for row in (first, second)}
    count = int(unit.max()) + 1
    compared = f"{score.label} {_number(values[first.name])} against {_number(values[second.name])}"
    seeds = f"{len(first.seeds)} seeds, {count} {units}" if first.trained else f"{count} {units}"
    if count < FEWEST_UNITS:
        why = f"too few for an interval: {count} {units}, {FEWEST_UNITS} are needed"
        return _undecided(score, first, second, found, f"{compared} ({why})")
    where = f"difference {_signed(found.value)} [{_signed(found.low)}, {_signed(found.high)}], 95 %, {seeds}"
    if not first.trained:
        return _undecided(score, first, second, found, f"{compared} ({where}; one seed cannot tell luck from merit)")
    if not math.isfinite(found.low) or found.low <= 0 <= found.high:
        return _undecided(score, first, second, found, f"{compared} ({where})")
    better = (found.value < 0) == (score.better == "low")
    decision = "better" if better else "worse"
    text = f"{first.name} is {decision} than {second.name}: {compared} ({where})."
    return Verdict(first.name, second.name, score.name, found, decision, text)


def _undecided(score: Score, first: Scored, second: Scored, found: Interval, why: str) -> Verdict:
    text = f"{first.name} or {second.name}: not decided at this budget; {why}."
    return Verdict(first.name, second.name, score.name, found, "not decided", text)


def _number(value: float) -> str:
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"


def _signed(value: float) -> str:
    return f"{value:+,.1f}" if abs(value) >= 100 else f"{value:+.3g}"


def summary(verdicts: Sequence[Verdict], when: str) -> str:
    """All verdicts in one sentence; `when` says how much training they rest on."""
    first = verdicts[0].first
    them = {word: [v.second for v in verdicts if v.decision == word] for word in ("better", "worse", "not decided")}
    parts = [f"{word} than {_listed(them[word])}" for word in ("better", "worse") if them[word]]
    said = f"{first} is {_listed(parts)}" if parts else ""
    if undecided := them["not decided"]:
        said += f"{'; ' if said else ''}not decided at this budget: {first} or {_listed(undecided)}"
    return f"{when}: {said}."


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
