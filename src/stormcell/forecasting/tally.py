"""Sums of a case → scores of many: each case and lead has one validity mask, sums come before scores.

Truth and every compared forecast must be valid for a pixel to count. Sums of any set of cases add up, so categorical scores
come from pooled counts, and intervals from a bootstrap over blocks of cases of an hour or more, since neighbouring cases are
nearly the same case. Categorical formulas are those of `scores` (Leeuwenburg et al. 2024). What is scored of an ensemble as of
a single forecast is its mean; its power is that of its first member.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr
from scipy.ndimage import uniform_filter

from ..data.axes import Step, length_text
from ..errors import InputError
from .baselines import Array
from .probability import (
    BINS,
    brier_sum,
    consistency,
    crps_sum,
    event_table,
    rank_counts,
    reliability,
    roc_area,
    roc_curve,
)
from .spectrum import BAND_KM, EDGES, band_edges, for_spectrum, modes_in, power_in

Floats = npt.NDArray[np.float64]
Sums = dict[str, Floats]

BLOCK_MINUTES = 60.0
_SHORTEST_MONTH_MINUTES = 28 * 1440
FEWEST_BLOCKS = 5
_RESAMPLES = 1000
_COUNTS = ("hits", "misses", "false_alarms", "correct_negatives")
_BY_LEAD = ("mse", "rmse", "mae", "bias", "correlation", "acc", "crps", "relative_power")
_BY_EVENT = ("csi", "pod", "far", "frequency_bias", "brier", "brier_skill", "roc_area")
_ALONE = ("cases", "valid_share", "observed_wet_area", "observed_mean", "wet_area", "mean_value")  # without intervals
SCORES = (*_BY_LEAD, *_BY_EVENT, "fss")
_EVENT = ("lead_time", "threshold")
_SUMS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("n", "pixels", "o", "oo", "o_wet", "o_band", "oo_anomaly"), ("lead_time",)),
    **dict.fromkeys(("se", "ae", "f", "ff", "fo", "f_wet", "crps", "f_band"), ("forecaster", "lead_time")),
    **dict.fromkeys(("ff_anomaly", "fo_anomaly"), ("forecaster", "lead_time")),
    **dict.fromkeys((*_COUNTS, "brier"), ("forecaster", *_EVENT)),
    **dict.fromkeys(("fss_num", "fss_den"), ("forecaster", *_EVENT, "scale")),
    **dict.fromkeys(("o_power", "modes"), ("lead_time", "wavelength")),
    "f_power": ("forecaster", "lead_time", "wavelength"),
    **dict.fromkeys(("said", "came"), ("ensemble", *_EVENT, "rank")),
    "ranks": ("ensemble", "lead_time", "rank"),
}
"""What is summed, and over which dimensions: an ensemble is a forecaster with several members."""
_RESAMPLED = tuple(name for name in _SUMS if name not in ("f_power", "o_power", "modes", "ranks"))


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
        wet: threshold of the wet area, of rain.
        rain: values are rain rates in mm/h: below `wet` nothing is ranked, and spectra are of dBR.
        spacing_m: grid spacing, if it is known: relative power needs it.
        block_minutes: how long a block of cases is, for the intervals.
    """

    forecasters: Sequence[str]
    thresholds: Sequence[float]
    scales: Sequence[int]
    wet: float = np.inf
    rain: bool = True
    spacing_m: float | None = None
    block_minutes: float = BLOCK_MINUTES
    times: list[np.datetime64] = field(default_factory=list)
    members: dict[str, int] = field(default_factory=dict)
    _sums: list[Sums] = field(default_factory=list)

    def add(
        self, reference: np.datetime64, truth: Array, fcsts: Mapping[str, Array], climate: Array | None = None
    ) -> None:
        """One case: truth (L, Y, X), and of each forecaster a forecast (L, Y, X) or an ensemble (M, L, Y, X).

        `climate` (L, Y, X) is what is usual at these times: anomalies are what differs from it.
        NaN where missing; a pixel counts where the truth and all members of all forecasters have a value. Raises InputError if
        a forecaster has not as many members as in the cases before.
        """
        rows = {name: fcsts[name] if fcsts[name].ndim == 4 else fcsts[name][None] for name in self.forecasters}
        for name, row in rows.items():
            if len(row) != self.members.setdefault(name, len(row)):
                raise InputError(f"{name} has {self.members[name]} members in one case and {len(row)} in another")
        sizes = {
            "forecaster": len(self.forecasters),
            "lead_time": len(truth),
            "threshold": len(self.thresholds),
            "scale": len(self.scales),
            "wavelength": len(EDGES) - 1,
            "ensemble": len(self.ensembles),
            "rank": max(self.members.values()) + 1,
        }
        sums = {name: np.zeros([sizes[dim] for dim in dims]) for name, dims in _SUMS.items()}
        rng = np.random.default_rng(abs(int(reference.astype("datetime64[s]").astype(np.int64))))
        for lead, obs in enumerate(truth):
            fields = [row[:, lead] for row in rows.values()]
            valid = np.isfinite(obs)
            for members in fields:
                valid &= np.isfinite(members).all(axis=0)
            seen = obs[valid].astype(np.float64)
            sums["n"][lead], sums["pixels"][lead] = valid.sum(), valid.size
            sums["o"][lead], sums["oo"][lead], sums["o_wet"][lead] = (
                seen.sum(),
                (seen**2).sum(),
                (seen >= self.wet).sum(),
            )
            for k, members in enumerate(fields):
                self._add_values(sums, k, lead, members, obs, valid)
                if climate is not None:
                    self._add_anomalies(sums, k, lead, members, obs, np.where(valid, climate[lead], np.nan))
            for e, name in enumerate(self.ensembles):
                self._add_members(sums, e, lead, rows[name][:, lead, valid].astype(np.float64), seen, rng)
            self._add_power(sums, lead, [members[0] for members in fields], obs, valid)
        self.times.append(reference)
        self._sums.append(sums)

    def merged(self, others: Sequence[Tally]) -> Tally:
        """As if it had had the cases of others too, which have the same settings.

        Raises InputError if a forecaster has not as many members in all of them.
        """
        together = replace(self, times=list(self.times), members=dict(self.members), _sums=list(self._sums))
        for other in others:
            for name, count in other.members.items():
                if count != together.members.setdefault(name, count):
                    raise InputError(f"{name} has {together.members[name]} members in one case and {count} in another")
            together.times += other.times
            together._sums += other._sums
        return together

    def _add_values(
        self, sums: Sums, k: int, lead: int, members: Array, truth: Array, valid: npt.NDArray[np.bool_]
    ) -> None:
        """What is scored of every forecaster: of members (M, Y, X) their mean, and the CRPS."""
        field = members.mean(axis=0, dtype=np.float64).astype(np.float32)
        obs_map = np.where(valid, truth, np.float32(-np.inf))
        fcst, obs, inside = (values.astype(np.float64) for values in (field[valid], truth[valid], members[:, valid]))
        sums["se"][k, lead], sums["ae"][k, lead] = ((fcst - obs) ** 2).sum(), np.abs(fcst - obs).sum()
        sums["f"][k, lead], sums["ff"][k, lead] = fcst.sum(), (fcst**2).sum()
        sums["fo"][k, lead], sums["f_wet"][k, lead] = (fcst * obs).sum(), (fcst >= self.wet).sum()
        sums["crps"][k, lead] = crps_sum(inside, obs)
        for j, threshold in enumerate(self._levels):
            forecast_event, event = fcst >= threshold, obs >= threshold
            hits = int((forecast_event & event).sum())
            sums["hits"][k, lead, j] = hits
            sums["misses"][k, lead, j] = event.sum() - hits
            sums["false_alarms"][k, lead, j] = forecast_event.sum() - hits
            sums["correct_negatives"][k, lead, j] = (~(forecast_event | event)).sum()
            sums["brier"][k, lead, j] = brier_sum(*event_table(inside >= threshold, event))
            for s, scale in enumerate(self.scales):
                parts = fss_parts(field, obs_map, valid, threshold=threshold, scale=scale)
                sums["fss_num"][k, lead, j, s], sums["fss_den"][k, lead, j, s] = parts

    @staticmethod
    def _add_anomalies(sums: Sums, k: int, lead: int, members: Array, truth: Array, climate: Array) -> None:
        usual = np.isfinite(climate)
        middle = climate[usual].astype(np.float64)
        f, o = members.mean(axis=0, dtype=np.float64)[usual] - middle, truth[usual] - middle
        sums["oo_anomaly"][lead] = (o**2).sum()
        sums["ff_anomaly"][k, lead], sums["fo_anomaly"][k, lead] = (f**2).sum(), (f * o).sum()

    def _add_members(
        self, sums: Sums, e: int, lead: int, members: Floats, obs: Floats, rng: np.random.Generator
    ) -> None:
        """What only an ensemble has: probabilities and ranks of members (M, N)."""
        room = slice(0, len(members) + 1)
        for j, threshold in enumerate(self._levels):
            table = event_table(members >= threshold, obs >= threshold)
            sums["said"][e, lead, j, room], sums["came"][e, lead, j, room] = table
        sums["ranks"][e, lead, room] = rank_counts(members, obs, low=self.wet if self.rain else -np.inf, rng=rng)

    def _add_power(
        self, sums: Sums, lead: int, fields: Sequence[Array], truth: Array, valid: npt.NDArray[np.bool_]
    ) -> None:
        middle, band = float(truth[valid].mean()) if valid.any() else 0.0, band_edges(self.spacing_m)
        for k, values in enumerate([truth, *fields]):
            field = for_spectrum(values, valid, rain=self.rain, middle=middle)
            where = lead if k == 0 else (k - 1, lead)
            letter = "o" if k == 0 else "f"
            sums[f"{letter}_power"][where] = power_in(field, EDGES)
            if band:
                sums[f"{letter}_band"][where] = power_in(field, band)[0]
        sums["modes"][lead] = modes_in(truth.shape, EDGES)

    @property
    def _levels(self) -> list[float]:
        return [float(np.float32(threshold)) for threshold in self.thresholds]  # as exact as the fields, no more

    @property
    def ensembles(self) -> list[str]:
        """Forecasters with more than one member."""
        return [name for name in self.forecasters if self.members[name] > 1]

    @property
    def pixels(self) -> int:
        """Pixels compared so far, over all cases and leads."""
        return int(sum(sums["n"].sum() for sums in self._sums))

    def scores(self, lead_time: npt.NDArray[np.timedelta64], *, units: str, seed: int = 0) -> xr.Dataset:
        """Scores of all cases pooled, with 95 % intervals; dims forecaster, lead_time, threshold, scale, wavelength, bound,
        and of ensembles bin, roc_point and rank.
        """
        order = np.argsort(np.array(self.times), kind="stable")
        blocks = assign_blocks([self.times[k] for k in order], self.block_minutes)
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
            "ensemble": self.ensembles,
        }
        whole = {name: value.sum(axis=0) for name, value in block_sums.items()}
        pooled = _scores(whole, coords, rain=self.rain)
        rng = np.random.default_rng(seed)
        draws = rng.multinomial(count, np.full(count, 1 / count), size=_RESAMPLES).astype(np.float64)
        enough = count >= FEWEST_BLOCKS
        if enough:
            drawn = {name: np.tensordot(draws, block_sums[name], axes=1) for name in _RESAMPLED}
            spread = _scores(drawn, coords, leading="draw")
        for name in [name for name in SCORES if name in pooled]:
            if enough:
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", "All-NaN", RuntimeWarning)  # undefined in every draw: stays NaN
                    bounds = spread[name].quantile([0.025, 0.975], dim="draw", skipna=True).drop_vars("quantile")
                bounds = bounds.rename(quantile="bound").transpose(..., "bound")
            else:
                bounds = xr.full_like(pooled[name], np.nan).expand_dims(bound=2).transpose(..., "bound")
            pooled[f"{name}_interval"] = bounds.assign_coords(bound=["low", "high"])
        pooled["cases"] = ("lead_time", (np.stack([s["n"] for s in self._sums]) > 0).sum(axis=0))
        pooled["members"] = ("forecaster", [self.members[name] for name in self.forecasters])
        pooled = xr.merge([pooled, self._spectra(whole), self._diagrams(block_sums, draws)])
        if self.spacing_m is not None:
            km = {"scale_km": "scale", "wavelength_km": "wavelength"}
            pooled = pooled.assign_coords(
                {name: (dim, pooled[dim].values * self.spacing_m / 1000) for name, dim in km.items() if dim in pooled}
            )
        pooled.attrs = {
            "units": units,
            "cases": len(self.times),
            "blocks": count,
            "block_minutes": self.block_minutes,
            "interval": f"95 % intervals from a bootstrap over {count} blocks of {length_text(self.block_minutes)} or more"
            if enough
            else f"too few blocks for an interval ({count}; {FEWEST_BLOCKS} are needed)",
            **({"wet_threshold": self.wet} if self.rain else {}),
            "spectrum": "dBR" if self.rain else units,
            "band_km": list(BAND_KM),
        }
        return pooled

    def _spectra(self, sums: Sums) -> xr.Dataset:
        """Mean power of a Fourier mode by wavelength in pixels, as far as the frames have any."""
        some = sums["modes"].any(axis=0)
        wavelength = np.sqrt(np.array(EDGES[1:]) * EDGES[:-1])[some]
        with np.errstate(invalid="ignore"):
            power, observed = ((sums[name] / sums["modes"])[..., some] for name in ("f_power", "o_power"))
        dims = ("forecaster", "lead_time", "wavelength")
        return xr.Dataset(
            {"power": (dims, power), "observed_power": (dims[1:], observed)}, coords={"wavelength": wavelength}
        )

    def _diagrams(self, block_sums: Sums, draws: Floats) -> xr.Dataset:
        """Reliability, ROC and ranks; NaN where a forecaster is no ensemble or a smaller one."""
        if not self.ensembles:
            return xr.Dataset()
        leads, most = len(block_sums["n"][0]), max(self.members.values()) + 1
        sizes = {"forecaster": len(self.forecasters), "lead_time": leads, "threshold": len(self.thresholds)}
        sizes |= {"bin": BINS, "roc_point": most + 1, "rank": most, "bound": 2}
        bins = ("forecaster", *_EVENT, "bin")
        dims: dict[str, tuple[str, ...]] = dict.fromkeys(
            ("forecasts", "forecast_probability", "observed_frequency"), bins
        )
        dims |= {"consistency": (*bins, "bound"), **dict.fromkeys(("pofd", "roc_pod"), (*bins[:3], "roc_point"))}
        dims |= {"rank_share": ("forecaster", "lead_time", "rank")}
        found = {name: np.full([sizes[dim] for dim in own], np.nan) for name, own in dims.items()}
        for e, name in enumerate(self.ensembles):
            k, members = list(self.forecasters).index(name), self.members[name]
            room = slice(0, members + 1)
            said, came = (block_sums[table][:, e, :, :, room] for table in ("said", "came"))
            table = said.sum(axis=0), came.sum(axis=0)
            parts = reliability(*table, members)
            found["forecasts"][k], found["forecast_probability"][k], found["observed_frequency"][k] = parts
            found["consistency"][k] = consistency(said, came, members, draws, fewest=FEWEST_BLOCKS)
            found["pofd"][k, ..., : members + 2], found["roc_pod"][k, ..., : members + 2] = roc_curve(*table)
            ranks = block_sums["ranks"][:, e, :, room].sum(axis=0)
            with np.errstate(invalid="ignore"):
                found["rank_share"][k, :, room] = ranks / ranks.sum(axis=-1, keepdims=True)
        return xr.Dataset({name: (own, found[name]) for name, own in dims.items()})


