"""ConvLSTM layers and cells in one, two and three dimensions (Shi et al. 2015; Keras' ConvLSTM1D, 2D, 3D).

On a 1×1 grid they are `torch.nn.LSTM`. Gates lie in the order i, f, g, o.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..engine import state_size
from .recurrent import ACTIVATIONS, Activation, Recurrent, RecurrentCell, RecurrentLayer, Size, _sizes

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = [
    "ACTIVATIONS",
    "ConvLSTM",
    "ConvLSTM1d",
    "ConvLSTM2d",
    "ConvLSTM3d",
    "ConvLSTMCell1d",
    "ConvLSTMCell2d",
    "ConvLSTMCell3d",
]

State = tuple[Tensor, Tensor]


class _LSTM(Recurrent):
    """Peepholes and the forget gate's bias."""

    gates = 4
    cell = "lstm"
    state_names = "hc"
    peephole: str | None
    frame_size: tuple[int, ...] | None
    unit_forget_bias: bool

    def _set_gates(self, peephole: str | None, frame_size: Size | None, unit_forget_bias: bool) -> None:
        if peephole not in (None, "channel", "pixel"):
            raise ValueError(f'peephole must be None, "channel" or "pixel". Received: {peephole!r}')
        if (peephole == "pixel") != (frame_size is not None):
            raise ValueError('peephole="pixel" needs frame_size, and nothing else takes it')
        self.peephole, self.unit_forget_bias = peephole, unit_forget_bias
        self.frame_size = None if frame_size is None else _sizes(frame_size, self.dims, "frame_size")

    def _peephole_size(self) -> tuple[int, ...] | None:
        if self.peephole is None:
            return None
        size = () if self.frame_size is None else state_size(self.frame_size, self.kernel_size, self._form())
        return (3 * self.hidden_channels, *size)

    def _fits(self, frame: tuple[int, ...]) -> None:
        if self.frame_size not in (None, frame):
            raise ValueError(f"pixel peepholes were made for frames of {self.frame_size}. Received: {frame}")

    def reset_parameters(self) -> None:
        """Draw all parameters anew; the forget gate's bias becomes 1 with `unit_forget_bias`, the others 0."""
        super().reset_parameters()
        if self.unit_forget_bias:
            with torch.no_grad():
                for name, parameter in self.named_parameters(recurse=False):
                    if name.startswith("bias"):
                        parameter[self.hidden_channels : 2 * self.hidden_channels] = 1


class ConvLSTM(_LSTM, RecurrentLayer):
    """What the layers of every dimension share; see `ConvLSTM2d`."""

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
        reverse: bool = False,
        batch_first: bool = True,
        peephole: str | None = None,
        frame_size: Size | None = None,
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        unit_forget_bias: bool = True,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dropout_masks: str = "gate",
        zoneout: float | Sequence[float] = 0.0,
        norm: str | None = None,
        norm_groups: int | None = None,
        checkpoint_every: int | None = None,
        periodic_x: bool = False,
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
            activation=activation,
            recurrent_activation=recurrent_activation,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            dropout_masks=dropout_masks,
            zoneout=zoneout,
            norm=norm,
            norm_groups=norm_groups,
            engine=engine,
        )
        if periodic_x and padding != "same":
            raise ValueError(f'periodic_x=True goes with padding="same". Received: {padding!r}')
        self.periodic_x = periodic_x
        self._set_gates(peephole, frame_size, unit_forget_bias)
        self._set_up(
            bias=bias,
            num_layers=num_layers,
            bidirectional=bidirectional,
            reverse=reverse,
            batch_first=batch_first,
            dropout=dropout,
            checkpoint_every=checkpoint_every,
            factory={"device": device, "dtype": dtype},
        )

    def _fits(self, frame: tuple[int, ...]) -> None:
        super()._fits(frame)
        reach = max(self.kernel_size[-1] * self.dilation[-1], self.recurrent_kernel_size[-1]) // 2
        if self.periodic_x and reach > frame[-1] // self.stride[-1]:
            raise ValueError(
                f"kernels of a periodic axis reach once around it at most, {reach} pixels. Received: {frame}"
            )

    def forward(
        self,
        x: Float[Tensor, "B T C *frame"],
        state: State | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "B T F *frame"], State]:
        """Run a sequence of any length and any frame size.

        Without `batch_first` time comes before batch, in x, mask and y. `state` is (h, c), each with a leading axis
        (num_layers · directions, B, F, *frame); zeros if left out; detach it to cut the backward through time there.
        `mask` is True where a step is used: elsewhere the state is kept and the output repeats the last used one, zeros
        before the first (Keras' rule). `lengths` is short for the mask whose first so many steps are True. Layers with
        `in_channels=0` take frames with zero channels: they run on their state alone. As in torch.nn.LSTM, a single
        sequence may come without batch axis, in x, state and mask alike.

        Raises ValueError if a shape does not fit.
        """
        y, (h, c) = self._run(x, state, mask, lengths)
        return y, (h, c)

    def step(
        self, x: Float[Tensor, "B C *frame"], state: State | None = None
    ) -> tuple[Float[Tensor, "B F *frame"], State]:
        """One step of a stream: the same numbers as the whole sequence at once (with dropout or zoneout, in eval mode).

        Raises ValueError if the layer is bidirectional: its backward half needs the future.
        """
        y, (h, c) = self._step(x, state)
        return y, (h, c)

    def to_dense_lstm(self, frame_size: Size) -> nn.LSTM:
        """The torch.nn.LSTM that is this layer for flattened frames of one size; see `identities.to_dense_lstm`."""
        from .identities import to_dense_lstm  # which needs this module

        return to_dense_lstm(self, frame_size)

    def to_pixel_lstm(self) -> nn.LSTM:
        """The torch.nn.LSTM that is this layer in each pixel, if its kernels act as 1×1; see `identities.to_pixel_lstm`."""
        from .identities import to_pixel_lstm

        return to_pixel_lstm(self)


