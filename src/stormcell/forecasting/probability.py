"""What an ensemble says of a pixel, against what came: sums that add up, and the diagrams they make.

The share of members with an event is its probability, so that all that concerns events comes from one table: how often k of M
members had it (`said`), and how often it came then (`came`). CRPS and Brier score are those of the members as they are. Scores
that are fair to the number of members (Ferro 2014) hold for members drawn with no regard for each other, and ours share the
distribution among them (`exceedance.stratified`). A deterministic forecast is an ensemble of one: its CRPS is its absolute
error, its probabilities are 0 and 1.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import xarray as xr

Floats = npt.NDArray[np.float64]
BINS = 10
"""Bins of forecast probability in a reliability diagram."""


def crps_sum(members: Floats, obs: Floats) -> float:
    """Σ of the CRPS of `scores` over pixels: members (M, N), obs (N,)."""
    from scores.probability import crps_for_ensemble

    if not obs.size:
        return 0.0
    fcst = xr.DataArray(members, dims=("member", "pixel"))
    return float(crps_for_ensemble(fcst, xr.DataArray(obs, dims="pixel"), "member", method="ecdf")) * obs.size


def event_table(members: npt.NDArray[np.bool_], event: npt.NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """`said` and `came` (M + 1,): events of members (M, N) and of the truth (N,)."""
    count = members.sum(axis=0)
    said, came = (np.bincount(chosen, minlength=len(members) + 1) for chosen in (count, count[event]))
    return said.astype(np.float64), came.astype(np.float64)


def brier_sum(said: Floats, came: Floats) -> float:
    """Σ of the Brier score over the forecasts of a table."""
    p = np.arange(len(said)) / (len(said) - 1)
    return float((came * (p - 1) ** 2 + (said - came) * p**2).sum())


def rank_counts(members: Floats, obs: Floats, *, low: float, rng: np.random.Generator) -> Floats:
    """How often the truth had 0 … M members below it, (M + 1,); ties are broken at random.

    As in pysteps, values below `low` are equal, and pixels with nothing else are left out: they would hide all others.
    """
    some = (obs >= low) | (members >= low).any(axis=0)
    members, obs = (np.where(values < low, -np.inf, values) for values in (members[:, some], obs[some]))
    rank = (members < obs).sum(axis=0) + rng.integers(0, (members == obs).sum(axis=0) + 1)
    return np.bincount(rank, minlength=len(members) + 1).astype(np.float64)


def roc_curve(said: Floats, came: Floats) -> tuple[Floats, Floats]:
    """POFD and POD (…, K + 1) of tables (…, K) if an event is forecast where j members or more have it, j from K to 0.

    NaN where no event, or nothing else, was observed.
    """

    def share(table: Floats) -> Floats:
        from_top = np.cumsum(table[..., ::-1], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            rates = from_top / from_top[..., -1:]
        return np.concatenate([0 * rates[..., :1], rates], axis=-1)

    return share(said - came), share(came)


def roc_area(said: Floats, came: Floats) -> Floats:
    """Area under the curve by trapezoids, (…): the chance that an event had more members than a pixel without."""
    x, y = roc_curve(said, came)
    return np.asarray((np.diff(x, axis=-1) * (y[..., 1:] + y[..., :-1]) / 2).sum(axis=-1))


def by_probability(table: Floats, members: int) -> Floats:
    """A table (…, K) of an ensemble of that many members, summed into BINS of equal width: (…, BINS)."""
    into = np.zeros((table.shape[-1], BINS))
    k = np.arange(members + 1)
    into[k, np.minimum(BINS * k // members, BINS - 1)] = 1
    return table @ into


def reliability(said: Floats, came: Floats, members: int) -> tuple[Floats, Floats, Floats]:
    """Forecasts, mean forecast probability and observed frequency in each bin, (…, BINS) each; NaN where it is empty."""
    k = np.arange(said.shape[-1])
    count = by_probability(said, members)
    with np.errstate(divide="ignore", invalid="ignore"):
        return count, by_probability(said * k / members, members) / count, by_probability(came, members) / count


def consistency(said: Floats, came: Floats, members: int, draws: Floats, *, fewest: int) -> Floats:
    """Where the observed frequency of a reliable ensemble would lie with 95 %: (…, BINS, 2) from blocks (B, …, K).

    What a resampling of blocks (`draws`, (D, B)) does to the distance of observed frequency and forecast probability, laid
    around the latter. NaN for bins that fewer than `fewest` blocks fill.
    """
    filled = (by_probability(said, members) > 0).sum(axis=0) >= fewest
    _, probability, frequency = reliability(said.sum(axis=0), came.sum(axis=0), members)
    _, drawn_p, drawn_f = reliability(np.tensordot(draws, said, axes=1), np.tensordot(draws, came, axes=1), members)
    off = np.where(filled, (drawn_f - drawn_p) - (frequency - probability), 0)
    bounds = probability + np.nanquantile(off, [0.025, 0.975], axis=0)
    return np.moveaxis(np.where(filled, np.clip(bounds, 0, 1), np.nan), 0, -1)
