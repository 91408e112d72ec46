"""A ConvLSTM sequence in the Winograd domain, on a CPU: less arithmetic than any convolution that computes its sums as written.

With kernels of 5×5, four multiplications an output and pair of channels stand for twenty-five; with 3×3, two and a quarter for
nine. Recurrence suits it: kernels are transformed once a call, and products, gates and state of a tile never leave the cache
(native/winograd.cpp). The input goes through the same products where its convolution has the recurrent one's geometry;
otherwise torch convolves some steps of it at a time, under one bound of memory.

Kept for the backward: h, which is the output, c before the last, the transformed kernels, and all pre-activations if `KEPT_BYTES`
holds them. If not they are computed anew: what leaves the cache takes as long to write and read.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from . import native, reference
from .activations import ACTIVATIONS, name_of
from .case import Case, first_that_holds
from .convolution import Convolution
from .operators import operator
from .reference import Drop, Form, State, Weights

NAMES = tuple(ACTIVATIONS)  # in the order of the enum in native/lanes.h
FEWEST = 16  # channels with kernels of 5×5, so that rounding is bounded: see docs/engines.md
TILE = 4  # edge of a tile's output
TOGETHER = 256  # tiles of a step that are computed together, if one sample has not more
FEWEST_TILES = 16  # of all steps, with a backward
KEPT_BYTES = 2**25
HOISTED_BYTES = 2**25  # of pre-activations that the input's convolution makes at a time
# Edge of a tile's input, by kernel: the fewest multiplications on all maps larger than 2×2 (docs/engines.md)
POINTS = {3: 6, 5: 8}

ABOUT = f"kernels of 3×3 and 5×5 in the Winograd domain, on a CPU in float32 ({native.INSTRUCTION_SET})"


# --- rules ---


def unavailable() -> str | None:
    """Why this machine cannot run it, or None."""
    return None if native.LIBRARY is not None else "its C++ library was not built: install with a C++ compiler"


def supports(case: Case) -> str | None:
    """Why it cannot compute a case, or None."""
    kernel = case.recurrent_kernel
    reasons = {
        "it runs on a CPU": case.device != "cpu",
        "it computes a ConvLSTM, not a ConvGRU": case.cell != "lstm",
        "it has two dimensions": len(case.size) != 2,
        "it computes in float32: the transforms' rounding would spoil float64, and half precision": not (
            case.dtype == case.state_dtype == torch.float32
        ),
        "autocast asks for half precision": case.autocast,
        "its recurrent kernels are 3×3 and 5×5: rounding grows with the kernel": kernel not in ((3, 3), (5, 5)),
        f"with 5×5 and fewer than {FEWEST} hidden channels its rounding is more than sixteen times a convolution's": (
            kernel == (5, 5) and case.hidden_channels < FEWEST
        ),
        "a map of one pixel has nothing to transform": max(case.size) == 1,
        "a norm needs all of a map before its gates": case.norm,
        "zoneout draws, or mixes, in each step": case.zoneout,
        "a mask for each gate would need four products": case.dropout == "gate",
        "an activation that is a function has no counterpart in C++": None in case.activations,
        "torch.func transforms see through torch's operators only": case.transformed,
    }
    return first_that_holds(reasons)


def passed_over(case: Case) -> str | None:
    """Why "auto" leaves a case to another engine, or None: by the measurements in docs/engines.md."""
    tiles = case.batch * prod([-(-n // TILE) for n in case.size])  # a list: torch.compile traces through this
    if 2 * case.hidden_channels < native.LANES[native.INSTRUCTION_SET] and tiles > 64:  # else calls cost more than work
        return "so few hidden channels leave most of its vectors empty"
    if case.gradients and tiles * case.steps < FEWEST_TILES:
        return "transforming the kernels takes longer than so small maps save"
    return None


def is_joint(w: Weights, form: Form) -> bool:
    """Whether the input goes through the recurrent convolution's products: if its own has the same geometry.

    With 5×5 its few channels would round worse than the recurrent ones, so that torch convolves fewer than `FEWEST`.
    """
    if w.ih is None or w.ih.shape[2:] != w.hh.shape[2:]:
        return False
    if w.hh.shape[2] == 5 and w.ih.shape[1] < FEWEST:
        return False
    same = form.padding == "same" or tuple(form.padding) == tuple(k // 2 for k in w.hh.shape[2:])
    return same and set(form.stride) == set(form.dilation) == {1}


# --- the engine ---


def sequence(
    x: Tensor, state: State, w: Weights, form: Form, mask: Tensor | None = None, drop: Drop | None = None
) -> tuple[Tensor, State]:
    """As `reference.sequence`, for the cases that `supports` has nothing against."""
    h, c = state
    h_mask = None
    if drop is not None:
        if drop.inputs is not None and w.ih is not None:
            x = x * drop.inputs  # (B, 1, C, *frame): shared by gates and steps
        h_mask = None if drop.recurrent is None else drop.recurrent.squeeze(1)
    tensors = (x, h, c, w.ih, w.hh, w.ch, w.bias)
    keeps = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    u = None if keeps or torch.compiler.is_compiling() else _remembered_kernels(w, form, tuple(h.shape[2:]))
    padding, pads_ = (form.padding, ()) if isinstance(form.padding, str) else ("", form.padding)
    names = (name_of(form.activation), name_of(form.recurrent_activation))
    size = tuple(h.shape[2:])
    each = 4 * x.shape[0] * prod(size) * _columns(h.shape[1])  # bytes of a step's pre-activations
    kept = x.shape[1] if keeps and x.shape[1] * each <= KEPT_BYTES else 0  # all steps, or none
    y, h_last, c_last, *_ = _run(
        *tensors,
        mask,
        h_mask,
        u,
        form.stride,
        padding,
        pads_,
        form.dilation,
        *names,
        form.periodic_x,
        kept,
        keeps,
    )
    return y.permute(0, 1, 4, 2, 3), (h_last.permute(0, 3, 1, 2), c_last.permute(0, 3, 1, 2))


def _whole_vectors(channels: int) -> int:
    lanes = native.LANES[native.INSTRUCTION_SET]
    return -(-channels // lanes) * lanes


def _columns(hidden: int) -> int:
    """Numbers that a pixel's pre-activations take in the library."""
    return 4 * _whole_vectors(hidden)


