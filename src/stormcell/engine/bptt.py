"""A whole sequence of a ConvLSTM at once, with its backward through time written out.

Two things are serial: the state on the way forward, and its gradient on the way back. All else is computed for a block of
steps at once: the input convolution, and the gradients of weights and frames. For the backward y and c are kept, and gates
of the last steps as far as `KEPT_BYTES` goes; those of the steps before are computed anew, a block at a time, which costs up
to a third of a training step. Operators of torch.library, so that torch.compile passes over them; a backward that is itself
differentiated goes through the reference.

What a step is computed with, and how memory lies, are methods of `Call`: another engine changes these (triton.py), and
`compute_with` makes its operators.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import reference
from .activations import ACTIVATIONS, name_of
from .case import Case, autocast_of
from .convolution import Convolution
from .operators import operator
from .reference import Drop, Form, State, Weights, narrowed

ABOUT = "backward through time written out, any device: the reference's numbers with less memory"

BLOCK_BYTES = 128 * 2**20  # of what the steps of a block make: gates, and φ(c')
BLOCK_BYTES_CPU = 1 * 2**20  # a block that leaves the cache costs more than it saves
KEPT_BYTES = 256 * 2**20  # of the same, kept for the backward
SMALL = 2**13  # elements of a state; below, on a CPU, calls cost more than they save
MANY_CHANNELS = 64  # unless it is the weights' gradients that cost, which are one product here and one a step there

_ARGUMENTS = """Tensor x, Tensor h, Tensor c, Tensor? ih, Tensor hh, Tensor? ch, Tensor? bias, Tensor? mask,
    Tensor? drop_x, Tensor? drop_h, int[] stride, str padding, int[] zeros, int[] dilation,
    str activation, str recurrent_activation, bool periodic_x, ScalarType? autocast"""
_DIFFERENTIABLE = ("x", "h", "c", "ih", "hh", "ch", "bias")  # the first arguments
_TENSORS = 10  # up to drop_h
ARGUMENTS = _ARGUMENTS.count(",") + 1  # of an operator, the last ones


def unavailable() -> None:
    """It runs wherever torch does."""


def supports(case: Case) -> str | None:
    """Why it cannot compute a case, or None."""
    if case.cell != "lstm":
        return "its backward is that of an LSTM"
    if None in case.activations:
        return "it knows the derivatives of activations that have a name, not of functions"
    if case.norm:
        return "its backward knows no normalised convolutions"
    if case.zoneout:
        return "its backward knows no zoneout"
    if not case.dtype.is_floating_point:
        return "it computes with real floating-point numbers"
    if case.transformed:
        return "its backward is not written for torch.func"
    return None


def passed_over(case: Case) -> str | None:
    """Why "auto" should leave a case to the reference, or None. It takes less memory for the backward, not less time."""
    if case.steps == 1:
        return "a single step has no others to be computed with"
    if case.device == "cpu" and not case.gradients:
        return "without gradients there is nothing to keep less of, and the reference is as fast"
    elements = case.batch * case.hidden_channels * math.prod(case.size)
    if case.device == "cpu" and elements < SMALL and case.hidden_channels < MANY_CHANNELS:
        return "the state is small: calls cost more than its arithmetic"
    return None


class _Activation(NamedTuple):
    """a = φ(z), and what the backward needs of it. Where the slope follows from a alone, a is written over z."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]
    times_slope: Any  # (d, a) → d · φ'(z), one pass over memory; None for activations whose slope needs z

    def over(self, z: Tensor) -> Tensor:
        """a, in the place of z where that may be."""
        return self.function(z) if self.times_slope is None else self.function(z, out=z)  # type: ignore[call-arg]

    def into(self, z: Tensor, out: Tensor) -> Tensor:
        """a, in memory of its own."""
        return out.copy_(self.function(z)) if self.times_slope is None else self.function(z, out=out)  # type: ignore[call-arg]

    def again(self, z: Tensor) -> Tensor:
        """a, from what `over` left."""
        return self.function(z) if self.times_slope is None else z

    def back(self, d_a: Tensor, z: Tensor, a: Tensor, out: Tensor) -> None:
        """d_z, from what `over` left."""
        if self.times_slope is None:
            torch.mul(d_a, self.derivative(z, a), out=out)
        else:
            self.times_slope(d_a, a, grad_input=out)


