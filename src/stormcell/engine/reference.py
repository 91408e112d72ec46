"""The equations of ConvLSTM and ConvGRU, a step at a time, with the backward left to autograd: the truth for every engine.

    i = ρ(W_xi * x + W_hi * h + w_ci ∘ c  + b_i)            r = ρ(W_xr * x + W_hr * h + b_r)
    f = ρ(W_xf * x + W_hf * h + w_cf ∘ c  + b_f)            z = ρ(W_xz * x + W_hz * h + b_z)
    g = φ(W_xg * x + W_hg * h             + b_g)            n = φ(W_xn * x + b_n + r ∘ (W_hn * h + b_m))
    c' = f ∘ c + i ∘ g                                      h' = (1 - z) ∘ n + z ∘ h
    o = ρ(W_xo * x + W_ho * h + w_co ∘ c' + b_o)
    h' = o ∘ φ(c')

Left: Shi et al. 2015, eq. 3 (with peepholes w_c); without them, keras/src/layers/rnn/conv_lstm.py. Gates lie in the order
i, f, g, o. Right: torch.nn.GRU (reset after); r, z, n, and four biases. `*` is a convolution, `∘` the product of elements, ρ
the recurrent activation (sigmoid), φ the activation (tanh).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]  # (h, c) of an LSTM, (h,) of a GRU
ABOUT = "the equations a step at a time, any device, differentiable any number of times"
CONVOLUTIONS = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}


class Weights(NamedTuple):
    """The parameters of one layer in one direction; G gates. `*k` and `*r` are kernel sizes, `*S` the size of the state."""

    ih: Tensor | None  # (G·F, C, *k); None: the layer has no input and runs on its state alone
    hh: Tensor  # (G·F, F, *r)
    ch: Tensor | None = None  # peepholes i, f, o: (3F,) one a channel, (3F, *S) one a pixel, None for none
    bias: Tensor | None = None  # (4F,)
    norm_ih: Tensor | None = None  # (G·F,) gains, where the two convolutions' outputs are normalised
    norm_hh: Tensor | None = None


class Form(NamedTuple):
    """What the weights do not say. Stride, padding and dilation belong to the input convolution alone."""

    stride: tuple[int, ...]
    padding: str | tuple[int, ...]  # "same" (TensorFlow's rule), "valid", or zeros added on both sides of each axis
    dilation: tuple[int, ...]
    activation: Activation
    recurrent_activation: Activation
    cell: str = "lstm"  # or "gru"
    norm_groups: int = 1  # of channels that are normalised together, where weights have gains
    zoneout: tuple[float, ...] = ()  # probability of keeping the old value, for each tensor of the state
    periodic_x: bool = False  # what lies beyond an end of the last axis is its other end, and not zeros

    def same_size(self) -> Form:
        """The form of what leaves the size as it is: recurrent convolutions, and layers above the first."""
        ones = (1,) * len(self.stride)
        return Form(  # spelt out: torch.compile in torch 2.6 knows no _replace
            ones,
            "same",
            ones,
            self.activation,
            self.recurrent_activation,
            self.cell,
            self.norm_groups,
            self.zoneout,
            self.periodic_x,
        )


class Drop(NamedTuple):
    """What a call leaves out at random. The masks are drawn once a call and hold for all its steps (Gal, Ghahramani 2016)."""

    inputs: Tensor | None = None  # (B, G, C, *frame), one mask a gate as in Keras, or (B, 1, C, *frame) shared
    recurrent: Tensor | None = None  # (B, G, F, *S) or (B, 1, F, *S)
    training: bool = False  # zoneout draws in training, and takes the expected value otherwise


def pads(size: tuple[int, ...], kernel: tuple[int, ...], form: Form) -> list[tuple[int, int]]:
    """Zeros before and after each axis. "same" is TensorFlow's rule: with an odd total, the larger part comes after.

    With stride 1 the frame's size is not read, so that an exported graph fits any size.
    """
    if form.padding == "valid":
        return [(0, 0)] * len(size)
    if form.padding == "same":
        result = []
        for n, k, s, d in zip(size, kernel, form.stride, form.dilation):
            reach = (k - 1) * d
            total = reach if s == 1 else reach - (n - 1) % s
            if reach < s - 1:  # a kernel shorter than the stride leaves pixels unread
                total = torch.sym_max(total, 0)
            result.append((total // 2, total - total // 2))
        return result
    return [(int(p), int(p)) for p in form.padding]


def state_size(size: tuple[int, ...], kernel: tuple[int, ...], form: Form) -> tuple[int, ...]:
    """Size of the state, which is that of the input convolution's output, for frames of `size`."""
    if form.padding == "same":
        return tuple((n - 1) // s + 1 for n, s in zip(size, form.stride))
    return tuple(
        (n + before + after - (k - 1) * d - 1) // s + 1
        for n, k, s, d, (before, after) in zip(size, kernel, form.stride, form.dilation, pads(size, kernel, form))
    )


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, drop: Tensor | None = None) -> Tensor:
    """Convolution of x (B, C, *frame) under the padding rules of `form`, with a mask for each gate where `drop` is given."""
    groups = 1
    if drop is not None:
        groups = drop.shape[1]
        x = (x.unsqueeze(1) * drop.to(x.dtype)).flatten(1, 2)
    margins = pads(tuple(x.shape[2:]), tuple(weight.shape[2:]), form)
    if form.periodic_x and any(margins[-1]):
        x = nnf.pad(x, [*margins[-1], *[0, 0] * (len(margins) - 1)], mode="circular")
        margins[-1] = (0, 0)
    if all(isinstance(after, int) and before == after for before, after in margins):
        padding = tuple(before for before, _ in margins)
    else:
        x = nnf.pad(x, [p for margin in reversed(margins) for p in margin])
        padding = (0,) * len(margins)
    return CONVOLUTIONS[len(margins)](x, weight, bias, form.stride, padding, form.dilation, groups)


