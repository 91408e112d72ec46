"""What ConvLSTM is compared with: a Conv2D, and behind it an LSTM for each pixel or one for the whole map.

In Keras they are TimeDistributed(Conv2D), then either Permute, Reshape and LSTM with the pixels in the batch, or
TimeDistributed(Flatten) and LSTM. They have the manners of the layers: the state is a value that the caller holds, padding
"same" is TensorFlow's, and weights start as there, so that a comparison starts level. `identities.py` says when they are
the same as a ConvLSTM, `costs.py` what each costs.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from ..engine import Form, state_size
from ..engine.activations import linear
from ..engine.reference import convolve
from .recurrent import Activation, Size, _activation, _probability, _sizes

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Conv2dFlatLSTM", "Conv2dPixelLSTM"]

State = tuple[Tensor, Tensor]


def _pair(value: Size, argument: str) -> tuple[int, int]:
    y, x = _sizes(value, 2, argument)
    return y, x


class _Conv2d(nn.Conv2d):
    """torch.nn.Conv2d whose "same" is TensorFlow's, at any stride."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size,
        *,
        stride: Size,
        padding: str | Size,
        dilation: Size,
        bias: bool,
        factory: dict[str, Any],
    ) -> None:
        if isinstance(padding, str) and padding not in ("same", "valid"):
            raise ValueError(f'padding must be "same", "valid", an integer or a tuple. Received: {padding!r}')
        super().__init__(
            in_channels,
            out_channels,
            _pair(kernel_size, "kernel_size"),
            stride=_pair(stride, "stride"),
            dilation=_pair(dilation, "dilation"),
            bias=bias,
            **factory,
        )
        self.padding = padding if isinstance(padding, str) else _sizes(padding, 2, "padding", 0)

    def form(self) -> Form:
        return Form(self.stride, self.padding, self.dilation, linear, linear)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(x, self.weight, self.bias, self.form())


