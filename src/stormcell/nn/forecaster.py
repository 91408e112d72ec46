"""Nets that forecast frames: the encoder–forecaster of Shi et al. 2015 (figure 3), and what it is compared with.

Stacked ConvLSTM layers read the past; their states are copied to a forecaster of the reversed sizes, whose lowest layer
has no input, so that it needs no truth and runs for any number of steps. A 1×1 convolution reads all forecaster states.
Frames are folded into patches first (space to depth). One patch as large as the frame makes it the paper's FC-LSTM.

All nets here are called alike: `net(x, steps)` with x (B, T, C, Y, X) gives (B, steps, C_out, Y, X), linear.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .convlstm import ConvLSTM2d
from .recurrent import Size, _sizes
from .stacks import Conv2dFlatLSTM, Conv2dPixelLSTM

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Conv2dFlatLSTMForecaster", "Conv2dLSTMForecaster", "EncoderForecaster", "Forecasts", "NextFrameForecaster"]


class Forecasts(nn.Module):
    """What the nets share: frames are folded into patches, forecasts unfolded, and arguments checked."""

    def __init__(self, in_channels: int, out_channels: int | None, hidden: tuple[int, ...], patch: int) -> None:
        super().__init__()
        if not hidden or in_channels < 1 or patch < 1:
            raise ValueError(
                "in_channels and patch must be ≥ 1 and hidden_channels not empty. "
                f"Received: {in_channels}, {patch} and {hidden}"
            )
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.hidden_channels, self.patch = hidden, patch

    def _fold(self, x: Tensor, steps: int) -> Tensor:
        """(B, T, C, Y, X) → (B, T, C·patch², Y/patch, X/patch), with zeros below and to the right where it does not divide."""
        if x.ndim != 5 or x.shape[2] != self.in_channels:
            raise ValueError(f"expected x (B, T, {self.in_channels}, Y, X). Received: {tuple(x.shape)}")
        if steps < 1:
            raise ValueError(f"steps must be ≥ 1. Received: {steps}")
        height, width = x.shape[-2:]
        return nnf.pixel_unshuffle(nnf.pad(x, (0, -width % self.patch, 0, -height % self.patch)), self.patch)

    def _unfold(self, y: Tensor, like: Tensor) -> Tensor:
        """The way back, cut to the frames of `like`."""
        return nnf.pixel_shuffle(y, self.patch)[..., : like.shape[-2], : like.shape[-1]]


class EncoderForecaster(Forecasts):
    """Past frames in, future frames out: `model(x, steps=10)` for x (B, T, C, Y, X) gives (B, 10, C, Y, X).

    The output is linear: put a sigmoid on it, or a loss with logits, where frames are probabilities. Frames that the
    patch does not divide are padded with zeros below and to the right, and the forecast is cropped back.

    >>> model = EncoderForecaster(in_channels=1, hidden_channels=(16, 8), kernel_size=3, patch=4, peephole="channel")
    >>> model(torch.zeros(2, 5, 1, 30, 41), steps=7).shape
    torch.Size([2, 7, 1, 30, 41])

    Args:
        in_channels: channels C of an input frame.
        hidden_channels: sizes of the encoder's layers, from the frames upwards; the forecaster has them reversed.
        kernel_size, recurrent_kernel_size, peephole, engine: of every layer, as in `ConvLSTM2d`; peepholes "channel" or
            None, since frames may have any size.
        patch: frames are folded into patch × patch blocks.
        out_channels: channels of an output frame; None means `in_channels`.
        periodic_x: the last axis goes around, as in `ConvLSTM2d`; the patch has to divide its length.
        readout: "all" forecaster states feed the output (the paper's ConvLSTM nets) or the "top" one (its FC-LSTM).

    Raises:
        ValueError: for an argument out of range, and in `forward` for a shape that does not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: Sequence[int] = (128, 64, 64),
        kernel_size: int = 5,
        *,
        recurrent_kernel_size: int | None = None,
        patch: int = 1,
        peephole: str | None = None,
        out_channels: int | None = None,
        readout: str = "all",
        periodic_x: bool = False,
        engine: str = "auto",
    ) -> None:
        hidden = tuple(hidden_channels)
        super().__init__(in_channels, out_channels, hidden, patch)
        if peephole not in (None, "channel"):
            raise ValueError(f'peephole must be None or "channel". Received: {peephole!r}')
        if readout not in ("all", "top"):
            raise ValueError(f'readout must be "all" or "top". Received: {readout!r}')
        self.kernel_size, self.recurrent_kernel_size = kernel_size, recurrent_kernel_size
        self.peephole, self.readout, self.periodic_x, self.engine = peephole, readout, periodic_x, engine
        self.encoder = self._stack(in_channels * patch**2, hidden)
        self.forecaster = self._stack(0, hidden[::-1])
        read = sum(hidden) if readout == "all" else hidden[0]
        self.output = nn.Conv2d(read, self.out_channels * patch**2, kernel_size=1)

    def _stack(self, first: int, sizes: Sequence[int]) -> nn.ModuleList:
        return nn.ModuleList(self._layer(inputs, size) for inputs, size in zip((first, *sizes[:-1]), sizes))

    def _layer(self, inputs: int, hidden: int) -> nn.Module:
        return ConvLSTM2d(
            inputs,
            hidden,
            self.kernel_size,
            recurrent_kernel_size=self.recurrent_kernel_size,
            peephole=self.peephole,
            periodic_x=self.periodic_x,
            engine=self.engine,
        )

    def forward(self, x: Float[Tensor, "B T C Y X"], steps: int) -> Float[Tensor, "B steps C_out Y X"]:
        """Forecast `steps` frames after the last of x."""
        if self.periodic_x and x.shape[-1] % self.patch:
            raise ValueError(
                f"a patch of {self.patch} must divide the length of a periodic axis. Received: {x.shape[-1]}"
            )
        z = self._fold(x, steps)
        states = []
        for layer in self.encoder:
            z, state = layer(z)
            states.append(state)
        z = z.new_empty(len(x), steps, 0, *z.shape[-2:])
        outputs = []
        for layer, state in zip(self.forecaster, reversed(states)):
            z, _ = layer(z, state)
            outputs.append(z)
        read = torch.cat(outputs, dim=2) if self.readout == "all" else outputs[-1]
        return self._unfold(self.output(read.flatten(0, 1)).unflatten(0, (len(x), steps)), x)


