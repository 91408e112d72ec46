"""Where a ConvLSTM and Conv2D + LSTM are the same: exact conversions, weights and all.

On a 1×1 map a ConvLSTM is an LSTM of its centre taps. With 1×1 kernels it is an LSTM that all pixels share. With a 1×1
recurrent kernel it is a linear convolution and such an LSTM. And any ConvLSTM is a dense LSTM on the flattened map, whose
weights repeat themselves along diagonals and are zero nearly everywhere. tests/nn/test_identities.py proves each to 1e-12,
and that they fail where they should.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..engine import Form, state_size
from ..engine.activations import linear
from ..engine.reference import pads
from .convlstm import ConvLSTM, ConvLSTM1d, ConvLSTM2d, ConvLSTM3d
from .recurrent import Size, _activation, _sizes
from .stacks import Conv2dPixelLSTM

__all__ = [
    "from_conv_and_pixel_lstm",
    "from_pixel_lstm",
    "to_conv_and_pixel_lstm",
    "to_dense_lstm",
    "to_pixel_lstm",
]

Module = TypeVar("Module", bound=nn.Module)
_LAYERS: dict[int, type[ConvLSTM]] = {1: ConvLSTM1d, 2: ConvLSTM2d, 3: ConvLSTM3d}
_MOST_WEIGHTS = 2**31  # of a dense LSTM: 8.6 GB in float32


def _check_plain(layer: ConvLSTM) -> None:
    """Raise ValueError if the layer computes what torch.nn.LSTM does not know."""
    if not isinstance(layer, ConvLSTM):
        raise ValueError(f"expected ConvLSTM1d, ConvLSTM2d or ConvLSTM3d. Received: {type(layer).__name__}")
    foreign = {
        "in_channels": layer.in_channels == 0,
        "reverse": layer.reverse,
        "peephole": layer.peephole is not None,
        "activation": _activation(layer.activation, "activation") is not torch.tanh,
        "recurrent_activation": _activation(layer.recurrent_activation, "recurrent_activation") is not torch.sigmoid,
        "input_dropout": layer.input_dropout > 0,
        "recurrent_dropout": layer.recurrent_dropout > 0,
        "zoneout": any(layer.zoneout),
        "norm": layer.norm is not None,
        "periodic_x": layer.periodic_x,
    }
    received = [f"{name}={getattr(layer, name)!r}" for name, there in foreign.items() if there]
    if received:
        raise ValueError(f"torch.nn.LSTM has no such thing. Received: a layer with {', '.join(received)}")


class _Direction(NamedTuple):
    """What one layer in one direction computes with."""

    number: int  # of the layer, from 0
    suffix: str
    ih: Tensor
    hh: Tensor
    bias: Tensor | None
    form: Form  # of the input convolution
    recurrent_form: Form


def _directions(layer: ConvLSTM) -> Iterator[_Direction]:
    same = layer._upper_form()
    for number, suffixes in enumerate(layer._suffixes):
        for suffix in suffixes:
            weights = layer._weights(suffix)
            assert weights.ih is not None  # layers without input are refused
            form = same if number else layer._form()
            yield _Direction(number, suffix, weights.ih, weights.hh, weights.bias, form, same)


def _new_lstm(layer: ConvLSTM, inputs: int, hidden: int) -> nn.LSTM:
    """An LSTM with the layers and directions of `layer`, without memory."""
    return nn.LSTM(
        inputs,
        hidden,
        layer.num_layers,
        bias=layer._weights("_l0").bias is not None,
        batch_first=layer.batch_first,
        dropout=layer.dropout if layer.num_layers > 1 else 0.0,
        bidirectional=layer.bidirectional,
        device="meta",
        dtype=layer._weights("_l0").hh.dtype,
    )


def _given_memory(new: Module, old: nn.Module) -> Module:
    """`new` on the device of `old`, with zeros for weights, and in training mode if that is."""
    new.to_empty(device=next(old.parameters()).device).train(old.training)
    with torch.no_grad():
        for parameter in new.parameters():
            parameter.zero_()
    return new


def _own_tap(kernel: tuple[int, ...], form: Form) -> tuple[int, ...] | None:
    """Place of the tap that meets the pixel itself; None if output and input pixels do not correspond one to one."""
    margins = pads(kernel, kernel, form)
    for k, s, d, (before, after) in zip(kernel, form.stride, form.dilation, margins):
        if s != 1 or before % d or before + after != (k - 1) * d:
            return None
    return tuple(before // d for d, (before, _) in zip(form.dilation, margins))


def _tap(weight: Tensor, place: tuple[int, ...]) -> Tensor:
    """One tap of a kernel (G, C, *k) as a view (G, C)."""
    for at in place:
        weight = weight.select(2, at)
    return weight


def _as_matrix(weight: Tensor, form: Form, name: str) -> Tensor:
    """(G, C) of a kernel (G, C, *k) that acts as a 1×1 one. Raises ValueError for any other."""
    place = _own_tap(tuple(weight.shape[2:]), form)
    if place is None:
        raise ValueError(
            f"{name} does not take each pixel to itself. Received: a kernel {tuple(weight.shape[2:])} with "
            f"stride={form.stride}, padding={form.padding!r}, dilation={form.dilation}"
        )
    if weight[0, 0].numel() > 1:
        outer = weight.detach().clone()
        _tap(outer, place).zero_()
        largest = outer.abs().max().item()
        if largest != 0:
            raise ValueError(
                f"{name} sees more than a pixel: all weights but the centre's must be 0. Received: up to {largest:.3g}"
            )
    return _tap(weight, place)


def _centre(weight: Tensor) -> Tensor:
    """The tap that meets the pixel itself where padding is "same", (G, C)."""
    return _tap(weight, tuple((k - 1) // 2 for k in weight.shape[2:]))


def _put(lstm: nn.LSTM, suffix: str, ih: Tensor, hh: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        getattr(lstm, f"weight_ih{suffix}").copy_(ih)
        getattr(lstm, f"weight_hh{suffix}").copy_(hh)
        if bias is not None:
            getattr(lstm, f"bias_ih{suffix}").copy_(bias)


def _bias(lstm: nn.LSTM, suffix: str) -> Tensor:
    """torch's two biases are one."""
    return getattr(lstm, f"bias_ih{suffix}") + getattr(lstm, f"bias_hh{suffix}")


