"""The kinds of models by name, as `--model` and model files have them (docs/models.md)."""

from __future__ import annotations

from ..data.axes import Step
from .forecast import Forecaster
from .lagrangian import LagrangianForecaster
from .motion import has_pysteps

MODELS: dict[str, type[Forecaster]] = {kind.kind: kind for kind in (Forecaster, LagrangianForecaster)}
AUTO = "auto"


def kind_for(name: str, units: str, step: Step, *, channels: int = 1) -> type[Forecaster]:
    """Of this name; "auto" is lagrangian for rain alone whose motion can be followed, if pysteps is there, and plain for all
    else.
    """
    if name != AUTO:
        return MODELS[name]
    moves = channels == 1 and LagrangianForecaster.against(units, step) is None and has_pysteps()
    return LagrangianForecaster if moves else Forecaster
