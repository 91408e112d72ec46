"""The encoder–forecaster of the paper: its counts, its wiring, any frame size and any number of steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from stormcell import EncoderForecaster, paper_model

EXACT: dict[str, Any] = {"rtol": 0, "atol": 1e-12}
# Shi et al. 2015, table 1; "radar" is the net of table 2 counted by the same rule
PARAMETERS = {
    "convlstm-5x5-256": 13_524_496,
    "convlstm-5x5-128-128": 10_042_896,
    "convlstm-5x5-128-64-64": 7_585_296,
    "convlstm-9x9-1x1-128-128": 11_550_224,
    "convlstm-9x9-1x1-128-64-64": 8_830_480,
    "fc-lstm-2048-2048": 142_667_776,
    "radar": 896_260,
}


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameter_counts_of_the_paper(name: str, count: int) -> None:
    with torch.device("meta"):  # counts need no memory
        model = paper_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_parameter_is_used() -> None:
    model = EncoderForecaster(1, (4, 3), 3, patch=2, peephole="channel")
    model(torch.randn(1, 3, 1, 8, 8), steps=3).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_unknown_net_is_named() -> None:
    with pytest.raises(ValueError, match="Received: 'convlstm-7x7'"):
        paper_model("convlstm-7x7")


@pytest.fixture
def model() -> EncoderForecaster:
    torch.manual_seed(0)
    made = EncoderForecaster(2, (5, 4, 3), 3, patch=4, peephole="channel", out_channels=1).double()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.copy_(0.4 * torch.randn_like(parameter))
    return made


def test_more_steps_leave_the_first_as_they_were(model: EncoderForecaster) -> None:
    x = torch.randn(2, 3, 2, 8, 12, dtype=torch.float64)
    short, long = model(x, steps=2), model(x, steps=9)
    assert long.shape == (2, 9, 1, 8, 12)
    torch.testing.assert_close(long[:, :2], short, **EXACT)


def test_any_frame_size_is_padded_below_and_to_the_right_and_cropped_back(model: EncoderForecaster) -> None:
    x = torch.randn(1, 3, 2, 9, 14, dtype=torch.float64)
    padded = torch.zeros(1, 3, 2, 12, 16, dtype=torch.float64)
    padded[..., :9, :14] = x
    y = model(x, steps=4)
    assert y.shape == (1, 4, 1, 9, 14)
    torch.testing.assert_close(y, model(padded, steps=4)[..., :9, :14], **EXACT)


def test_wiring_of_figure_3(model: EncoderForecaster) -> None:
    """Encoder states go to the forecaster of the reversed sizes; its lowest layer has no input; all states are read."""
    x = torch.randn(1, 3, 2, 8, 8, dtype=torch.float64)
    z = torch.nn.functional.pixel_unshuffle(x, 4)
    states = []
    for layer in model.encoder:
        z, state = layer(z)
        states.append(state)
    assert [layer.hidden_channels for layer in model.forecaster] == [3, 4, 5]
    assert [layer.in_channels for layer in model.forecaster] == [0, 3, 4]
    streams, frames = list(reversed(states)), []
    for _ in range(3):
        signal = torch.empty(1, 0, 2, 2, dtype=torch.float64)
        hidden = []
        for k, layer in enumerate(model.forecaster):
            signal, streams[k] = layer.step(signal, streams[k])
            hidden.append(signal)
        frames.append(torch.nn.functional.pixel_shuffle(model.output(torch.cat(hidden, dim=1)), 4))
    torch.testing.assert_close(model(x, steps=3), torch.stack(frames, dim=1), **EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"hidden_channels": ()}, "hidden_channels not empty"),
        ({"patch": 0}, "patch must be ≥ 1"),
        ({"peephole": "pixel"}, "Received: 'pixel'"),
        ({"readout": "last"}, "Received: 'last'"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderForecaster(**arguments)


def test_bad_input_is_named(model: EncoderForecaster) -> None:
    with pytest.raises(ValueError, match=r"expected x \(B, T, 2, Y, X\)"):
        model(torch.zeros(1, 3, 1, 8, 8), steps=1)
    with pytest.raises(ValueError, match="steps must be ≥ 1"):
        model(torch.zeros(1, 3, 2, 8, 8), steps=0)