class _Conv2dLSTM(nn.Module):
    """The convolution, the activation between, and what is checked at the door."""

    def __init__(
        self,
        in_channels: int,
        conv_channels: int,
        kernel_size: Size,
        *,
        stride: Size,
        padding: str | Size,
        dilation: Size,
        activation: Activation | None,
        bias: bool,
        factory: dict[str, Any],
    ) -> None:
        super().__init__()
        if in_channels < 1 or conv_channels < 1:
            raise ValueError(f"in_channels and conv_channels must be ≥ 1. Received: {in_channels} and {conv_channels}")
        self.in_channels, self.conv_channels, self.activation = in_channels, conv_channels, activation
        self._activate = linear if activation is None else _activation(activation, "activation")
        self.conv = _Conv2d(
            in_channels,
            conv_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            bias=bias,
            factory=factory,
        )

    def _set_lstm(
        self,
        inputs: int,
        hidden: int,
        num_layers: int,
        bidirectional: bool,
        bias: bool,
        dropout: float,
        factory: dict[str, Any],
    ) -> None:
        if hidden < 1 or num_layers < 1:
            raise ValueError(f"the LSTM needs ≥ 1 units and ≥ 1 layers. Received: {hidden} and {num_layers}")
        self.lstm = nn.LSTM(
            inputs,
            hidden,
            num_layers,
            bias=bias,
            batch_first=True,
            dropout=_probability(dropout, "dropout"),
            bidirectional=bidirectional,
            **factory,
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all parameters anew, as Keras does: Glorot, orthogonal, zero bias; the forget gate's becomes 1."""
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "weight_hh" in name:
                    precise = torch.promote_types(parameter.dtype, torch.float32)  # QR knows no half precision
                    parameter.copy_(nn.init.orthogonal_(torch.empty_like(parameter, dtype=precise)))
                elif "weight" in name:
                    nn.init.xavier_uniform_(parameter)
                else:
                    parameter.zero_()
                    if "bias_ih" in name:
                        parameter[self.lstm.hidden_size : 2 * self.lstm.hidden_size] = 1

    def _map_size(self, frame: tuple[int, ...]) -> tuple[int, ...]:
        """(Y', X') of the convolution's output for frames (Y, X)."""
        size = state_size(frame, self.conv.kernel_size, self.conv.form())
        if min(size) < 1:
            raise ValueError(
                f"frames of {frame} are smaller than the kernel {self.conv.kernel_size} "
                f"with padding {self.conv.padding!r}"
            )
        return size

    def _maps(self, x: Tensor) -> Tensor:
        if x.ndim != 5 or x.shape[2] != self.in_channels or x.shape[1] < 1:
            raise ValueError(
                f"expected x (B, T, C, Y, X) with {self.in_channels} channels and at least one step. "
                f"Received: {tuple(x.shape)}"
            )
        self._map_size(tuple(x.shape[3:]))
        return self._activate(self.conv(x.flatten(0, 1))).unflatten(0, x.shape[:2])

    def _check_state(self, state: State | None, batch: int, size: tuple[int, ...]) -> None:
        if state is None:
            return
        if len(state) != 2:
            raise ValueError(f"state must be (h, c). Received: {len(state)} tensors")
        rows = self.lstm.num_layers * (2 if self.lstm.bidirectional else 1)
        shape = (rows, batch, self.lstm.hidden_size, *size)
        for name, value in zip("hc", state):
            if value.shape != shape:
                raise ValueError(f"state {name} must have the shape {shape}. Received: {tuple(value.shape)}")

    def extra_repr(self) -> str:
        return "" if self.activation is None else f"activation={self.activation!r}"


class Conv2dPixelLSTM(_Conv2dLSTM):
    """A Conv2D over each frame, then one LSTM that all pixels share and that runs for each by itself.

    >>> stack = Conv2dPixelLSTM(in_channels=1, hidden_channels=8, kernel_size=3)
    >>> y, (h, c) = stack(torch.zeros(2, 5, 1, 16, 12))   # x (B, T, C, Y, X)
    >>> y.shape, h.shape
    (torch.Size([2, 5, 8, 16, 12]), torch.Size([1, 2, 8, 16, 12]))

    Args:
        in_channels: channels C of a frame.
        hidden_channels: channels F of the hidden and the cell state.
        kernel_size, stride, padding, dilation: of the convolution, as in `ConvLSTM2d`.
        conv_channels: channels between convolution and LSTM; None means `hidden_channels`.
        activation: between the two, by name or a callable; None, as in Keras' Conv2D, is linear.
        num_layers, bidirectional, dropout: of the LSTM, as in torch.nn.LSTM.
        bias: whether convolution and LSTM have biases (torch's LSTM has two, which add up).

    Raises:
        ValueError: for an argument out of range, and in `forward` for a shape that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_channels: int,
        kernel_size: Size,
        *,
        conv_channels: int | None = None,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        activation: Activation | None = None,
        num_layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels,
            hidden_channels if conv_channels is None else conv_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            activation=activation,
            bias=bias,
            factory=factory,
        )
        self.hidden_channels = hidden_channels
        self._set_lstm(self.conv_channels, hidden_channels, num_layers, bidirectional, bias, dropout, factory)

    def forward(
        self, x: Float[Tensor, "B T C Y X"], state: State | None = None
    ) -> tuple[Float[Tensor, "B T F Y X"], State]:
        """Run a sequence of any length and any frame size; states (h, c) as in `ConvLSTM2d`, zeros if left out."""
        maps = self._maps(x)
        batch, _, _, *size = maps.shape
        pixels = (batch, *size)
        self._check_state(state, batch, tuple(size))
        if state is not None:
            h, c = (value.permute(0, 1, 3, 4, 2).flatten(1, 3).contiguous() for value in state)
            state = (h, c)
        y, (h, c) = self.lstm(maps.permute(0, 3, 4, 1, 2).flatten(0, 2), state)
        h, c = (value.unflatten(1, pixels).permute(0, 1, 4, 2, 3) for value in (h, c))
        return y.unflatten(0, pixels).permute(0, 3, 4, 1, 2), (h, c)


class Conv2dFlatLSTM(_Conv2dLSTM):
    """A Conv2D over each frame, then one LSTM over all of the flattened map: a vector out, for one frame size.

    >>> stack = Conv2dFlatLSTM(1, 32, 3, frame_size=(16, 12), conv_channels=8, stride=2, activation="relu")
    >>> y, (h, c) = stack(torch.zeros(2, 5, 1, 16, 12))   # x (B, T, C, Y, X)
    >>> y.shape, h.shape
    (torch.Size([2, 5, 32]), torch.Size([1, 2, 32]))

    Args:
        in_channels: channels C of a frame.
        hidden_size: units U of the LSTM.
        kernel_size, stride, padding, dilation: of the convolution, as in `ConvLSTM2d`.
        frame_size: (Y, X) of the frames.
        conv_channels: channels of the map that is flattened, in the order (channel, y, x).
        activation: between the two, by name or a callable; None, as in Keras' Conv2D, is linear.
        pool: side of the max-pooling between activation and Flatten, whose last windows may be cut off; 1 is none.
        num_layers, bidirectional, dropout: of the LSTM, as in torch.nn.LSTM.
        bias: whether convolution and LSTM have biases (torch's LSTM has two, which add up).

    Raises:
        ValueError: for an argument out of range, and in `forward` for a shape that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        hidden_size: int,
        kernel_size: Size,
        *,
        frame_size: Size,
        conv_channels: int,
        stride: Size = 1,
        padding: str | Size = "same",
        dilation: Size = 1,
        activation: Activation | None = None,
        pool: int = 1,
        num_layers: int = 1,
        bidirectional: bool = False,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        factory = {"device": device, "dtype": dtype}
        super().__init__(
            in_channels,
            conv_channels,
            kernel_size,
            stride=stride,
            padding=padding,
            dilation=dilation,
            activation=activation,
            bias=bias,
            factory=factory,
        )
        if pool < 1:
            raise ValueError(f"pool must be ≥ 1. Received: {pool}")
        self.hidden_size, self.frame_size, self.pool = hidden_size, _sizes(frame_size, 2, "frame_size"), pool
        self._set_lstm(
            conv_channels * prod(-(-n // pool) for n in self._map_size(self.frame_size)),
            hidden_size,
            num_layers,
            bidirectional,
            bias,
            dropout,
            factory,
        )

    def forward(
        self, x: Float[Tensor, "B T C Y X"], state: State | None = None
    ) -> tuple[Float[Tensor, "B T U"], State]:
        """Run a sequence of any length; states (h, c) as in torch.nn.LSTM, (num_layers · directions, B, U) each."""
        maps = self._maps(x)
        if tuple(x.shape[3:]) != self.frame_size:
            raise ValueError(f"this stack was made for frames of {self.frame_size}. Received: {tuple(x.shape[3:])}")
        self._check_state(state, x.shape[0], ())
        if self.pool > 1:
            maps = nnf.max_pool2d(maps.flatten(0, 1), self.pool, ceil_mode=True).unflatten(0, maps.shape[:2])
        y, (h, c) = self.lstm(maps.flatten(2), state)
        return y, (h, c)
