"""How a sequence is computed: pure functions on tensors. This is the one place where an engine is chosen.

An engine is a function with the signature of `reference.sequence`; `run` calls the one that is asked for. "auto" is the
fastest that is known to be right for the case, and today there is one: the reference.
"""

from __future__ import annotations

import os

from torch import Tensor

from . import reference
from .reference import Form, Weights, state_size

__all__ = ["Form", "Weights", "engines", "run", "set_default", "state_size"]

_ENGINES = {"reference": reference.sequence}
_default = "auto"


def engines() -> tuple[str, ...]:
    """Names of the engines in this installation."""
    return tuple(_ENGINES)


def _checked(name: str) -> str:
    if name not in ("auto", *_ENGINES):
        raise ValueError(f"unknown engine. Expected one of: auto, {', '.join(_ENGINES)}. Received: {name!r}")
    return name


def set_default(name: str) -> None:
    """Engine that `engine="auto"` stands for in this process. The environment variable STORMCELL_ENGINE does the same."""
    global _default
    _default = _checked(name)


def run(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: Weights,
    form: Form,
    *,
    mask: Tensor | None = None,
    engine: str = "auto",
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute a sequence: x (B, T, C, *frame), h and c (B, F, *S) → y (B, T, F, *S), and the last h and c."""
    name = _checked(engine)
    if name == "auto":
        name = _checked(os.environ.get("STORMCELL_ENGINE", _default))
    if name == "auto":
        name = "reference"
    return _ENGINES[name](x, h, c, weights, form, mask)
