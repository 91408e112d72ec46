"""Forecasts against what was observed: the scores of the field, per lead time, beside baselines on the same pixels.

Each case and lead has one validity mask: truth and every compared forecast valid. Categorical scores come from counts pooled
over all cases, and from `scores` (Leeuwenburg et al. 2024); intervals from a bootstrap over blocks of cases of an hour or
more, since neighbouring cases are nearly the same case. Sums come before scores, so that any set of cases can be pooled.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.ndimage import uniform_filter

from ..data.frames import advance, area, check_frames, grid_spacing, in_memory, values, zr_pair
from ..data.units import is_rain, to_rain_rate
from ..data.windows import fits_memory
from ..errors import InputError
from .baselines import BASELINES, Array, check_baselines
from .forecast import Forecaster

THRESHOLDS_MM_H = (0.5, 2.0, 5.0, 10.0)
SCALES = (5, 11, 21)
WET_MM_H = 0.1
BLOCK_MINUTES = 60.0
FEWEST_BLOCKS = 5
_RESAMPLES = 1000
_COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
SCORES = ("csi", "pod", "far", "frequency_bias", "mse", "mae", "correlation", "fss")


# --- sums of one case ---


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
                for j, threshold in enumerate(self.thresholds):
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

    What is left at the end of a run joins the block before it.
    """
    hour = np.timedelta64(round(BLOCK_MINUTES * 60), "s")
    starts = [times[0]]
    for time in times:
        if time - starts[-1] >= hour:
            starts.append(time)
    blocks = np.searchsorted(np.array(starts), np.array(times), side="right") - 1
    last = [t for t, b in zip(times, blocks) if b == blocks[-1]]
    spacing = min((b - a for a, b in zip(times, times[1:]) if b > a), default=hour)
    before = [t for t, b in zip(times, blocks) if b == blocks[-1] - 1]
    if before and last[0] - before[-1] < hour and last[-1] - last[0] + spacing < hour:
        blocks[blocks == blocks[-1]] -= 1
    return blocks


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


# --- one forecast, as a library ---


def verify(
    fcst: xr.DataArray | Sequence[xr.DataArray],
    obs: xr.DataArray,
    *,
    against: Sequence[str] = ("persistence",),
    past: int = 4,
    thresholds: Sequence[float] | None = None,
    scales: Sequence[int] = SCALES,
) -> xr.Dataset:
    """Scores of one forecast, or of several of the same lead times, against observed frames on the same grid.

    `against` names baselines, made from the `past` frames of `obs` up to each reference time. `thresholds` are in mm/h for
    rain (dBZ is converted), else in the frames' unit; default 0.5, 2, 5, 10 mm/h, or mean and mean + deviation of `obs`.
    `scales` are widths of FSS windows in pixels.

    Returns a Dataset over forecaster, lead_time, threshold, scale: csi, pod, far, frequency_bias, mse, mae, correlation,
    fss, each with an `_interval`; hits, misses, false_alarms, correct_negatives; wet_area, mean_value and what was
    observed of both; valid_share and cases. NaN where a score is undefined.

    Raises InputError if grids or units differ, frames before the reference time are missing for a baseline, or no
    observed frame has a valid time of the forecast.
    """
    fcsts = [fcst] if isinstance(fcst, xr.DataArray) else list(fcst)
    if not fcsts:
        raise InputError("there is no forecast to verify")
    obs = check_frames(obs)
    units = obs.attrs["units"]
    rain = is_rain(units)
    names = check_baselines(list(against), rain=rain)
    truth_all = _quantity(values(obs), obs)
    levels = _levels(thresholds, rain, truth_all)
    tally = Tally(["stormcell", *names], levels[0], tuple(scales), levels[1])
    index = {t: k for k, t in enumerate(obs.time.values)}
    for one in fcsts:
        one = check_frames(one)
        if one.attrs["units"] != units and not (rain and is_rain(one.attrs["units"])):
            raise InputError(f"the forecast is in {one.attrs['units']}, the observed frames are in {units}")
        if one.shape[1:] != obs.shape[1:] or not (np.allclose(one.x, obs.x) and np.allclose(one.y, obs.y)):
            raise InputError("the forecast and the observed frames lie on different grids")
        if "forecast_reference_time" not in one.coords:
            raise InputError("the forecast has no forecast_reference_time: is it a forecast?")
        reference = one.forecast_reference_time.values.astype("datetime64[ns]")
        truth = np.full(one.shape, np.nan, dtype=np.float32)
        for k, time in enumerate(one.time.values):
            if time in index:
                truth[k] = truth_all[index[time]]
        if not np.isfinite(truth).any():
            raise InputError("no observed frame has a valid time of the forecast: give the frames after it")
        fields: dict[str, Array] = {"stormcell": _quantity(values(one), one)}
        if names:
            if reference not in index or index[reference] + 1 < min(past, 2):
                raise InputError("baselines need the observed frames up to the reference time of the forecast")
            before = truth_all[max(index[reference] + 1 - past, 0) : index[reference] + 1]
            fields |= {name: _baseline(name, before, len(truth), reference) for name in names}
        tally.add(reference, truth, fields)
    lead = fcsts[0].time.values - fcsts[0].forecast_reference_time.values
    result = tally.scores(lead, units="mm/h" if rain else units)
    return _with_scale_km(result, grid_spacing(obs))


