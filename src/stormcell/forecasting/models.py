"""The kinds of models by name, as `--model` and model files have them (docs/models.md)."""

from __future__ import annotations

from .forecast import Forecaster
from .lagrangian import LagrangianForecaster

MODELS: dict[str, type[Forecaster]] = {kind.kind: kind for kind in (Forecaster, LagrangianForecaster)}