_GEOMETRY = (
    "int[] stride, str padding, int[] pads, int[] dilation, str activation, str recurrent_activation, bool periodic_x"
)
_ARGUMENTS = (
    "Tensor x, Tensor h, Tensor c, Tensor? ih, Tensor hh, Tensor? ch, Tensor? bias, Tensor? mask, Tensor? h_mask"
)


def _form(geometry: Sequence[Any]) -> Form:
    stride, padding, pads_, dilation, activation, recurrent_activation, periodic_x = geometry
    return Form(
        tuple(stride),
        padding or tuple(pads_),
        tuple(dilation),
        ACTIVATIONS[activation].function,
        ACTIVATIONS[recurrent_activation].function,
        periodic_x=periodic_x,
    )


def _frames(tensor: Tensor) -> Tensor:
    """(B, F, Y, X) → (B, Y, X, F) without gaps."""
    return tensor.detach().permute(0, 2, 3, 1).contiguous()


def _is_one_zero(state: Tensor) -> bool:
    """Whether a state is the zero that layers begin with, expanded: nothing to copy."""
    return state.numel() > 0 and not any(state.stride()) and not state[0, 0, 0, 0]


def _parts(state: Tensor) -> list[slice | None]:
    """Samples that are computed together, None for all: few, so that what a step hands to the next stays in a cache."""
    batch, _, height, width = state.shape
    tiles = -(-height // TILE) * -(-width // TILE)
    each = max(1, TOGETHER // tiles)
    if batch <= each:
        return [None]
    return [slice(first, min(first + each, batch)) for first in range(0, batch, each)]


def _of(part: slice | None, *tensors: Tensor) -> tuple[Tensor, ...]:
    """The samples of a part."""
    return tensors if part is None else tuple(tensor[part] for tensor in tensors)


class _Call:
    """A call of the library: the problem that it is given, and the tensors that it points to."""

    def __init__(
        self,
        x: Tensor,
        h: Tensor,
        c: Tensor,
        w: Weights,
        form: Form,
        mask: Tensor | None,
        h_mask: Tensor | None,
        part: slice | None = None,
    ) -> None:
        x, h, c = _of(part, x, h, c)
        library = native.LIBRARY
        assert library is not None  # `unavailable` says so before
        self.library = library
        self.tensors: dict[str, Tensor] = {}
        self.joint = is_joint(w, form)
        self.of_x = None  # the input's convolution, where torch computes it
        if w.ih is not None and not self.joint:
            self.of_x = Convolution(w.ih.detach(), form, None, tuple(x.shape[3:]))
        hidden, height, width = h.shape[1:]
        self.problem = problem = native.Problem(
            batch=x.shape[0],
            steps=x.shape[1],
            last=x.shape[1],
            height=height,
            width=width,
            inputs=x.shape[2] if self.joint else 0,
            hidden=hidden,
            kernel=w.hh.shape[2],
            points=POINTS[w.hh.shape[2]],
            activation=NAMES.index(str(name_of(form.activation))),
            recurrent_activation=NAMES.index(str(name_of(form.recurrent_activation))),
            threads=torch.get_num_threads(),
            isa=native.INSTRUCTION_SETS.index(native.INSTRUCTION_SET),
            periodic_x=form.periodic_x,
            peephole_pixels=1,
            **native.TEAM,
        )
        if self.joint:
            self.give_strided(x=x)
        self.give(
            h0=None if _is_one_zero(h) else _frames(h),
            c0=None if _is_one_zero(c) else _frames(c),
            weight_ih=w.ih if self.joint else None,
            weight_hh=w.hh,
            bias=w.bias,
            mask=None if mask is None else _of(part, mask)[0].to(torch.uint8),
            h_mask=None if h_mask is None else _frames(_of(part, h_mask)[0]),
        )
        if w.ch is not None:
            peepholes = w.ch.reshape(3, hidden, -1).permute(2, 0, 1)
            problem.peephole_pixels = peepholes.shape[0]
            self.give(peephole=peepholes)

    def give(self, **tensors: Tensor | None) -> None:
        """Point to tensors, without gaps."""
        for name, tensor in tensors.items():
            if tensor is not None:
                self.tensors[name] = tensor.detach().contiguous()
            setattr(self.problem, name, None if tensor is None else self.tensors[name].data_ptr())

    def give_strided(self, **tensors: Tensor) -> None:
        """Point to frames (B, T, C, Y, X) as they lie."""
        for name, tensor in tensors.items():
            self.tensors[name] = tensor.detach()
            setattr(self.problem, name, tensor.data_ptr())
            getattr(self.problem, f"{name}_strides")[:] = tensor.stride()

    def make_kernels(self, name: str) -> Tensor:
        """u or u_transposed."""
        p = self.problem
        rows, columns = _whole_vectors(p.inputs) + _whole_vectors(p.hidden), _columns(p.hidden)
        inner = (p.inputs + p.hidden, columns) if name == "u" else (columns, rows)
        self.give(**{name: self.tensors["weight_hh"].new_zeros(p.points**2, *inner)})  # padding stays zero
        self.run("weights")
        return self.tensors[name]

    def blocks(self) -> list[slice]:
        """Steps that the library computes at a time."""
        p = self.problem
        each = p.steps
        if self.of_x is not None:
            each = max(1, HOISTED_BYTES // max(1, 16 * p.batch * p.height * p.width * p.hidden))
        return [slice(first, min(first + each, p.steps)) for first in range(0, p.steps, each)]

    def run(self, function: str, steps: slice | None = None) -> None:
        if steps is not None:
            self.problem.first, self.problem.last = steps.start, steps.stop
        if getattr(self.library, f"stormcell_{function}")(ctypes.byref(self.problem)):
            raise MemoryError("no memory is left for the Winograd engine")


def _convolved(of_x: Convolution, x: Tensor) -> Tensor:
    """What frames (B, n, C, Y, X) add to the pre-activations: (B, n, Y', X', 4F)."""
    return of_x(x.detach()).movedim(2, -1).contiguous()


def _forward(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    ih: Tensor | None,
    hh: Tensor,
    ch: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    h_mask: Tensor | None,
    u: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """y (B, T, Y, X, F), last h and c (B, Y, X, F), and for the backward, or empty: c before the last, z, u."""
    *geometry, kept, keeps = rest
    form = _form(geometry)
    batch, hidden, height, width = h.shape
    frame = (height, width, hidden)
    y, c_last = h.new_empty(batch, x.shape[1], *frame), h.new_empty(batch, *frame)
    all_c, z = h.new_empty(0), h.new_empty(0)  # outputs of an operator share no memory, not even none
    if keeps:
        all_c = h.new_empty(batch, x.shape[1] - 1, *frame)
        empty = h.new_empty if mask is None else h.new_zeros  # frames that the mask leaves out are not written
        z = empty(batch, kept, height * width, _columns(hidden))
    for part in _parts(h):
        call = _Call(x, h, c, Weights(ih, hh, ch, bias), form, mask, h_mask, part)
        x_here, y_here, c_last_here, all_c_here, z_here = _of(part, x, y, c_last, all_c, z)
        call.give(y=y_here, c_last=c_last_here)
        if keeps:
            call.give(c=all_c_here, z=z_here if kept else None)
        if u is None:
            u = call.make_kernels("u")
        call.give(u=u)
        for steps in call.blocks():
            if call.of_x is not None:
                call.give(hoisted=_convolved(call.of_x, x_here[:, steps]))
            call.run("forward", steps)
    return y, y[:, -1].clone(), c_last, all_c, z, u if keeps and u is not None else h.new_empty(0)


def _backward(
    d_y: Tensor | None,
    d_h: Tensor | None,
    d_c: Tensor | None,
    x: Tensor,
    h: Tensor,
    c: Tensor,
    ih: Tensor | None,
    hh: Tensor,
    ch: Tensor | None,
    bias: Tensor | None,
    mask: Tensor | None,
    h_mask: Tensor | None,
    y: Tensor,
    all_c: Tensor,
    z: Tensor,
    u: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """Gradients of x, h, c, ih, hh, ch, bias; empty where `needs` is False."""
    *geometry, needs = rest
    form = _form(geometry)
    w = Weights(ih, hh, ch, bias)
    joint, hidden = is_joint(w, form), hh.shape[1]
    # What the library adds to, and writes when all is done; its peepholes are (pixel, 3, F).
    sums = {
        "d_u": torch.zeros_like(u) if needs[4] or (needs[3] and joint) else None,
        "d_bias": torch.zeros_like(bias) if bias is not None and needs[6] else None,
        "d_peephole": ch.new_zeros(ch.numel() // 3 // hidden, 3, hidden) if ch is not None and needs[5] else None,
        "d_weight_ih": ih.new_empty(ih.shape) if ih is not None and needs[3] and joint else None,
        "d_weight_hh": hh.new_empty(hh.shape) if needs[4] else None,
    }
    d_x = torch.empty_like(x) if needs[0] else None
    d_state = [y.new_empty(y.shape[0], *y.shape[2:]) if needed else None for needed in needs[1:3]]
    d_ih = sums["d_weight_ih"]
    u_transposed = None
    for part in (part or slice(None) for part in _parts(h)):
        call = _Call(x, h, c, w, form, mask, h_mask, part)
        # The gradients of the state after the last step, which become those of the state before the first.
        d_h_part, d_c_part = (
            torch.zeros_like(y[part, 0]) if d is None else d[part].clone().contiguous() for d in (d_h, d_c)
        )
        if u_transposed is None:
            u_transposed = call.make_kernels("u_transposed")
        call.give(u=u, u_transposed=u_transposed, y=y[part], c=all_c[part], z=z[part] if z.shape[1] else None)
        call.give(d_h=d_h_part, d_c=d_c_part, **sums)
        if d_y is not None:
            call.give_strided(d_y=d_y[part].permute(0, 1, 4, 2, 3))
        if joint and d_x is not None:
            call.give_strided(d_x=d_x[part])
        for steps in reversed(call.blocks()):
            of_x, frames = call.of_x, x[part, steps].detach()
            if of_x is None:
                call.run("backward", steps)
                continue
            call.give(hoisted=None if z.shape[1] else _convolved(of_x, frames))
            d_z = y.new_empty(*y[part, steps].shape[:-1], 4 * hidden)
            call.give(d_hoisted=d_z)
            call.run("backward", steps)
            d_z, seen = d_z.movedim(-1, 2), of_x.see(frames)
            if d_x is not None:
                d_x[part, steps] = of_x.by_input(d_z, seen)
            if needs[3]:
                d_ih = of_x.by_weight(d_z, seen) if d_ih is None else d_ih + of_x.by_weight(d_z, seen)
        for whole, d in zip(d_state, (d_h_part, d_c_part)):
            if whole is not None:
                whole[part] = d
    if sums["d_u"] is not None:
        call.run("d_weights")
    d_peephole = sums["d_peephole"]
    found = (
        d_x if ih is not None or d_x is None else d_x.zero_(),
        *(None if d is None else d.permute(0, 3, 1, 2) for d in d_state),
        d_ih,
        sums["d_weight_hh"],
        None if d_peephole is None or ch is None else d_peephole.permute(1, 2, 0).reshape(ch.shape),
        sums["d_bias"],
    )
    return tuple(hh.new_empty(0) if g is None or not needed else g for g, needed in zip(found, needs))


# --- as operators ---


def _fake_forward(x: Tensor, h: Tensor, c: Tensor, ih: Tensor | None, hh: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    *geometry, kept, keeps = rest[5:]
    batch, hidden, height, width = h.shape
    frame = (height, width, hidden)
    y, h_last, c_last = h.new_empty(batch, x.shape[1], *frame), h.new_empty(batch, *frame), h.new_empty(batch, *frame)
    if not keeps:
        return y, h_last, c_last, h.new_empty(0), h.new_empty(0), h.new_empty(0)
    channels = hidden + (x.shape[2] if is_joint(Weights(ih, hh), _form(geometry)) else 0)
    z = h.new_empty(batch, kept, height * width, _columns(hidden))
    u = h.new_empty(POINTS[int(hh.shape[2])] ** 2, channels, _columns(hidden))
    return y, h_last, c_last, h.new_empty(batch, x.shape[1] - 1, *frame), z, u


def _fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, needs = arguments[3:10], arguments[-1]
    found = []
    for tensor, needed in zip(inputs, needs):
        if tensor is None or not needed:
            found.append(arguments[3].new_empty(0))
        elif tensor is inputs[1] or tensor is inputs[2]:
            batch, hidden, height, width = tensor.shape
            found.append(tensor.new_empty(batch, height, width, hidden).permute(0, 3, 1, 2))
        else:
            found.append(torch.empty_like(tensor))
    return tuple(found)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    y, _, _, all_c, z, u = output
    ctx.save_for_backward(*inputs[:9], y, all_c, z, u)
    ctx.geometry = inputs[10:17]


def _differentiate(ctx: Any, d_y: Tensor | None, d_h: Tensor | None, d_c: Tensor | None, *_: Any) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    needs = [bool(needed) for needed in ctx.needs_input_grad[:7]]
    if torch.is_grad_enabled():  # create_graph=True: the reference can be differentiated twice
        mask, h_mask = saved[7:9]
        drop = None if h_mask is None else Drop(None, h_mask.unsqueeze(1))
        maps = [None if d is None else d.movedim(-1, -3) for d in (d_y, d_h, d_c)]  # (…, Y, X, F) → (…, F, Y, X)
        found = reference.gradients(saved[:7], _form(ctx.geometry), mask, drop, maps, needs)
    else:
        made = _run_backward(d_y, d_h, d_c, *saved, *ctx.geometry, needs)
        found = [gradient if needed else None for gradient, needed in zip(made, needs)]
    return (*found, *(None,) * 12)


_run_backward = operator(
    "winograd_backward",
    _backward,
    f"(Tensor? d_y, Tensor? d_h, Tensor? d_c, {_ARGUMENTS}, Tensor y, Tensor all_c, Tensor z, Tensor u, "
    f"{_GEOMETRY}, bool[] needs) -> ({', '.join(['Tensor'] * 7)})",
    fake=_fake_backward,
)
_run = operator(
    "winograd",
    _forward,
    f"({_ARGUMENTS}, Tensor? u, {_GEOMETRY}, SymInt kept, bool keeps) -> ({', '.join(['Tensor'] * 6)})",
    fake=_fake_forward,
    backward=_differentiate,
    keep=_keep,
)


# --- kernels that are kept between calls ---

_remembered = WeakTensorKeyDictionary()  # recurrent kernels → (what else u was made with, copies of the weights, u)


def _remembered_kernels(w: Weights, form: Form, size: tuple[int, ...]) -> Tensor:
    """The transformed kernels of weights that are what they were in the last call: a stream of steps makes them once.

    Values are compared: `_version` misses what is done to `.data`, and tensors of inference mode have none.
    """
    joint = is_joint(w, form)
    weights = [w.hh] if w.ih is None or not joint else [w.hh, w.ih]
    key = (joint, native.INSTRUCTION_SET)
    known_key, copies, u = _remembered.get(w.hh, (None, [], None))
    if known_key == key and all(map(torch.equal, weights, copies)):
        return u
    frames = w.hh.new_empty(1, 1, 0 if w.ih is None else w.ih.shape[1], *size)
    h = w.hh.new_empty(1, w.hh.shape[1], *size)
    u = _Call(frames, h, h, w, form, None, None).make_kernels("u")
    _remembered[w.hh] = (key, [weight.detach().clone() for weight in weights], u)
    return u