def _baseline(name: str, past: Array, steps: int, reference: np.datetime64) -> Array:
    """A baseline that fails is an error, not a row that is left out."""
    try:
        return BASELINES[name](past, steps)
    except InputError:
        raise
    except Exception as error:  # whatever a library makes of a field
        when = str(reference.astype("M8[m]")).replace("T", " ")
        raise InputError(f"{name} failed from {when} UTC ({error}); leave it out with --against") from error


def _quantity(data: Array, frames: xr.DataArray) -> Array:
    """Values as they are verified: rain in mm/h, anything else as it is."""
    units = frames.attrs["units"]
    return to_rain_rate(data, units, zr_pair(frames)) if is_rain(units) else data


def _levels(thresholds: Sequence[float] | None, rain: bool, sample: Array) -> tuple[tuple[float, ...], float]:
    """Thresholds of events and of the wet area."""
    if thresholds is not None and (not len(thresholds) or not np.isfinite(thresholds).all()):
        raise InputError("--thresholds must be one number or more, such as 0.5,2,5")
    if rain:
        return tuple(thresholds or THRESHOLDS_MM_H), WET_MM_H
    mean, deviation = float(np.nanmean(sample)), float(np.nanstd(sample))
    chosen = tuple(thresholds or (float(f"{mean:.4g}"), float(f"{mean + deviation:.4g}")))
    return chosen, chosen[0]


def _with_scale_km(scores: xr.Dataset, spacing: float | None) -> xr.Dataset:
    if spacing is None:
        return scores
    return scores.assign_coords(scale_km=("scale", scores.scale.values * spacing / 1000))


# --- a model on all cases of a set of runs ---


@dataclass(frozen=True)
class Case:
    """One start time: the past frames, and what followed."""

    past: xr.DataArray
    truth: xr.DataArray


@dataclass(frozen=True)
class Hindcast:
    """What `hindcast` found: scores, fields of a few cases to look at, and what was left out."""

    scores: xr.Dataset
    samples: list[tuple[str, dict[str, xr.DataArray]]]
    left_out_cases: int
    left_out_frames: int


def cases(runs: Sequence[xr.DataArray], past: int, future: int) -> Iterator[Case]:
    """Every window of the runs, oldest first within a run."""
    for run in runs:
        for t in range(run.sizes["time"] - past - future + 1):
            yield Case(run.isel(time=slice(t, t + past)), run.isel(time=slice(t + past, t + past + future)))


