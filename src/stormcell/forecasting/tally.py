"""Sums of a case → scores of many: each case and lead has one validity mask, sums come before scores.

Truth and every compared forecast must be valid for a pixel to count. Sums of any set of cases add up, so categorical scores
come from pooled counts, and intervals from a bootstrap over blocks of cases of an hour or more, since neighbouring cases are
nearly the same case. Categorical formulas are those of `scores` (Leeuwenburg et al. 2024).
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.ndimage import uniform_filter

from .baselines import Array

BLOCK_MINUTES = 60.0
FEWEST_BLOCKS = 5
_RESAMPLES = 1000
_COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
SCORES = ("csi", "pod", "far", "frequency_bias", "mse", "mae", "correlation", "fss")


def fss_parts(
    fcst: Array, obs: Array, valid: npt.NDArray[np.bool_], *, threshold: float, scale: int
) -> tuple[float, float]:
    """Numerator and denominator of the fractions skill score (Roberts and Lean 2008), FSS = 1 - Σ numerator / Σ denominator.

    Fractions of pixels at or above `threshold` in windows of scale × scale pixels; invalid pixels are no event in either
    field, and windows with under half of their pixels valid (or inside the frame) are left out.
    """
    inside = uniform_filter(valid.astype(np.float32), scale, mode="constant") >= 0.5
    f, o = (
        uniform_filter(((field >= threshold) & valid).astype(np.float32), scale, mode="constant")[inside]
        for field in (fcst, obs)
    )
    return float(((f - o) ** 2).sum(dtype=np.float64)), float((f**2 + o**2).sum(dtype=np.float64))


@dataclass
class Tally:
    """Sums over cases, from which scores are made.

    Attributes:
        forecasters: names, the first is what is verified.
        thresholds: of events (value ≥ threshold), in the unit of the values; scales: widths of FSS windows in pixels.
        wet: threshold of the wet area.
    """

    forecasters: Sequence[str]
    thresholds: Sequence[float]
    scales: Sequence[int]
    wet: float
    times: list[np.datetime64] = field(default_factory=list)
    _sums: list[dict[str, npt.NDArray[np.float64]]] = field(default_factory=list)

    def add(self, reference: np.datetime64, truth: Array, fcsts: Mapping[str, Array]) -> None:
        """One case: truth (L, Y, X) and a forecast (L, Y, X) of each forecaster, NaN where missing."""
        leads, shape = len(truth), (len(self.forecasters), len(truth))
        sums: dict[str, npt.NDArray[np.float64]] = {name: np.zeros((*shape, len(self.thresholds))) for name in _COUNTS}
        sums |= {name: np.zeros(shape) for name in ("se", "ae", "f", "ff", "fo", "f_wet")}
        sums |= {name: np.zeros(leads) for name in ("n", "pixels", "o", "oo", "o_wet")}
        sums |= {name: np.zeros((*shape, len(self.thresholds), len(self.scales))) for name in ("fss_num", "fss_den")}
        levels = [float(np.float32(threshold)) for threshold in self.thresholds]  # as exact as the fields, no more
        for lead in range(leads):
            fields = [fcsts[name][lead] for name in self.forecasters]
            valid = np.isfinite(truth[lead])
            for one in fields:
                valid &= np.isfinite(one)
            obs_map = np.where(valid, truth[lead], np.float32(-np.inf))
            obs = truth[lead][valid].astype(np.float64)
            sums["n"][lead], sums["pixels"][lead] = valid.sum(), valid.size
            sums["o"][lead], sums["oo"][lead], sums["o_wet"][lead] = obs.sum(), (obs**2).sum(), (obs >= self.wet).sum()
            for k, one in enumerate(fields):
                fcst = one[valid].astype(np.float64)
                sums["se"][k, lead], sums["ae"][k, lead] = ((fcst - obs) ** 2).sum(), np.abs(fcst - obs).sum()
                sums["f"][k, lead], sums["ff"][k, lead] = fcst.sum(), (fcst**2).sum()
                sums["fo"][k, lead], sums["f_wet"][k, lead] = (fcst * obs).sum(), (fcst >= self.wet).sum()
                for j, threshold in enumerate(levels):
                    forecast_event, event = fcst >= threshold, obs >= threshold
                    hits = int((forecast_event & event).sum())
                    sums["hits"][k, lead, j] = hits
                    sums["misses"][k, lead, j] = event.sum() - hits
                    sums["false_alarms"][k, lead, j] = forecast_event.sum() - hits
                    sums["correct_negatives"][k, lead, j] = (~(forecast_event | event)).sum()
                    for s, scale in enumerate(self.scales):
                        parts = fss_parts(one, obs_map, valid, threshold=threshold, scale=scale)
                        sums["fss_num"][k, lead, j, s], sums["fss_den"][k, lead, j, s] = parts
        self.times.append(reference)
        self._sums.append(sums)

    @property
    def pixels(self) -> int:
        """Pixels compared so far, over all cases and leads."""
        return int(sum(sums["n"].sum() for sums in self._sums))

    def scores(self, lead_time: npt.NDArray[np.timedelta64], *, units: str, seed: int = 0) -> xr.Dataset:
        """Scores of all cases pooled, with 95 % intervals; dims forecaster, lead_time, threshold, scale, bound."""
        order = np.argsort(np.array(self.times), kind="stable")
        blocks = assign_blocks([self.times[k] for k in order])
        count = int(blocks[-1]) + 1
        block_sums = {}
        for name in self._sums[0]:
            stacked = np.stack([self._sums[k][name] for k in order])
            block_sums[name] = np.stack([stacked[blocks == b].sum(axis=0) for b in range(count)])
        coords = {
            "forecaster": list(self.forecasters),
            "lead_time": lead_time,
            "threshold": list(map(float, self.thresholds)),
            "scale": list(map(int, self.scales)),
        }
        pooled = _scores({name: value.sum(axis=0) for name, value in block_sums.items()}, coords)
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)
        enough = count >= FEWEST_BLOCKS
        if enough:
            drawn = {name: np.tensordot(draws, value, axes=1) for name, value in block_sums.items()}
            spread = _scores(drawn, coords, leading="draw")
        for name in SCORES:
            if enough:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # undefined in every draw: stays NaN
                    bounds = spread[name].quantile([0.025, 0.975], dim="draw", skipna=True).drop_vars("quantile")
                bounds = bounds.rename(quantile="bound").transpose(..., "bound")
            else:
                bounds = xr.full_like(pooled[name], np.nan).expand_dims(bound=2).transpose(..., "bound")
            pooled[f"{name}_interval"] = bounds.assign_coords(bound=["low", "high"])
        pooled["cases"] = ("lead_time", (np.stack([s["n"] for s in self._sums]) > 0).sum(axis=0))
        pooled.attrs = {
            "units": units,
            "cases": len(self.times),
            "blocks": count,
            "block_minutes": BLOCK_MINUTES,
            "interval": f"95 % intervals from a bootstrap over {count} blocks of {BLOCK_MINUTES:g} minutes or more"
            if enough
            else f"too few blocks for an interval ({count}; {FEWEST_BLOCKS} are needed)",
            "wet_threshold": self.wet,
        }
        return pooled


def assign_blocks(times: Sequence[np.datetime64]) -> npt.NDArray[np.int64]:
    """Number of the block that each case is in; `times` ascend. A block holds the cases of an hour, whatever their place.

    What is left at the end of a run, less than an hour, joins the block before it; a run that is shorter as a whole is a
    block of its own. Blocks start an hour apart or more.
    """
    hour = np.timedelta64(round(BLOCK_MINUTES * 60), "s")
    moments = sorted(set(times))
    spacing = min((b - a for a, b in zip(moments, moments[1:])), default=hour)
    blocks: list[list[np.datetime64]] = []
    for time in moments:
        if not blocks or time - blocks[-1][0] >= hour:
            blocks.append([])
        blocks[-1].append(time)
    merged: list[list[np.datetime64]] = []
    for block in blocks:
        rest = block[-1] - block[0] + spacing < hour
        if merged and rest and block[0] - merged[-1][-1] < hour:
            merged[-1] += block
        else:
            merged.append(block)
    number = {time: k for k, block in enumerate(merged) for time in block}
    return np.array([number[time] for time in times])


def _scores(
    sums: Mapping[str, npt.NDArray[np.float64]], coords: dict[str, Any], leading: str | None = None
) -> xr.Dataset:
    """Sums → scores; `leading` is a first dimension of draws."""
    from scores.categorical import BasicContingencyManager

    first = () if leading is None else (leading,)
    dims = ("forecaster", "lead_time", "threshold", "scale")

    def array(name: str) -> xr.DataArray:
        value = sums[name]
        own = ("lead_time",) if name in ("n", "pixels", "o", "oo", "o_wet") else dims[: value.ndim - len(first)]
        return xr.DataArray(value, dims=(*first, *own), coords={d: coords[d] for d in own})

    hits, misses, false_alarms, negatives = (array(name) for name in _COUNTS)
    table = BasicContingencyManager(
        {
            "tp_count": hits,
            "fn_count": misses,
            "fp_count": false_alarms,
            "tn_count": negatives,
            "total_count": hits + misses + false_alarms + negatives,
        }
    )
    n, f, o = array("n"), array("f"), array("o")
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = array("fo") - f * o / n
        variances = (array("ff") - f**2 / n) * (array("oo") - o**2 / n)
        result = {
            "csi": table.critical_success_index(),
            "pod": table.probability_of_detection(),
            "far": table.false_alarm_ratio(),
            "frequency_bias": table.frequency_bias().where(hits + misses > 0),
            "mse": array("se") / n,
            "mae": array("ae") / n,
            "correlation": covariance / np.sqrt(variances.where(variances > 0)),
            "fss": 1 - array("fss_num") / array("fss_den").where(array("fss_den") > 0),
        }
        if leading is None:
            result |= dict(zip(_COUNTS, (hits, misses, false_alarms, negatives)))
            result |= {
                "wet_area": array("f_wet") / n,
                "mean_value": f / n,
                "observed_wet_area": array("o_wet") / n,
                "observed_mean": o / n,
                "valid_share": n / array("pixels"),
            }
    return xr.Dataset(result)


def scores_to_json(scores: xr.Dataset) -> str:
    """Scores as JSON: attributes, and one row a forecaster and lead time, with thresholds and scales inside."""
    rows = []
    for name in scores.forecaster.values:
        for lead in scores.lead_time.values:
            at = scores.sel(forecaster=name, lead_time=lead)
            row: dict[str, Any] = {
                "forecaster": str(name),
                "lead_minutes": float(lead / np.timedelta64(1, "s")) / 60,
                **{key: _plain(at[key]) for key in ("cases", "valid_share", "observed_wet_area", "observed_mean")},
                **{key: _plain(at[key]) for key in ("wet_area", "mean_value")},
            }
            for key in ("mse", "mae", "correlation"):
                row[key], row[f"{key}_interval"] = _plain(at[key]), _plain(at[f"{key}_interval"])
            row["thresholds"] = []
            for level in scores.threshold.values:
                there = at.sel(threshold=level)
                entry: dict[str, Any] = {"threshold": float(level)}
                entry |= {key: int(there[key]) for key in _COUNTS}
                for key in ("csi", "pod", "far", "frequency_bias"):
                    entry[key], entry[f"{key}_interval"] = _plain(there[key]), _plain(there[f"{key}_interval"])
                entry["fss"] = [
                    {
                        "scale_pixels": int(scale),
                        "fss": _plain(there.fss.sel(scale=scale)),
                        "fss_interval": _plain(there.fss_interval.sel(scale=scale)),
                    }
                    for scale in scores.scale.values
                ]
                row["thresholds"].append(entry)
            rows.append(row)
    attrs = {key: value.item() if hasattr(value, "item") else value for key, value in scores.attrs.items()}
    return json.dumps({**attrs, "scores": rows}, indent=1, allow_nan=False)


def _plain(value: xr.DataArray) -> Any:
    """A number, None for NaN; a list for an array."""
    if value.ndim:
        return [_plain(item) for item in value]
    number = value.item()
    return None if isinstance(number, float) and not np.isfinite(number) else number
