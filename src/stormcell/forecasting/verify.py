"""Forecasts against what was observed, beside baselines on the same pixels: one forecast (`verify`), or a model from every
start time (`hindcast`). Rain is verified in mm/h, anything else in its own unit. The scores themselves are made in `tally`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..data.axes import Step, advance, area, grid_spacing, time_step, time_text
from ..data.channels import first_channel
from ..data.contract import check_frames
from ..data.units import is_rain
from ..data.windows import common_step, split_at_gaps
from ..errors import InputError, reason
from .baselines import Array, Baseline, baselines_on, check_baselines
from .climatology import CLIMATOLOGICAL, Climatology
from .forecast import THRESHOLDS_MM_H, Forecaster, quantities
from .motion import has_pysteps
from .processes import AGAIN, gathered, processes, together
from .tally import Tally, block_minutes

SCALES = (5, 11, 21)
WET_MM_H = 0.1


# --- one forecast, as a library ---


def verify(
    fcst: xr.DataArray | Sequence[xr.DataArray],
    obs: xr.DataArray,
    *,
    against: Sequence[str] = ("persistence",),
    past: int = 4,
    thresholds: Sequence[float] | None = None,
    scales: Sequence[int] = SCALES,
    climatology: Climatology | None = None,
) -> xr.Dataset:
    """Scores of one forecast, or of several of the same lead times, against observed frames on the same grid.

    A forecast may be an ensemble, with a dimension `member`; what is scored of single forecasts is its mean then.

    `against` names baselines, made from the `past` frames of `obs` up to each reference time. `thresholds` are in mm/h for
    rain (dBZ is converted), else in the frames' unit; default 0.5, 2, 5, 10 mm/h, and none for a plain quantity.
    `scales` are widths of FSS windows in pixels. `climatology` is a model's, `load(path).climatology`.

    Returns a Dataset over forecaster, lead_time, threshold, scale: mse, rmse, mae, bias (the mean error), correlation and,
    with a climatology, acc (anomaly correlation coefficient); of events csi, pod, far, frequency_bias, fss; crps, brier,
    brier_skill (over the observed frequency) and, on a known grid of 2 km or finer, relative_power (at wavelengths of 4 to
    16 km, over the observed), each with an `_interval`; hits, misses, false_alarms, correct_negatives; mean_value, of rain
    wet_area, and what was observed of both; power and observed_power by wavelength in pixels; valid_share,
    cases, members. Ensembles have roc_area with its interval too, roc_pod over pofd, rank_share over rank, and a
    reliability diagram over bin: forecasts, forecast_probability, observed_frequency, and the `consistency` that a reliable
    one would have. NaN where a score is undefined. CRPS and Brier score are those of the members as they are.

    Raises InputError if grids or units differ, frames before the reference time are missing for a baseline, or no
    observed frame has a valid time of the forecast.
    """
    fcsts = [fcst] if isinstance(fcst, xr.DataArray) else list(fcst)
    if not fcsts:
        raise InputError("there is no forecast to verify")
    if past < 1:
        raise InputError(f"past must be 1 or more, not {past}")
    obs = first_channel(check_frames(obs))
    units = obs.attrs["units"]
    rain = is_rain(units)
    if climatology is not None and not climatology.fits(obs):
        raise InputError("the observed frames and the climatology lie on different grids")
    names = check_baselines(list(against), rain=rain, climatology=climatology is not None)
    rivals, settings = baselines_on(
        names, spacing_m=grid_spacing(obs), step=time_step(obs.time.values), climatology=climatology
    )
    truth_all = quantities(obs)
    span = time_step(obs.time.values), len(_leads(fcsts[0]))
    tally = _tally(["stormcell", *names], obs, thresholds, scales, rain=rain, span=span)
    index = {t: k for k, t in enumerate(obs.time.values)}
    for several in fcsts:
        members = several.transpose("member", ...) if "member" in several.dims else several.expand_dims("member")
        checked = [check_frames(member) for member in members]
        one = checked[0]
        if one.attrs["units"] != units and not (rain and is_rain(one.attrs["units"])):
            raise InputError(f"the forecast is in {one.attrs['units']}, the observed frames are in {units}")
        if one.shape[1:] != obs.shape[1:] or not (np.allclose(one.x, obs.x) and np.allclose(one.y, obs.y)):
            raise InputError("the forecast and the observed frames lie on different grids")
        if len(one) != fcsts[0].sizes["time"]:
            raise InputError(f"forecasts of {fcsts[0].sizes['time']} and of {len(one)} steps cannot be pooled")
        _leads(one)
        reference = one.forecast_reference_time.values.astype("datetime64[ns]")
        truth = np.full(one.shape, np.nan, dtype=np.float32)
        for k, time in enumerate(one.time.values):
            if time in index:
                truth[k] = truth_all[index[time]]
        if not np.isfinite(truth).any():
            raise InputError("no observed frame has a valid time of the forecast: give the frames after it")
        fields: dict[str, Array] = {"stormcell": np.stack([quantities(member) for member in checked])}
        if names:
            if reference not in index:
                raise InputError("baselines need the observed frames up to the reference time of the forecast")
            end = index[reference] + 1
            run = split_at_gaps(obs.isel(time=slice(None, end)))[-1]
            before = truth_all[end - min(past, run.sizes["time"]) : end]
            fields |= _forecasts(
                _with_times(names, rivals, climatology, reference, one.time.values), before, len(truth), reference
            )
        tally.add(reference, truth, fields, None if climatology is None else climatology.at(one.time.values))
    attrs = {"rivals": settings} | ({} if climatology is None else {"climatology": climatology.kind})
    return tally.scores(_leads(fcsts[0]), units="mm/h" if rain else units).assign_attrs(attrs)


def _leads(fcst: xr.DataArray) -> npt.NDArray[np.timedelta64]:
    if "forecast_reference_time" not in fcst.coords:
        raise InputError("the forecast has no forecast_reference_time: is it a forecast?")
    return np.asarray(fcst.time.values - fcst.forecast_reference_time.values)


def _tally(
    names: Sequence[str],
    frames: xr.DataArray,
    thresholds: Sequence[float] | None,
    scales: Sequence[int],
    *,
    rain: bool,
    span: tuple[Step | None, int],
) -> Tally:
    """Sums to begin with. `span` is the step of forecasts and how many."""
    return Tally(
        names,
        _levels(thresholds, rain=rain),
        tuple(dict.fromkeys(scales)),
        WET_MM_H if rain else np.inf,
        rain=rain,
        spacing_m=grid_spacing(frames),
        block_minutes=block_minutes(*span, rain=rain),
    )


def _with_times(
    names: Sequence[str],
    rivals: Mapping[str, Baseline],
    climatology: Climatology | None,
    now: np.datetime64,
    later: npt.NDArray[np.datetime64],
) -> dict[str, Baseline]:
    """The rivals of one case, those that ask for the time among them."""
    if climatology is None:
        return dict(rivals)
    timed = [name for name in names if name in CLIMATOLOGICAL]
    return {**rivals, **{name: functools.partial(_by_climatology, name, climatology, now, later) for name in timed}}


def _by_climatology(
    name: str, climatology: Climatology, now: np.datetime64, later: npt.NDArray[np.datetime64], past: Array, steps: int
) -> Array:
    return CLIMATOLOGICAL[name](climatology, past, now, later)


def _forecasts(rivals: Mapping[str, Baseline], past: Array, steps: int, reference: np.datetime64) -> dict[str, Array]:
    """Of each baseline; one that fails is an error, not a row that is left out."""
    found = {}
    for name, rival in rivals.items():
        try:
            found[name] = rival(past, steps)
        except InputError:
            raise
        except Exception as error:  # whatever a library makes of a field
            raise InputError(
                f"{name} failed from {time_text(reference)} UTC ({reason(error)}); leave it out of --against"
            ) from error
    return found


def _levels(thresholds: Sequence[float] | None, *, rain: bool) -> tuple[float, ...]:
    """Thresholds of events. A plain quantity has none that are of use to everyone."""
    if thresholds is None:
        return THRESHOLDS_MM_H if rain else ()
    chosen = tuple(dict.fromkeys(float(t) for t in thresholds))
    if not chosen or not np.isfinite(chosen).all():
        raise InputError("--thresholds must be one number or more, such as 0.5,2,5")
    return chosen


# --- a model on all cases of a set of runs ---


Start = tuple[int, int]
"""A case: which run, and at which of its frames the past begins."""


@dataclass(frozen=True)
class Hindcast:
    """What `hindcast` found: scores, whose attrs say what was left out, and the fields of a few cases to look at."""

    scores: xr.Dataset
    samples: list[tuple[str, dict[str, xr.DataArray]]]


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
    """Whether two areas (west, south, east, north in degrees) share ground; 280° and -80° are one longitude."""
    return a[1] < b[3] and b[1] < a[3] and any(a[0] + turn < b[2] and b[0] < a[2] + turn for turn in (-360, 0, 360))


def hindcast(
    forecaster: Forecaster,
    runs: Sequence[xr.DataArray],
    *,
    against: Sequence[str] | Mapping[str, Baseline] = ("persistence",),
    steps: int | None = None,
    leads: Sequence[int] | None = None,
    members: int | None = None,
    every_minutes: float = 0.0,
    thresholds: Sequence[float] | None = None,
    scales: Sequence[int] = SCALES,
    any_grid: bool = False,
    sample_count: int = 3,
    progress: Callable[[Sequence[Start]], Iterable[Start]] = iter,
) -> Hindcast:
    """Forecast from every start time in `runs` (see `windows.runs_of`) and verify.

    Cases with frames that the model was trained or chosen on are left out, and those nearer than `every_minutes` to the one
    before. `leads` are the steps that are scored, all if left out. With `members` the model's ensemble of so many is a
    forecaster too, called "ensemble". `against` are names of baselines, or rivals of one's own by name: functions of past
    frames (P, Y, X), mm/h for rain, and a number of steps, that return a field (steps, Y, X) or (members, steps, Y, X).

    `progress` wraps the list of cases, to show a bar. Samples are taken evenly over the cases, not by merit.

    Where torchrun or SLURM have started several processes, each takes its share of the cases, and all return the same: counts
    as one process has them, sums but for rounding.

    Raises InputError if unit, step or grid do not fit the model, if no case is left, or if a baseline cannot be computed.
    """
    transform, units = forecaster.transform, "mm/h" if forecaster.transform.rain else forecaster.transform.units
    climatology = climatology_of(forecaster, runs)
    names = list(against)
    if not isinstance(against, Mapping):
        names = check_baselines(names, rain=transform.rain, climatology=climatology is not None)
    suited = [forecaster.suited(run, any_grid=any_grid) for run in runs]
    if len({one.step for one in suited}) > 1:
        common_step(runs)
    forecaster = next((one for one, run in zip(suited, runs) if run.sizes["time"] > 1), forecaster)
    steps = forecaster.frames_ahead if steps is None else steps
    if steps < 1:
        raise InputError(f"--steps must be 1 or more, not {steps}")
    length = forecaster.past + steps
    starts = [(r, t) for r, run in enumerate(runs) for t in range(run.sizes["time"] - length + 1)]
    if not starts:
        longest = max((run.sizes["time"] for run in runs), default=0)
        raise InputError(
            f"no case fits: a case takes {forecaster.past} past and {steps} future frames without a gap, and the longest "
            f"run has {longest}"
        )
    known = [seen(run, forecaster.card) for run in runs]
    fresh = [(r, t) for r, t in starts if not known[r][t : t + length].any()]
    if not fresh:
        raise InputError(
            f"all {len(starts)} cases have frames that this model was trained or chosen on: verify it on other frames"
        )
    left_out = len(starts) - len(fresh)
    fresh = _apart(fresh, runs, every_minutes)
    scored = np.arange(steps) if leads is None else np.array([lead - 1 for lead in leads])
    if not len(scored) or scored.min() < 0 or scored.max() >= steps:
        raise InputError(f"leads must be steps from 1 to {steps}, not {leads}")
    wanted = (scored + 1).tolist()
    settings: dict[str, dict[str, Any]] = {}
    if isinstance(against, Mapping):
        rivals = dict(against)
    else:
        rivals, settings = baselines_on(
            names, spacing_m=grid_spacing(runs[0]), step=forecaster.step, climatology=climatology
        )
    forecasters = ["stormcell", *(["ensemble"] if members else []), *names]
    tally = _tally(
        forecasters, runs[0], thresholds, scales, rain=transform.rain, span=(forecaster.step, int(scored[-1]) + 1)
    )
    picks = {(2 * k + 1) * len(fresh) // (2 * sample_count) for k in range(sample_count)}
    samples = []
    team = processes()
    share = slice(team.rank, None, team.count)
    for number, (r, t) in zip(range(len(fresh))[share], progress(fresh[share])):
        case = runs[r].isel(time=slice(t, t + length))
        seen_past, truth = np.split(quantities(case), [forecaster.past])
        past, truth = (part if part.ndim == 3 else part[:, 0] for part in (seen_past, truth))
        reference, later = case.time.values[forecaster.past - 1], case.time.values[forecaster.past :]
        theirs = _forecasts(_with_times(names, rivals, climatology, reference, later), past, steps, reference)
        ours = _ours(suited[r], seen_past, wanted, members)
        shown = ours | {name: field[..., scored, :, :] for name, field in theirs.items()}
        tally.add(reference, truth[scored], shown, None if climatology is None else climatology.at(later[scored]))
        if number in picks:
            future = first_channel(case).isel(time=slice(forecaster.past, None))
            whole = ours if len(wanted) == steps else _ours(suited[r], seen_past, range(1, steps + 1), members)
            samples.append((number, _sample(future, reference, {"observed": truth, **whole, **theirs})))
    with together(AGAIN):
        parts = gathered((tally, samples))
    tally = parts[0][0].merged([other for other, _ in parts[1:]])
    found = [numbered for _, some in parts for numbered in some]
    if not tally.pixels:
        raise InputError("no pixel is valid in both truth and forecast: all frames are missing, or never seen")
    first = runs[fresh[0][0]].time.values[0]
    lead = np.array([advance(first, forecaster.step, int(k) + 1) - first for k in scored])
    scores = tally.scores(lead, units=units)
    scores.attrs["rivals"] = settings
    if climatology is not None:
        scores.attrs["climatology"] = climatology.kind
    scores.attrs["left_out_cases"] = left_out
    scores.attrs["left_out_frames"] = int(sum(k.sum() for k in known))
    return Hindcast(scores, [sample for _, sample in sorted(found, key=lambda numbered: numbered[0])])


def _ours(forecaster: Forecaster, past: Array, steps: Sequence[float], members: int | None) -> dict[str, Array]:
    fields = {"stormcell": forecaster.fields(past, steps)}
    return fields if not members else fields | {"ensemble": forecaster.ensemble(past, steps, members=members)}


def climatology_of(forecaster: Forecaster, runs: Sequence[xr.DataArray]) -> Climatology | None:
    """The model's, if it has one and all runs lie on its grid."""
    own = forecaster.climatology
    return own if own is not None and all(own.fits(run) for run in runs) else None