class Conv2dLSTMForecaster(EncoderForecaster):
    """The encoder–forecaster with Conv2D → LSTM per pixel in the place of each ConvLSTM: pixels remember alone.

    Between the two is a ReLU, as people write it. The lowest forecaster layer, without input, is the LSTM alone. Layers above
    convolve what the one below says, so that a forecast sees farther with each layer, but not with each step.

    Args:
        in_channels, hidden_channels, patch, out_channels, readout: as in `EncoderForecaster`; each convolution has as many
            channels as its LSTM.
        kernel_size: of the convolutions.

    Raises ValueError for an argument out of range, and in `forward` for a shape that does not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: Sequence[int] = (128, 64, 64),
        kernel_size: int = 5,
        *,
        patch: int = 1,
        out_channels: int | None = None,
        readout: str = "all",
    ) -> None:
        super().__init__(
            in_channels, hidden_channels, kernel_size, patch=patch, out_channels=out_channels, readout=readout
        )

    def _layer(self, inputs: int, hidden: int) -> nn.Module:
        if not inputs:
            return ConvLSTM2d(0, hidden, 1)  # with 1×1 kernels an LSTM per pixel
        return Conv2dPixelLSTM(inputs, hidden, self.kernel_size, activation="relu")


class Conv2dFlatLSTMForecaster(Forecasts):
    """Conv2D → Flatten → LSTM, and from the LSTM's vector back to a map: a matrix, then a transposed convolution.

    The encoder's state is copied to an LSTM without input, as in `EncoderForecaster`. It knows frames of one size.

    Args:
        in_channels, patch, out_channels: as in `EncoderForecaster`.
        conv_channels: channels of the map that is flattened, after a ReLU; the way back has as many.
        units: of the LSTM.
        kernel_size: of both convolutions, odd.
        frame_size: (Y, X) of the frames, before they are folded.
        pool: side of the max-pooling before Flatten, and of the blocks that its pixels become again; 1 is none.

    Raises ValueError for an argument out of range, and in `forward` for a shape that does not fit.
    """

    def __init__(
        self,
        in_channels: int,
        conv_channels: int,
        units: int,
        kernel_size: int,
        *,
        frame_size: Size,
        patch: int = 1,
        pool: int = 1,
        out_channels: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, (units,), patch)
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd. Received: {kernel_size}")
        self.frame_size, self.pool = _sizes(frame_size, 2, "frame_size"), pool
        patches = tuple(-(-n // patch) for n in self.frame_size)
        self.map_size = tuple(-(-n // pool) for n in patches)
        self.encoder = Conv2dFlatLSTM(
            in_channels * patch**2,
            units,
            kernel_size,
            frame_size=patches,
            conv_channels=conv_channels,
            activation="relu",
            pool=pool,
        )
        self.forecaster = ConvLSTM2d(0, units, 1)  # on a 1×1 map: an LSTM without input
        self.expand = nn.Linear(units, conv_channels * prod(self.map_size))
        self.output = nn.ConvTranspose2d(
            conv_channels, self.out_channels * patch**2, kernel_size, padding=kernel_size // 2
        )

    def forward(self, x: Float[Tensor, "B T C Y X"], steps: int) -> Float[Tensor, "B steps C_out Y X"]:
        """Forecast `steps` frames after the last of x."""
        z = self._fold(x, steps)
        _, (h, c) = self.encoder(z)
        empty = z.new_empty(len(x), steps, 0, 1, 1)
        told, _ = self.forecaster(empty, (h[..., None, None], c[..., None, None]))
        maps = nnf.relu(self.expand(told.flatten(0, 1).flatten(1))).unflatten(1, (-1, *self.map_size))
        if self.pool > 1:
            maps = nnf.interpolate(maps, scale_factor=self.pool)[..., : z.shape[-2], : z.shape[-1]]
        y = self.output(maps)
        return self._unfold(y.unflatten(0, (len(x), steps)), x)


class NextFrameForecaster(Forecasts):
    """Stacked ConvLSTM layers that say the next frame, and read what they said: the ConvLSTM of later benchmarks.

    No biases and no peepholes, as there. What those count beside and never use is left out.

    Args: as in `EncoderForecaster`; what it reads is what it says, so that there are as many channels in as out.

    Raises ValueError for an argument out of range, and in `forward` for a shape that does not fit.
    """

    def __init__(
        self,
        in_channels: int = 1,
        hidden_channels: Sequence[int] = (128, 128, 128, 128),
        kernel_size: int = 5,
        *,
        patch: int = 1,
        out_channels: int | None = None,
    ) -> None:
        hidden = tuple(hidden_channels)
        super().__init__(in_channels, out_channels, hidden, patch)
        if self.out_channels != in_channels:
            raise ValueError(
                f"this net reads what it says: channels in and out are the same. Received: {in_channels} and {out_channels}"
            )
        channels = in_channels * patch**2
        self.layers = nn.ModuleList(
            ConvLSTM2d(inputs, size, kernel_size, bias=False) for inputs, size in zip((channels, *hidden[:-1]), hidden)
        )
        self.output = nn.Conv2d(hidden[-1], channels, kernel_size=1, bias=False)

    def forward(self, x: Float[Tensor, "B T C Y X"], steps: int) -> Float[Tensor, "B steps C Y X"]:
        """Forecast `steps` frames after the last of x."""
        z = self._fold(x, steps)
        states = []
        for layer in self.layers:
            z, state = layer(z)
            states.append(state)
        said = [self.output(z[:, -1])]
        while len(said) < steps:
            z = said[-1]
            for k, layer in enumerate(self.layers):
                assert isinstance(layer, ConvLSTM2d)
                z, states[k] = layer.step(z, states[k])
            said.append(self.output(z))
        return self._unfold(torch.stack(said, dim=1), x)
