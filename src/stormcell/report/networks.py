"""Scores on several radar networks as tables in Markdown, from files of scores (`scores_to_json`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Scores = dict[str, Any]
_NAMES = {"stormcell": "Stormcell", "persistence": "persistence", "optical-flow": "optical flow", "s-prog": "S-PROG"}


def csi_table(networks: Mapping[str, Sequence[Scores]]) -> str:
    """CSI by network, lead time and threshold, the best of a row in bold."""
    lines = []
    for network, scores, lead, rows in _leads(networks):
        few = " (too few for an interval)" if scores["interval"].startswith("too few") else ""
        cases = f"{scores['cases']}, {scores['blocks']}{few}"
        for entries in zip(*(rows[name]["thresholds"] for name in _NAMES)):
            best = max(entry["csi"] for entry in entries)
            cells = [_with_interval(entry["csi"], *entry["csi_interval"], best=best) for entry in entries]
            lines.append([network, cases, f"+{lead:g} min", f"{entries[0]['threshold']:g}", *cells])
    return markdown(["network", "cases, blocks", "lead", "mm/h", *_NAMES.values()], lines) + "\n"


def ensemble_table(networks: Mapping[str, Sequence[Scores]]) -> str:
    """CRPS of our ensembles and of STEPS' by network and lead time, the power of their members, and the reliability of ours."""
    lines = []
    for network, _, lead, rows in _leads(networks):
        both = rows["ensemble"], rows["steps"]
        best = min(row["crps"] for row in both)
        crps = [_with_interval(row["crps"], *row["crps_interval"], best=best) for row in both]
        power = [f"{row['relative_power']:.2f}" for row in both]
        inside, bins = reliable_bins(both[0]["thresholds"])
        lines.append(
            [network, f"+{lead:g} min", *crps, *power, f"{inside} of {bins} bins" if bins else "too few blocks"]
        )
    columns = ["network", "lead", "CRPS, Stormcell", "CRPS, STEPS", "power, Stormcell", "power, STEPS", "reliable"]
    return markdown(columns, lines) + "\n"


def reliable_bins(thresholds: Sequence[Scores]) -> tuple[int, int]:
    """How many bins of reliability diagrams lie in their consistency band, and how many have one: blocks enough fill them."""
    bins = [one for entry in thresholds for one in entry["reliability"] if one["consistency"][0] is not None]
    return sum(one["consistency"][0] <= one["observed_frequency"] <= one["consistency"][1] for one in bins), len(bins)


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *lines))


def _leads(networks: Mapping[str, Sequence[Scores]]) -> Iterator[tuple[str, Scores, float, dict[str, Scores]]]:
    """Network, file of scores, lead time in minutes, and a row a forecaster."""
    for network, files in networks.items():
        for scores in files:
            for lead in dict.fromkeys(row["lead_minutes"] for row in scores["scores"]):
                here = {row["forecaster"]: row for row in scores["scores"] if row["lead_minutes"] == lead}
                yield network, scores, lead, here


def _with_interval(value: float, low: float | None, high: float | None, *, best: float) -> str:
    shown = f"**{value:.3f}**" if value == best else f"{value:.3f}"
    return shown if low is None else f"{shown} [{low:.3f}, {high:.3f}]"
