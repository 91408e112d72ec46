"""How a sequence is computed: pure functions on tensors. This is the one place where an engine is chosen.

An engine is a function with the signature of `reference.sequence`; `run` calls the one that is asked for. "auto" is the
fastest that is known to be right for the case, and today there is one: the reference. What every engine needs alike stands
here: outputs of masked steps, and checkpoints over time.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import reference
from .reference import Drop, Form, State, Weights, state_size

__all__ = ["Drop", "Form", "State", "Weights", "engines", "run", "set_default", "state_size"]

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


def _is_exporting() -> bool:
    known = getattr(torch.compiler, "is_exporting", None)  # torch ≥ 2.7
    return known is not None and known()


def _over(mask: Tensor, frames: Tensor) -> Tensor:
    return mask.view(*mask.shape, *(1,) * (frames.ndim - 2))


def run(
    x: Tensor,
    state: State,
    weights: Weights,
    form: Form,
    *,
    mask: Tensor | None = None,
    drop: Drop | None = None,
    checkpoint_every: int | None = None,
    engine: str = "auto",
) -> tuple[Tensor, State]:
    """Compute a sequence: x (B, T, C, *frame), a state of (B, F, *S) → y (B, T, F, *S), and the last state.

    mask (B, T), True = the step is used. Where it is False the state is kept and the output is the last one that was used,
    zeros before the first, whatever the state (keras/src/layers/rnn/rnn.py).

    With `checkpoint_every` the backward keeps the state after every so many steps, and computes the steps between anew.

    Under `torch.export` and ONNX export it is the reference without checkpoints, whatever is asked for: plain operators.
    """
    exporting = _is_exporting()
    name = _checked(engine)
    if name == "auto":
        name = _checked(os.environ.get("STORMCELL_ENGINE", _default))
    if name == "auto" or exporting:
        name = "reference"
    compute = _ENGINES[name]
    if mask is not None:  # a frame that is not used, NaN perhaps, times a gradient of zero would still be NaN
        x = torch.where(_over(mask, x), x, x.new_zeros(()))
    if checkpoint_every is None or exporting or not torch.is_grad_enabled():
        y, state = compute(x, state, weights, form, mask, drop)
    else:
        parts = []
        for first in range(0, x.shape[1], checkpoint_every):
            part = slice(first, first + checkpoint_every)
            used = None if mask is None else mask[:, part]
            y, state = checkpoint(compute, x[:, part], state, weights, form, used, drop, use_reentrant=False)
            parts.append(y)
        y = torch.cat(parts, dim=1)
    if mask is not None:
        begun = mask.long().cumsum(1) > 0
        y = torch.where(_over(begun, y), y, y.new_zeros(()))
    return y, state
