"""A published Keras net, rebuilt with our layers from its own weights, gives its own outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'stormcell[keras]'")

from stormcell.interop import from_keras  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)


def next_frame_net(size: int) -> Any:
    """keras.io, "Next-Frame Video Prediction with Convolutional LSTMs": three ConvLSTM2D of 64, 5×5, 3×3, 1×1."""
    layers = [keras.Input((None, size, size, 1), dtype="float64")]
    for number, kernel in enumerate((5, 3, 1)):
        options = {"padding": "same", "return_sequences": True, "activation": "relu", "name": f"convlstm_{number}"}
        layers.append(keras.layers.ConvLSTM2D(64, kernel, **options, dtype="float64"))
        if number < 2:
            layers.append(keras.layers.BatchNormalization(dtype="float64"))
    layers.append(keras.layers.Conv3D(1, 3, activation="sigmoid", padding="same", dtype="float64"))
    return keras.Sequential(layers)


class Rebuilt(nn.Module):
    """The same in torch: frames (B, T, C, Y, X)."""

    def __init__(self, net: Any) -> None:
        super().__init__()
        self.convlstm = nn.ModuleList(from_keras(net.get_layer(f"convlstm_{number}")) for number in range(3))
        self.norms = nn.ModuleList()
        for layer in net.layers:
            if isinstance(layer, keras.layers.BatchNormalization):
                norm = nn.BatchNorm3d(64, eps=layer.epsilon, dtype=torch.float64)
                values = [torch.from_numpy(v) for v in layer.get_weights()]
                keys = ("weight", "bias", "running_mean", "running_var")
                norm.load_state_dict(dict(zip(keys, values)), strict=False)
                self.norms.append(norm)
        self.output = nn.Conv3d(64, 1, 3, padding=1, dtype=torch.float64)
        kernel, bias = net.layers[-1].get_weights()
        self.output.load_state_dict(
            {"weight": torch.from_numpy(kernel).permute(4, 3, 0, 1, 2), "bias": torch.from_numpy(bias)}
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for number, layer in enumerate(self.convlstm):
            x, _ = layer(x)
            if number < 2:
                x = self.norms[number](x.transpose(1, 2)).transpose(1, 2)
        return self.output(x.transpose(1, 2)).transpose(1, 2).sigmoid()


def test_the_next_frame_example_of_keras() -> None:
    rng = np.random.default_rng(0)
    net = next_frame_net(16)
    assert net.count_params() == 746_689
    for layer in net.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([rng.uniform(0.5, 1.5, w.shape).astype("float32") for w in layer.get_weights()])
    rebuilt = Rebuilt(net).eval()
    trainable = sum(p.numel() for p in rebuilt.parameters()) + sum(
        b.numel() for n, b in rebuilt.named_buffers() if "running" in n
    )
    assert trainable == 746_689
    x = rng.random((2, 5, 16, 16, 1))
    stage, number = torch.from_numpy(x), 0
    for layer in net.layers:  # each of ours on what Keras feeds its own
        before, stage = stage, layer(stage).detach()
        if layer.name.startswith("convlstm"):
            y = rebuilt.convlstm[number](before.movedim(-1, 2))[0].movedim(2, -1)
            assert torch.all((y - stage).abs() <= 1e-12 * (1 + stage.abs()))
            number += 1
    assert number == 3
    with torch.no_grad():
        y = rebuilt(torch.from_numpy(x).movedim(-1, 2)).movedim(2, -1)
    assert stage.std() > 1e-3
    # the whole: Keras' BatchNormalization is 3e-7 off its own formula in float64, which the layers behind it damp
    assert torch.all((y - stage).abs() <= 1e-7)