def _toeplitz(weight: Tensor, frame: tuple[int, ...], form: Form) -> Tensor:
    """The convolution with weight (G, C, *k) as a matrix from flattened frames (C, *frame) to flattened maps (G, *S)."""
    kernel = tuple(weight.shape[2:])
    size = state_size(frame, kernel, form)
    dense = weight.detach()
    for axis, (before, _) in enumerate(pads(frame, kernel, form)):
        output = torch.arange(size[axis], device=weight.device)[:, None]
        place = torch.arange(frame[axis], device=weight.device) + before - output * form.stride[axis]  # in the window
        tap, between = place // form.dilation[axis], place % form.dilation[axis]
        meets = (between == 0) & (tap >= 0) & (tap < kernel[axis])
        dense = torch.where(meets, dense.movedim(2, -1)[..., tap.clamp(0, kernel[axis] - 1)], 0)
    axes = range(2, dense.ndim)  # S and N of each axis in turn
    return dense.permute(0, *axes[::2], 1, *axes[1::2]).reshape(weight.shape[0] * prod(size), -1)


def to_dense_lstm(layer: ConvLSTM, frame_size: Size) -> nn.LSTM:
    """The LSTM that is the layer for frames of one size: x.flatten(2) → y.flatten(2), states with flattened frames.

    Its weights are block-Toeplitz: each is one of the layer's weights, or 0. All layers, directions, strides, paddings and
    dilations; dropout between layers, dtype, device and `batch_first` are the layer's. On a 1×1 map it has the layer's
    centre taps for weights.

    Raises ValueError if the layer has what torch.nn.LSTM has not (peepholes, norms, …), if the frame does not fit, and
    if more than 2³¹ weights would be needed: they grow with the square of the number of pixels.
    """
    _check_plain(layer)
    frame = _sizes(frame_size, layer.dims, "frame_size")
    size = layer._state_size(torch.empty(frame, device="meta"))
    lstm = _new_lstm(layer, layer.in_channels * prod(frame), layer.hidden_channels * prod(size))
    count = sum(parameter.numel() for parameter in lstm.parameters())
    if count > _MOST_WEIGHTS:
        raise ValueError(
            f"a dense LSTM for frames of {frame} would have {count:,} weights, more than {_MOST_WEIGHTS:,}: "
            f"take smaller frames. Received: frame_size={frame_size!r}"
        )
    lstm = _given_memory(lstm, layer)
    for d in _directions(layer):
        ih = _toeplitz(d.ih, size if d.number else frame, d.form)
        hh = _toeplitz(d.hh, size, d.recurrent_form)
        _put(lstm, d.suffix, ih, hh, None if d.bias is None else d.bias.repeat_interleave(prod(size)))
    return lstm


