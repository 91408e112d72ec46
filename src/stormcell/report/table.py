"""Scores as a table for the terminal and for a note: plain text of a fixed width, so that it can be pasted."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from ..data.axes import lead_text

_WIDTH = 120
_MOST_LEADS = 6


def score_text(value: float, digits: int = 3) -> str:
    """A score as text; "–" where it is undefined."""
    if not np.isfinite(value):
        return "–"
    if abs(value) >= 10 ** (5 - digits):
        return f"{value:.4g}"
    return f"{value:.{digits}f}"


def with_interval(scores: xr.Dataset, name: str) -> str:
    """ "0.523 [0.471, 0.584]", without the interval where there is none."""
    value, bounds = float(scores[name]), scores[f"{name}_interval"].values
    if not np.isfinite(bounds).all():
        return score_text(value)
    return f"{score_text(value)} [{score_text(bounds[0])}, {score_text(bounds[1])}]"


def lead_choice(scores: xr.Dataset, most: int = _MOST_LEADS) -> list[int]:
    """Indices of at most `most` lead times, evenly spaced, the last among them."""
    count = scores.sizes["lead_time"]
    return sorted({round((k + 1) * count / min(most, count)) - 1 for k in range(min(most, count))})


def score_tables(scores: xr.Dataset) -> list[Table]:
    """Three tables: CSI at each threshold with its interval; the other scores; what is said of probabilities and of blur.

    Of a plain quantity one, of errors and anomalies; and CSI where thresholds were asked for.
    """
    if "wet_threshold" not in scores.attrs:
        return [_plain_table(scores), *([_csi_table(scores)] if scores.sizes["threshold"] else [])]
    return [_csi_table(scores), *_rain_tables(scores)]


def _table(title: str) -> Table:
    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    table.add_column("lead")
    table.add_column("forecaster")
    return table


def _rows(scores: xr.Dataset) -> Iterator[tuple[xr.Dataset, str, str, bool]]:
    """Scores of a forecaster at a lead time, the names of both (of the time once), and whether it is the last at it."""
    for k in lead_choice(scores):
        lead = scores.isel(lead_time=k)
        for j, name in enumerate(scores.forecaster.values):
            label = lead_text(lead.lead_time.values) if j == 0 else ""
            yield lead.sel(forecaster=name), label, str(name), j == scores.sizes["forecaster"] - 1


def _csi_table(scores: xr.Dataset) -> Table:
    table = _table(f"CSI (threshold in {scores.attrs['units']})")
    for level in scores.threshold.values:
        table.add_column(f"≥ {level:g}", justify="right")
    for at, lead, name, last in _rows(scores):
        cells = (with_interval(at.sel(threshold=level), "csi") for level in scores.threshold.values)
        table.add_row(lead, name, *cells, end_section=last)
    return table


def _plain_table(scores: xr.Dataset) -> Table:
    names = {"rmse": "RMSE", "mae": "MAE", "bias": "bias", "acc": "ACC", "correlation": "corr."}
    names = {name: words for name, words in names.items() if name in scores}
    of_all = {"crps": "CRPS"} if (scores.members > 1).any() else {}
    table = _table(
        f"Errors in {scores.attrs['units']}" + ("; ACC: anomaly correlation coefficient" if "acc" in names else "")
    )
    for words in (*names.values(), *of_all.values(), "mean (obs.)", "valid", "cases"):
        table.add_column(words, justify="right")
    for at, lead, name, last in _rows(scores):
        cells = [
            with_interval(at, one) if one in ("rmse", "acc") else score_text(float(at[one]))
            for one in (*names, *of_all)
        ]
        mean = f"{score_text(float(at.mean_value))} ({score_text(float(at.observed_mean))})"
        table.add_row(
            lead, name, *cells, mean, f"{100 * float(at.valid_share):.0f} %", str(int(at.cases)), end_section=last
        )
    return table


def _rain_tables(scores: xr.Dataset) -> list[Table]:
    units = scores.attrs["units"]
    low, scale = scores.threshold.values[0], scores.scale.values[scores.sizes["scale"] // 2]
    title = f"Other scores (POD, FAR, bias and FSS at ≥ {low:g} {units}, FSS in windows of {scale} pixels)"
    rest = _table(title)
    title = f"CRPS in {units}; Brier skill and ROC area at ≥ {low:g} {units}"
    if "relative_power" in scores:
        title += "; power at {:g} to {:g} km over the observed".format(*scores.attrs["band_km"])
    chances = _table(title)
    names = ("MSE", "MAE", "corr.", "POD", "FAR", "bias", "FSS", "wet (obs.)", "mean (obs.)", "valid", "cases")
    for name in names:
        rest.add_column(name, justify="right")
    columns = {"crps": "CRPS", "brier_skill": "Brier skill", "roc_area": "ROC area", "relative_power": "power"}
    columns = {name: words for name, words in columns.items() if name in scores}
    for words in columns.values():
        chances.add_column(words, justify="right")
    for at, lead, name, last in _rows(scores):
        event = at.sel(threshold=low)
        rest.add_row(
            lead,
            name,
            *(score_text(float(at[s])) for s in ("mse", "mae", "correlation")),
            *(score_text(float(event[s])) for s in ("pod", "far", "frequency_bias")),
            score_text(float(event.fss.sel(scale=scale))),
            f"{score_text(float(at.wet_area))} ({score_text(float(at.observed_wet_area))})",
            f"{score_text(float(at.mean_value))} ({score_text(float(at.observed_mean))})",
            f"{100 * float(at.valid_share):.0f} %",
            str(int(at.cases)),
            end_section=last,
        )
        chances.add_row(lead, name, *(with_interval(event, one) for one in columns), end_section=last)
    return [rest, chances]


def print_scores(scores: xr.Dataset) -> None:
    """Print the tables, what they rest on, and what was left out, to standard output."""
    console = Console(width=_WIDTH, highlight=False)
    for table in score_tables(scores):
        console.print(table)
    attrs = scores.attrs
    console.print(f"{attrs['cases']} cases in {attrs['blocks']} blocks; {attrs['interval']}")
    if attrs.get("left_out_cases"):
        console.print(
            f"{attrs['left_out_cases']} cases were left out: the model was trained or chosen on "
            f"{attrs['left_out_frames']} of these frames"
        )
