"""What a verification says of itself on its page: model, data, cases, what was left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

from .diagrams import ensembles
from .page import Sample, write_report


def report_verification(
    scores: xr.Dataset,
    path: Path,
    *,
    samples: Sequence[tuple[str, dict[str, xr.DataArray]]],
    model: str,
    data: str,
    card: Mapping[str, Any],
) -> None:
    """Write the page of a verification. `card` is the header of the model file; `samples` are named rows of frames."""
    attrs = scores.attrs
    training = [entry for entry in card.get("frames", []) if entry["role"] == "training"]
    facts = {
        "Model": model,
        "Trained on": _span(training) if training else "unknown",
        "Updates": str(card.get("updates", "unknown")),
        "Data": data,
        "Left out": f"{attrs.get('left_out_cases', 0)} cases with frames the model was trained or chosen on",
        "Stormcell": str(card.get("version", "")),
    }
    notes = ["Pixels are compared where the truth and every compared forecast are valid, for all of them alike."]
    if "csi" in scores:
        notes.append("CSI, POD, FAR and frequency bias come from counts pooled over all cases.")
    if ensembles(scores) or "wet_threshold" in attrs:
        of_all = "CRPS, Brier score and ROC are" if "csi" in scores else "CRPS is"
        notes.append(f"Of an ensemble the mean is scored like a single forecast; {of_all} of all its members.")
    if "ensemble" in scores.forecaster.values:
        notes.append("What is called ensemble is the model's own, stormcell its single forecast.")
    if "climatology" in attrs:
        notes.append(
            f"The climatology is the mean {attrs['climatology']} of the frames that the model was trained or chosen on; nothing "
            "that is verified is in it. ACC is the correlation of what differs from it, over all pixels and cases."
        )
    notes.append("The cases shown are spread evenly over all cases; they were not picked.")
    write_report(
        scores,
        path,
        samples=[Sample(name, rows) for name, rows in samples],
        title=f"Verification of {Path(model).name}",
        facts=facts,
        notes=notes,
    )


def _span(entries: Sequence[Mapping[str, Any]]) -> str:
    first, last = min(entry["start"] for entry in entries), max(entry["end"] for entry in entries)
    first, last = (time[:16].replace("T", " ") for time in (first, last))
    return f"{sum(entry['count'] for entry in entries)} frames, {first} to {last} UTC"
