"""Nets by name: those of the paper and of later benchmarks with exactly their parameter counts, and any size between.

    convlstm-5x5-128-64-64             EncoderForecaster: kernels, then hidden channels from the frames upwards
    convlstm-9x9-1x1-128-64-64         the same with recurrent kernels of their own
    conv2d-lstm-5x5-128-64-64          Conv2dLSTMForecaster: an LSTM per pixel in the place of each ConvLSTM
    conv2d-flatten-lstm-5x5-16-1024    Conv2dFlatLSTMForecaster: channels that are flattened, units; "-pool4" pools before
    fc-lstm-2048-2048                  EncoderForecaster whose one patch is the whole frame
    next-frame-5x5-128-128-128-128     NextFrameForecaster

"convlstm-s" and "convlstm-l" are the next-frame nets of later benchmarks, "radar" is the paper's net for radar echoes.
"""

from __future__ import annotations

import re

from .forecaster import (
    Conv2dFlatLSTMForecaster,
    Conv2dLSTMForecaster,
    EncoderForecaster,
    Forecasts,
    NextFrameForecaster,
)
from .recurrent import Size, _sizes

__all__ = ["FORMS", "OWN_PATCH", "PAPER_MODELS", "net", "paper_model"]

FORMS = (
    "convlstm-5x5-128-64-64",
    "convlstm-9x9-1x1-128-64-64",
    "conv2d-lstm-5x5-128-64-64",
    "conv2d-flatten-lstm-5x5-16-1024",
    "fc-lstm-2048-2048",
    "next-frame-5x5-128-128-128-128",
    "convlstm-s",
    "convlstm-l",
)
PAPER_MODELS = (
    "convlstm-5x5-256",
    "convlstm-5x5-128-128",
    "convlstm-5x5-128-64-64",
    "convlstm-9x9-1x1-128-128",
    "convlstm-9x9-1x1-128-64-64",
    "fc-lstm-2048-2048",
    "radar",
    "convlstm-s",
    "convlstm-l",
    "conv2d-lstm-5x5-128-64-64",
    "conv2d-flatten-lstm-5x5-16-1024",
)
OWN_PATCH = {"radar": 2}  # of nets whose patch is not the usual one
_ALSO_CALLED = {
    "radar": "convlstm-3x3-64-64",
    "convlstm-s": "next-frame-5x5-128-128-128-128",
    "convlstm-l": "next-frame-5x5-192-192-192-192",
}
_NAME = re.compile(
    r"(?P<kind>convlstm|conv2d-lstm|conv2d-flatten-lstm|fc-lstm|next-frame)"
    r"(?:-(?P<kernel>\d{1,2})x(?P=kernel))?(?:-(?P<recurrent>\d{1,2})x(?P=recurrent))?"
    r"(?P<sizes>(?:-\d{1,5})+)(?:-pool(?P<pool>\d{1,3}))?"
)


def net(
    name: str,
    *,
    in_channels: int = 1,
    out_channels: int | None = None,
    patch: int = 4,
    frame_size: Size = (64, 64),
) -> Forecasts:
    """The net of a name (see above), freshly drawn.

    `patch` is the side of the blocks that frames are folded into; fc-lstm folds all of `frame_size` into one. Those with a
    vector in the middle know frames of `frame_size` only.

    Raises ValueError for a name of no such form, and for what its net says of its arguments.
    """
    found = _NAME.fullmatch(_ALSO_CALLED.get(name, name))
    if found is None:
        raise ValueError(f"unknown net. Expected a name such as {', '.join(FORMS)}. Received: {name!r}")
    kind, kernel, recurrent, pool = found.group("kind", "kernel", "recurrent", "pool")
    sizes = [int(size) for size in found["sizes"].split("-")[1:]]
    wants_kernel, may = kind != "fc-lstm", {"convlstm": recurrent, "conv2d-flatten-lstm": pool}
    if (kernel is not None) != wants_kernel or any(part and part != may.get(kind) for part in (recurrent, pool)):
        raise ValueError(f"unknown net. Expected a name such as {', '.join(FORMS)}. Received: {name!r}")
    if kind == "conv2d-flatten-lstm" and len(sizes) != 2:
        raise ValueError(f"conv2d-flatten-lstm has two sizes, channels and units. Received: {name!r}")
    height, width = _sizes(frame_size, 2, "frame_size")
    if kind == "fc-lstm":
        whole = max(height, width)
        return EncoderForecaster(
            in_channels, sizes, 1, patch=whole, peephole="channel", out_channels=out_channels, readout="top"
        )
    k = int(kernel)
    if kind == "conv2d-flatten-lstm":
        channels, units = sizes
        size, pooled = (height, width), int(pool or 1)
        return Conv2dFlatLSTMForecaster(
            in_channels, channels, units, k, frame_size=size, patch=patch, pool=pooled, out_channels=out_channels
        )
    if kind == "convlstm":
        return EncoderForecaster(
            in_channels,
            sizes,
            k,
            recurrent_kernel_size=None if recurrent is None else int(recurrent),
            patch=patch,
            peephole="channel",
            out_channels=out_channels,
        )
    kinds = {"conv2d-lstm": Conv2dLSTMForecaster, "next-frame": NextFrameForecaster}
    return kinds[kind](in_channels, sizes, k, patch=patch, out_channels=out_channels)


def paper_model(name: str) -> Forecasts:
    """A net for Moving-MNIST (frames 64×64 in 4×4 patches) or radar echoes with exactly its published parameter count.

    Shi et al. 2015, table 1: "convlstm-5x5-256", "convlstm-5x5-128-128", "convlstm-5x5-128-64-64",
    "convlstm-9x9-1x1-128-128", "convlstm-9x9-1x1-128-64-64", "fc-lstm-2048-2048" (frames of 64×64 only, as there);
    "radar" is the net of table 2 (patches of 2×2). "convlstm-s" and "convlstm-l" are those of later benchmarks, less the
    weights that these count and never use. "conv2d-lstm-5x5-128-64-64" and "conv2d-flatten-lstm-5x5-16-1024" are what is
    often meant by Conv2D + LSTM; `stormcell.nn.net` makes other sizes.

    Raises ValueError for another name.
    """
    if name not in PAPER_MODELS:
        raise ValueError(f"unknown net. Expected one of: {', '.join(PAPER_MODELS)}. Received: {name!r}")
    return net(name, patch=OWN_PATCH.get(name, 4))
