"""Charts of one lead time: spectra, reliability, ROC, ranks, and FSS by the width of its window.

Forecasters look as they do in the curves over lead time. An axis of shares goes from 0 to 1, so that charts can be compared.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from .curves import HEIGHT, INK, PALETTE, QUIET, WIDTH, legend, quiet_axes, say_if_empty, style

__all__ = ["ensembles", "fss_by_scale", "ranks", "reliability", "roc", "spectra"]


def ensembles(scores: xr.Dataset) -> list[str]:
    """Forecasters with more than one member."""
    if "members" not in scores:
        return []
    return [str(name) for name in scores["forecaster"].values[scores["members"].values > 1]]


def spectra(scores: xr.Dataset, lead: np.timedelta64, *, relative: bool) -> Figure:
    """Power by wavelength, of every forecaster and observed, or over the observed; the band of relative power is shaded."""
    at, km = scores.sel(lead_time=lead), "wavelength_km" in scores.coords
    wavelength = at["wavelength_km" if km else "wavelength"].values
    unit = {"dBR": "dBR²"}.get(scores.attrs["spectrum"], f"({scores.attrs['spectrum']})²")
    label = "power over the observed" if relative else f"power, {unit}"
    figure, ax = _figure(f"wavelength ({'km' if km else 'px'})", label)
    if "relative_power" in scores:
        ax.axvspan(*scores.attrs["band_km"], color=INK, alpha=0.06, linewidth=0)
    for number, name in _backwards(scores):
        power = at["power"].sel(forecaster=name) / (at["observed_power"] if relative else 1)
        ax.plot(wavelength, _positive(power), label=name, **style(number, markers=False))
    ax.set_xscale("log")
    names = list(map(str, scores["forecaster"].values))
    if relative:
        ax.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
        ax.set_ylim(0, max(1.2, min(ax.get_ylim()[1], 2.5)))
    else:
        ax.plot(wavelength, _positive(at["observed_power"]), color=INK, linewidth=1.6, label="observed", zorder=2)
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(NullLocator())
        names.append("observed")
    ticks = [tick for tick in 2.0 ** np.arange(-2, 14) if 0.99 * wavelength.min() <= tick <= wavelength.max()]
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.invert_xaxis()
    quiet_axes(ax)
    legend(figure, ax, names)
    return figure


def reliability(scores: xr.Dataset, lead: np.timedelta64, threshold: float) -> Figure:
    """Observed frequency over forecast probability, the bands of reliable ensembles, and how often each was said."""
    at = scores.sel(lead_time=lead, threshold=threshold)
    figure = Figure(figsize=(WIDTH, HEIGHT + 0.7), layout="constrained", facecolor="white")
    ax, counts = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    ax.axline((0, 0), slope=1, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    names = ensembles(scores)
    for number, name in _backwards(scores):
        if name not in names:
            continue
        one = at.sel(forecaster=name)
        probability = one["forecast_probability"].values
        low, high = one["consistency"].transpose("bound", "bin").values
        ax.fill_between(probability, low, high, color=PALETTE[number % len(PALETTE)], alpha=0.15, linewidth=0)
        ax.plot(probability, one["observed_frequency"].values, label=name, **style(number, markers=True))
        share = one["forecasts"].values / max(one["forecasts"].values.sum(), 1)
        width = 0.08 / len(names)
        offset = (names.index(name) - (len(names) - 1) / 2) * width
        middles = (np.arange(share.size) + 0.5) / share.size
        counts.bar(middles + offset, share, width=width, color=PALETTE[number % len(PALETTE)])
    counts.set_yscale("log")
    counts.set_ylim(1e-5, 1)
    counts.yaxis.set_major_locator(FixedLocator([1e-4, 1e-2, 1]))
    counts.yaxis.set_minor_locator(NullLocator())
    counts.set_ylabel("share", fontsize=8.5, color=INK)
    counts.set_xlabel("forecast probability", fontsize=8.5, color=QUIET)
    ax.set_ylabel("observed frequency", fontsize=9, color=INK)
    _shares(ax)
    quiet_axes(counts)
    say_if_empty(ax, names, "undefined")
    legend(figure, ax, names)
    return figure


def roc(scores: xr.Dataset, lead: np.timedelta64, threshold: float) -> Figure:
    """POD over POFD, as ever fewer members are enough to forecast the event; single forecasts are points."""
    at = scores.sel(lead_time=lead, threshold=threshold)
    figure, ax = _figure("false alarms over non-events (POFD)", "POD")
    ax.axline((0, 0), slope=1, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    several = ensembles(scores)
    for number, name in _backwards(scores):
        one = at.sel(forecaster=name)
        if name in several:
            x, y = one["pofd"].values, one["roc_pod"].values
        else:
            no = float(one["false_alarms"] + one["correct_negatives"])
            x, y = np.array([float(one["false_alarms"]) / no if no else np.nan]), np.array([float(one["pod"])])
        ax.plot(x, y, label=name, **style(number, markers=True))
    _shares(ax)
    say_if_empty(ax, list(map(str, scores["forecaster"].values)), "undefined")
    legend(figure, ax, list(map(str, scores["forecaster"].values)))
    return figure


def ranks(scores: xr.Dataset, lead: np.timedelta64) -> Figure:
    """How often the truth had each rank among the members, over how often it should."""
    figure, ax = _figure("members below the truth, share", "frequency over the expected")
    ax.axhline(1, color=QUIET, linewidth=0.8, linestyle=(0, (1, 2)), zorder=1)
    names = ensembles(scores)
    for number, name in _backwards(scores):
        if name in names:
            members = int(scores["members"].sel(forecaster=name))
            share = scores["rank_share"].sel(lead_time=lead, forecaster=name).values[: members + 1]
            ax.plot(np.arange(members + 1) / members, share * (members + 1), label=name, **style(number, markers=True))
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(0, max(2.0, ax.get_ylim()[1]))
    quiet_axes(ax)
    legend(figure, ax, names)
    return figure


def fss_by_scale(scores: xr.Dataset, lead: np.timedelta64, threshold: float) -> Figure:
    """FSS over the width of its windows, with its intervals."""
    at, km = scores.sel(lead_time=lead, threshold=threshold), "scale_km" in scores.coords
    widths = at["scale_km" if km else "scale"].values
    figure, ax = _figure(f"width of the windows ({'km' if km else 'px'})", "FSS")
    for number, name in _backwards(scores):
        one = at.sel(forecaster=name)
        if "fss_interval" in scores:
            low, high = one["fss_interval"].transpose("bound", "scale").values
            ax.fill_between(widths, low, high, color=PALETTE[number % len(PALETTE)], alpha=0.15, linewidth=0)
        ax.plot(widths, one["fss"].values, label=name, **style(number, markers=True))
    ax.set_ylim(-0.02, 1.02)
    ax.set_xlim(0, float(widths.max()) * 1.05)
    ax.xaxis.set_major_locator(FixedLocator(widths.tolist()))
    quiet_axes(ax)
    say_if_empty(ax, list(map(str, scores["forecaster"].values)), "undefined")
    legend(figure, ax, list(map(str, scores["forecaster"].values)))
    return figure


def _figure(x: str, y: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained", facecolor="white")
    ax = figure.subplots()
    ax.set_xlabel(x, fontsize=8.5, color=QUIET)
    ax.set_ylabel(y, fontsize=9, color=INK, parse_math=False)
    return figure, ax


def _backwards(scores: xr.Dataset) -> list[tuple[int, str]]:
    """Forecasters with their numbers, the first drawn last."""
    return list(enumerate(map(str, scores["forecaster"].values)))[::-1]


def _positive(values: xr.DataArray) -> np.ndarray:
    return np.where(values.values > 0, values.values, np.nan)


def _shares(ax: Axes) -> None:
    ax.set_xlim(-0.02, 1.02)
    ax.set_ylim(-0.02, 1.02)
    quiet_axes(ax)
