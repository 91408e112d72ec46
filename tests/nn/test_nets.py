"""Nets by name: published counts to the unit, what they cost and how far they see, and names that are none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from stormcell import paper_model
from stormcell.nn import (
    Conv2dFlatLSTMForecaster,
    Conv2dLSTMForecaster,
    ConvLSTM2d,
    EncoderForecaster,
    NextFrameForecaster,
    forecast_macs,
    forecast_reach,
    net,
)
from stormcell.nn.nets import FORMS, PAPER_MODELS

# Tan et al. 2023 list 15.0 M and 33.8 M, with layers that nothing reads: 3,407,872 and 7,667,712 weights
LATER = {"convlstm-s": 11_675_648, "convlstm-l": 26_115_072}
SMALL = (
    "convlstm-3x3-5-4",
    "convlstm-3x3-1x1-5-4",
    "conv2d-lstm-3x3-5-4",
    "conv2d-flatten-lstm-3x3-2-6",
    "conv2d-flatten-lstm-3x3-2-6-pool2",
    "fc-lstm-7-6",
    "next-frame-3x3-5-4",
)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("name", "expected"), LATER.items())
def test_parameter_counts_of_later_benchmarks(name: str, expected: int) -> None:
    with torch.device("meta"):
        assert count(paper_model(name)) == expected


def test_multiplications_of_later_benchmarks() -> None:
    """Tables say 56.8 and 127.0 G, for all 19 steps of 10 → 10 frames; the readout of 9 of them is not needed."""
    for name, listed, hidden in (("convlstm-s", 56.79e9, 128), ("convlstm-l", 127.02e9, 192)):
        with torch.device("meta"):
            found = forecast_macs(paper_model(name), 64, past=10, steps=10)
        assert found + 9 * 16 * 16 * 16 * hidden == pytest.approx(listed, rel=1e-4)


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_every_published_net_can_be_made(name: str) -> None:
    with torch.device("meta"):
        model = paper_model(name)
    assert model.patch == (2 if name == "radar" else 64 if name.startswith("fc") else 4)


@pytest.mark.parametrize("name", SMALL)
def test_nets_are_called_alike(name: str) -> None:
    torch.manual_seed(0)
    model = net(name, patch=2, frame_size=(9, 12)).double()
    x = torch.rand(3, 4, 1, 9, 12, dtype=torch.float64)
    y = model(x, 5)
    assert y.shape == (3, 5, 1, 9, 12)
    torch.testing.assert_close(model(x, 2), y[:, :2], rtol=0, atol=1e-12)
    torch.testing.assert_close(model(x[1:2], 5), y[1:2], rtol=0, atol=1e-12)
    y.square().sum().backward()
    unused = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not unused
    for wrong in (x[0], x.expand(-1, -1, 2, -1, -1)):
        with pytest.raises(ValueError, match="expected x"):
            model(wrong, 1)
    with pytest.raises(ValueError, match="steps must be ≥ 1"):
        model(x, 0)


@pytest.mark.parametrize("name", SMALL[:5])
def test_more_channels_in_than_out(name: str) -> None:
    model = net(name, in_channels=2, out_channels=1, patch=2, frame_size=(8, 8))
    assert model(torch.rand(1, 3, 2, 8, 8), 2).shape == (1, 2, 1, 8, 8)


def test_a_next_frame_net_reads_what_it_said() -> None:
    torch.manual_seed(0)
    model = net("next-frame-3x3-5-4", patch=2).double()
    x = torch.rand(2, 4, 1, 8, 8, dtype=torch.float64)
    first = model(x, 1)
    torch.testing.assert_close(model(torch.cat([x, first], dim=1), 1), model(x, 2)[:, 1:], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="channels in and out are the same"):
        net("next-frame-3x3-5", in_channels=2, out_channels=1)


def test_kinds() -> None:
    kinds = {
        "convlstm-9x9-1x1-8": EncoderForecaster,
        "conv2d-lstm-5x5-8": Conv2dLSTMForecaster,
        "conv2d-flatten-lstm-5x5-2-8": Conv2dFlatLSTMForecaster,
        "next-frame-5x5-8": NextFrameForecaster,
    }
    for name, kind in kinds.items():
        assert type(net(name)) is kind
    layer = net("convlstm-9x9-1x1-8").encoder[0]
    assert isinstance(layer, ConvLSTM2d)
    assert (layer.kernel_size, layer.recurrent_kernel_size) == ((9, 9), (1, 1))


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_messages_show_are_names(name: str) -> None:
    with torch.device("meta"):
        net(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "lstm",
        "convlstm",
        "convlstm-5x5",
        "convlstm-5x3-8",
        "convlstm-8-8",
        "conv2d-lstm-5x5-1x1-8",
        "fc-lstm-3x3-8",
        "convlstm-3x3-8-pool2",
        "next-frame-8",
        "conv2d-flatten-lstm-3x3-8",
        "conv2d-flatten-lstm-3x3-8-8-8",
        "convlstm-3x3-8 ",
    ],
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ValueError, match="Received: "):
        net(name)


def measured_reach(name: str, step: int) -> int:
    """Patches from the middle to the farthest of the newest frame that changes the middle of a forecast frame."""
    torch.manual_seed(1)
    side = 41
    model = net(name, patch=1, frame_size=(1, side)).double()
    x = torch.rand(1, 3, 1, 1, side, dtype=torch.float64, requires_grad=True)
    model(x, step)[0, step - 1, 0, 0, side // 2].backward()
    assert x.grad is not None
    seen = x.grad[0, -1, 0, 0].abs().nonzero()
    return max(abs(int(at) - side // 2) for at in seen)


@pytest.mark.parametrize(
    "name",
    [
        "convlstm-3x3-4",
        "convlstm-3x3-4-4",
        "convlstm-5x5-3x3-4-4",
        "convlstm-5x5-1x1-4-4",
        "conv2d-lstm-3x3-4-4",
        "next-frame-3x3-4-4",
    ],
)
@pytest.mark.parametrize("step", [1, 2, 4])
def test_reach_is_how_far_a_forecast_sees(name: str, step: int) -> None:
    assert forecast_reach(net(name, patch=1), step) == measured_reach(name, step)


def test_a_flattened_map_sees_everything() -> None:
    assert forecast_reach(net("conv2d-flatten-lstm-3x3-2-6"), 1) == math.inf
    with pytest.raises(ValueError, match="step must be ≥ 1"):
        forecast_reach(net("convlstm-3x3-4"), 0)


def test_costs_of_what_is_compared() -> None:
    """By hand, on 8×8 pixels in patches of 2: maps of 4×4 with 4 channels."""
    assert forecast_macs(net("conv2d-lstm-3x3-5", patch=2), 8, past=3, steps=2) == 16 * (
        3 * (9 * 4 * 5 + 4 * 5 * (5 + 5)) + 2 * (4 * 5 * 5 + 5 * 4)
    )
    flat = net("conv2d-flatten-lstm-3x3-2-6-pool2", patch=2, frame_size=(8, 8))
    encoder = 16 * 9 * 4 * 2 + 4 * 6 * (2 * 2 * 2 + 6)
    later = 4 * 6 * 6 + 6 * 2 * 2 * 2 + 16 * 9 * 2 * 4
    assert forecast_macs(flat, 8, past=3, steps=2) == 3 * encoder + 2 * later
