"""How a sequence is computed: pure functions on tensors. This is the one place where an engine is chosen.

An engine is a module with `sequence`, of the signature of `reference.sequence`; `unavailable()`, why this machine cannot
run it, or None; `supports(case)`, which says why it cannot
compute a case, or None if it can; and `passed_over(case)`, why another is faster there, or None. "auto" is the first of
`ENGINES` with nothing to say against it: rules decide, never an exception. What every engine needs alike stands here:
outputs of masked steps, and checkpoints over time.
"""

from __future__ import annotations

import os
from types import ModuleType

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from . import bptt, reference, triton, winograd
from .case import Case, case_of
from .operators import constant
from .reference import Drop, Form, State, Weights, state_size

__all__ = [
    "Case",
    "Drop",
    "Form",
    "State",
    "Weights",
    "about",
    "case_of",
    "engines",
    "explain",
    "run",
    "set_default",
    "state_size",
]

# fastest first
_ENGINES: dict[str, ModuleType] = {"winograd": winograd, "triton": triton, "bptt": bptt, "reference": reference}
_default = "auto"


def engines() -> dict[str, str | None]:
    """Names of the engines, fastest first, each with the reason why this machine cannot run it, or None."""
    return {name: engine.unavailable() for name, engine in _ENGINES.items()}


def about(name: str) -> str:
    """What an engine is, in a line."""
    return _ENGINES[_checked(name)].ABOUT


def _checked(name: str) -> str:
    if name not in ("auto", *_ENGINES):
        raise ValueError(f"unknown engine. Expected one of: auto, {', '.join(_ENGINES)}. Received: {name!r}")
    return name


def set_default(name: str) -> None:
    """Engine that `engine="auto"` stands for in this process. The environment variable STORMCELL_ENGINE does the same."""
    global _default
    _default = _checked(name)


@constant
def _by_environment() -> str | None:
    return os.environ.get("STORMCELL_ENGINE")


def _asked(engine: str) -> str:
    """The engine that is asked for: by the call, else by the environment, else by `set_default`."""
    name = _checked(engine)
    return _checked(_by_environment() or _default) if name == "auto" else name


# What `torch.compiler.is_exporting` should say, which from torch 2.7 to 2.12 is True inside any torch.compile. Before there was
# another flag for that; it is not read where it is not needed, for torch.compile makes a condition of what it reads.
_EXPORTING = "_is_exporting_flag" if hasattr(torch.compiler, "_is_exporting_flag") else "_is_compiling_flag"


def _is_exporting() -> bool:
    return bool(getattr(torch.compiler, _EXPORTING, False))


def _choose(case: Case, engine: str) -> str:
    name = _asked(engine)
    if name != "auto":
        reason = _ENGINES[name].unavailable() or _ENGINES[name].supports(case)
        if reason is None:
            return name
        if name == engine:
            raise ValueError(f'engine="{name}" cannot compute this: {reason}')
    for each, module in _ENGINES.items():  # "auto"; or a default, which asks for speed and not for what cannot be
        if not (module.unavailable() or module.supports(case) or module.passed_over(case)):
            return each
    raise AssertionError("the reference computes everything")


def explain(case: Case, engine: str = "auto") -> dict[str, str]:
    """What becomes of each engine for a case: "chosen", or why another one is. Raises ValueError as `run` does."""
    chosen = _choose(case, engine)
    asked = _asked(engine) == chosen
    said = {}
    for name, module in _ENGINES.items():
        reason = module.unavailable() or module.supports(case) or (None if asked else module.passed_over(case))
        said[name] = "chosen" if name == chosen else reason or f"{chosen} {'is asked for' if asked else 'comes first'}"
    return said


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

    An engine that is asked for by the call raises ValueError for what it cannot compute; one that is a default leaves that
    to the next. Under `torch.export` and ONNX export it is the reference without checkpoints, whatever is asked for: plain
    operators.
    """
    exporting = _is_exporting()
    if exporting:
        _checked(engine)
        compute = reference.sequence
    else:
        compute = _ENGINES[_choose(case_of(x, state, weights, form, drop), engine)].sequence
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
