"""ConvGRU layers and cells in one, two and three dimensions: gates r, z, n, the reset after the convolution.

On a 1×1 grid they are `torch.nn.GRU`. One bias of four parts stands for torch's two: r, z, and for n that of its input half
and that of its recurrent half, which the reset gate multiplies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .recurrent import Activation, Recurrent, RecurrentCell, RecurrentLayer, Size

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int

__all__ = ["ConvGRU1d", "ConvGRU2d", "ConvGRU3d", "ConvGRUCell1d", "ConvGRUCell2d", "ConvGRUCell3d"]


class _GRU(Recurrent):
    gates = 3
    cell = "gru"
    state_names = "h"


class _ConvGRU(_GRU, RecurrentLayer):
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
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        dropout_masks: str = "gate",
        zoneout: float | Sequence[float] = 0.0,
        norm: str | None = None,
        norm_groups: int | None = None,
        checkpoint_every: int | None = None,
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

    def forward(
        self,
        x: Float[Tensor, "B T C *frame"],
        state: Float[Tensor, "L B F *frame"] | None = None,
        *,
        mask: Bool[Tensor, "B T"] | None = None,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "B T F *frame"], Float[Tensor, "L B F *frame"]]:
        """Run a sequence of any length and any frame size. `state` is h, with a leading axis L = num_layers · directions.

        All else, and what raises, as in `ConvLSTM2d.forward`.
        """
        y, (h,) = self._run(x, None if state is None else (state,), mask, lengths)
        return y, h

    def step(
        self, x: Float[Tensor, "B C *frame"], state: Float[Tensor, "L B F *frame"] | None = None
    ) -> tuple[Float[Tensor, "B F *frame"], Float[Tensor, "L B F *frame"]]:
        """One step of a stream: the same numbers as the whole sequence at once (with dropout or zoneout, in eval mode).

        Raises ValueError if the layer is bidirectional: its backward half needs the future.
        """
        y, (h,) = self._step(x, None if state is None else (state,))
        return y, h


class _ConvGRUCell(_GRU, RecurrentCell):
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
        activation: Activation = "tanh",
        recurrent_activation: Activation = "sigmoid",
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
        self._set_up(bias=bias, factory={"device": device, "dtype": dtype})

    def forward(
        self, x: Float[Tensor, "B C *frame"], state: Float[Tensor, "B F *frame"] | None = None
    ) -> Float[Tensor, "B F *frame"]:
        """One step: frame and h → the next h; zeros if h is left out. Else as `ConvLSTMCell2d`."""
        (h,) = self._run(x, None if state is None else (state,))
        return h


class ConvGRU2d(_ConvGRU):
    """Convolutional GRU over sequences of images (Ballas et al. 2016, with torch.nn.GRU's reset after the convolution).

    >>> layer = ConvGRU2d(in_channels=1, hidden_channels=8, kernel_size=3)
    >>> y, h = layer(torch.zeros(2, 5, 1, 16, 12))   # x (B, T, C, Y, X)
    >>> y.shape, h.shape
    (torch.Size([2, 5, 8, 16, 12]), torch.Size([1, 2, 8, 16, 12]))
    >>> y, h = layer(torch.zeros(2, 5, 1, 16, 12), h)   # goes on where it stopped

    Arguments as in `ConvLSTM2d`, less peepholes and the forget gate's bias. Parameters: `weight_ih_l0` (3F, C, kY, kX),
    `weight_hh_l0` (3F, F, rY, rX) in the order r, z, n; `bias_l0` (4F): r, z, n's input half, n's recurrent half. h stays
    in float32 under autocast.

    Raises:
        ValueError: for an argument out of range, and in `forward` for a shape that does not fit.
    """

    dims = 2


class ConvGRU1d(_ConvGRU):
    """Convolutional GRU over sequences of lines: x (B, T, C, X). Arguments as in `ConvGRU2d`."""

    dims = 1


class ConvGRU3d(_ConvGRU):
    """Convolutional GRU over sequences of volumes: x (B, T, C, Z, Y, X). Arguments as in `ConvGRU2d`."""

    dims = 3


class ConvGRUCell2d(_ConvGRUCell):
    """One step of `ConvGRU2d`: (x, h) → h, with h (B, F, Y, X), as torch.nn.GRUCell.

    >>> cell = ConvGRUCell2d(1, 8, 3)
    >>> h = cell(torch.zeros(2, 1, 16, 12))
    >>> h = cell(torch.zeros(2, 1, 16, 12), h)
    """

    dims = 2


class ConvGRUCell1d(_ConvGRUCell):
    """One step of `ConvGRU1d`: h (B, F, X)."""

    dims = 1


class ConvGRUCell3d(_ConvGRUCell):
    """One step of `ConvGRU3d`: h (B, F, Z, Y, X)."""

    dims = 3
