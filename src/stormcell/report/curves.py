"""Score curves over lead time: one small chart a score, so that a phone can set them one under the other.

A forecaster keeps its colour, line and marker in every chart; each of the three alone would do to tell two curves
apart.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

__all__ = ["SCORES", "Score", "curve", "legend", "lines", "quiet_axes", "say_if_empty", "style", "svg"]

# Okabe & Ito (2008), "Color Universal Design", without yellow, which is too pale for a line on white
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
LINES = ("-", "--", "-.", ":")
MARKERS = "os^Dv"
INK, QUIET, RULE = "#1f2933", "#52606d", "#d5dbe1"

WIDTH, HEIGHT = 4.4, 3.0
"""Inches of one chart; with text of 8-9 points it stays legible at the width of a phone."""
MOST_MARKERS = 24


@dataclass(frozen=True)
class Score:
    """How a score is named and drawn. `best` is the value of a perfect forecast, `squared` says that its unit is
    units².
    """

    short: str
    long: str
    best: float | None
    limits: tuple[float | None, float | None] = (None, None)
    observed: str | None = None
    in_units: bool = False
    squared: bool = False
    percent: bool = False

    def label(self, units: str) -> str:
        """Its name with the unit it is given in: "CSI", "MAE, mm/h", "MSE, (mm/h)²", "Wet area, %"."""
        if self.percent:
            return f"{self.short}, %"
        if not self.in_units or not units:
            return self.short
        return f"{self.short}, {(f'({units})²' if '/' in units else f'{units}²') if self.squared else units}"


SCORES: dict[str, Score] = {
    "csi": Score("CSI", "critical success index", 1, (0, 1)),
    "pod": Score("POD", "probability of detection", 1, (0, 1)),
    "far": Score("FAR", "false alarm ratio", 0, (0, 1)),
    "frequency_bias": Score("Frequency bias", "events forecast over events observed", 1, (0, None)),
    "fss": Score("FSS", "fractions skill score", 1, (0, 1)),
    "mse": Score("MSE", "mean squared error", 0, (0, None), in_units=True, squared=True),
    "rmse": Score("RMSE", "root mean squared error", 0, (0, None), in_units=True),
    "bias": Score("Bias", "mean error: forecast less observed", 0, in_units=True),
    "acc": Score("ACC", "anomaly correlation coefficient", 1, (None, 1)),
    "mae": Score("MAE", "mean absolute error", 0, (0, None), in_units=True),
    "correlation": Score("Correlation", "Pearson correlation of the pixels", 1, (None, 1)),
    "crps": Score("CRPS", "continuous ranked probability score", 0, (0, None), in_units=True),
    "brier": Score("Brier score", "squared error of the probability of an event", 0, (0, None)),
    "brier_skill": Score("Brier skill", "Brier score against that of the observed frequency", 1, (-1, 1)),
    "roc_area": Score("ROC area", "area under the relative operating characteristic", 1, (0.4, 1)),
    "relative_power": Score("Relative power", "power at short wavelengths over the observed", 1, (0, None)),
    "wet_area": Score(
        "Wet area",
        "share of valid pixels at or above the wet threshold",
        None,
        (0, None),
        "observed_wet_area",
        percent=True,
    ),
    "mean_value": Score("Mean value", "mean of the valid pixels", None, (None, None), "observed_mean", in_units=True),
}


def curve(scores: xr.Dataset, name: str, *, at: Mapping[str, float | int]) -> Figure:
    """Draw score `name` of every forecaster over lead time, at the values of threshold and scale in `at` ({} where it
    has neither).

    Intervals are shaded where they are defined; undefined scores leave a gap, and a chart without any number says so.
    """
    score = SCORES[name]
    values = scores[name].sel(dict(at)) * (100 if score.percent else 1)
    hours, axis_label = _lead_axis(scores["lead_time"].values)
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
    ax = figure.subplots()
    forecasters = [str(one) for one in scores["forecaster"].values]
    scored = [str(one) for one in scores["forecaster"].values if bool(scores[name].sel(forecaster=one).notnull().any())]
    interval = scores[f"{name}_interval"].sel(dict(at)) if f"{name}_interval" in scores else None
    markers = len(hours) <= MOST_MARKERS
    for number, forecaster in reversed(list(enumerate(forecasters))):
        if scored and forecaster not in scored:  # no such score is made of it
            continue
        if interval is not None:
            low, high = (_finite(interval.isel(forecaster=number).sel(bound=bound)) for bound in ("low", "high"))
            ax.fill_between(hours, low, high, color=PALETTE[number % len(PALETTE)], alpha=0.15, linewidth=0)
        ax.plot(
            hours,
            _finite(values.isel(forecaster=number)),
            label=forecaster,
            **style(number, markers=markers),
        )
    if score.observed and score.observed in scores:
        observed = _finite(scores[score.observed] * (100 if score.percent else 1))
        ax.plot(
            hours, observed, color=INK, linewidth=1.6, marker="x" if markers else "", markersize=5, label="observed"
        )
    ax.set_xlim(min(0.0, float(hours.min())), float(hours.max()) * 1.03 or 1.0)
    _dress(ax, score, str(scores.attrs.get("units", "")), axis_label)
    say_if_empty(ax, forecasters, "undefined at every lead time")
    observed_too = ["observed"] if score.observed and score.observed in scores else []
    legend(figure, ax, [*(scored or forecasters), *observed_too])
    return figure


def lines(series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str) -> Figure:
    """Draw curves by name, each as (x, y), with the colours, lines and markers that they have in every chart."""
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
    ax = figure.subplots()
    for number, (name, (across, up)) in reversed(list(enumerate(series.items()))):
        ax.plot(across, up, label=name, **style(number, markers=len(across) <= MOST_MARKERS))
    ax.set_xlabel(x, fontsize=8.5, color=QUIET)
    ax.set_ylabel(y, fontsize=9, color=INK, parse_math=False)
    ax.xaxis.set_major_locator(MaxNLocator(6))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    quiet_axes(ax)
    legend(figure, ax, list(series))
    return figure


def style(number: int, *, markers: bool) -> dict[str, Any]:
    """How curve `number` looks in every chart; the first stands out."""
    return {
        "color": PALETTE[number % len(PALETTE)],
        "linestyle": LINES[number % len(LINES)],
        "marker": MARKERS[number % len(MARKERS)] if markers else "",
        "markersize": 4,
        "linewidth": 2.2 if number == 0 else 1.6,
        "zorder": 3 + (number == 0),
    }


def svg(figure: Figure) -> bytes:
    """`figure` as an SVG file, without a date: the same scores give the same bytes but for the names of its parts."""
    target = io.BytesIO()
    with rc_context({"svg.fonttype": "none"}):  # letters as text: half the bytes of letters as curves
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})
    return target.getvalue()


def _finite(values: xr.DataArray) -> np.ndarray:
    numbers = values.values.astype(float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def _lead_axis(leads: np.ndarray) -> tuple[np.ndarray, str]:
    """Lead times as numbers in the unit that keeps them short: minutes up to 6 h, hours up to 2 days, days beyond."""
    seconds = leads / np.timedelta64(1, "s")
    longest = float(np.max(seconds, initial=0))
    length, word = (60, "min") if longest <= 21600 else (3600, "h") if longest <= 172800 else (86400, "days")
    return seconds / length, f"lead time ({word})"


def _dress(ax: Axes, score: Score, units: str, axis_label: str) -> None:
    ax.set_xlabel(axis_label, fontsize=8.5, color=QUIET)
    ax.set_ylabel(score.label(units), fontsize=9, color=INK, parse_math=False)
    if score.best is not None:
        ax.axhline(score.best, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    low, high = score.limits
    room = 0.02 * ((high or 0) - low) if low is not None and high is not None else 0
    top = ax.get_ylim()[1] if high is None else high + room
    ax.set_ylim(low - room if low is not None else ax.get_ylim()[0], top if low is None or top > low else 1)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.yaxis.set_major_locator(MaxNLocator(5))
    quiet_axes(ax)


def quiet_axes(ax: Axes) -> None:
    if ax.get_yscale() == "linear":
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)
    ax.grid(color=RULE, linewidth=0.6)
    ax.set_axisbelow(True)
    ax.tick_params(labelsize=8, colors=QUIET, length=0)
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(RULE)


def say_if_empty(ax: Axes, names: Sequence[str], words: str) -> None:
    """Say so where none of the curves of these names has a number."""
    own = [np.asarray(line.get_ydata(), float) for line in ax.lines if line.get_label() in names]
    if not any(np.isfinite(values).any() for values in own):
        ax.text(0.5, 0.5, words, transform=ax.transAxes, ha="center", fontsize=9, color=QUIET)


def legend(figure: Figure, ax: Axes, names: Sequence[str]) -> None:
    lines = {str(line.get_label()): line for line in ax.lines}
    # inches: some 0.064 a letter at 8 points, 0.45 for the sample of the line
    widths = [0.45 + 0.064 * len(name) for name in names]
    columns = len(names) if sum(widths) <= WIDTH else max(1, min((len(names) + 1) // 2, int(WIDTH / max(widths))))
    drawn = figure.legend(
        [lines[name] for name in names],
        list(names),
        loc="outside lower center",
        ncols=columns,
        fontsize=8,
        frameon=False,
        labelcolor=INK,
        handlelength=2.2,
        columnspacing=1.2,
    )
    for text in drawn.get_texts():
        text.set_parse_math(False)
