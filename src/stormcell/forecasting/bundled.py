"""The model that comes with Stormcell, by its name (docs/default-model.md; made by experiments/default_model.py)."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "default"


def model_file(name: str | Path) -> Path:
    """The path, or that of the model which comes with Stormcell."""
    return Path(__file__).with_name("default.safetensors") if str(name) == DEFAULT else Path(name)
