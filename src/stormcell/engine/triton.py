"""A ConvLSTM sequence on a GPU, by kernels written in Triton.

A small map leaves a GPU waiting: for some fifteen launches a step, and for as many passes over memory. Here a step is torch's
recurrent convolution and one kernel, which adds the input's part, computes gates, peepholes and state, and minds the mask; and
where the convolution is small, that kernel alone, the convolution in it. Back through time it is the same. All else is
that of bptt.py: inputs are convolved, and weights' gradients summed, a block of steps at a time.

Memory lies time first and channels last, so that a step is one piece, frames of a block are a batch, and cuDNN's tensor cores
need no transposing. Kept for the backward: y, c of all steps in float32, and pre-activations of the last ones in the precision
of weights, up to `KEPT_BYTES`; gates are computed anew from them.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from functools import cached_property
from importlib.util import find_spec
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import bptt
from .case import Case
from .reference import Drop, Form, State, Weights

ABOUT = "a step in one or two kernels of Triton, on a CUDA GPU, in float32 and half precision"

ACTIVATIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "keras2_hard_sigmoid", "linear")  # as in triton_kernels.py
KEPT_BYTES = 2**30
# Multiplications of a step's recurrent convolution, up to which it is fused. cuDNN's are faster, but a launch is worth a
# hundred million of them or more. An estimate: it has not been measured (docs/engines.md).
FUSED_PRODUCTS = 2**28


# --- rules ---


def _interprets() -> bool:
    """Whether kernels run in Triton's interpreter, as numpy: for tests. Triton reads this where it is imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


_INSTALLED = find_spec("triton") is not None  # looked for once: torch.compile traces through the rules


def _is_installed() -> bool:
    return _INSTALLED


def unavailable() -> str | None:
    """Why this machine cannot run it, or None."""
    if not _is_installed():
        return "Triton is not installed: pip install triton"
    if not torch.cuda.is_available() and not _interprets():
        return "there is no CUDA GPU that torch can use"
    return None


def supports(case: Case) -> str | None:
    """Why it cannot compute a case, or None."""
    half = case.autocast or case.dtype in (torch.float16, torch.bfloat16)
    reasons = {
        "it runs on a CUDA GPU": case.device != "cuda" and not (case.device == "cpu" and _interprets()),
        "it computes in float32 and half precision": not half and case.dtype != torch.float32,
        "its cell state is float32": case.state_dtype != torch.float32,
        f"its kernels know the activations {', '.join(ACTIVATIONS)}": not set(case.activations) <= set(ACTIVATIONS),
    }
    reason = next((reason for reason, holds in reasons.items() if holds), None)
    return reason or bptt.supports(case) or (_lacks(case) if case.device == "cuda" else None)


def _lacks(case: Case) -> str | None:
    """What the GPU lacks. Tensors are on it already, so that asking wakes nothing."""
    if _interprets() or torch.version.hip is not None:
        return None
    narrow = torch.get_autocast_dtype("cuda") if case.autocast else case.dtype
    least = (8, 0) if narrow == torch.bfloat16 else (7, 0)
    if torch.cuda.get_device_capability() >= least:
        return None
    return f"in {str(narrow).removeprefix('torch.')} Triton needs a GPU of compute capability {least[0]}.{least[1]}"


def passed_over(case: Case) -> str | None:
    """Why "auto" should leave a case to another engine: on a CPU kernels are interpreted, and on a GPU none has run yet."""
    if case.device == "cpu" or _interprets():
        return "its kernels run in an interpreter, which is for tests"
    return "its kernels have been tested in an interpreter only, on no GPU yet: ask for it by name"


def is_fused(state: tuple[int, ...], kernel: tuple[int, ...]) -> bool:
    """Whether the recurrent convolution of a step, of a state (B, F, *S), is left to the kernel that computes its gates."""
    return 4 * state[1] * prod(state) * prod(kernel) <= FUSED_PRODUCTS


# --- the steps ---


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


