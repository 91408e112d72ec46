"""A comparison of nets (`comparing/`) for people: tables and a verdict on the terminal, and one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich import box
from rich.console import Console
from rich.table import Table

from .curves import lines, svg
from .page import Chart, Sample, data_url, render, sample_pictures

__all__ = ["made_by", "notes", "print_comparison", "report_comparison", "score_table", "structure_table"]

_WIDTH = 120
_SAMPLE_BYTES = 1_600_000
_MATCHES = {
    "parameters": "parameters",
    "macs": "multiply–accumulates of a forecast",
    "time": "parameters in size, and training time in updates",
}


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    size = abs(value)
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if size >= 100 else f"{value:.2f}" if size >= 10 else f"{value:.4g}"


def _with_interval(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return "–"
    low, high = found["interval"]
    return _number(found["value"]) + ("" if low is None else f" [{_number(low)}, {_number(high)}]")


def _large(count: int) -> str:
    for size, word in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g} {word}"
    return str(count)


def _labels(result: Mapping[str, Any]) -> dict[str, str]:
    """Scores that the rows have, with what they are called."""
    found: dict[str, str] = {}
    for row in [*result["rows"], *result["baselines"]]:
        found |= {name: score["label"] for name, score in row["scores"].items()}
    return found


def _rate(row: Mapping[str, Any]) -> str:
    return ", ".join(f"{rate:g}" for rate in sorted(set(row["learning_rates"])))


def structure_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Columns, and rows with a name in front: what the nets are."""
    first, last = result["leads"][0], result["leads"][-1]
    columns = ["net", "parameters", "MACs", f"sees, {first} / {last}", "state sees", "frames"]
    rows = []
    for row in result["rows"]:
        sees = " / ".join("all" if reach is None else f"{reach:.0f}" for reach in row["reach_pixels"])
        rows.append(
            [
                row["name"],
                row["net"],
                f"{row['parameters']:,}",
                _large(row["macs"]),
                sees,
                row["memory"],
                "any size" if row["any_frame_size"] else "one size",
            ]
        )
    return columns, rows


def score_table(result: Mapping[str, Any], *, intervals: bool = True) -> tuple[list[str], list[list[str]]]:
    """Columns, and rows with a name in front: how nets and baselines did; intervals of the score that decides at least."""
    labels = _labels(result)

    def cell(row: Mapping[str, Any], name: str) -> str:
        found = row["scores"].get(name)
        if intervals or name == result["score"]:
            return _with_interval(found)
        return _number(None if found is None else found["value"])

    rows = []
    for row in [*result["rows"], *result["baselines"]]:
        trained = (
            [_rate(row), f"{row['updates']:,}", f"{1000 * row['update_seconds']:.0f}"]
            if "updates" in row
            else ["–"] * 3
        )
        rows.append([row["name"], *(cell(row, name) for name in labels), *trained])
    return [*labels.values(), "rate", "updates", "ms/update"], rows


def notes(result: Mapping[str, Any]) -> list[str]:
    """What one must know to read the tables."""
    units, tried = result["units"], [f"{rate:g}" for rate in result["learning_rates"]]
    named = [row["name"] == row["net"] for row in result["rows"]]
    matched = "Sizes as named, not matched" if all(named) else f"Matched by {_MATCHES[result['match']]}"
    if any(named) and not all(named):
        matched += ", but for nets named with their size"
    rate = f"the learning rate of each net was chosen on validation from {', '.join(tried)}"
    if len(tried) == 1:
        rate = f"learning rate {tried[0]} for all"
    found = [
        f"{matched}. {result['seeds']} seeds; {rate}; training stopped early by validation; the test cases were forecast once.",
        f"Test: {result['cases']} cases in {units['count']} {units['of']}. In brackets: 95 % intervals, for the choice of "
        "cases (bootstrap) and the scatter of seeds (Student's t) together.",
    ]
    found += [f"{row['name']}: {row['note']}." for row in result["rows"] if row["note"]]
    rates = result["learning_rates"]
    for word, edge in (("largest", max(rates)), ("smallest", min(rates))):
        names = [row["name"] for row in result["rows"] if edge in row["learning_rates"]]
        if len(rates) > 1 and names:
            found.append(f"At the {word} learning rate of those tried, and might do better beyond: {', '.join(names)}.")
    return found


