"""Scores on several networks as tables in Markdown."""

from __future__ import annotations

from typing import Any

from stormcell.report.networks import csi_table, ensemble_table, reliable_bins


def row(
    forecaster: str, csi: float, *, crps: float = 1.0, interval: tuple[float | None, float | None]
) -> dict[str, Any]:
    bins = [
        {"observed_frequency": 0.1, "consistency": [0.05, 0.2]},
        {"observed_frequency": 0.9, "consistency": [0.4, 0.6]},
        {"observed_frequency": 0.9, "consistency": [None, None]},
    ]
    entry = {"threshold": 2.0, "csi": csi, "csi_interval": interval, "reliability": bins}
    return {
        "forecaster": forecaster,
        "lead_minutes": 30.0,
        "thresholds": [entry],
        "crps": crps,
        "crps_interval": interval,
        "relative_power": 0.5,
    }


def scores(blocks: int, *, interval: tuple[float | None, float | None]) -> dict[str, Any]:
    names = {"persistence": 0.1, "optical-flow": 0.2, "s-prog": 0.3, "stormcell": 0.25, "ensemble": 0.2, "steps": 0.1}
    rows = [row(name, csi, crps=csi, interval=interval) for name, csi in names.items()]
    said = "95 % intervals from a bootstrap" if blocks >= 5 else "too few blocks for an interval"
    return {"cases": 7, "blocks": blocks, "interval": said, "scores": rows}


def test_the_best_is_bold_whoever_it_is_and_few_blocks_are_said_to_be_few() -> None:
    networks = {"here": [scores(6, interval=(0.05, 0.4))], "there": [scores(2, interval=(None, None))]}
    _, _, here, there = csi_table(networks).strip().splitlines()
    assert here == (
        "| here | 7, 6 | +30 min | 2 | 0.250 [0.050, 0.400] | 0.100 [0.050, 0.400] | 0.200 [0.050, 0.400] | "
        "**0.300** [0.050, 0.400] |"
    )
    assert there == ("| there | 7, 2 (too few for an interval) | +30 min | 2 | 0.250 | 0.100 | 0.200 | **0.300** |")
    _, _, here, there = ensemble_table(networks).strip().splitlines()
    assert here == "| here | +30 min | 0.200 [0.050, 0.400] | **0.100** [0.050, 0.400] | 0.50 | 0.50 | 1 of 2 bins |"
    assert reliable_bins([]) == (0, 0)
