"""The verb that says what files are: inspect."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..data.reading import Reading
from .app import app
from .options import reads_frames

if TYPE_CHECKING:
    from ..forecasting.forecast import Forecaster


@app.command(
    epilog="**Examples**\n\n`stormcell inspect radar/`\n\n"
    "`stormcell inspect 20160928_*.png --gain 0.5 --offset -32 --units dBZ`\n\n"
    "`stormcell inspect rain.safetensors`"
)
@reads_frames
def inspect(
    files: Annotated[list[str], typer.Argument(metavar="FILE…", help="Frames or model files.")],
    *,
    reading: Reading,
    coarsen: int,
) -> None:
    """Say what files hold, as this program understands them: format, quantity, times, gaps, grid, what is missing or odd."""
    from ..forecasting.bundled import DEFAULT

    models = [name for name in files if name == DEFAULT or Path(name).suffix == ".safetensors"]
    for name in models:
        from ..forecasting.forecast import load

        _tell(name, _about_model(load(name)))
    rest = [name for name in files if name not in models]
    if rest:
        from ..data.inspection import inspected

        for name, facts in inspected(rest, reading):
            _tell(name, facts)


def _tell(name: str, facts: Mapping[str, str]) -> None:
    typer.echo(name)
    width = max(map(len, facts))
    for fact, said in facts.items():
        typer.echo(f"  {fact:<{width}}  {said}")


def _about_model(forecaster: Forecaster) -> dict[str, str]:
    from ..data.axes import step_text
    from ..data.units import is_rain

    card, transform = forecaster.card, forecaster.transform
    spacing = forecaster.grid_spacing_m
    quantity = "rain, in mm/h or dBZ" if is_rain(transform.units) else f"{transform.units}"
    weights = sum(parameter.numel() for parameter in forecaster.network.parameters())
    facts = {
        "model": f"{forecaster.kind}, {weights:,} parameters",
        "quantity": quantity,
        "frames": f"{forecaster.past} past, {forecaster.future} ahead, a step of {step_text(forecaster.step)}",
        "grid": "unknown" if spacing is None else f"{spacing / 1000:.3g} km",
    }
    if getattr(forecaster.network, "periodic_x", False):
        facts["grid"] += ", around the globe"
    if forecaster.beside:
        kinds = (
            (c.name, f"in {c.transform.units}" if c.digest is None else "which does not change")
            for c in forecaster.beside
        )
        facts["beside"] = ", ".join(f"{name} {kind}" for name, kind in kinds)
    facts |= {role: said for role in ("training", "validation") if (said := _frames_of(card, role))}
    facts |= {"sampling": card["sampling"]} if "sampling" in card else {}
    best = card.get("validation", {})
    if best:
        facts["loss"] = f"{best['loss']:.4f} in validation, {best['reference']} {best['reference_loss']:.4f}"
    facts["made"] = (
        f"{card.get('created', '?')}, Stormcell {card.get('version', '?')}, {card.get('updates', '?')} updates"
    )
    if card.get("worse_than_optical_flow"):
        facts["worse"] = "than optical flow " + "; ".join(card["worse_than_optical_flow"])
    return facts


def _frames_of(card: Mapping[str, Any], role: str) -> str:
    entries = [entry for entry in card.get("frames", []) if entry["role"] == role]
    if not entries:
        return ""
    first, last = min(entry["start"] for entry in entries)[:16], max(entry["end"] for entry in entries)[:16]
    sources = ", ".join(dict.fromkeys(entry["source"] for entry in entries))
    return f"{sum(entry['count'] for entry in entries)} frames, {first} to {last}: {sources}".replace("T", " ")
