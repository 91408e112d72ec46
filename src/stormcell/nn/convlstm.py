"""ConvLSTM layers and cells in one, two and three dimensions: parameters and argument checks, no arithmetic.

They follow `torch.nn.LSTM`: the state is a value that the caller holds, parameters are called weight_ih_l0 and so on, gates
lie in the order i, f, g, o. What differs: one bias instead of two, `batch_first=True`, and `kernel_size`. Weights start as
in Keras: Glorot-uniform input kernels, orthogonal recurrent kernels, zero bias with one in the forget gate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .. import engine as _engine
from ..engine import Form, Weights, state_size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

State = tuple[Tensor, Tensor]
Size = int | Sequence[int]


def _keras2_hard_sigmoid(z: Tensor) -> Tensor:
    return (0.2 * z + 0.5).clamp(0, 1)  # Keras 1 and 2, and every tf.keras file that says "hard_sigmoid"


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
    "hard_sigmoid": nn.functional.hardsigmoid,  # Keras 3
    "keras2_hard_sigmoid": _keras2_hard_sigmoid,
    "linear": lambda z: z,
}


def _activation(value: str | Callable[[Tensor], Tensor], argument: str) -> Callable[[Tensor], Tensor]:
    if callable(value):
        return value
    if value not in ACTIVATIONS:
        raise ValueError(f"{argument} must be callable or one of {', '.join(ACTIVATIONS)}. Received: {value!r}")
    return ACTIVATIONS[value]


def _sizes(value: Size, dims: int, argument: str, smallest: int = 1) -> tuple[int, ...]:
    sizes = (value,) * dims if isinstance(value, int) else tuple(value)
    if len(sizes) != dims or any(not isinstance(n, int) or n < smallest for n in sizes):
        raise ValueError(f"{argument} must be an integer ≥ {smallest}, or {dims} of them. Received: {value!r}")
    return sizes


class _ConvLSTMBase(nn.Module):
    """What the layers and the cells share: the arguments of one convolutional LSTM, and its parameters by name."""

    dims: int

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        *,
        recurrent_kernel_size: Size | None,
        stride: Size,
        padding: str | Size,
        dilation: Size,
        peephole: str | None,
        frame_size: Size | None,
        activation: str | Callable[[Tensor], Tensor],
        recurrent_activation: str | Callable[[Tensor], Tensor],
        unit_forget_bias: bool,
        engine: str,
    ) -> None:
        super().__init__()
        if in_channels < 0 or hidden_channels < 1:
            raise ValueError(
                f"in_channels must be ≥ 0 and hidden_channels ≥ 1. Received: {in_channels} and {hidden_channels}"
            )
        if peephole not in (None, "channel", "pixel"):
            raise ValueError(f'peephole must be None, "channel" or "pixel". Received: {peephole!r}')
        if (peephole == "pixel") != (frame_size is not None):
            raise ValueError('peephole="pixel" needs frame_size, and nothing else takes it')
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f'padding must be "same", "valid", an integer or a tuple. Received: {padding!r}')
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.kernel_size = _sizes(kernel_size, self.dims, "kernel_size")
        self.recurrent_kernel_size = _sizes(
            kernel_size if recurrent_kernel_size is None else recurrent_kernel_size, self.dims, "recurrent_kernel_size"
        )
        self.stride = _sizes(stride, self.dims, "stride")
        self.padding = padding if isinstance(padding, str) else _sizes(padding, self.dims, "padding", 0)
        self.dilation = _sizes(dilation, self.dims, "dilation")
        if max(self.stride) > 1 and max(self.dilation) > 1:
            raise ValueError(f"stride > 1 does not go with dilation > 1. Received: {stride!r} and {dilation!r}")
        self.peephole, self.unit_forget_bias = peephole, unit_forget_bias
        self.frame_size = None if frame_size is None else _sizes(frame_size, self.dims, "frame_size")
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.engine = engine
        self._form = Form(
            self.stride,
            self.padding,
            self.dilation,
            _activation(activation, "activation"),
            _activation(recurrent_activation, "recurrent_activation"),
        )
        ones = (1,) * self.dims
        self._upper_form = self._form._replace(stride=ones, padding="same", dilation=ones)

    def _add(self, suffix: str, inputs: int, *, bias: bool, factory: dict[str, Any]) -> None:
        gates = 4 * self.hidden_channels

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, **factory))

        peephole = None
        if self.peephole == "channel":
            peephole = parameter(3 * self.hidden_channels)
        elif self.peephole == "pixel":
            assert self.frame_size is not None
            size = state_size(self.frame_size, self.kernel_size, self._form)
            peephole = parameter(3 * self.hidden_channels, *size)
        self.register_parameter("weight_ih" + suffix, parameter(gates, inputs, *self.kernel_size) if inputs else None)
        self.register_parameter(
            "weight_hh" + suffix, parameter(gates, self.hidden_channels, *self.recurrent_kernel_size)
        )
        self.register_parameter("weight_ch" + suffix, peephole)
        self.register_parameter("bias" + suffix, parameter(gates) if bias else None)

    def reset_parameters(self) -> None:
        """Draw all parameters anew."""
        forget = slice(self.hidden_channels, 2 * self.hidden_channels)
        with torch.no_grad():
            for name, parameter in self.named_parameters(recurse=False):
                if name.startswith("weight_ih"):
                    nn.init.xavier_uniform_(parameter)
                elif name.startswith("weight_hh"):
                    nn.init.orthogonal_(parameter)
                else:
                    parameter.zero_()
                    if name.startswith("bias") and self.unit_forget_bias:
                        parameter[forget] = 1

    def _weights(self, suffix: str) -> Weights:
        return Weights(
            *(getattr(self, name + suffix) for name in ("weight_ih", "weight_hh", "weight_ch", "bias")),
        )

    def _check_frames(self, x: Tensor, axes: str) -> None:
        if x.ndim != len(axes.split()) or x.shape[-self.dims - 1] != self.in_channels:
            raise ValueError(
                f"expected x ({', '.join(axes.split())}) with {self.in_channels} channels. Received: {tuple(x.shape)}"
            )

    def _state_size(self, x: Tensor) -> tuple[int, ...]:
        frame = tuple(x.shape[-self.dims :])
        if self.frame_size not in (None, frame):
            raise ValueError(f"pixel peepholes were made for frames of {self.frame_size}. Received: {frame}")
        size = state_size(frame, self.kernel_size, self._form)
        if min(size) < 1:
            raise ValueError(f"frames of {frame} are smaller than the kernel {self.kernel_size} with padding 'valid'")
        return size

    def _state(self, state: State | None, shape: tuple[int, ...], x: Tensor) -> State:
        if state is None:
            # Under autocast the cell state stays in the parameters' precision: sums over time need it.
            zeros = torch.zeros(shape, dtype=self._dtype(), device=x.device)
            return zeros, zeros
        for name, value in zip("hc", state):
            if tuple(value.shape) != shape:
                raise ValueError(f"state {name} must have the shape {shape}. Received: {tuple(value.shape)}")
        return state

    def _dtype(self) -> torch.dtype:
        return next(self.parameters(recurse=False)).dtype

    def extra_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.hidden_channels}, kernel_size={self.kernel_size}"]
        if self.recurrent_kernel_size != self.kernel_size:
            parts.append(f"recurrent_kernel_size={self.recurrent_kernel_size}")
        if self.peephole:
            parts.append(f"peephole={self.peephole!r}")
        return ", ".join(parts)


class _ConvLSTM(_ConvLSTMBase):
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        *,
        recurrent_kernel_size: Size | None = None,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        bias: bool = True,
        num_layers: int = 1,
        bidirectional: bool = False,
        batch_first: bool = True,
        peephole: str | None = None,
        frame_size: Size | None = None,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        recurrent_activation: str | Callable[[Tensor], Tensor] = "sigmoid",
        unit_forget_bias: bool = True,
        dropout: float = 0.0,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            kernel_size,
            recurrent_kernel_size=recurrent_kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            peephole=peephole,
            frame_size=frame_size,
            activation=activation,
            recurrent_activation=recurrent_activation,
            unit_forget_bias=unit_forget_bias,
            engine=engine,
        )
        if num_layers < 1:
            raise ValueError(f"num_layers must be ≥ 1. Received: {num_layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1). Received: {dropout}")
        self.num_layers, self.bidirectional, self.batch_first = num_layers, bidirectional, batch_first
        self.dropout = dropout
        directions = ("", "_reverse") if bidirectional else ("",)
        self._suffixes = [[f"_l{layer}{direction}" for direction in directions] for layer in range(num_layers)]
        for layer, suffixes in enumerate(self._suffixes):
            for suffix in suffixes:
                inputs = in_channels if layer == 0 else hidden_channels * len(directions)
                self._add(suffix, inputs, bias=bias, factory={"device": device, "dtype": dtype})
        self.reset_parameters()

    def forward(
        self,
        x: Float[Tensor, "B T C *frame"],
        state: State | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
    ) -> tuple[Float[Tensor, "B T F *frame"], State]:
        """Run a sequence of any length and any frame size.

        Without `batch_first` time comes before batch, in x, mask and y. `state` is (h, c), each with a leading axis
        (num_layers · directions, B, F, *frame); zeros if left out. `mask` is True where a step is used: elsewhere the
        state is kept and the output repeats the last used one (Keras' rule). Layers with `in_channels=0` take frames
        with zero channels: they run on their state alone.

        Raises ValueError if a shape does not fit.
        """
        self._check_frames(x, "B T C " + "Z Y X"[-2 * self.dims + 1 :])
        if not self.batch_first:
            x = x.transpose(0, 1)
            mask = None if mask is None else mask.transpose(0, 1)
        batch, steps = x.shape[:2]
        if steps < 1:
            raise ValueError(f"a sequence needs at least one step. Received: {tuple(x.shape)}")
        if mask is not None and tuple(mask.shape) != (batch, steps):
            raise ValueError(f"mask must have the shape {(batch, steps)}. Received: {tuple(mask.shape)}")
        mask = None if mask is None else mask.bool()
        size = self._state_size(x)
        rows = self.num_layers * len(self._suffixes[0])
        h_all, c_all = self._state(state, (rows, batch, self.hidden_channels, *size), x)

        h_last, c_last = [], []
        y = x
        for layer, suffixes in enumerate(self._suffixes):
            if layer and self.dropout:
                y = nn.functional.dropout(y, self.dropout, self.training)
            outputs = []
            for direction, suffix in enumerate(suffixes):
                row = layer * len(suffixes) + direction
                y_d, h, c = _engine.run(
                    y.flip(1) if direction else y,
                    h_all[row],
                    c_all[row],
                    self._weights(suffix),
                    self._form if layer == 0 else self._upper_form,
                    mask=mask.flip(1) if mask is not None and direction else mask,
                    engine=self.engine,
                )
                outputs.append(y_d.flip(1) if direction else y_d)
                h_last.append(h)
                c_last.append(c)
            y = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
        if not self.batch_first:
            y = y.transpose(0, 1)
        return y, (torch.stack(h_last), torch.stack(c_last))

    def step(
        self, x: Float[Tensor, "B C *frame"], state: State | None = None
    ) -> tuple[Float[Tensor, "B F *frame"], State]:
        """One step of a stream: the same numbers as the whole sequence at once (with dropout, in eval mode only).

        Raises ValueError if the layer is bidirectional: its backward half needs the future.
        """
        if self.bidirectional:
            raise ValueError("a bidirectional layer cannot stream: its backward half needs the whole sequence")
        time = 1 if self.batch_first else 0
        y, state = self(x.unsqueeze(time), state)
        return y.squeeze(time), state

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        if self.num_layers > 1:
            parts.append(f"num_layers={self.num_layers}")
        if self.bidirectional:
            parts.append("bidirectional=True")
        return ", ".join(parts)


class _ConvLSTMCell(_ConvLSTMBase):
    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        *,
        recurrent_kernel_size: Size | None = None,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        bias: bool = True,
        peephole: str | None = None,
        frame_size: Size | None = None,
        activation: str | Callable[[Tensor], Tensor] = "tanh",
        recurrent_activation: str | Callable[[Tensor], Tensor] = "sigmoid",
        unit_forget_bias: bool = True,
        engine: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            hidden_channels,
            kernel_size,
            recurrent_kernel_size=recurrent_kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            peephole=peephole,
            frame_size=frame_size,
            activation=activation,
            recurrent_activation=recurrent_activation,
            unit_forget_bias=unit_forget_bias,
            engine=engine,
        )
        self._add("", in_channels, bias=bias, factory={"device": device, "dtype": dtype})
        self.reset_parameters()

    def forward(self, x: Float[Tensor, "B C *frame"], state: State | None = None) -> State:
        """One step. `state` is (h, c), each (B, F, *frame), zeros if left out; returns the next (h, c).

        Raises ValueError if a shape does not fit.
        """
        self._check_frames(x, "B C " + "Z Y X"[-2 * self.dims + 1 :])
        shape = (x.shape[0], self.hidden_channels, *self._state_size(x))
        h, c = self._state(state, shape, x)
        _, h, c = _engine.run(x.unsqueeze(1), h, c, self._weights(""), self._form, engine=self.engine)
        return h, c


class ConvLSTM2d(_ConvLSTM):
    """Convolutional LSTM over sequences of images (Shi et al. 2015; Keras' ConvLSTM2D).

    >>> layer = ConvLSTM2d(in_channels=1, hidden_channels=8, kernel_size=3)
    >>> y, (h, c) = layer(torch.zeros(2, 5, 1, 16, 12))   # x (B, T, C, Y, X)
    >>> y.shape, h.shape
    (torch.Size([2, 5, 8, 16, 12]), torch.Size([1, 2, 8, 16, 12]))
    >>> y, (h, c) = layer(torch.zeros(2, 5, 1, 16, 12), (h, c))   # goes on where it stopped

    Args:
        in_channels: channels C of a frame; 0 for a layer that runs on its state alone.
        hidden_channels: channels F of the hidden and the cell state.
        kernel_size: of the input convolution.
        recurrent_kernel_size: of the recurrent convolution, which is always "same" with stride and dilation 1, as in
            Keras; None means `kernel_size`.
        stride, padding, dilation: of the first layer's input convolution; padding "same" is TensorFlow's rule.
        bias: whether gates have a bias (one, not torch's two).
        num_layers, bidirectional, batch_first, dropout: as in torch.nn.LSTM, but `batch_first` is True.
        peephole: None, "channel" (one weight a channel, which the paper's parameter counts demand) or "pixel" (one a
            channel and pixel, the paper's equations; needs `frame_size` and ties the layer to it).
        activation, recurrent_activation: a name (tanh, sigmoid, relu, linear, hard_sigmoid of Keras 3,
            keras2_hard_sigmoid) or a callable.
        unit_forget_bias: start the forget gate's bias at 1.
        engine: how the sequence is computed; see `stormcell.engine`.

    Raises:
        ValueError: for an argument out of range, and in `forward` for a shape that does not fit.
    """

    dims = 2


class ConvLSTM1d(_ConvLSTM):
    """Convolutional LSTM over sequences of lines: x (B, T, C, X). Arguments as in `ConvLSTM2d`."""

    dims = 1


class ConvLSTM3d(_ConvLSTM):
    """Convolutional LSTM over sequences of volumes: x (B, T, C, Z, Y, X). Arguments as in `ConvLSTM2d`."""

    dims = 3


class ConvLSTMCell2d(_ConvLSTMCell):
    """One step of `ConvLSTM2d`: (x, (h, c)) → (h, c), with h and c (B, F, Y, X), as torch.nn.LSTMCell.

    >>> cell = ConvLSTMCell2d(1, 8, 3)
    >>> h, c = cell(torch.zeros(2, 1, 16, 12))
    >>> h, c = cell(torch.zeros(2, 1, 16, 12), (h, c))
    """

    dims = 2


class ConvLSTMCell1d(_ConvLSTMCell):
    """One step of `ConvLSTM1d`: h and c (B, F, X)."""

    dims = 1


class ConvLSTMCell3d(_ConvLSTMCell):
    """One step of `ConvLSTM3d`: h and c (B, F, Z, Y, X)."""

    dims = 3