def _activation(name: str) -> _Activation:
    passes = {"sigmoid": torch.ops.aten.sigmoid_backward.grad_input, "tanh": torch.ops.aten.tanh_backward.grad_input}
    return _Activation(*ACTIVATIONS[name], passes.get(name))


class Call:
    """The operators' arguments in their order, what follows from them, and the steps, in torch's operators."""

    maps_of_step = 5  # what the backward needs of a step: z of i, f, g, o, and φ(c')
    takes_any_x = False  # whether frames may be of another precision than weights, as autocast would have them

    @classmethod
    def of(cls, *arguments: Any) -> Call:
        """The call that these arguments are computed with."""
        return cls(*arguments)

    @staticmethod
    def run(compute: Callable[..., Any], *arguments: Any) -> Any:
        """compute(*arguments), of an operator that nobody watches."""
        return compute(*arguments)

    def __init__(self, *arguments: Any) -> None:
        self.x: Tensor  # (B, T, C, *frame)
        self.h: Tensor  # (B, F, *S), c likewise
        self.hh: Tensor  # (4F, F, *r); ih (4F, C, *k), ch (3F,) or (3F, *S), bias (4F,)
        x, h, c, ih, hh, self.ch, self.bias, self.mask, drop_x, drop_h = arguments[:_TENSORS]
        stride, padding, zeros, dilation, activation, recurrent_activation, periodic_x, narrow = arguments[_TENSORS:]
        self.h, self.ih, self.hh = (narrowed(value, narrow) for value in (h, ih, hh))
        self.x = x if self.takes_any_x else narrowed(x, narrow)
        self.dims, self.steps = self.h.ndim - 2, self.x.shape[1]
        self.names = activation, recurrent_activation
        self.phi, self.rho = _activation(activation), _activation(recurrent_activation)
        padding = tuple(zeros) if padding == "zeros" else padding
        functions = self.phi.function, self.rho.function
        self.form = Form(tuple(stride), padding, tuple(dilation), *functions, periodic_x=periodic_x)
        self.drop = Drop(drop_x, drop_h)
        self.precise = _precise(c, self.hh, self.ch, self.bias)
        self.c: Tensor = c.to(self.precise)
        self.differentiable = dict(zip(_DIFFERENTIABLE, arguments))
        self.channels = -self.dims - 1  # the axis, from the end
        self.all_but_channels = (0, 1, *range(3, self.dims + 3))  # axes of d_z (n, B, 4F, *S)
        values = self.maps_of_step * math.prod(self.h.shape)
        self.step_bytes = torch.sym_max(values * self.step_dtype.itemsize, 1)  # a batch may be empty

    def laid(self, weight: Tensor) -> Tensor:
        """A convolution's weight in the memory order of maps."""
        return weight

    @cached_property
    def of_x(self) -> Convolution | None:
        if self.ih is None:
            return None
        return Convolution(self.laid(self.ih), self.form, self.drop.inputs, tuple(self.x.shape[3:]))

    @cached_property
    def of_h(self) -> Convolution:
        return Convolution(self.laid(self.hh), self.form.same_size(), self.drop.recurrent, tuple(self.h.shape[2:]))

    @cached_property
    def peepholes(self) -> tuple[Tensor, ...] | None:
        """Of i, f and o, (F, *S) or (F, 1, …) each."""
        if self.ch is None:
            return None
        return (self.ch if self.ch.ndim > 1 else self.ch.view(-1, *(1,) * self.dims)).to(self.precise).chunk(3)

    @property
    def step_dtype(self) -> torch.dtype:
        """Of what the backward needs of a step."""
        return self.precise

    @property
    def kept_steps(self) -> int:
        """Of which the gates are kept for the backward."""
        return torch.sym_min(self.steps, KEPT_BYTES // self.step_bytes)

    def split(self, z: Tensor) -> list[Tensor]:
        """i and f together, g, o, and φ(c') where z (…, 4F or 5F, *S) has it."""
        hidden = self.h.shape[1]
        return list(z.split([2 * hidden, *[hidden] * (z.shape[self.channels] // hidden - 2)], self.channels))

    def maps(self, steps: int, of_each: int, dtype: torch.dtype) -> Tensor:
        """Memory for so many states of some steps, (n, B, of_each · F, *S)."""
        batch, hidden, *size = self.h.shape
        return self.hh.new_empty((steps, batch, of_each * hidden, *size), dtype=dtype)

    def memory(self, steps: int) -> Tensor:
        """Memory for what the backward needs of some steps, (n, B, 5F, *S)."""
        return self.maps(steps, self.maps_of_step, self.step_dtype)

    def outputs(self) -> Tensor:
        """Memory for y, (B, T, F, *S)."""
        batch, hidden, *size = self.h.shape
        return self.hh.new_empty((batch, self.steps, hidden, *size))

    def state(self, dtype: torch.dtype) -> Tensor:
        """Memory for a state that is given back, (B, F, *S)."""
        return self.hh.new_empty(self.h.shape, dtype=dtype)

    def frames(self, first: int, last: int) -> Tensor:
        """x of a block, (n, B, C, *frame)."""
        return self.x[:, first:last].transpose(0, 1)

    def blocks(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """First step and the one after the last of each block of steps."""
        bound = BLOCK_BYTES_CPU if self.x.device.type == "cpu" else BLOCK_BYTES
        n = max(1, bound // self.step_bytes)
        return ((start, min(start + n, last)) for start in range(first, last, n))

    def copy(self, to: Tensor, maps: Tensor) -> None:
        """to.copy_(maps), both (n, B, C, *frame)."""
        to.copy_(maps)

    def used(self, t: int) -> Tensor | None:
        return None if self.mask is None else self.mask[:, t].view(-1, *(1,) * (self.dims + 1))

    def device(self) -> AbstractContextManager[Any]:
        """Where kernels of our own are launched."""
        return nullcontext()

    def of_inputs(self, first: int, last: int) -> Tensor | None:
        """The input's part of the pre-activations of a block, (n, B, 4F, *S), with the bias where it costs nothing."""
        if self.of_x is None:
            return None
        bias = None if self.bias is None or self.precise != self.hh.dtype else self.bias.to(self.precise)
        return self.of_x(self.frames(first, last), bias)

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
        """Step t: h and c (B, F, *S) before it → c after it. Writes h_after, and c_after and z (B, 5F, *S) where given."""
        z = self.scratch if z is None else z
        _preactivations(self, None if from_x is None else from_x.unsqueeze(0), h.unsqueeze(0), z.unsqueeze(0))
        c_after = _step(self, z, c, h_after, c_after)
        used = self.used(t)
        if used is not None:
            torch.where(used, c_after, c, out=c_after)
            h_after.copy_(torch.where(used, h_after, h))
        return c_after

    @cached_property
    def scratch(self) -> Tensor:
        """For what the backward needs of a step and nobody keeps."""
        return self.memory(1)[0]

    def again(self, kept: Kept, first: int, last: int) -> Tensor:
        """What `step` made of z in a block and nobody kept, (n, B, 5F, *S)."""
        z = self.memory(last - first)
        _preactivations(self, self.of_inputs(first, last), kept.h(first, last), z)
        i_f, g, o, a = self.split(z)
        if self.peepholes is not None:
            _peep(self, i_f, kept.c(first, last))
            _peep_after(self, o, kept.cs[first:last])
        for activation, gate in ((self.rho, i_f), (self.phi, g), (self.rho, o)):
            activation.over(gate)
        self.phi.into(kept.cs[first:last], a)
        return z

    def back(
        self,
        kept: Kept,
        first: int,
        last: int,
        d_y: Tensor | None,
        d_h: Tensor,
        d_c: Tensor,
        d_z: Tensor,
        sums: dict[str, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """d_h and d_c (B, F, *S) after a block → those before it. Writes d_z (n, B, 4F, *S), in the precision of weights.

        What is made on the way for an argument is added to its sum.
        """
        return _through_time(kept, first, last, d_y, d_h, d_c, d_z, "h" in sums)

    def add_of_block(self, kept: Kept, first: int, last: int, d_z: Tensor, sums: dict[str, Tensor]) -> None:
        """Add what d_z (n, B, 4F, *S) of a block says of weights and frames."""
        of_h, of_x = self.of_h, self.of_x
        if "hh" in sums:
            sums["hh"] += of_h.by_weight(d_z, of_h.see(kept.h(first, last)))
        if of_x is not None:
            x = self.frames(first, last)
            seen = of_x.see(x) if "ih" in sums else of_x.memory(x)
            if "ih" in sums:
                sums["ih"] += of_x.by_weight(d_z, seen)
            if "x" in sums:
                self.copy(sums["x"][:, first:last].transpose(0, 1), of_x.by_input(d_z, seen))
        self.add_of_gates(kept, first, last, d_z, sums)

    def add_of_gates(self, kept: Kept, first: int, last: int, d_z: Tensor, sums: dict[str, Tensor]) -> None:
        """Add what d_z (n, B, 4F, *S) of a block says of bias and peepholes."""
        if "bias" in sums:
            sums["bias"] += d_z.sum(self.all_but_channels, dtype=self.precise)
        if "ch" in sums:
            _add_peepholes(kept, first, last, d_z, sums["ch"])


def _precise(*values: Tensor | None) -> torch.dtype:
    """In which gates and the cell state are computed: the widest of what they are made of."""
    widest, *others = [value.dtype for value in values if value is not None]
    for dtype in others:
        widest = torch.promote_types(widest, dtype)
    return widest


def _preactivations(call: Call, from_x: Tensor | None, h: Tensor, out: Tensor) -> None:
    """z (n, B, 4F, *S) into the first channels of `out`, without peepholes, from h before each step (n, B, F, *S).

    The two convolutions are added in the precision of weights, as the reference does.
    """
    from_h = call.of_h(h)
    z = out.narrow(call.channels, 0, call.hh.shape[0])
    if from_x is None:
        z.copy_(from_h)
    else:
        torch.add(from_x, from_h, out=z)
    if call.bias is not None and (from_x is None or call.precise != call.hh.dtype):
        z += call.bias.view(-1, *(1,) * call.dims)


def _peep(call: Call, i_f: Tensor, c: Tensor) -> None:
    """Add what i and f see of the cell state, all (…, F, *S)."""
    if call.peepholes is not None:
        for gate, w_c in zip(i_f.chunk(2, call.channels), call.peepholes):
            gate.addcmul_(w_c, c)


def _peep_after(call: Call, o: Tensor, c_after: Tensor) -> None:
    if call.peepholes is not None:
        o.addcmul_(call.peepholes[2], c_after)


def _step(call: Call, z: Tensor, c: Tensor, h_after: Tensor, c_after: Tensor | None) -> Tensor:
    """z (B, 5F, *S), and c (B, F, *S) before the step → c after it. Writes h_after; z becomes what the backward needs."""
    rho, phi = call.rho, call.phi
    i_f, g, o, a = call.split(z)
    _peep(call, i_f, c)
    i, f = rho.over(i_f).chunk(2, 1)
    c_after = torch.mul(f, c, out=c_after)
    c_after.addcmul_(i, phi.over(g))
    _peep_after(call, o, c_after)
    torch.mul(rho.over(o), phi.into(c_after, a), out=h_after)
    return c_after


def _forward(call: Call, cs: Tensor | None, kept: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, F, *S), and h and c after the last step; where memory is given c of all steps, and z of the last ones."""
    y = call.outputs()
    unkept = call.steps - (0 if kept is None else kept.shape[0])
    h, c = call.h, call.c
    for first, last in call.blocks(0, call.steps):
        from_x = call.of_inputs(first, last)
        for t in range(first, last):
            z = None if kept is None or t < unkept else kept[t - unkept]
            now = None if from_x is None else from_x[t - first]
            c_after = call.step(t, now, h, c, z, y[:, t], None if cs is None else cs[t])
            h, c = y[:, t], c_after
    return y, call.state(h.dtype).copy_(h), call.state(call.precise).copy_(c)


def _kept_memory(call: Call) -> tuple[Tensor, Tensor]:
    """Memory for c of all steps (T, B, F, *S), and z of the last ones (K, B, 5F, *S)."""
    return call.maps(call.steps, 1, call.precise), call.memory(call.kept_steps)


# The backward, of a block of n steps from `first` to before `last`:
#   z       pre-activations of i, f, g, o; sigmoid and tanh have written over them; φ(c') behind   (n, B, 5F, *S)
#   c, c'   cell states before and after a step   (n, B, F, *S)
#   h, h'   hidden states                         (n, B, F, *S)
#   ρ, φ    recurrent activation, activation
#   a       φ(c')
#   d_v     gradient of a value v; d_z            (n, B, 4F, *S)


class Kept(NamedTuple):
    """What the forward left to the backward."""

    call: Call
    y: Tensor  # (B, T, F, *S)
    cs: Tensor  # (T, B, F, *S)
    kept: Tensor  # (K, B, 5F, *S): z of the last K steps

    def h(self, first: int, last: int) -> Tensor:
        """h before each step of a block, (n, B, F, *S)."""
        return self._before(self.call.h, self.y.transpose(0, 1), first, last)

    def c(self, first: int, last: int) -> Tensor:
        """c before each step of a block, (n, B, F, *S)."""
        return self._before(self.call.c, self.cs, first, last)

    def _before(self, start: Tensor, states: Tensor, first: int, last: int) -> Tensor:
        """States (T, B, F, *S) before each step of a block, that before the first step being `start`."""
        if first:
            return states[first - 1 : last - 1]
        if last == 1:
            return start.unsqueeze(0)
        result = self.call.maps(last, 1, states.dtype)
        result[0] = start
        result[1:] = states[: last - 1]
        return result

    def blocks(self) -> list[tuple[int, int]]:
        """From the last to the first; of each block either all or nothing was kept."""
        call, unkept = self.call, self.call.steps - self.kept.shape[0]
        return [*call.blocks(0, unkept), *call.blocks(unkept, call.steps)][::-1]

    def z(self, first: int, last: int) -> Tensor:
        """z of a block, (n, B, 5F, *S), as `_step` leaves it."""
        call, unkept = self.call, self.call.steps - self.kept.shape[0]
        if first >= unkept:
            return self.kept[first - unkept : last - unkept]
        return call.again(self, first, last)


def _step_back(call: Call, z: Tensor, c: Tensor, c_after: Tensor, d_h: Tensor, d_c: Tensor, d_z: Tensor) -> Tensor:
    """d_h and d_c after a step → d_c before it, all (B, F, *S). Writes d_z (B, 4F, *S).

    c' = ρ(i) φ(g) + ρ(f) c, h' = ρ(o) φ(c')
    """
    rho, phi = call.rho, call.phi
    z_if, z_g, z_o, a = call.split(z)
    d_if, d_g, d_o = call.split(d_z)
    d_i, d_f = d_if.chunk(2, 1)  # (B, F, *S) each
    i_f, g, o = rho.again(z_if), phi.again(z_g), rho.again(z_o)
    i, f = i_f.chunk(2, 1)

    rho.back(d_h * a, z_o, o, out=d_o)
    d_a = d_h * o
    phi.back(d_a, c_after, a, out=d_a)
    d_c = d_a.add_(d_c)  # of c'
    _peep_after(call, d_c, d_o)
    torch.mul(d_c, g, out=d_i)
    torch.mul(d_c, c, out=d_f)
    rho.back(d_if, z_if, i_f, out=d_if)
    phi.back(d_c * i, z_g, g, out=d_g)
    d_c.mul_(f)  # of c
    if call.peepholes is not None:
        w_ci, w_cf, _ = call.peepholes
        d_c.addcmul_(w_ci, d_i).addcmul_(w_cf, d_f)
    return d_c


def _through_time(
    kept: Kept, first: int, last: int, d_y: Tensor | None, d_h: Tensor, d_c: Tensor, d_z: Tensor, by_start: bool
) -> tuple[Tensor, Tensor]:
    """d_h and d_c (B, F, *S) after a block → those before it. Writes d_z (n, B, 4F, *S), in the precision of weights."""
    call, z, of_h = kept.call, kept.z(first, last), kept.call.of_h
    seen = of_h.memory(call.h.unsqueeze(0))
    for t in reversed(range(first, last)):
        now, used = d_z[t - first], call.used(t)
        d_now = now if now.dtype == call.precise else torch.empty_like(now, dtype=call.precise)
        d_h = d_h if d_y is None else d_h + d_y[:, t]
        c = kept.cs[t - 1] if t else call.c
        d_c_before = _step_back(call, z[t - first], c, kept.cs[t], d_h.to(call.precise), d_c, d_now)
        if now is not d_now:
            now.copy_(d_now)
        if used is not None:
            now.copy_(torch.where(used, now, 0.0))
            d_c_before = torch.where(used, d_c_before, d_c)
        d_c = d_c_before
        if t or by_start:
            d_h_before = of_h.by_input(now.unsqueeze(0), seen).squeeze(0)
            d_h = d_h_before if used is None else torch.where(used, d_h_before, d_h)
    return d_h, d_c


def _add_peepholes(kept: Kept, first: int, last: int, d_z: Tensor, d_ch: Tensor) -> None:
    call = kept.call
    c, c_after = kept.c(first, last), kept.cs[first:last]
    d_i, d_f, _, d_o = d_z.chunk(4, call.channels)
    axes = (0, 1) if d_ch.ndim > 1 else call.all_but_channels
    for part, d_gate, state in zip(d_ch.chunk(3), (d_i, d_f, d_o), (c, c, c_after)):
        part += (d_gate * state).sum(axes)


def _needed(call: Call, by: Sequence[bool]) -> dict[str, Tensor]:
    """The arguments whose gradients are needed."""
    return {name: value for needed, (name, value) in zip(by, call.differentiable.items()) if needed}


def _gradients(
    kept: Kept, d_y: Tensor | None, d_h: Tensor | None, d_c: Tensor | None, by: Sequence[bool]
) -> list[Tensor]:
    """Gradients of those of the first arguments that `by` names."""
    call = kept.call
    needed = _needed(call, by)
    sums = {
        name: torch.empty_like(value) if name == "x" else torch.zeros_like(value, dtype=call.precise)
        for name, value in needed.items()
    }
    d_h = torch.zeros_like(call.h) if d_h is None else d_h
    d_c = torch.zeros_like(kept.cs[0]) if d_c is None else d_c
    blocks = kept.blocks()
    longest = max(last - first for first, last in blocks)
    memory = call.maps(longest, 4, call.hh.dtype)
    for first, last in blocks:
        d_z = memory[: last - first]
        d_h, d_c = call.back(kept, first, last, d_y, d_h, d_c, d_z, sums)
        call.add_of_block(kept, first, last, d_z, sums)
    for name, value in (("h", d_h), ("c", d_c)):
        if name in sums:
            sums[name].copy_(value)
    return [sums[name].to(value.dtype) for name, value in needed.items()]


# The operators


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    y, _, _, cs, kept = output
    ctx.save_for_backward(*inputs[:_TENSORS], y, cs, kept)
    ctx.others = inputs[_TENSORS:]
    ctx.mark_non_differentiable(cs, kept)
    ctx.set_materialize_grads(False)


@contextmanager
def _called(kind: type[Call], arguments: Sequence[Any]) -> Iterator[Call]:
    call = kind.of(*arguments)
    with torch.autocast(call.x.device.type, enabled=False), call.device():
        yield call


def _infer(kind: type[Call], *arguments: Any) -> tuple[Tensor, ...]:
    with _called(kind, arguments) as call:
        return _forward(call, None, None)


def _train(kind: type[Call], *arguments: Any) -> tuple[Tensor, ...]:
    with _called(kind, arguments) as call:
        cs, kept = _kept_memory(call)
        return (*_forward(call, cs, kept), cs, kept)


def _backward(kind: type[Call], *arguments: Any) -> list[Tensor]:
    d_y, d_h, d_c, y, cs, kept, by, *rest = arguments
    with _called(kind, rest) as call:
        return _gradients(Kept(call, y, cs, kept), d_y, d_h, d_c, by)


def _fake_infer(kind: type[Call], *arguments: Any) -> tuple[Tensor, ...]:
    call = kind(*arguments)
    return call.outputs(), call.state(call.hh.dtype), call.state(call.precise)


def _fake_train(kind: type[Call], *arguments: Any) -> tuple[Tensor, ...]:
    return (*_fake_infer(kind, *arguments), *_kept_memory(kind(*arguments)))


def _fake_backward(kind: type[Call], *arguments: Any) -> list[Tensor]:
    *_, by, call = (*arguments[:7], kind(*arguments[7:]))
    return [torch.empty_like(value) for value in _needed(call, by).values()]


def _differentiate(
    backward: Callable[..., Any], ctx: Any, d_y: Tensor | None, d_h: Tensor | None, d_c: Tensor | None, *_: None
) -> tuple[Any, ...]:
    *tensors, y, cs, kept = ctx.saved_tensors
    arguments = (*tensors, *ctx.others)
    by = list(ctx.needs_input_grad[: len(_DIFFERENTIABLE)])
    by[0] = by[0] and arguments[3] is not None  # without a kernel for it, x has no say
    rest = (None,) * (len(arguments) - len(by))
    if torch.is_grad_enabled():  # create_graph=True
        call, autocast = Call(*arguments), arguments[-1]
        d_outputs = d_y, d_h, d_c
        found = reference.gradients(tensors[: len(by)], call.form, call.mask, call.drop, d_outputs, by, autocast)
        return (*found, *rest)
    values = iter(backward(d_y, d_h, d_c, y, cs, kept, by, *arguments))
    return (*(next(values) if needed else None for needed in by), *rest)


def compute_with(name: str, kind: type[Call]) -> Callable[..., tuple[Tensor, State]]:
    """Make the operators NAME_infer, NAME_train and NAME_backward, whose steps are those of `kind` → a `sequence`."""

    def made(part: str, compute: Callable[..., Any], schema: str, **others: Any) -> Callable[..., Any]:
        compute = partial(compute, kind)
        return operator(f"{name}_{part}", compute, schema, direct=partial(kind.run, compute), **others)

    infer = made("infer", _infer, f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor)", fake=partial(_fake_infer, kind))
    backward = made(
        "backward",
        _backward,
        "(Tensor? d_y, Tensor? d_h_last, Tensor? d_c_last, Tensor y, Tensor cs, Tensor kept, bool[] by, "
        f"{_ARGUMENTS}) -> Tensor[]",
        fake=partial(_fake_backward, kind),
    )
    train = made(
        "train",
        _train,
        f"({_ARGUMENTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
        fake=partial(_fake_train, kind),
        backward=partial(_differentiate, backward),
        keep=_keep,
    )

    def sequence(
        x: Tensor, state: State, w: Weights, form: Form, mask: Tensor | None = None, drop: Drop | None = None
    ) -> tuple[Tensor, State]:
        h, c = state
        autocast = autocast_of(x.device.type)
        if w.ih is not None and x.dtype != w.ih.dtype and (x.dtype == torch.float64 or autocast is None):
            raise RuntimeError(f"frames are {_name(x)} and weights {_name(w.ih)}: they should be the same")
        drop = Drop() if drop is None else drop
        padding, zeros = (form.padding, ()) if isinstance(form.padding, str) else ("zeros", form.padding)
        arguments = (
            *(x, h, c, w.ih, w.hh, w.ch, w.bias, mask, drop.inputs, drop.recurrent),
            *(form.stride, padding, zeros, form.dilation, name_of(form.activation), name_of(form.recurrent_activation)),
            *(form.periodic_x, autocast),
        )
        if torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in arguments[:7]):
            y, h, c, _, _ = train(*arguments)
        else:
            y, h, c = infer(*arguments)
        return y, (h, c)

    return sequence


def _name(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


_compute = compute_with("bptt", Call)


def sequence(
    x: Tensor, state: State, w: Weights, form: Form, mask: Tensor | None = None, drop: Drop | None = None
) -> tuple[Tensor, State]:
    """`reference.sequence`. Outputs share no memory with inputs or each other.

    Kept for the backward: y, c of all steps, and gates and φ(c') of the last ones, up to `KEPT_BYTES`.
    """
    return _compute(x, state, w, form, mask, drop)
