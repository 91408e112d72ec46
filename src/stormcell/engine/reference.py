"""The equations of ConvLSTM, a step at a time, with the backward left to autograd: the truth for every other engine.

    i = ρ(W_xi * x + W_hi * h + w_ci ∘ c  + b_i)
    f = ρ(W_xf * x + W_hf * h + w_cf ∘ c  + b_f)
    g = φ(W_xg * x + W_hg * h             + b_g)
    c' = f ∘ c + i ∘ g
    o = ρ(W_xo * x + W_ho * h + w_co ∘ c' + b_o)
    h' = o ∘ φ(c')

Shi et al. 2015, eq. 3 (with peepholes w_c); without them, keras/src/layers/rnn/conv_lstm.py. `*` is a convolution, `∘` the
product of elements, ρ the recurrent activation (sigmoid), φ the activation (tanh). Gates lie in the order i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

Activation = Callable[[Tensor], Tensor]
CONVOLUTIONS = {1: nnf.conv1d, 2: nnf.conv2d, 3: nnf.conv3d}


class Weights(NamedTuple):
    """The parameters of one layer in one direction. `*k` and `*r` are kernel sizes, `*S` the size of the state."""

    ih: Tensor | None  # (4F, C, *k); None: the layer has no input and runs on its state alone
    hh: Tensor  # (4F, F, *r)
    ch: Tensor | None  # peepholes i, f, o: (3F,) one a channel, (3F, *S) one a pixel, None for none
    bias: Tensor | None  # (4F,)


class Form(NamedTuple):
    """What the weights do not say. Stride, padding and dilation belong to the input convolution alone."""

    stride: tuple[int, ...]
    padding: str | tuple[int, ...]  # "same" (TensorFlow's rule), "valid", or zeros added on both sides of each axis
    dilation: tuple[int, ...]
    activation: Activation
    recurrent_activation: Activation


def pads(size: tuple[int, ...], kernel: tuple[int, ...], form: Form) -> list[tuple[int, int]]:
    """Zeros before and after each axis. "same" is TensorFlow's rule: with an odd total, the larger part comes after."""
    if form.padding == "valid":
        return [(0, 0)] * len(size)
    if form.padding == "same":
        result = []
        for n, k, s, d in zip(size, kernel, form.stride, form.dilation):
            total = max((-(-n // s) - 1) * s + (k - 1) * d + 1 - n, 0)
            result.append((total // 2, total - total // 2))
        return result
    return [(int(p), int(p)) for p in form.padding]


def state_size(size: tuple[int, ...], kernel: tuple[int, ...], form: Form) -> tuple[int, ...]:
    """Size of the state, which is that of the input convolution's output, for frames of `size`."""
    return tuple(
        (n + before + after - (k - 1) * d - 1) // s + 1
        for n, k, s, d, (before, after) in zip(size, kernel, form.stride, form.dilation, pads(size, kernel, form))
    )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form) -> Tensor:
    dims = weight.ndim - 2
    margins = pads(tuple(x.shape[2:]), tuple(weight.shape[2:]), form)
    if all(before == after for before, after in margins):
        padding = tuple(before for before, _ in margins)
    else:
        x = nnf.pad(x, [p for margin in reversed(margins) for p in margin])
        padding = (0,) * dims
    return CONVOLUTIONS[dims](x, weight, bias, form.stride, padding, form.dilation)


def step(x: Tensor | None, h: Tensor, c: Tensor, w: Weights, form: Form) -> tuple[Tensor, Tensor]:
    """One step: x (B, C, *frame), h and c (B, F, *S) → the next h and c. Outputs share no memory with inputs."""
    dims = w.hh.ndim - 2
    same = form._replace(stride=(1,) * dims, padding="same", dilation=(1,) * dims)
    z = _convolve(h, w.hh, w.bias, same)
    if w.ih is not None and x is not None:
        z = z + _convolve(x, w.ih, None, form)
    i, f, g, o = z.chunk(4, dim=1)
    if w.ch is not None:
        peephole = w.ch if w.ch.ndim > 1 else w.ch.view(-1, *(1,) * dims)
        w_ci, w_cf, w_co = peephole.chunk(3)
        i, f = i + w_ci * c, f + w_cf * c
    c = form.recurrent_activation(f) * c + form.recurrent_activation(i) * form.activation(g)
    if w.ch is not None:
        o = o + w_co * c
    return form.recurrent_activation(o) * form.activation(c), c


def sequence(
    x: Tensor, h: Tensor, c: Tensor, w: Weights, form: Form, mask: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """All steps: x (B, T, C, *frame) → y (B, T, F, *S), and the last h and c.

    mask (B, T), True = the step is used. Where it is False the state is kept and the output is the last one that was
    used, zeros before the first (keras/src/layers/rnn/rnn.py). A layer without input takes frames of zero channels.
    """
    outputs = []
    latest = torch.zeros_like(h)
    for t in range(x.shape[1]):
        h_next, c_next = step(x[:, t], h, c, w, form)
        if mask is None:
            h, c, latest = h_next, c_next, h_next
        else:
            used = mask[:, t].view(-1, *(1,) * (h.ndim - 1))
            h, c = torch.where(used, h_next, h), torch.where(used, c_next, c)
            latest = torch.where(used, h_next, latest)
        outputs.append(latest)
    return torch.stack(outputs, dim=1), h, c