def to_pixel_lstm(layer: ConvLSTM) -> nn.LSTM:
    """The LSTM that is the layer if all pixels share it: each pixel is a sequence of its own, (B·Y·X, T, C).

    For layers whose kernels, all of them, act as 1×1: of that size, or with zeros around the centre tap. Everything else of
    the layer carries over.

    Raises ValueError if a kernel sees more than a pixel, for a stride, and if the layer has what torch.nn.LSTM has not.
    """
    _check_plain(layer)
    matrices = [
        (_as_matrix(d.ih, d.form, f"weight_ih{d.suffix}"), _as_matrix(d.hh, d.recurrent_form, f"weight_hh{d.suffix}"))
        for d in _directions(layer)
    ]
    lstm = _given_memory(_new_lstm(layer, layer.in_channels, layer.hidden_channels), layer)
    for d, (ih, hh) in zip(_directions(layer), matrices):
        _put(lstm, d.suffix, ih, hh, d.bias)
    return lstm


def from_pixel_lstm(lstm: nn.LSTM, *, dims: int = 2, kernel_size: Size = 1) -> ConvLSTM:
    """The ConvLSTM that runs `lstm` in each pixel; the converse of `to_pixel_lstm`.

    With a larger kernel the taps around the centre are zero: it starts as the per-pixel LSTM and can learn to look around.

    Raises ValueError for an LSTM with projections, and for dimensions other than 1, 2 and 3.
    """
    if dims not in _LAYERS:
        raise ValueError(f"dims must be 1, 2 or 3. Received: {dims!r}")
    if lstm.proj_size:
        raise ValueError(f"a ConvLSTM has no projections. Received: proj_size={lstm.proj_size}")
    layer = _LAYERS[dims](
        lstm.input_size,
        lstm.hidden_size,
        kernel_size,
        bias=lstm.bias,
        num_layers=lstm.num_layers,
        bidirectional=lstm.bidirectional,
        batch_first=lstm.batch_first,
        dropout=lstm.dropout,
        device="meta",
        dtype=next(lstm.parameters()).dtype,
    )
    layer = _given_memory(layer, lstm)
    with torch.no_grad():
        for d in _directions(layer):
            _centre(d.ih).copy_(getattr(lstm, f"weight_ih{d.suffix}"))
            _centre(d.hh).copy_(getattr(lstm, f"weight_hh{d.suffix}"))
            if d.bias is not None:
                d.bias.copy_(_bias(lstm, d.suffix))
    return layer