def seen(frames: xr.DataArray, card: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Which frames the model was trained or chosen on: in the time range and the area of a run in its file.

    Where the place of either grid is unknown, the same time is taken for the same place.
    """
    result = np.zeros(frames.sizes["time"], dtype=bool)
    here = area(frames)
    for entry in card.get("frames", []):
        within = (frames.time.values >= np.datetime64(entry["start"])) & (
            frames.time.values <= np.datetime64(entry["end"])
        )
        there = entry["area"]
        if here is None or there is None or _overlap(here, there):
            result |= within
    return result


def _overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def hindcast(
    forecaster: Forecaster,
    runs: Sequence[xr.DataArray],
    *,
    against: Sequence[str] = ("persistence",),
    steps: int | None = None,
    thresholds: Sequence[float] | None = None,
    scales: Sequence[int] = SCALES,
    any_grid: bool = False,
    sample_count: int = 3,
    progress: Callable[[Sequence[Case]], Iterable[Case]] = iter,
) -> Hindcast:
    """Forecast from every start time in `runs` (without gaps) and verify. Cases with frames that the model was trained or
    chosen on are left out.

    `progress` wraps the list of cases, to show a bar. Samples are taken evenly over the cases, not by merit.

    Raises InputError if unit, step or grid do not fit the model, if no case is left, or if a baseline cannot be computed.
    """
    transform, units = forecaster.transform, "mm/h" if forecaster.transform.rain else forecaster.transform.units
    names = check_baselines(list(against), rain=transform.rain)
    steps = forecaster.future if steps is None else steps
    for run in runs:
        forecaster.check(run, any_grid=any_grid)
    everything = list(cases(runs, forecaster.past, steps))
    if not everything:
        longest = max((run.sizes["time"] for run in runs), default=0)
        raise InputError(
            f"no case fits: a case takes {forecaster.past} past and {steps} future frames without a gap, and the longest "
            f"run has {longest}"
        )
    if fits_memory(runs):
        runs = [in_memory(run) for run in runs]  # each frame is in many cases
        everything = list(cases(runs, forecaster.past, steps))
    known = [seen(run, forecaster.card) for run in runs]
    flags = [
        bool(k[t : t + forecaster.past + steps].any())
        for k in known
        for t in range(len(k) - forecaster.past - steps + 1)
    ]
    fresh = [case for case, flag in zip(everything, flags) if not flag]
    if not fresh:
        raise InputError(
            f"all {len(everything)} cases have frames that this model was trained or chosen on: verify it on other frames"
        )
    sample = np.array([transform.low, transform.high], dtype=np.float32)
    levels = _levels(thresholds, transform.rain, sample)
    tally = Tally(["stormcell", *names], levels[0], tuple(scales), levels[1])
    picks = {(2 * k + 1) * len(fresh) // (2 * sample_count) for k in range(sample_count)}
    samples = []
    for number, case in enumerate(progress(fresh)):
        past, truth = (_quantity(values(frames), frames) for frames in (case.past, case.truth))
        encoded = transform.encode(past, units)
        fields: dict[str, Array] = {"stormcell": transform.decode(forecaster.predict(encoded, steps), units)}
        reference = case.past.time.values[-1]
        fields |= {name: _baseline(name, past, steps, reference) for name in names}
        tally.add(reference, truth, fields)
        if number in picks:
            samples.append(_sample(case, truth, fields, units))
    step = forecaster.step
    start = fresh[0].past.time.values[-1]
    lead = np.array([advance(start, step, k + 1) - start for k in range(steps)])
    scores = _with_scale_km(tally.scores(lead, units=units), grid_spacing(runs[0]))
    scores.attrs["left_out_cases"] = len(everything) - len(fresh)
    scores.attrs["left_out_frames"] = int(sum(k.sum() for k in known))
    return Hindcast(scores, samples, scores.attrs["left_out_cases"], scores.attrs["left_out_frames"])


def _sample(case: Case, truth: Array, fields: Mapping[str, Array], units: str) -> tuple[str, dict[str, xr.DataArray]]:
    reference = case.past.time.values[-1]
    like = case.truth.assign_coords(
        lead_time=("time", case.truth.time.values - reference), forecast_reference_time=reference
    )
    like.attrs = {"units": units}
    rows = {"observed": like.copy(data=truth)} | {name: like.copy(data=value) for name, value in fields.items()}
    return f"from {str(reference.astype('M8[m]')).replace('T', ' ')} UTC", rows


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
