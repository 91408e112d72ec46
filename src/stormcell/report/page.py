"""Scores and sample frames as one HTML file that needs nothing else: no script, no network, pictures inside.

The page is for a forecaster who asks "is it any good?", so it opens with sentences that say losses as plainly as
wins, and ends with every number it drew. Its own content policy forbids the browser to load anything from elsewhere.
"""

from __future__ import annotations

import base64
import io
import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from jinja2 import Environment, FunctionLoader, StrictUndefined
from matplotlib.figure import Figure

from ..data.axes import lead_text, length_text
from ..errors import InputError
from . import diagrams
from .curves import SCORES, curve, svg
from .pictures import comparison, save

__all__ = ["Sample", "write_report"]

UNDEFINED = "–"
SENTENCES = 3
"""In the summary: the main threshold and the two above it."""
MOST_THRESHOLDS, MOST_DEEP = 6, 4
"""Thresholds with charts of their own, over lead time and at single lead times; the tables hold all of them."""
PAGE_BYTES = 2_400_000
"""What charts and sample pictures may take together, so that the page with its tables stays under 3 MB."""
DPI, LEAST_DPI = 110, 45
"""Pixels an inch of the sample pictures: as wide as the page on a screen, and the least that keeps labels legible."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One case to look at: its name, and rows of frames (observed, forecast, …) as `pictures.comparison` takes them."""

    name: str
    rows: dict[str, xr.DataArray]


@dataclass(frozen=True)
class Chart:
    """A picture in the page: its caption, what it shows in words, and itself as a data: URL."""

    caption: str
    alt: str
    source: str


@dataclass(frozen=True)
class _Group:
    heading: str
    note: str
    charts: list[Chart]


@dataclass(frozen=True)
class _Table:
    heading: str
    columns: list[str]
    rows: list[tuple[str, str, list[str]]]