def to_conv_and_pixel_lstm(layer: ConvLSTM2d) -> Conv2dPixelLSTM:
    """The Conv2D + per-pixel LSTM that is the layer: a linear convolution to 4F channels (8F in both directions), which
    are the gates' input as it is.

    For layers whose recurrent kernels act as 1×1, and the input kernels of upper layers too. Everything else of the layer
    carries over.

    Raises ValueError if such a kernel sees more than a pixel, for one or three dimensions, for `batch_first=False`, and
    if the layer has what torch.nn.LSTM has not.
    """
    _check_plain(layer)
    if not isinstance(layer, ConvLSTM2d) or not layer.batch_first:
        raise ValueError(
            "Conv2dPixelLSTM has two dimensions and its batch first. "
            f"Received: {type(layer).__name__} with batch_first={layer.batch_first}"
        )
    directions = list(_directions(layer))
    kernels = [d.ih for d in directions if d.number == 0]
    gates = torch.eye(4 * layer.hidden_channels * len(kernels), device=kernels[0].device).chunk(len(kernels))
    matrices = [
        (
            _as_matrix(d.ih, d.form, f"weight_ih{d.suffix}") if d.number else gates[at],
            _as_matrix(d.hh, d.recurrent_form, f"weight_hh{d.suffix}"),
        )
        for at, d in enumerate(directions)
    ]
    stack = Conv2dPixelLSTM(
        layer.in_channels,
        layer.hidden_channels,
        layer.kernel_size,
        conv_channels=4 * layer.hidden_channels * len(kernels),
        stride=layer.stride,
        padding=layer.padding,
        dilation=layer.dilation,
        num_layers=layer.num_layers,
        bidirectional=layer.bidirectional,
        bias=directions[0].bias is not None,
        dropout=layer.dropout if layer.num_layers > 1 else 0.0,
        device="meta",
        dtype=directions[0].hh.dtype,
    )
    stack = _given_memory(stack, layer)
    with torch.no_grad():
        stack.conv.weight.copy_(torch.cat(kernels))
    for d, (ih, hh) in zip(directions, matrices):
        _put(stack.lstm, d.suffix, ih, hh, d.bias)
    return stack


def from_conv_and_pixel_lstm(stack: Conv2dPixelLSTM) -> ConvLSTM2d:
    """The ConvLSTM, with 1×1 recurrent kernels, that is a linear Conv2D + per-pixel LSTM.

    Its input kernel is the product of the LSTM's input matrix and the convolution's kernel, so its rank is at most
    `conv_channels`. Upper layers have the LSTM's input matrix for centre tap.

    Raises ValueError if there is an activation between the two: that is a convolution followed by a ConvLSTM with 1×1
    kernels, which `from_pixel_lstm(stack.lstm)` gives.
    """
    if stack.activation is not None and _activation(stack.activation, "activation") is not linear:
        raise ValueError(
            "with an activation between, this is no ConvLSTM layer but a convolution followed by one with 1×1 kernels, "
            f"which from_pixel_lstm(stack.lstm) gives. Received: activation={stack.activation!r}"
        )
    conv, lstm = stack.conv, stack.lstm
    layer = ConvLSTM2d(
        stack.in_channels,
        stack.hidden_channels,
        conv.kernel_size,
        recurrent_kernel_size=1,
        stride=conv.stride,
        padding=conv.padding,
        dilation=conv.dilation,
        bias=lstm.bias,
        num_layers=lstm.num_layers,
        bidirectional=lstm.bidirectional,
        dropout=lstm.dropout,
        device="meta",
        dtype=conv.weight.dtype,
    )
    layer = _given_memory(layer, stack)
    with torch.no_grad():
        for d in _directions(layer):
            ih = getattr(lstm, f"weight_ih{d.suffix}")
            if d.number == 0:
                d.ih.copy_(torch.tensordot(ih, conv.weight, dims=1))
            else:
                _centre(d.ih).copy_(ih)
            _centre(d.hh).copy_(getattr(lstm, f"weight_hh{d.suffix}"))
            if d.bias is not None:
                bias = _bias(lstm, d.suffix)
                d.bias.copy_(bias if conv.bias is None or d.number else bias + ih @ conv.bias)
    return layer