def _per_channel(vector: Tensor, dims: int) -> Tensor:
    return vector.view(-1, *(1,) * dims)


def _halves(x: Tensor, h: Tensor, w: Weights, form: Form, drop: Drop) -> tuple[Tensor | None, Tensor]:
    """The input's and the state's part of all pre-activations, (B, G·F, *S) each, without bias, in the state's precision."""
    dims = w.hh.ndim - 2
    from_h = convolve(h, w.hh, None, form.same_size(), drop.recurrent)
    from_x = None if w.ih is None else convolve(x, w.ih, None, form, drop.inputs)
    if w.norm_hh is not None:
        from_h = nnf.group_norm(from_h, form.norm_groups) * _per_channel(w.norm_hh, dims)
    if from_x is not None and w.norm_ih is not None:
        from_x = nnf.group_norm(from_x, form.norm_groups) * _per_channel(w.norm_ih, dims)
    return from_x, from_h


def _lstm(x: Tensor, state: State, w: Weights, form: Form, drop: Drop) -> State:
    h, c = state
    dims = w.hh.ndim - 2
    from_x, from_h = _halves(x, h, w, form, drop)
    z = from_h if from_x is None else from_x + from_h
    narrow = z.dtype  # under autocast; the cell state keeps its own precision: sums over time need it
    z = z.to(c.dtype)
    if w.bias is not None:
        z = z + _per_channel(w.bias, dims)
    i, f, g, o = z.chunk(4, dim=1)
    if w.ch is not None:
        w_ci, w_cf, w_co = (w.ch if w.ch.ndim > 1 else _per_channel(w.ch, dims)).chunk(3)
        i, f = i + w_ci * c, f + w_cf * c
    c = form.recurrent_activation(f) * c + form.recurrent_activation(i) * form.activation(g)
    if w.ch is not None:
        o = o + w_co * c
    h = form.recurrent_activation(o) * form.activation(c)
    return h.to(narrow), c