class Call(bptt.Call):
    """A call whose steps are kernels. Tensors have the shapes of `bptt.Call`, with channels last in memory."""

    maps_of_step = 4  # z of i, f, g, o

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.h, self.c, self.hh = map(self.channels_last, (self.h, self.c, self.hh))
        self.ih = None if self.ih is None else self.channels_last(self.ih)
        self.fused = self.drop.recurrent is None and is_fused(self.h.shape, self.hh.shape[2:])

    @property
    def step_dtype(self) -> torch.dtype:
        return self.hh.dtype

    @property
    def kept_steps(self) -> int:
        return torch.sym_min(self.steps, KEPT_BYTES // self.step_bytes)

    def rows(self, maps: Tensor) -> Tensor:
        """Maps (…, C, *S) as kernels read them: (…, *S, C) without gaps. Copied only if they lie in another way."""
        return maps.movedim(self.channels, -1).contiguous()

    def channels_last(self, maps: Tensor) -> Tensor:
        """The same maps with the memory of `rows`."""
        return self.rows(maps).movedim(-1, self.channels)

    def maps(self, steps: int, of_each: int, dtype: torch.dtype) -> Tensor:
        batch, hidden, *size = self.h.shape
        return self.hh.new_empty((steps, batch, *size, of_each * hidden), dtype=dtype).movedim(-1, 2)

    def outputs(self) -> Tensor:
        return self.maps(self.steps, 1, self.hh.dtype).transpose(0, 1)

    def frames(self, first: int, last: int) -> Tensor:
        return self.channels_last(super().frames(first, last))

    def device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device_of(self.hh)  # nothing on a CPU

    def of_inputs(self, first: int, last: int) -> Tensor | None:
        return None if self.of_x is None else self.of_x(self.frames(first, last))

    @cached_property
    def cell(self) -> Any:
        ch = self.ch if self.ch is None or self.ch.ndim == 1 else self.rows(self.ch).flatten(0, -2)
        return _kernels().Cell(
            batch=self.h.shape[0],
            hidden=self.h.shape[1],
            size=tuple(self.h.shape[2:]),
            kernel=tuple(self.hh.shape[2:]),
            activation=self.names[0],
            recurrent_activation=self.names[1],
            precision="tf32" if _allows_tf32() else "ieee",
            bias=self.bias,
            w_c=ch,
        )

    @cached_property
    def mask_by_step(self) -> Tensor | None:
        """(T, B)"""
        return None if self.mask is None else self.mask.t().to(torch.uint8).contiguous()

    @cached_property
    def taps(self) -> Tensor | None:
        """The recurrent kernel as the matrices of a fused step, (K, F, 4F)."""
        return self.hh.flatten(2).permute(2, 1, 0).contiguous() if self.fused else None

    @cached_property
    def taps_back(self) -> Tensor | None:
        """The same for the way back, (K, 4F, F)."""
        return self.hh.flatten(2).permute(2, 0, 1).contiguous() if self.fused else None

    def used(self, t: int) -> Tensor | None:
        return None if self.mask_by_step is None else self.mask_by_step[t]

    def step(
        self,
        t: int,
        from_x: Tensor | None,
        h: Tensor,
        c: Tensor,
        z: Tensor | None,
        h_after: Tensor,
        c_after: Tensor | None,
    ) -> Tensor:
        c_after = self.maps(1, 1, self.precise)[0] if c_after is None else c_after
        _kernels().step(
            self.cell,
            from_x=None if from_x is None else self.rows(from_x),
            from_h=None if self.fused else self.rows(self.of_h(h.unsqueeze(0))),
            taps=self.taps,
            used=self.used(t),
            h=h,
            c=c,
            z=z,
            h_after=h_after,
            c_after=c_after,
        )
        return c_after

    def again(self, kept: bptt.Kept, first: int, last: int) -> Tensor:
        from_x, from_h = self.of_inputs(first, last), self.of_h(kept.h(first, last))
        return self.channels_last(from_h if from_x is None else from_x + from_h)

    def back(
        self,
        kept: bptt.Kept,
        first: int,
        last: int,
        d_y: Tensor | None,
        d_h: Tensor,
        d_c: Tensor,
        d_z: Tensor,
        by_start: bool,
    ) -> tuple[Tensor, Tensor]:
        z = kept.z(first, last)
        d_y = None if d_y is None else self.rows(d_y[:, first:last].transpose(0, 1))
        d_c, d_held = self.channels_last(d_c), None  # d_held: what steps that the mask leaves out hand on to h
        seen = self.of_h.memory(self.h.unsqueeze(0))
        for t in reversed(range(first, last)):
            now = t - first
            fused = self.fused and t + 1 < last
            d_c_before = self.maps(1, 1, self.precise)[0]
            d_held_before = None if self.mask is None else self.maps(1, 1, torch.float32)[0]
            _kernels().back(
                self.cell,
                z=z[now],
                used=self.used(t),
                c=kept.cs[t - 1] if t else self.c,
                d_y=None if d_y is None else d_y[now],
                d_h=None if fused else self.rows(d_h),
                d_held=d_held,
                d_c_after=d_c,
                d_z_next=d_z[now + 1] if fused else None,
                taps=self.taps_back if fused else None,
                d_z=d_z[now],
                d_c=d_c_before,
                d_held_before=d_held_before,
            )
            d_c, d_held = d_c_before, d_held_before
            if (by_start or t) and not (self.fused and now):  # else the kernel of the step before does it
                d_h = self.of_h.by_input(d_z[now].unsqueeze(0), seen).squeeze(0)
        return d_h if d_held is None else d_h + d_held, d_c


def _allows_tf32() -> bool:
    """Whether torch may round the factors of float32 convolutions to TF32: then ours may."""
    if torch.version.hip is not None:
        return False
    settings = getattr(torch.backends.cudnn, "conv", None)  # torch ≥ 2.9
    return settings.fp32_precision == "tf32" if settings is not None else torch.backends.cudnn.allow_tf32


_compute = bptt.compute_with("triton", Call)


def sequence(
    x: Tensor, state: State, w: Weights, form: Form, mask: Tensor | None = None, drop: Drop | None = None
) -> tuple[Tensor, State]:
    """`reference.sequence`, for what `supports` has nothing against. Outputs share no memory with inputs or each other."""
    return _compute(x, state, w, form, mask, drop)
