"""A ConvLSTM sequence on a GPU, by kernels written in Triton.

A GPU waits for some fifteen launches a step otherwise, and for as many passes over memory. Here a step is cuDNN's convolution
and one kernel, which computes gates, peepholes and state and minds the mask; where the convolution is small, that kernel
alone, the convolution in it. Back through time it is one kernel and cuDNN's convolution. What is not serial is that of
bptt.py: inputs are convolved, and weights' gradients summed, a block of steps at a time. Large maps gain nothing from more
steps at a time, but from more channels: there frame and hidden state are one tensor, and have one convolution (`Joint`).

Memory lies time first and channels last, so that a step is one piece, frames of a block are a batch, and tensor cores
need no transposing. Kept for the backward: y, c of all steps in float32, and pre-activations of the last ones in the precision
of weights, up to `KEPT_BYTES`; gates are computed anew from them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cached_property
from importlib.util import find_spec
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from . import bptt, graphs
from .case import Case, first_that_holds
from .convolution import Convolution
from .operators import constant
from .reference import Drop, Form, State, Weights, state_size

ABOUT = "a step in one or two kernels of Triton, on a CUDA GPU, in float32 and half precision"

ACTIVATIONS = ("tanh", "sigmoid", "relu", "hard_sigmoid", "keras2_hard_sigmoid", "linear")  # as in triton_kernels.py
KEPT_BYTES = 2**31
# Multiplications of a step's recurrent convolution, up to which it is fused: above, cuDNN's is so much faster that its
# passes over memory are worth it (docs/log.md).
FUSED_PRODUCTS = 2**31
JOINT_ROWS = 2**16  # pixels of all samples, from which on frame and hidden state are convolved together
ALIGNED = 8  # channels: of theirs, what cuDNN's tensor cores want


# --- rules ---


@constant
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
    return first_that_holds(reasons) or bptt.supports(case) or (_lacks(case) if case.device == "cuda" else None)


def _lacks(case: Case) -> str | None:
    """What the GPU lacks. Tensors are on it already, so that asking wakes nothing."""
    if _interprets() or torch.version.hip is not None:
        return None
    narrow = torch.get_autocast_dtype("cuda") if case.autocast else case.dtype
    least = (7, 0) if narrow == torch.float32 else (8, 0)  # Triton 3.3 compiles no products of float16 for older ones
    if torch.cuda.get_device_capability() >= least:
        return None
    return f"in {str(narrow).removeprefix('torch.')} Triton needs a GPU of compute capability {least[0]}.{least[1]}"


def passed_over(case: Case) -> str | None:
    """Why "auto" should leave a case to another engine, or None: on a GPU it has sequences done first (docs/gpu.md)."""
    if case.device == "cpu" or _interprets():
        return "its kernels run in an interpreter, which is for tests"
    return None


# --- the steps ---


def _kernels() -> ModuleType:
    from . import triton_kernels

    return triton_kernels


class Call(bptt.Call):
    """A call whose steps are kernels. Tensors have the shapes of `bptt.Call`, with channels last in memory."""

    maps_of_step = 4  # z of i, f, g, o
    takes_any_x = True

    @staticmethod
    def run(compute: Callable[..., Any], *arguments: Any) -> Any:
        x: Tensor = arguments[-bptt.ARGUMENTS]
        if not x.is_cuda or not x.shape[0]:
            return compute(*arguments)
        with torch.cuda.device_of(x):
            settings = (_allows_tf32(), FUSED_PRODUCTS, JOINT_ROWS, ALIGNED, KEPT_BYTES, bptt.BLOCK_BYTES)
            return graphs.graphs.run(compute, arguments, *settings)

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._check()
        self.h, self.c = self.channels_last(self.h), self.channels_last(self.c)

    def _check(self) -> None:
        """Raise for a state of another shape than the call's: kernels would read what is not theirs."""
        size = tuple(self.h.shape[2:])
        if self.ih is not None:
            size = state_size(tuple(self.x.shape[3:]), tuple(self.ih.shape[2:]), self.form)
        expected = (self.x.shape[0], self.hh.shape[0] // 4, *size)
        for name, value in (("h", self.h), ("c", self.c)):
            if value.shape != expected:
                raise RuntimeError(f"{name} is {tuple(value.shape)} where frames and weights make {tuple(expected)}")

    @classmethod
    def of(cls, *arguments: Any) -> Call:
        return (Joint if _joins(*arguments) else Call)(*arguments)

    @cached_property
    def fused(self) -> bool:
        """Whether a step's kernel convolves as well."""
        products = 4 * self.h.shape[1] * prod(self.h.shape) * prod(self.hh.shape[2:])
        is_plain = self.drop.recurrent is None and not self.form.periodic_x
        return is_plain and products <= FUSED_PRODUCTS

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

    def matrix(self, maps: Tensor) -> Tensor:
        """Maps (B, C, *S) as (B·P, C), columns without gaps."""
        rows = maps.movedim(1, -1)
        return (rows if rows.stride(-1) == 1 else rows.contiguous()).flatten(0, -2)

    def copy(self, to: Tensor, maps: Tensor) -> None:
        try:
            pair = [value.view(*value.shape[:3], -1) for value in (to, maps)]
        except RuntimeError:  # pixels do not follow each other at one distance
            return super().copy(to, maps)
        return _kernels().copy(*pair)

    def maps(self, steps: int, of_each: int, dtype: torch.dtype) -> Tensor:
        batch, hidden, *size = self.h.shape
        return self.hh.new_empty((steps, batch, *size, of_each * hidden), dtype=dtype).movedim(-1, 2)

    def outputs(self) -> Tensor:
        return self.maps(self.steps, 1, self.hh.dtype).transpose(0, 1)

    def frames(self, first: int, last: int) -> Tensor:
        return self.steps_last(self.x, first, last)

    def steps_last(self, maps: Tensor, first: int, last: int) -> Tensor:
        """Of maps (B, T, C, *S) a block of steps, (n, B, C, *S) with the memory of `rows` and the weights' precision."""
        block = maps[:, first:last].transpose(0, 1)
        rows = block.movedim(2, -1)
        if rows.is_contiguous() and rows.dtype == self.hh.dtype:
            return block
        to = self.hh.new_empty(rows.shape).movedim(-1, 2)
        self.copy(to, block)
        return to

    def state(self, dtype: torch.dtype) -> Tensor:
        return self.maps(1, 1, dtype)[0]

    def laid(self, weight: Tensor) -> Tensor:
        return self.channels_last(weight)

    def device(self) -> AbstractContextManager[Any]:
        return torch.cuda.device_of(self.hh)  # nothing on a CPU

    def of_inputs(self, first: int, last: int) -> Tensor | None:
        return None if self.of_x is None else self.of_x(self.frames(first, last))

    @cached_property
    def cell(self) -> Any:
        ch = self.ch
        if ch is not None:
            ch = ch.contiguous() if ch.ndim == 1 else self.rows(ch).flatten(0, -2)
        return _kernels().Cell(
            batch=self.h.shape[0],
            hidden=self.h.shape[1],
            size=tuple(self.h.shape[2:]),
            kernel=tuple(self.hh.shape[2:]),
            activation=self.names[0],
            recurrent_activation=self.names[1],
            dtype=self.hh.dtype,
            precision="tf32" if _allows_tf32() else "ieee",
            bias=None if self.bias is None else self.bias.contiguous(),
            w_c=ch,
        )

    @cached_property
    def mask_by_step(self) -> Tensor | None:
        """(T, B)"""
        return None if self.mask is None else self.mask.t().to(torch.uint8).contiguous()

    @cached_property
    def taps(self) -> Tensor | None:
        """The recurrent kernel as a fused step wants it."""
        return self.cell.taps(self.hh) if self.fused else None

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
        from_h, z = self.convolved(t, h, z)
        _kernels().step(
            self.cell,
            from_x=None if from_x is None else self.rows(from_x),
            from_h=from_h,
            taps=self.taps,
            used=self.used(t),
            h=h,
            c=c,
            z=z,
            h_after=h_after,
            h_again=self.hidden_now,
            c_after=c_after,
        )
        return c_after

    hidden_now: Tensor | None = None  # another place where a step writes h'

    def convolved(self, t: int, h: Tensor, z: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """What a step's kernel reads of the recurrent convolution, None if it convolves; and where it writes z, if it does."""
        return None if self.fused else self.rows(self.of_h(h.unsqueeze(0))), z

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
        sums: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        z = kept.z(first, last)
        d_y = None if d_y is None else self.steps_last(d_y, first, last)
        d_c, d_held = self.channels_last(d_c), None  # d_held: what steps that the mask leaves out hand on to h
        for t in reversed(range(first, last)):
            now = t - first
            d_c_before = self.maps(1, 1, self.precise)[0]
            d_held_before = None if self.mask is None else self.maps(1, 1, torch.float32)[0]
            _kernels().back(
                self.cell,
                z=z[now],
                used=self.used(t),
                c=kept.cs[t - 1] if t else self.c,
                d_y=None if d_y is None else d_y[now],
                d_h=self.matrix(d_h),
                d_held=d_held,
                d_c_after=d_c,
                d_z=d_z[now],
                d_c=d_c_before,
                d_held_before=d_held_before,
            )
            d_c, d_held = d_c_before, d_held_before
            d_h = self.step_back(t, d_z[now : now + 1], d_h, sums)
        return d_h if d_held is None else d_h + d_held, d_c

    def step_back(self, t: int, d_z: Tensor, d_h: Tensor, sums: dict[str, Tensor]) -> Tensor:
        """d_z (1, B, 4F, *S) of step t → d_h (B, F, *S) before it."""
        if t or "h" in sums:
            return self.of_h.by_input(d_z, self.seen_of_h).squeeze(0)
        return d_h

    @cached_property
    def seen_of_h(self) -> Tensor:
        """What a step's recurrent convolution runs over, without its numbers. cuDNN copies into the order of its strides."""
        return self.h if self.of_h.is_plain else self.of_h.memory(self.h.unsqueeze(0))

    def add_of_gates(self, kept: bptt.Kept, first: int, last: int, d_z: Tensor, sums: dict[str, Tensor]) -> None:
        if "bias" in sums:
            sums["bias"] += _kernels().sum_of_rows(self.rows(d_z).flatten(0, -2))
        if self.cell.sums is None:
            super().add_of_gates(kept, first, last, d_z, {name: sums[name] for name in sums if name != "bias"})
        elif "ch" in sums and first == 0:  # the last block: all steps are in it
            sums["ch"] += self.cell.sums.sum(0)


class Joint(Call):
    """A call whose steps convolve frame and hidden state together, as one tensor (B, C + F, *S)."""

    fused = False  # whatever the size

    @cached_property
    def of_both(self) -> Convolution:
        weight = torch.cat([self.laid(self.ih), self.laid(self.hh)], 1)
        return Convolution(weight, self.form.same_size(), None, tuple(self.h.shape[2:]))

    def both(self, steps: int) -> Tensor:
        """Memory for frames and hidden states of some steps, (n, B, C + F, *S)."""
        batch, _, *size = self.h.shape
        return self.hh.new_empty((steps, batch, *size, self.x.shape[2] + self.h.shape[1])).movedim(-1, 2)

    def frames_of(self, both: Tensor) -> Tensor:
        return both.narrow(-self.dims - 1, 0, self.x.shape[2])

    def hidden_of(self, both: Tensor) -> Tensor:
        return both.narrow(-self.dims - 1, self.x.shape[2], self.h.shape[1])

    @cached_property
    def now(self) -> Tensor:
        """Frame and hidden state of the step that is computed, (1, B, C + F, *S)."""
        return self.both(1)

    @cached_property
    def hidden_now(self) -> Tensor:  # type: ignore[override]  # Call has none
        """The latter as a step writes it, (B·P, F)."""
        return self.matrix(self.hidden_of(self.now)[0])

    def of_inputs(self, first: int, last: int) -> Tensor | None:
        return None

    def convolved(self, t: int, h: Tensor, z: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        z = self.scratch if z is None else z
        self.copy(self.frames_of(self.now), self.x[:, t : t + 1].transpose(0, 1))
        if t == 0:
            self.copy(self.hidden_of(self.now), h.unsqueeze(0))  # later its step has written it there
        self.convolve(self.now, z)
        return self.matrix(z), None

    def convolve(self, both: Tensor, z: Tensor) -> None:
        """Write the pre-activations z (B, 4F, *S) of a step."""
        cudnn, of_both = torch.backends.cudnn, self.of_both
        write = getattr(torch.ops.aten.cudnn_convolution, "out", None)
        has_cudnn = both.is_cuda and torch.version.hip is None and cudnn.is_available() and cudnn.enabled
        if write is None or not has_cudnn or self.dims == 1:
            z.copy_(of_both(both).squeeze(0))
            return
        geometry = (of_both.padding, of_both.stride, of_both.dilation, 1)
        deterministic = cudnn.deterministic or torch.are_deterministic_algorithms_enabled()
        write(both.squeeze(0), of_both.weight, *geometry, cudnn.benchmark, deterministic, _allows_tf32(), out=z)

    def block(self, kept: bptt.Kept, first: int, last: int) -> Tensor:
        """Frames and hidden states before each step of a block, (n, B, C + F, *S)."""
        both = self.both(last - first)
        self.copy(self.frames_of(both), self.x[:, first:last].transpose(0, 1))
        self.copy(self.hidden_of(both), kept.h(first, last))
        return both

    def again(self, kept: bptt.Kept, first: int, last: int) -> Tensor:
        return self.channels_last(self.of_both(self.block(kept, first, last)))

    def step_back(self, t: int, d_z: Tensor, d_h: Tensor, sums: dict[str, Tensor]) -> Tensor:
        if "x" not in sums:
            return super().step_back(t, d_z, d_h, sums)
        d_both = self.of_both.by_input(d_z, self.now[0])
        self.copy(sums["x"][:, t : t + 1].transpose(0, 1), self.frames_of(d_both))
        return self.hidden_of(d_both).squeeze(0)

    def add_of_block(self, kept: bptt.Kept, first: int, last: int, d_z: Tensor, sums: dict[str, Tensor]) -> None:
        if "ih" in sums or "hh" in sums:
            d_weight = self.of_both.by_weight(d_z, self.of_both.see(self.block(kept, first, last)))
            for name, part in zip(("ih", "hh"), d_weight.split([self.x.shape[2], self.h.shape[1]], 1)):
                if name in sums:
                    sums[name] += part
        self.add_of_gates(kept, first, last, d_z, sums)


def _joins(*arguments: Any) -> bool:
    """Whether frame and hidden state are convolved together."""
    x, h, _, ih, hh, _, _, _, drop_x, drop_h, stride, padding, _, dilation, _, _, periodic_x, _ = arguments
    if ih is None or drop_x is not None or drop_h is not None or periodic_x:
        return False
    kernel = ih.shape[2:]
    return (
        h.numel() // max(h.shape[1], 1) >= JOINT_ROWS
        and kernel == hh.shape[2:]
        and all(size % 2 for size in kernel)
        and padding == "same"
        and {*stride, *dilation} == {1}
        and x.shape[2] % ALIGNED == h.shape[1] % ALIGNED == 0
    )


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