def block_minutes(step: Step | None, count: int, *, rain: bool) -> float:
    """How long a block of cases is, for forecasts of `count` steps: an hour; of a plain quantity, which may change slowly, as
    long as a forecast. Months are taken for the shortest one, so that as many of them always fill a block.
    """
    each = _SHORTEST_MONTH_MINUTES if isinstance(step, str) else step or 0.0
    return BLOCK_MINUTES if rain else max(BLOCK_MINUTES, each * count)


def assign_blocks(times: Sequence[np.datetime64], minutes: float = BLOCK_MINUTES) -> npt.NDArray[np.int64]:
    """Number of the block that each case is in; `times` ascend. A block holds the cases of an hour, whatever their place.

    What is left at the end of a run, less than an hour, joins the block before it; a run that is shorter as a whole is a
    block of its own. Blocks start an hour apart or more. `minutes` is another length than an hour.
    """
    hour = np.timedelta64(round(minutes * 60), "s")
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


def _scores(sums: Sums, coords: dict[str, Any], leading: str | None = None, *, rain: bool = True) -> xr.Dataset:
    """Sums → scores; `leading` is a first dimension of draws."""
    first = () if leading is None else (leading,)

    def array(name: str) -> xr.DataArray:
        own = _SUMS[name]
        return xr.DataArray(sums[name], dims=(*first, *own), coords={d: coords[d] for d in own if d in coords})

    n, f, o = array("n"), array("f"), array("o")
    with np.errstate(divide="ignore", invalid="ignore"):
        covariance = array("fo") - f * o / n
        variances = (array("ff") - f**2 / n) * (array("oo") - o**2 / n)
        result = {
            "mse": array("se") / n,
            "rmse": np.sqrt(array("se") / n),
            "mae": array("ae") / n,
            "bias": (f - o) / n,
            "correlation": covariance / np.sqrt(variances.where(variances > 0)),
            "crps": array("crps") / n,
        }
        if sums["oo_anomaly"].any():
            result["acc"] = _anomaly_correlation(*map(array, ("ff_anomaly", "oo_anomaly", "fo_anomaly")))
        if sums["o_band"].any():
            result["relative_power"] = array("f_band") / array("o_band").where(array("o_band") > 0)
        if coords["threshold"]:
            result |= _event_scores(array, n)
        if coords["threshold"] and coords["ensemble"]:
            area = array("said").isel(rank=0).copy(data=roc_area(sums["said"], sums["came"]))
            result["roc_area"] = area.rename(ensemble="forecaster").reindex(forecaster=coords["forecaster"])
        if leading is None:
            result |= {name: array(name) for name in _COUNTS}
            if rain:
                result |= {"wet_area": array("f_wet") / n, "observed_wet_area": array("o_wet") / n}
            result |= {"mean_value": f / n, "observed_mean": o / n, "valid_share": n / array("pixels")}
    return xr.Dataset(result)


