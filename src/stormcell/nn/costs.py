"""What a layer costs and how far it sees, by arithmetic: nothing is run.

Modules may be built with `device="meta"`, so that a net that no machine can hold can be asked too.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, prod

import torch
from torch import nn

from .forecaster import Conv2dFlatLSTMForecaster, EncoderForecaster, Forecasts, NextFrameForecaster
from .recurrent import Recurrent, RecurrentLayer, Size, _sizes
from .stacks import Conv2dFlatLSTM, Conv2dPixelLSTM

__all__ = ["Cost", "cost", "forecast_macs", "forecast_reach"]


@dataclass(frozen=True)
class Cost:
    """What `cost` found.

    Attributes:
        parameters: numbers that are trained.
        macs_per_step: multiplications, each with its addition, for one step of one sample: convolutions, matrices and
            peepholes, zeros at the border included. The gates' other products, some ten a state element, are left out.
        output_size: of one step: (channels, *S) of a map, (units,) of a vector.
        radius: how far the first step sees, in input pixels along each axis; inf for a flattened map.
        radius_per_step: by how much that grows with each step.
    """

    parameters: int
    macs_per_step: int
    output_size: tuple[int, ...]
    radius: tuple[float, ...]
    radius_per_step: tuple[float, ...]

    def receptive_radius(self, step: int) -> tuple[float, ...]:
        """How far the output after `step` steps (1 = the first) sees in the first frame: input pixels along each axis.

        Counted from the middle of the input kernel's window, which with padding "same" and stride 1 is the pixel itself.
        This is the reach to the end of each axis; to its beginning it is the same for odd kernels, and one pixel less for
        each even kernel on the way. Frames may end sooner.

        Raises ValueError for a step below 1.
        """
        if step < 1:
            raise ValueError(f"step must be ≥ 1: the first is 1. Received: {step}")
        return tuple(first + (step - 1) * growth for first, growth in zip(self.radius, self.radius_per_step))


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _matrices(module: nn.Module) -> int:
    """Numbers in kernels and matrices: the MACs of one pixel."""
    kinds = ("weight_ih", "weight_hh", "weight_hr")  # hr: torch.nn.LSTM's projection
    return sum(parameter.numel() for name, parameter in module.named_parameters() if name.startswith(kinds))


def _window(kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...]:
    """How far a kernel sees from its middle to its end."""
    return tuple(((k - 1) * d + 1) // 2 for k, d in zip(kernel, dilation))


def _of_layer(layer: Recurrent, frame: tuple[int, ...]) -> Cost:
    size = layer._state_size(torch.empty(frame, device="meta"))
    peepholes = sum(p.shape[0] for name, p in layer.named_parameters() if name.startswith("weight_ch"))
    layers = layer.num_layers if isinstance(layer, RecurrentLayer) else 1
    both = isinstance(layer, RecurrentLayer) and layer.bidirectional
    # Every layer passes a signal on to later steps. In both directions the second may carry it back to the first step and
    # the third forward again: as many passages as layers, but an odd number, since it must end at the end.
    passages = (layers - 1) | 1 if both else 1
    one = (1,) * layer.dims
    first = _window(layer.kernel_size, layer.dilation)
    upper, recurrent = _window(layer.kernel_size, one), _window(layer.recurrent_kernel_size, one)
    radius = tuple(f + (layers - 1) * u * s for f, u, s in zip(first, upper, layer.stride))
    return Cost(
        parameters=_parameters(layer),
        macs_per_step=prod(size) * (_matrices(layer) + peepholes),
        output_size=(layer.hidden_channels * (2 if both else 1), *size),
        radius=radius if layer.norm is None else (inf,) * layer.dims,  # statistics over all pixels
        radius_per_step=tuple(passages * r * s for r, s in zip(recurrent, layer.stride)),
    )


def _of_lstm(lstm: nn.LSTM, frame: tuple[int, ...]) -> Cost:
    units = (lstm.proj_size or lstm.hidden_size) * (2 if lstm.bidirectional else 1)
    return Cost(_parameters(lstm), _matrices(lstm), (units,), (inf,) * len(frame), (0,) * len(frame))


def _of_stack(stack: Conv2dPixelLSTM | Conv2dFlatLSTM, frame: tuple[int, ...]) -> Cost:
    size = stack._map_size(frame)
    lstm = _of_lstm(stack.lstm, frame)
    per_pixel = isinstance(stack, Conv2dPixelLSTM)
    return Cost(
        parameters=_parameters(stack),
        macs_per_step=prod(size) * stack.conv.weight.numel() + (prod(size) if per_pixel else 1) * lstm.macs_per_step,
        output_size=(*lstm.output_size, *size) if per_pixel else lstm.output_size,
        radius=_window(stack.conv.kernel_size, stack.conv.dilation) if per_pixel else lstm.radius,
        radius_per_step=(0, 0),
    )


def cost(module: Recurrent | Conv2dPixelLSTM | Conv2dFlatLSTM | nn.LSTM, frame_size: Size = ()) -> Cost:
    """Parameters, MACs and receptive field of a ConvLSTM or ConvGRU, layer or cell, of what they are compared with, or of
    a torch.nn.LSTM on vectors.

    >>> cost(ConvLSTM2d(1, 64, 3, device="meta"), (64, 64)).macs_per_step
    613416960

    `frame_size` is that of the input, without channels. `Conv2dFlatLSTM` has its own, so that it may be left out; of a
    torch.nn.LSTM it says which frames were flattened, and changes only the axes of the radius.

    Raises ValueError if the frame does not fit, and for other modules.
    """
    if isinstance(module, Recurrent):
        return _of_layer(module, _sizes(frame_size, module.dims, "frame_size"))
    if isinstance(module, Conv2dPixelLSTM):
        return _of_stack(module, _sizes(frame_size, 2, "frame_size"))
    if isinstance(module, Conv2dFlatLSTM):
        if frame_size != () and _sizes(frame_size, 2, "frame_size") != module.frame_size:
            raise ValueError(f"this stack was made for frames of {module.frame_size}. Received: {frame_size!r}")
        return _of_stack(module, module.frame_size)
    if isinstance(module, nn.LSTM):
        return _of_lstm(module, (frame_size,) if isinstance(frame_size, int) else tuple(frame_size))
    raise ValueError(
        "expected a ConvLSTM, a ConvGRU, Conv2dPixelLSTM, Conv2dFlatLSTM or torch.nn.LSTM. "
        f"Received: {type(module).__name__}"
    )


def forecast_macs(model: Forecasts, frame_size: Size, *, past: int, steps: int) -> int:
    """MACs of one forecast of `steps` frames from `past` ones, the readout included.

    Raises ValueError for a frame or a number of steps below 1, and for other modules.
    """
    if past < 1 or steps < 1:
        raise ValueError(f"past and steps must be ≥ 1. Received: {past} and {steps}")
    patches = tuple(-(-n // model.patch) for n in _sizes(frame_size, 2, "frame_size"))

    def of(layers: nn.Module) -> int:
        return sum(_any_cost(layer, patches).macs_per_step for layer in layers.children())

    if isinstance(model, EncoderForecaster):
        output = prod(patches) * model.output.weight.numel()
        return past * of(model.encoder) + steps * (of(model.forecaster) + output)
    if isinstance(model, NextFrameForecaster):
        return (past + steps - 1) * of(model.layers) + steps * prod(patches) * model.output.weight.numel()
    if isinstance(model, Conv2dFlatLSTMForecaster):
        output = model.expand.weight.numel() + prod(patches) * model.output.weight.numel()
        later = cost(model.forecaster, (1, 1)).macs_per_step + output
        return past * cost(model.encoder).macs_per_step + steps * later
    raise ValueError(f"expected a net of stormcell.nn. Received: {type(model).__name__}")


def forecast_reach(model: Forecasts, step: int) -> float:
    """How many patches away, along an axis, forecast frame `step` (1 = the next) may see in the newest frame read.

    In at the encoder's foot, up through input kernels, along in time through recurrent ones, and up again in the forecaster:
    the longest such way. A patch sees `patch` pixels at once. inf where a map is flattened on the way.

    Raises ValueError for a step below 1, and for other modules.
    """
    if step < 1:
        raise ValueError(f"step must be ≥ 1: the first is 1. Received: {step}")
    if isinstance(model, Conv2dFlatLSTMForecaster):
        return inf
    if isinstance(model, EncoderForecaster):
        ups = [*model.encoder, *list(model.forecaster)[1:]]
        carries, steps = model.encoder, step
    elif isinstance(model, NextFrameForecaster):
        ups, carries, steps = list(model.layers) * step, model.layers, 0  # what is said goes in at the foot again
    else:
        raise ValueError(f"expected a net of stormcell.nn. Received: {type(model).__name__}")
    found = [_any_cost(layer, (1, 1)) for layer in ups]
    carried = max(_any_cost(layer, (1, 1)).radius_per_step[0] for layer in carries)
    return sum(one.radius[0] for one in found) + steps * carried


def _any_cost(layer: nn.Module, frame: tuple[int, ...]) -> Cost:
    assert isinstance(layer, (Recurrent, Conv2dPixelLSTM))
    return cost(layer, frame)
