"""No speed without agreement: our engines against `reference` in float64, on the cases that are to be timed.

An error is the root mean square of the differences over that of the tensor: it does not hang on one element's luck as the
largest difference does, and a pixel that is wrong by a thousandth still shows among a million. Allowed is a multiple of the
error that `reference` itself makes in float32 on the same case, and of float32's rounding where that is larger: 4× for
`bptt`, 16× for `winograd`, whose transforms add and subtract larger numbers, and so for "auto", which may choose it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from stormcell import engine as engines

from .cases import Case, arrays
from .peers.ours import module

FACTORS = {"bptt": 4.0, "triton": 4.0, "winograd": 16.0, "auto": 16.0}
PEER_FACTOR = 16.0  # another library may choose any algorithm for a convolution
_EPS = float(torch.finfo(torch.float32).eps)
_LARGEST = 2**24  # values of hidden states: float64 autograd keeps some ten arrays of as many
Compute = Callable[[Case, str, torch.dtype], Mapping[str, Tensor]]


class Line(NamedTuple):
    """The tensor of a case that lies nearest to its bound, or beyond it."""

    case: str
    engine: str
    tensor: str
    error: float  # relative
    allowed: float
    why: str = ""  # it did not compute at all

    @property
    def agrees(self) -> bool:
        return self.error <= self.allowed  # False for NaN

    def __str__(self) -> str:
        if self.why:
            return f"{self.case}: {self.engine}: {self.why}"
        than = "within" if self.agrees else "more than"
        return f"{self.case}: {self.engine}: {self.tensor} is off by {self.error:.1e}, {than} the allowed {self.allowed:.1e}"


def smaller(case: Case) -> Case:
    """The case with one sequence, and fewer steps where float64 would need gigabytes."""
    height, width = case.size
    steps = max(1, min(case.steps, _LARGEST // (height * width * max(case.hidden))))
    return case._replace(batch=1, steps=steps)


def compute(case: Case, engine: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Outputs and all gradients of a case by name, in float64."""
    numbers = arrays(case)
    model = module(case, numbers, engine=engine, dtype=dtype)
    x = torch.from_numpy(numbers.x).to(dtype).requires_grad_()
    d_y = torch.from_numpy(numbers.d_y).to(dtype)
    found: dict[str, Tensor] = {}
    sources = {"d_x": x}
    if case.streaming:
        sources |= {
            f"d_{name}": torch.from_numpy(value)[None].to(dtype).requires_grad_()
            for name, value in zip("hc", numbers.state)
        }
        found["y"], (found["h"], found["c"]) = model.step(x[:, 0], (sources["d_h"], sources["d_c"]))
        d_y = d_y[:, 0]
    elif case.future:
        found["y"] = model(x, steps=case.future)
    else:
        found["y"], (found["h"], found["c"]) = model(x)
    sources |= {f"d_{name}": parameter for name, parameter in model.named_parameters()}
    gradients = torch.autograd.grad(found["y"], list(sources.values()), d_y)
    found |= dict(zip(sources, gradients))
    return {name: value.detach().double() for name, value in found.items()}


def off(value: Tensor, truth: Tensor) -> float:
    """Root mean square of the differences over the truth's; infinite where shapes differ."""
    if value.shape != truth.shape:
        return float("inf")
    return float((value - truth).norm() / truth.norm())


def names() -> list[str]:
    """Engines to compare: all that this machine has, and what "auto" makes of them."""
    return [name for name, reason in engines.engines().items() if reason is None and name in FACTORS] + ["auto"]


def check(cases: Iterable[Case], *, names: Iterable[str], compute: Compute = compute) -> list[Line]:
    """For every case and engine the tensor nearest to its bound; an engine that refuses a case is left out there."""
    lines = []
    chosen = list(names)
    for full in cases:
        case = smaller(full)
        truth = compute(case, "reference", torch.float64)
        plain = compute(case, "reference", torch.float32)
        own = {name: max(off(plain[name], truth[name]), _EPS) for name in truth}
        for engine in chosen:
            try:
                found = compute(case, engine, torch.float32)
            except Exception as error:  # whatever it is, it is said, and no speed is
                if isinstance(error, ValueError) and "cannot compute this" in str(error) and engine != "auto":
                    continue  # engine.run's words for a case that an engine refuses
                why = f"{type(error).__name__}: {' '.join(str(error).split())}"
                lines.append(Line(case.name, engine, "", float("inf"), 0.0, why))
                continue
            allowed = {name: FACTORS[engine] * own[name] for name in truth}
            errors = {name: off(found[name], truth[name]) for name in truth}
            worst = max(truth, key=lambda name: errors[name] / allowed[name] if errors[name] >= 0 else float("inf"))
            lines.append(Line(case.name, engine, worst, errors[worst], allowed[worst]))
    return lines


def check_peer(peer: str, case: Case, found: Mapping[str, np.ndarray], parameters: int) -> list[Line]:
    """A peer's y and input gradient against `reference` in float64, and whether it made all gradients."""
    truth = compute(case, "reference", torch.float64)
    plain = compute(case, "reference", torch.float32)
    lines = []
    for name in ("y", "d_x"):
        if name in found:
            allowed = PEER_FACTOR * max(off(plain[name], truth[name]), _EPS)
            error = off(torch.from_numpy(np.ascontiguousarray(found[name])).double(), truth[name])
            lines.append(Line(case.name, peer, name, error, allowed))
    if "gradients" in found and int(found["gradients"]) < parameters + truth["d_x"].numel():
        lines.append(Line(case.name, peer, "the number of gradients", float("inf"), 0.0))
    return lines