def _anomaly_correlation(ff: xr.DataArray, oo: xr.DataArray, fo: xr.DataArray) -> xr.DataArray:
    """Of sums of products of anomalies, uncentred, as WeatherBench 2 has it (Rasp et al. 2024); NaN where one has none.

    A forecast that is the climatology has rounding for anomalies: a millionth of the observed ones counts as none.
    """
    product = ff.where(ff > 1e-12 * oo) * oo
    return fo / np.sqrt(product.where(product > 0))


def _event_scores(array: Callable[[str], xr.DataArray], n: xr.DataArray) -> dict[str, xr.DataArray]:
    """Scores of events at thresholds."""
    from scores.categorical import BasicContingencyManager

    hits, misses, false_alarms, negatives = (array(name) for name in _COUNTS)
    total = hits + misses + false_alarms + negatives
    counts = {
        "tp_count": hits,
        "fn_count": misses,
        "fp_count": false_alarms,
        "tn_count": negatives,
        "total_count": total,
    }
    table = BasicContingencyManager(counts)
    brier, frequency = array("brier") / n, (hits + misses) / total
    uncertainty = frequency * (1 - frequency)
    return {
        "csi": table.critical_success_index(),
        "pod": table.probability_of_detection(),
        "far": table.false_alarm_ratio(),
        "frequency_bias": table.frequency_bias().where(hits + misses > 0),
        "fss": 1 - array("fss_num") / array("fss_den").where(array("fss_den") > 0),
        "brier": brier,
        "brier_skill": 1 - brier / uncertainty.where(uncertainty > 0),
    }