def _gru(x: Tensor, state: State, w: Weights, form: Form, drop: Drop) -> State:
    (h,) = state
    dims = w.hh.ndim - 2
    from_x, from_h = _halves(x, h.to(w.hh.dtype), w, form, drop)
    r_h, z_h, n_h = from_h.to(h.dtype).chunk(3, dim=1)
    r_x, z_x, n_x = (0.0, 0.0, 0.0) if from_x is None else from_x.to(h.dtype).chunk(3, dim=1)
    b_r, b_z, b_n, b_m = (0.0,) * 4 if w.bias is None else _per_channel(w.bias, dims).chunk(4)
    r = form.recurrent_activation(r_x + r_h + b_r)
    z = form.recurrent_activation(z_x + z_h + b_z)
    n = form.activation(n_x + b_n + r * (n_h + b_m))
    return ((1 - z) * n + z * h,)


_CELLS = {"lstm": _lstm, "gru": _gru}


def step(x: Tensor, state: State, w: Weights, form: Form, drop: Drop | None = None) -> State:
    """One step: x (B, C, *frame) and a state of (B, F, *S) → the next state. Outputs share no memory with inputs.

    Zoneout keeps values of the old state: h' is computed from the new cell state before that (Krueger et al. 2017, eq. 5).
    """
    drop = Drop() if drop is None else drop
    after = _CELLS[form.cell](x, state, w, form, drop)
    if not any(form.zoneout):
        return after
    if drop.training:
        return tuple(
            torch.where(torch.rand_like(new, dtype=torch.float32) < p, old.to(new.dtype), new)  # bfloat16: 1/256 apart
            for old, new, p in zip(state, after, form.zoneout)
        )
    return tuple(p * old.to(new.dtype) + (1 - p) * new for old, new, p in zip(state, after, form.zoneout))


def sequence(
    x: Tensor, state: State, w: Weights, form: Form, mask: Tensor | None = None, drop: Drop | None = None
) -> tuple[Tensor, State]:
    """All steps: x (B, T, C, *frame) → h after each step, (B, T, F, *S), and the last state.

    mask (B, T): where it is False the state is kept. A layer without input takes frames of zero channels.
    """
    outputs = []
    for t in range(x.shape[1]):
        after = step(x[:, t], state, w, form, drop)
        if mask is not None:
            used = mask[:, t].view(-1, *(1,) * (w.hh.ndim - 1))
            after = tuple(torch.where(used, new, old.to(new.dtype)) for old, new in zip(state, after))
        state = after
        # A GRU's h sums over time, so it is float32 even where weights are half precision; what it shows is not.
        outputs.append(state[0].to(w.hh.dtype) if form.cell == "gru" else state[0])
    return torch.stack(outputs, dim=1), state


def narrowed(value: Tensor | None, autocast: torch.dtype | None) -> Any:
    """What autocast convolves, in its precision if there is one; like it, with float64 left as it is."""
    return value if value is None or autocast is None or value.dtype == torch.float64 else value.to(autocast)


def gradients(
    tensors: Sequence[Tensor | None],
    form: Form,
    mask: Tensor | None,
    drop: Drop | None,
    d_outputs: Sequence[Tensor | None],
    by: Sequence[bool],
    autocast: torch.dtype | None = None,
) -> list[Tensor | None]:
    """Gradients by x, h, c, ih, hh, ch and bias, that can be differentiated themselves; None where `by` is False.

    `d_outputs` are those of y and of the last h and c. For engines whose own backward can be differentiated once.
    """
    if all(d_output is None for d_output in d_outputs):
        return [None] * len(by)
    views = [None if value is None else value.view_as(value) for value in tensors]  # one may depend on another
    x, h, ih, hh = (narrowed(views[number], autocast) for number in (0, 1, 3, 4))
    _, _, c, _, _, ch, bias = views
    y, state = sequence(x, (h, c), Weights(ih, hh, ch, bias), form, mask, drop)  # type: ignore[arg-type]
    pairs = [(value, d_value) for value, d_value in zip((y, *state), d_outputs) if d_value is not None]
    made = iter(
        torch.autograd.grad(
            [value for value, _ in pairs],
            [value for value, wanted in zip(views, by) if value is not None and wanted],
            [d_value for _, d_value in pairs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(made) if wanted and value is not None else None for value, wanted in zip(views, by)]


def unavailable() -> None:
    """It runs wherever torch does."""


def supports(case: object) -> None:
    """It computes every case."""


def passed_over(case: object) -> None:
    """It is the last that "auto" comes to."""