def write_report(
    scores: xr.Dataset,
    path: str | os.PathLike[str],
    *,
    samples: Sequence[Sample],
    title: str,
    facts: Mapping[str, str],
    notes: Sequence[str] = (),
) -> None:
    """Write `scores` and `samples` to `path` as one self-contained HTML file in UTF-8, under 3 MB.

    `facts` (name to value) open the page; cases, blocks and the share of valid pixels are added from `scores` where
    they are not among them. Undefined scores print as "–". Any text may hold any character. InputError where `scores`
    has no forecaster or no lead time, or where a sample cannot be compared (see `comparison`).
    """
    for dim in ("forecaster", "lead_time"):
        if not scores.sizes.get(dim):
            raise InputError(f"a report needs scores of at least one {dim}. Received: {dict(scores.sizes)}")
    glance, groups = _glance(scores), list(_groups(scores))
    drawn = sum(len(chart.source) for chart in itertools.chain(glance, *(group.charts for group in groups)))
    page = render(
        "report.html.j2",
        title=title,
        summary=_summary(scores),
        facts=_facts(scores, facts),
        notes=list(notes),
        interval=str(scores.attrs.get("interval", "")),
        has_intervals=any(bool(scores[name].notnull().any()) for name in scores if str(name).endswith("_interval")),
        glance=glance,
        glance_note=_glance_note(scores),
        groups=groups,
        samples=sample_pictures(samples, budget=max(PAGE_BYTES - drawn, PAGE_BYTES // 5)),
        tables=list(_tables(scores)),
        undefined="for want of events or of valid pixels"
        if _thresholds(scores)
        else "for want of valid pixels or of anomalies",
    )
    Path(path).write_text(page, encoding="utf-8", newline="\n")


def render(template: str, **values: Any) -> str:
    """A page from a template beside this file; they share `base.html.j2`."""

    def source(name: str) -> str:
        return files("stormcell.report").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(source), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(template).render(**values)


# --- words ---


def _summary(scores: xr.Dataset) -> list[str]:
    """Sentences that say how the main forecaster stands at the main threshold and, where wins turn into losses, above."""
    main = _main_threshold(scores)
    if main is None:
        names = [name for name in ("rmse", "acc") if name in scores] or ["mae"]
        return [*(_sentence(scores, None, name=name) for name in names), *_blur(scores)]
    heavier = sorted(threshold for threshold in _thresholds(scores) if threshold > main)
    said = [_sentence(scores, threshold) for threshold in (main, *heavier[: SENTENCES - 1])]
    if many := diagrams.ensembles(scores):  # what has no members cannot say what it does not know
        said.append(_sentence(scores.sel(forecaster=many) if len(many) > 1 else scores, None, name="crps"))
    return [*said, *_blur(scores)]


def _blur(scores: xr.Dataset) -> list[str]:
    """What each forecaster keeps of the small scales."""
    if "relative_power" not in scores:
        return []
    lead, (low, high) = _main_lead(scores), scores.attrs["band_km"]
    kept = [
        f"{_cell(scores, 'relative_power', {'lead_time': lead, 'forecaster': name})} in {name}"
        for name in scores["forecaster"].values
    ]
    return [f"At {lead_text(lead)}, of the observed power at wavelengths of {low:g} to {high:g} km: {_listed(kept)}."]


def _sentence(scores: xr.Dataset, threshold: float | None, *, name: str = "mae") -> str:
    """The main forecaster's score at the main lead time beside everyone else's: CSI at `threshold`, or `name`."""
    names = [str(name) for name in scores["forecaster"].values]
    ours = ["ensemble", "stormcell"] if name == "crps" else ["stormcell"]
    main = next(one for one in (*ours, *names) if one in names)
    lead = _main_lead(scores)
    at: dict[str, Any] = {"lead_time": lead}
    where = lead_text(lead)
    if threshold is not None:
        where, name = f"{where} and {_amount(threshold, scores)}", "csi"
        at["threshold"] = threshold
    if name not in scores:
        return "No score to sum up."
    values = {one: float(scores[name].sel({**at, "forecaster": one})) for one in names}
    shown = {one: _text(name, value, scores) for one, value in values.items()}
    score = SCORES[name]
    own = _cell(scores, name, {**at, "forecaster": main})
    if not math.isfinite(values[main]):
        why = " (no such event was forecast or observed)" if name == "csi" else ""
        return f"At {where}: {score.short} of {main} is undefined{why}."
    others = [one for one in names if one != main]
    if not others:
        return f"At {where}: {score.short} {own} for {main}; nothing was verified beside it."
    defined = [one for one in others if math.isfinite(values[one])]
    undefined = [one for one in others if one not in defined]
    sign = 1 if score.best == 1 else -1
    level = [one for one in defined if shown[one] == shown[main]]
    better = [one for one in defined if one not in level and sign * values[main] > sign * values[one]]
    worse = [one for one in defined if one not in level and one not in better]
    verdicts = [(better, "better than"), (worse, "worse than"), (level, "level with")]
    sentence = f"At {where}: {score.short} {own} for {main}"
    if defined:
        sentence += f" against {_listed([f'{shown[one]} for {one}' for one in defined])}"
        sentence += f" – {main} is {_listed([f'{word} {_listed(them)}' for them, word in verdicts if them])}"
    if undefined:
        sentence += f"; undefined for {_listed(undefined)}"
    if within := _within(scores, name, {**at, "forecaster": main}, {one: values[one] for one in defined}):
        sentence += f"; {_listed(within)} {'lies' if len(within) == 1 else 'lie'} within that interval"
    return sentence + "."


def _within(scores: xr.Dataset, name: str, at: Mapping[str, Any], values: Mapping[str, float]) -> list[str]:
    """Whose values lie inside the interval of the score at `at`: a lead the reader should not make much of."""
    if f"{name}_interval" not in scores:
        return []
    low, high = (float(scores[f"{name}_interval"].sel({**at, "bound": bound})) for bound in ("low", "high"))
    return [one for one, value in values.items() if low <= value <= high]


def _main_lead(scores: xr.Dataset) -> np.timedelta64:
    """The lead time nearest to 30 minutes where the forecasts reach that far, else the middle one."""
    leads: list[np.timedelta64] = sorted(scores["lead_time"].values)
    half_hour = np.timedelta64(30, "m")
    if leads[0] <= half_hour <= leads[-1]:
        return min(leads, key=lambda lead: abs(lead - half_hour))
    return leads[(len(leads) - 1) // 2]


def _main_threshold(scores: xr.Dataset) -> float | None:
    """The threshold nearest to light steady rain – 0.5 mm/h, by Marshall-Palmer 18 dBZ – or the middle one in another
    unit.
    """
    thresholds = _thresholds(scores)
    wanted = {"mm/h": 0.5, "dBZ": 18.0}.get(str(scores.attrs.get("units", "")))
    if not thresholds:
        return None
    return (
        min(thresholds, key=lambda one: abs(one - wanted))
        if wanted is not None
        else thresholds[(len(thresholds) - 1) // 2]
    )


def _thresholds(scores: xr.Dataset) -> list[float]:
    return (
        [float(one) for one in scores["threshold"].values] if "threshold" in scores.coords and "csi" in scores else []
    )


def _is_rain(scores: xr.Dataset) -> bool:
    return "wet_threshold" in scores.attrs


def _listed(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}" if parts else ""


def _facts(scores: xr.Dataset, given: Mapping[str, str]) -> dict[str, str]:
    facts = {str(name): str(value) for name, value in given.items()}
    known = {name.lower() for name in facts}
    attrs = scores.attrs
    if "cases" in attrs and "cases" not in known:
        facts["Cases"] = f"{int(attrs['cases'])}"
    if "blocks" in attrs and "blocks" not in known:
        length = f" of {length_text(attrs['block_minutes'])} or more" if "block_minutes" in attrs else ""
        facts["Blocks"] = f"{int(attrs['blocks'])}{length}"
    if "valid_share" in scores and "valid pixels" not in known:
        low, high = (
            _text("valid_share", float(edge), scores)
            for edge in (scores["valid_share"].min(), scores["valid_share"].max())
        )
        facts["Valid pixels"] = low if low == high else f"{low} to {high}, by lead time"
    if "wet_area" in scores and "wet_threshold" in attrs and "wet" not in known:
        facts["Wet"] = f"at or above {_amount(float(attrs['wet_threshold']), scores)}"
    return facts


# --- numbers ---


def _amount(value: float, scores: xr.Dataset) -> str:
    return f"{value:g} {scores.attrs.get('units', '')}".strip()


def _text(name: str, value: float, scores: xr.Dataset) -> str:
    """A number as the page prints it: counts whole, shares in per cent, amounts with three figures, scores with two
    decimals.
    """
    if math.isnan(value):
        return UNDEFINED
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if name in ("hits", "misses", "false_alarms", "correct_negatives", "cases", "members"):
        return f"{round(value):,}".replace(",", "\u202f")
    if name in ("wet_area", "observed_wet_area", "valid_share"):
        return f"{100 * value:.1f} %"
    if name in ("mse", "rmse", "mae", "bias", "crps", "brier", "mean_value", "observed_mean"):
        return _figures(value)
    return f"{value + 0.0:.2f}".replace("-0.00", "0.00").replace("-", "−")


def _figures(value: float) -> str:
    """Three figures without an exponent, or four digits and more as they are: 0.0123, 1.23, 281.4, 12345."""
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return (
        f"{value:.{max(digits, 1) if abs(value) < 1000 else 0}f}".replace("-", "−")
        if digits <= 8
        else f"{value:.2e}".replace("-", "−")
    )


def _cell(scores: xr.Dataset, name: str, at: Mapping[str, Any]) -> str:
    """A score with its interval, "0.52 [0.47, 0.58]", or alone where the interval is undefined."""
    text = _text(name, float(_values(scores[name], at)), scores)
    if f"{name}_interval" not in scores or text == UNDEFINED:
        return text
    bounds = scores[f"{name}_interval"]
    low, high = (float(_values(bounds, {**at, "bound": bound})) for bound in ("low", "high"))
    if math.isnan(low) or math.isnan(high):
        return text
    return f"{text} [{_text(name, low, scores)}, {_text(name, high, scores)}]"


def _values(variable: xr.DataArray, at: Mapping[str, Any]) -> np.ndarray:
    """What `variable.sel(at)` holds, without the cost of `sel`: a page can have ten thousand cells."""
    places = [variable.get_index(dim).get_loc(at[str(dim)]) for dim in variable.dims]
    return np.asarray(variable.variable.values[tuple(places)])


# --- charts ---


def _glance(scores: xr.Dataset) -> list[Chart]:
    """What to look at first: hits by threshold, probabilities, and blur."""
    charts = [_chart(scores, name, {}) for name in ("rmse", "acc", "bias") if not _is_rain(scores) and name in scores]
    charts += [_chart(scores, "csi", {"threshold": one}) for one in _shown(scores, MOST_THRESHOLDS)]
    probable = ["crps"] if _is_rain(scores) or diagrams.ensembles(scores) else []
    charts += [_chart(scores, name, {}) for name in (*probable, "relative_power") if name in scores]
    if "power" in scores:
        charts.append(_spectra(scores, _main_lead(scores), relative=True))
    return charts


def _glance_note(scores: xr.Dataset) -> str:
    notes = []
    if not _is_rain(scores) and "rmse" in scores:
        notes.append("RMSE: root mean squared error. Bias: forecast less observed, on average.")
    if "acc" in scores:
        notes.append("ACC: correlation of what differs from the climatology; 1 is perfect, 0 is no better than it.")
    if thresholds := _thresholds(scores):
        notes.append("CSI: hits over hits, misses and false alarms. 1 is perfect (dotted), 0 is no hit.")
        if left_out := len(thresholds) - len(_shown(scores, MOST_THRESHOLDS)):
            notes.append(f"{left_out} further thresholds are in the tables.")
    if "crps" in scores and (_is_rain(scores) or diagrams.ensembles(scores)):
        notes.append("CRPS: the error of a probability forecast; of a single forecast it is its mean absolute error.")
    if "relative_power" in scores:
        low, high = scores.attrs["band_km"]
        notes.append(
            f"Relative power: variance at {low:g} to {high:g} km over the observed; what is blurred has too little."
        )
    return " ".join(notes)


def _groups(scores: xr.Dataset) -> Iterator[_Group]:
    shown = _shown(scores, MOST_THRESHOLDS)
    note = "POD: share of the observed events that was forecast. FAR: share of the forecast events that did not come."
    note += " Frequency bias: events forecast over events observed. Dotted: a perfect forecast."
    for threshold in shown:
        charts = [
            _chart(scores, name, {"threshold": threshold})
            for name in ("pod", "far", "frequency_bias")
            if name in scores
        ]
        if charts:
            heading = f"Hits and false alarms at {_amount(threshold, scores)} or more"
            yield _Group(heading, note if threshold == shown[0] else "", charts)
    main = _main_threshold(scores)
    if "fss" in scores and main is not None:
        charts = [_chart(scores, "fss", {"threshold": main, "scale": int(scale)}) for scale in scores["scale"].values]
        if scores.sizes["scale"] > 1:
            charts += [_fss_by_scale(scores, lead, one) for lead in _leads(scores) for one in _shown(scores, MOST_DEEP)]
        note = "FSS compares the share of pixels at or above a threshold in windows: wide ones forgive near misses."
        yield _Group("Fractions skill score by scale", note, charts)
    yield from _probability_groups(scores)
    if "power" in scores:
        note = "Power by wavelength: a blurred forecast falls below the observed at short wavelengths, to the right. "
        note += (
            "Rain is taken in dBR, missing pixels as dry, and of an ensemble one member."
            if _is_rain(scores)
            else "Values are taken less their mean, 0 where missing, and of an ensemble one member."
        )
        yield _Group("Power spectra", note, [_spectra(scores, lead) for lead in _leads(scores)])
    if charts := [_chart(scores, name, {}) for name in ("mse", "mae", "correlation") if name in scores]:
        note = "Mean squared error, mean absolute error and Pearson's correlation over all valid pixels."
        yield _Group("Errors and correlation", note, charts)
    if charts := [_chart(scores, name, {}) for name in ("wet_area", "mean_value") if name in scores]:
        heading = "Wet area and mean value" if "wet_area" in scores else "Mean value"
        note = "Forecasts that fade or spread leave the observed line."
        if "wet_area" in scores:
            note = f"Wet area: share of the valid pixels that are wet. {note}"
        yield _Group(heading, note, charts)


def _probability_groups(scores: xr.Dataset) -> Iterator[_Group]:
    """What only ensembles have, and the Brier skill that shows what it is worth."""
    names = diagrams.ensembles(scores)
    if not names:
        return
    if _thresholds(scores):
        yield from _event_probability_groups(scores, names)
    yield _rank_group(scores, names)


def _event_probability_groups(scores: xr.Dataset, names: Sequence[str]) -> Iterator[_Group]:
    deep, leads = _shown(scores, MOST_DEEP), _leads(scores)
    note = "Against always giving the observed frequency: 1 is perfect, 0 no better; what is below −1 is in the"
    note += " tables. A single forecast says 0 or 1."
    yield _Group("Brier skill score", note, [_chart(scores, "brier_skill", {"threshold": one}) for one in deep])
    note = "How often the event came when it was given a probability. Dotted: reliable. Shaded: where a reliable ensemble would"
    note += (
        " lie with 95 %, by hours; only where five hours or more have such forecasts. Below: how often each was given."
    )
    charts = []
    for lead, threshold in itertools.product(leads, deep):
        caption = f"Reliability, {_amount(threshold, scores)}, {lead_text(lead)}"
        figure = diagrams.reliability(scores, lead, threshold)
        alt = "observed frequency over forecast probability"
        for name in names:
            one = scores.sel(lead_time=lead, threshold=threshold, forecaster=name)
            points = zip(one["forecast_probability"].values, one["observed_frequency"].values)
            said = [f"{100 * y:.0f} % when it said {100 * x:.0f} %" for x, y in points if math.isfinite(x)]
            alt += f". {name}: {_listed(said) or 'undefined'}"
        charts.append(_drawn(caption, alt, figure))
    yield _Group("Reliability", note, charts)
    note = (
        "POD over false alarms if ever fewer members are enough. Above the dotted line there is skill. Single forecasts"
    )
    note += " are points."
    charts = [_chart(scores, "roc_area", {"threshold": one}) for one in deep]
    for lead, threshold in itertools.product(leads, deep):
        caption = f"ROC, {_amount(threshold, scores)}, {lead_text(lead)}"
        at = {"lead_time": lead, "threshold": threshold}
        areas = [f"{name}: area {_cell(scores, 'roc_area', {**at, 'forecaster': name})}" for name in names]
        alt = f"relative operating characteristic. {'; '.join(areas)}"
        charts.append(_drawn(caption, alt, diagrams.roc(scores, lead, threshold)))
    yield _Group("ROC curves", note, charts)


def _rank_group(scores: xr.Dataset, names: Sequence[str]) -> _Group:
    note = "Where the truth lies among the members: level if they scatter as it does, a trough if too little."
    if scores.attrs.get("spectrum") == "dBR":
        note += " Pixels that are dry everywhere are left out, ties are broken at random."
    charts = []
    for lead in _leads(scores):
        ends = []
        for name in names:
            shares = scores["rank_share"].sel(lead_time=lead, forecaster=name).dropna("rank").values
            low, high = (f"{100 * share:.0f} %" for share in shares[[0, -1]]) if shares.size else (UNDEFINED, UNDEFINED)
            ends.append(f"{name}: below all members {low}, above all {high}")
        caption = f"Ranks, {lead_text(lead)}"
        charts.append(_drawn(caption, f"rank histogram. {'; '.join(ends)}", diagrams.ranks(scores, lead)))
    return _Group("Rank histograms", note, charts)


def _shown(scores: xr.Dataset, most: int) -> list[float]:
    """At most that many of the thresholds, from the first to the last."""
    thresholds = _thresholds(scores)
    return [
        thresholds[k]
        for k in sorted({round(k) for k in np.linspace(0, len(thresholds) - 1, min(len(thresholds), most))})
    ]


def _leads(scores: xr.Dataset) -> list[np.timedelta64]:
    """Lead times with charts of their own: the main and the last one, or the middle and the last."""
    leads: list[np.timedelta64] = sorted(scores["lead_time"].values)
    main = _main_lead(scores)
    return sorted({leads[(len(leads) - 1) // 2] if main == leads[-1] else main, leads[-1]})


def _spectra(scores: xr.Dataset, lead: np.timedelta64, *, relative: bool = False) -> Chart:
    caption = f"{'Spectrum over the observed' if relative else 'Spectrum'}, {lead_text(lead)}"
    kept = []
    if "relative_power" in scores:
        for name in scores["forecaster"].values:
            kept.append(
                f"{name}: {_cell(scores, 'relative_power', {'lead_time': lead, 'forecaster': name})} of the observed"
            )
    alt = "spectra of forecasts and observed" + (f". In the shaded band {'; '.join(kept)}" if kept else "")
    return _drawn(caption, alt, diagrams.spectra(scores, lead, relative=relative))


def _fss_by_scale(scores: xr.Dataset, lead: np.timedelta64, threshold: float) -> Chart:
    widest = {"lead_time": lead, "threshold": threshold, "scale": scores["scale"].values[-1]}
    said = [f"{name}: {_cell(scores, 'fss', {**widest, 'forecaster': name})}" for name in scores["forecaster"].values]
    caption = f"FSS over width, {_amount(threshold, scores)}, {lead_text(lead)}"
    alt = f"fractions skill score over the width of its windows. In the widest {'; '.join(said)}"
    return _drawn(caption, alt, diagrams.fss_by_scale(scores, lead, threshold))


def _drawn(caption: str, alt: str, figure: Figure) -> Chart:
    return Chart(caption, f"{caption}: {alt}.", data_url("image/svg+xml", svg(figure)))


def _chart(scores: xr.Dataset, name: str, at: dict[str, Any]) -> Chart:
    score = SCORES[name]
    place = [_amount(at["threshold"], scores)] if "threshold" in at else []
    place += [_scale(scores, at["scale"])] if "scale" in at else []
    caption = ", ".join([score.short, *place])
    first, last = scores["lead_time"].values[[0, -1]]
    lines = []
    for forecaster in scores["forecaster"].values:
        here = {**at, "forecaster": forecaster}
        start, end = (_cell(scores, name, {**here, "lead_time": lead}) for lead in (first, last))
        lines.append(f"{forecaster}: {start} at {lead_text(first)}, {end} at {lead_text(last)}")
    return _drawn(caption, f"{score.long}, over lead time. {'; '.join(lines)}", curve(scores, name, at=at))


def _scale(scores: xr.Dataset, scale: int) -> str:
    if "scale_km" not in scores.coords:
        return f"{scale} px"
    return f"{scale} px ({float(scores['scale_km'].sel(scale=scale)):g} km)"


def sample_pictures(samples: Sequence[Sample], *, budget: int) -> list[Chart]:
    """The comparison figure of each sample as PNG with a palette of its own, coarser where all would take more than
    `budget` bytes.
    """
    if not samples:
        return []
    figures = [comparison(sample.rows) for sample in samples]
    for figure in figures:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # laid out once: every later drawing would repeat the slowest part
    images = [data_url("image/png", _small_png(figure, DPI)) for figure in figures]
    if (size := sum(map(len, images))) > budget:
        # bytes grow a little slower than pixels do, hence the tenth
        coarser = max(0.9 * DPI * math.sqrt(budget / size), LEAST_DPI)
        images = [data_url("image/png", _small_png(figure, coarser)) for figure in figures]
    charts = []
    for sample, image in zip(samples, images, strict=True):
        unit = next(iter(sample.rows.values())).attrs.get("units", "")
        alt = (
            f"{sample.name}: {_listed(list(sample.rows))}, one row each, over lead time from left to right, in {unit}."
        )
        charts.append(Chart(sample.name, alt, image))
    return charts


def _small_png(figure: Figure, dpi: float) -> bytes:
    from PIL import Image

    full, small = io.BytesIO(), io.BytesIO()
    save(figure, full, dpi=dpi)
    Image.open(full).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG", optimize=True)
    return min(full.getvalue(), small.getvalue(), key=len)


def data_url(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


# --- tables ---


def _tables(scores: xr.Dataset) -> Iterator[_Table]:
    """One table a threshold with its counts and FSS, then one of what needs no threshold."""
    for threshold in _thresholds(scores):
        events = ("csi", "pod", "far", "frequency_bias", "brier", "brier_skill", "roc_area")
        names = [name for name in events if name in scores]
        counts = [name for name in ("hits", "misses", "false_alarms", "correct_negatives", "cases") if name in scores]
        scales = [int(scale) for scale in scores["scale"].values] if "fss" in scores else []
        columns: list[tuple[str, str, dict[str, Any]]] = [(SCORES[name].short, name, {}) for name in names]
        columns += [(f"FSS {_scale(scores, scale)}", "fss", {"scale": scale}) for scale in scales]
        columns += [(name.replace("_", " ").capitalize(), name, {}) for name in counts]
        yield _table(scores, f"{_amount(threshold, scores)} or more", columns, {"threshold": threshold})
    units = str(scores.attrs.get("units", ""))
    rain, probable = _is_rain(scores), bool(diagrams.ensembles(scores))
    names = ["mse", "mae", "correlation"] if rain else ["rmse", "mae", "bias", "acc", "correlation"]
    names += [*(["crps"] if rain or probable else []), "relative_power"]
    plain = {name: SCORES[name].label(units) for name in names}
    plain |= {"wet_area": "Wet area", "observed_wet_area": "Wet area observed"}
    plain |= {
        "mean_value": SCORES["mean_value"].label(units),
        "observed_mean": f"Mean observed, {units}".removesuffix(", "),
    }
    plain |= {"valid_share": "Valid pixels", "members": "Members", "cases": "Cases"}
    yield _table(scores, "All values", [(words, name, {}) for name, words in plain.items() if name in scores], {})


def _table(
    scores: xr.Dataset, heading: str, columns: Sequence[tuple[str, str, dict[str, Any]]], at: dict[str, Any]
) -> _Table:
    rows = []
    for lead in scores["lead_time"].values:
        for forecaster in scores["forecaster"].values:
            here = {**at, "lead_time": lead, "forecaster": forecaster}
            cells = [_cell(scores, name, {**here, **further}) for _, name, further in columns]
            rows.append((lead_text(lead), str(forecaster), cells))
    return _Table(heading, [words for words, _, _ in columns], rows)