def scores_to_json(scores: xr.Dataset) -> str:
    """Scores as JSON: attributes, and one row a forecaster and lead time, with thresholds, scales and wavelengths inside.

    An ensemble has its rank histogram there too, and under each threshold its reliability and ROC.
    """
    rows = []
    for name in scores.forecaster.values:
        for lead in scores.lead_time.values:
            at = scores.sel(forecaster=name, lead_time=lead)
            ensemble = int(at.members) > 1
            row: dict[str, Any] = {
                "forecaster": str(name),
                "lead_minutes": float(lead / np.timedelta64(1, "s")) / 60,
                "members": int(at.members),
                **{key: _plain(at[key]) for key in _ALONE if key in at},
                **_with_intervals(at, _BY_LEAD),
                "spectrum": _rows(at, "wavelength", ("wavelength", "wavelength_km", "power", "observed_power")),
            }
            if ensemble:
                row["rank_histogram"] = [_plain(share) for share in at.rank_share[: int(at.members) + 1]]
            row["thresholds"] = []
            for level in scores.threshold.values:
                there = at.sel(threshold=level)
                entry: dict[str, Any] = {"threshold": float(level)}
                entry |= {key: int(there[key]) for key in _COUNTS}
                entry |= _with_intervals(there, _BY_EVENT if ensemble else _BY_EVENT[:-1])
                entry["fss"] = [
                    {"scale_pixels": int(scale), **_with_intervals(there.sel(scale=scale), ("fss",))}
                    for scale in scores.scale.values
                ]
                if ensemble:
                    parts = ("forecasts", "forecast_probability", "observed_frequency", "consistency")
                    entry["reliability"] = _rows(there, "bin", parts)
                    entry["roc"] = _rows(
                        there.isel(roc_point=slice(int(at.members) + 2)), "roc_point", ("pofd", "roc_pod")
                    )
                row["thresholds"].append(entry)
            rows.append(row)
    attrs = {key: value.item() if hasattr(value, "item") else value for key, value in scores.attrs.items()}
    return json.dumps({**attrs, "scores": rows}, indent=1, allow_nan=False)


def _with_intervals(at: xr.Dataset, names: Sequence[str]) -> dict[str, Any]:
    """Those of the scores that there are, each with its interval."""
    return {key: _plain(at[key]) for name in names if name in at for key in (name, f"{name}_interval")}


def _rows(at: xr.Dataset, dim: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """Variables that go along one dimension, value by value."""
    there = [name for name in names if name in at.variables]
    return [{name: _plain(at[name].isel({dim: k})) for name in there} for k in range(at.sizes[dim])]


def _plain(value: xr.DataArray) -> Any:
    """A number, None for NaN; a list for an array."""
    if value.ndim:
        return [_plain(item) for item in value]
    number = value.item()
    return None if isinstance(number, float) and not np.isfinite(number) else number
