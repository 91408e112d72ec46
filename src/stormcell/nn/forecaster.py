"""The encoder–forecaster of Shi et al. 2015 (figure 3), and the nets of that paper by name.

Stacked ConvLSTM layers read the past; their states are copied to a forecaster of the reversed sizes, whose lowest layer
has no input, so that it needs no truth and runs for any number of steps. A 1×1 convolution reads all forecaster states.
Frames are folded into patches first (space to depth). One patch as large as the frame makes it the paper's FC-LSTM.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from .convlstm import ConvLSTM2d

if TYPE_CHECKING:
    from jaxtyping import Float


class EncoderForecaster(nn.Module):
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
        engine: str = "auto",
    ) -> None:
        super().__init__()
        hidden = tuple(hidden_channels)
        if not hidden or in_channels < 1 or patch < 1:
            raise ValueError(
                "in_channels and patch must be ≥ 1 and hidden_channels not empty. "
                f"Received: {in_channels}, {patch} and {hidden}"
            )
        if peephole not in (None, "channel"):
            raise ValueError(f'peephole must be None or "channel". Received: {peephole!r}')
        if readout not in ("all", "top"):
            raise ValueError(f'readout must be "all" or "top". Received: {readout!r}')
        self.in_channels = in_channels
        self.out_channels = in_channels if out_channels is None else out_channels
        self.hidden_channels = hidden
        self.patch, self.readout = patch, readout

        def stack(first: int, sizes: Sequence[int]) -> nn.ModuleList:
            return nn.ModuleList(
                ConvLSTM2d(
                    inputs,
                    size,
                    kernel_size,
                    recurrent_kernel_size=recurrent_kernel_size,
                    peephole=peephole,
                    engine=engine,
                )
                for inputs, size in zip((first, *sizes[:-1]), sizes)
            )

        self.encoder = stack(in_channels * patch**2, hidden)
        self.forecaster = stack(0, hidden[::-1])
        read = sum(hidden) if readout == "all" else hidden[0]
        self.output = nn.Conv2d(read, self.out_channels * patch**2, kernel_size=1)

    def forward(self, x: Float[Tensor, "B T C Y X"], steps: int) -> Float[Tensor, "B steps C_out Y X"]:
        """Forecast `steps` frames after the last of x."""
        if x.ndim != 5 or x.shape[2] != self.in_channels:
            raise ValueError(f"expected x (B, T, {self.in_channels}, Y, X). Received: {tuple(x.shape)}")
        if steps < 1:
            raise ValueError(f"steps must be ≥ 1. Received: {steps}")
        batch, _, _, height, width = x.shape
        z = nnf.pad(x, (0, -width % self.patch, 0, -height % self.patch))
        z = nnf.pixel_unshuffle(z, self.patch)
        states = []
        for layer in self.encoder:
            z, state = layer(z)
            states.append(state)
        z = z.new_empty(batch, steps, 0, *z.shape[-2:])
        outputs = []
        for layer, state in zip(self.forecaster, reversed(states)):
            z, _ = layer(z, state)
            outputs.append(z)
        read = torch.cat(outputs, dim=2) if self.readout == "all" else outputs[-1]
        y = self.output(read.flatten(0, 1)).unflatten(0, (batch, steps))
        return nnf.pixel_shuffle(y, self.patch)[..., :height, :width]


def _convlstm(hidden: Sequence[int], kernel: int, recurrent: int, patch: int = 4) -> EncoderForecaster:
    return EncoderForecaster(1, hidden, kernel, recurrent_kernel_size=recurrent, patch=patch, peephole="channel")


_PAPER_MODELS = {
    "convlstm-5x5-256": lambda: _convlstm((256,), 5, 5),
    "convlstm-5x5-128-128": lambda: _convlstm((128, 128), 5, 5),
    "convlstm-5x5-128-64-64": lambda: _convlstm((128, 64, 64), 5, 5),
    "convlstm-9x9-1x1-128-128": lambda: _convlstm((128, 128), 9, 1),
    "convlstm-9x9-1x1-128-64-64": lambda: _convlstm((128, 64, 64), 9, 1),
    # A ConvLSTM on a 1×1 map is an LSTM: one patch of 64×64 pixels leaves such a map.
    "fc-lstm-2048-2048": lambda: EncoderForecaster(1, (2048, 2048), 1, patch=64, peephole="channel", readout="top"),
    "radar": lambda: _convlstm((64, 64), 3, 3, patch=2),
}


def paper_model(name: str) -> EncoderForecaster:
    """A net of Shi et al. 2015 with exactly its parameter count, freshly drawn.

    Moving-MNIST (frames 64×64, table 1): "convlstm-5x5-256", "convlstm-5x5-128-128", "convlstm-5x5-128-64-64",
    "convlstm-9x9-1x1-128-128", "convlstm-9x9-1x1-128-64-64", "fc-lstm-2048-2048" (frames of 64×64 only, as there);
    "radar" is the net for radar echoes (table 2).

    Raises ValueError for another name.
    """
    if name not in _PAPER_MODELS:
        raise ValueError(f"unknown net. Expected one of: {', '.join(_PAPER_MODELS)}. Received: {name!r}")
    return _PAPER_MODELS[name]()