def made_by(result: Mapping[str, Any]) -> str:
    """Version, commit and machine."""
    machine, commit = result["machine"], result["commit"]
    return (
        f"Stormcell {result['stormcell']}{f' at commit {commit[:7]}' if commit else ''}, torch {machine['torch']}, on "
        f"{machine.get('gpu') or machine['cpu']} with {result['threads']} threads: "
        f"{result['train_seconds'] / 60:.0f} minutes of training"
    )


def print_comparison(result: Mapping[str, Any]) -> None:
    """Print what the nets are, how they did, and the verdict, to standard output."""
    console = Console(width=_WIDTH, highlight=False)
    for columns, rows in (structure_table(result), *_narrow(*score_table(result, intervals=False))):
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        table.add_column("model", no_wrap=True)
        for column in columns:
            text = column in ("net", "state sees", "frames")
            table.add_column(column, justify="left" if text else "right", overflow="fold", no_wrap=column != "net")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in notes(result):
        console.print(note)
    console.print()
    for verdict in result["verdicts"]:
        console.print(verdict["text"])
    console.print()
    console.print(f"Verdict: {result['verdict']}" if result["verdict"] else "Nothing to decide between.")
    console.print(f"The same numbers again: {result['repeat']}", soft_wrap=True)


def _narrow(columns: list[str], rows: list[list[str]]) -> Iterator[tuple[list[str], list[list[str]]]]:
    """A table with a name in front of each row as tables that fit the terminal."""
    name = max(len(row[0]) for row in rows)
    first, width = 0, 0
    for k in range(len(columns) + 1):
        wide = (
            max(len(text) for text in [columns[k], *(row[1 + k] for row in rows)]) + 2 if k < len(columns) else _WIDTH
        )
        if k > first and name + width + wide > _WIDTH - 4:
            yield columns[first:k], [[row[0], *row[1 + first : 1 + k]] for row in rows]
            first, width = k, 0
        width += wide


# --- the page ---


def report_comparison(
    result: Mapping[str, Any], path: Path, *, samples: Sequence[tuple[str, dict[str, xr.DataArray]]]
) -> None:
    """Write a comparison as one self-contained HTML file; `samples` are test cases with rows of frames."""
    tables = [
        ("What differs in structure", *structure_table(result)),
        ("How they did", *score_table(result)),
    ]
    pictures = sample_pictures([Sample(name, rows) for name, rows in samples], budget=_SAMPLE_BYTES)
    page = render(
        "comparison.html.j2",
        title=f"Which net? {result['facts']['Data'].split(':')[0]}",
        summary=[result["verdict"], *(verdict["text"] for verdict in result["verdicts"])],
        facts={**result["facts"], "Repeat": result["repeat"], "Made by": made_by(result)},
        notes=notes(result),
        tables=tables,
        by_lead=_by_lead(result),
        learning=_learning(result),
        samples=pictures,
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def _chart(caption: str, series: Mapping[str, tuple[Sequence[float], Sequence[float]]], x: str) -> Chart:
    ends = "; ".join(f"{name}: {_number(up[0])} to {_number(up[-1])}" for name, (_, up) in series.items() if len(up))
    return Chart(caption, f"{caption}. {ends}.", data_url("image/svg+xml", svg(lines(series, x=x, y=caption))))


def _by_lead(result: Mapping[str, Any]) -> list[Chart]:
    steps = list(range(1, len(result["leads"]) + 1))
    charts = []
    for name, label in _labels(result).items():
        series = {}
        for row in [*result["rows"], *result["baselines"]]:
            values = row["scores"].get(name, {}).get("by_lead", [])
            if any(value is not None for value in values):
                series[row["name"]] = steps, [np.nan if value is None else value for value in values]
        if series:
            each = " of a frame" if name == "cross_entropy" else ""
            charts.append(_chart(label + each, series, f"frame ({result['leads'][0]} to {result['leads'][-1]})"))
    return charts


def _learning(result: Mapping[str, Any]) -> list[Chart]:
    """Validation loss of the first fold with the chosen learning rate, over updates and over the time they took."""
    by_update, by_time = {}, {}
    for row in result["rows"]:
        run = next(run for run in row["runs"] if run["fold"] == 0 and run.get("chosen"))
        updates = [point[0] for point in run["curve"]]
        losses = [np.nan if point[2] is None else point[2] for point in run["curve"]]
        by_update[row["name"]] = updates, losses
        each = run["train_seconds"] / max(run["updates"], 1)
        by_time[row["name"]] = [each * count for count in updates], losses
    return [
        _chart("validation loss", by_update, "updates"),
        _chart("validation loss", by_time, "seconds of training, validation included"),
    ]