class _ConvLSTMCell(_LSTM, RecurrentCell):
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
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        unit_forget_bias: bool = True,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dropout_masks: str = "gate",
        zoneout: float | Sequence[float] = 0.0,
        norm: str | None = None,
        norm_groups: int | None = None,
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
            activation=activation,
            recurrent_activation=recurrent_activation,
            input_dropout=input_dropout,
            recurrent_dropout=recurrent_dropout,
            dropout_masks=dropout_masks,
            zoneout=zoneout,
            norm=norm,
            norm_groups=norm_groups,
            engine=engine,
        )
        self._set_gates(peephole, frame_size, unit_forget_bias)
        self._set_up(bias=bias, factory={"device": device, "dtype": dtype})

    def forward(self, x: Float[Tensor, "B C *frame"], state: State | None = None) -> State:
        """One step. `state` is (h, c), each (B, F, *frame), zeros if left out; returns the next (h, c).

        Dropout masks are drawn anew at each call: over a sequence, a layer is what Keras does. x and state may come
        without batch axis. Raises ValueError if a shape does not fit.
        """
        h, c = self._run(x, state)
        return h, c


class ConvLSTM2d(ConvLSTM):
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
        reverse: run from the last step to the first; y keeps the time order of x (Keras' go_backwards gives y.flip(1)).
        peephole: None, "channel" (one weight a channel, which the paper's parameter counts demand) or "pixel" (one a
            channel and pixel, the paper's equations; needs `frame_size` and ties the layer to it).
        activation, recurrent_activation: a name (tanh, sigmoid, relu, linear, hard_sigmoid of Keras 3,
            keras2_hard_sigmoid, … : `stormcell.nn.ACTIVATIONS`) or a callable.
        unit_forget_bias: start the forget gate's bias at 1.
        input_dropout, recurrent_dropout: Keras' `dropout` and `recurrent_dropout`: masks on frames and on h, drawn once
            a call for each sample, channel and pixel, the same for all steps.
        dropout_masks: "gate", a mask of its own for each gate as in Keras, or "shared", one for all, which is faster.
        zoneout: probability that an element of the state keeps its old value (Krueger et al. 2017), in training; its
            expected value otherwise. One for h and c, or a pair.
        norm: None, "layer" or "group": normalise the two convolutions' outputs, each for itself, per sample over pixels and
            channels (all of them, or `norm_groups` groups; a group a gate if None), with gains `norm_ih_l0` and
            `norm_hh_l0` per channel; the bias is the shift (Ba et al. 2016, eq. 20, without its norm of c).
        checkpoint_every: keep the state after every so many steps only, and compute the steps between once more in the
            backward: less memory for a third more time. Same numbers.
        periodic_x: the last axis goes around, as longitudes do around the globe: convolutions of frames and of states take
            what lies beyond one end from the other, and what is rolled along x gives y rolled. With padding "same".
        engine: how the sequence is computed; see `stormcell.engine`.

    Under autocast and in half precision the cell state stays in float32.

    Raises:
        ValueError: for an argument out of range, and in `forward` for a shape that does not fit.
    """

    dims = 2


class ConvLSTM1d(ConvLSTM):
    """Convolutional LSTM over sequences of lines: x (B, T, C, X). Arguments as in `ConvLSTM2d`."""

    dims = 1


class ConvLSTM3d(ConvLSTM):
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