def usual_rivals(forecaster: Forecaster, runs: Sequence[xr.DataArray]) -> list[str]:
    """Baselines to verify against unless told otherwise: what can be had, and is quick."""
    if forecaster.transform.rain:
        return ["persistence", *(["optical-flow"] if has_pysteps() else [])]
    return ["persistence", *(CLIMATOLOGICAL if climatology_of(forecaster, runs) else ())]


def _apart(cases: Sequence[Start], runs: Sequence[xr.DataArray], minutes: float) -> list[Start]:
    """Of each run the first case, and each that starts so many minutes after the last one kept."""
    kept: list[Start] = []
    for r, t in cases:
        times = runs[r].time.values
        if kept and kept[-1][0] == r and (times[t] - times[kept[-1][1]]) / np.timedelta64(1, "s") < 60 * minutes:
            continue
        kept.append((r, t))
    return kept


def _sample(
    future: xr.DataArray, reference: np.datetime64, rows: Mapping[str, Array]
) -> tuple[str, dict[str, xr.DataArray]]:
    like = future.assign_coords(lead_time=("time", future.time.values - reference), forecast_reference_time=reference)
    like.attrs = {"units": "mm/h" if is_rain(future.attrs["units"]) else future.attrs["units"]}
    shown: dict[str, Array] = {}
    for name, field in rows.items():
        shown |= (
            {name: field} if field.ndim == 3 else {f"{name}, mean": field.mean(axis=0), f"{name}, a member": field[0]}
        )
    return f"from {time_text(reference)} UTC", {row: like.copy(data=value) for row, value in shown.items()}
