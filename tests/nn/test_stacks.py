"""Conv2D + LSTM, per pixel and flattened: the numbers of Keras, the manners of the layers."""

from __future__ import annotations

import doctest
from typing import Any

import keras
import numpy as np
import pytest
import torch

import stormcell.nn.stacks
from stormcell.nn.stacks import Conv2dFlatLSTM, Conv2dPixelLSTM

from .layers import EXACT

STACKS = {
    "pixel": lambda **options: Conv2dPixelLSTM(2, 5, 3, conv_channels=4, dtype=torch.float64, **options),
    "flat": lambda **options: Conv2dFlatLSTM(
        2, 5, 3, frame_size=(7, 6), conv_channels=4, dtype=torch.float64, **options
    ),
}


def keras_layers(stack: Any) -> tuple[Any, Any]:
    """Keras' Conv2D and LSTM with the weights of a stack."""
    conv = keras.layers.Conv2D(
        stack.conv_channels,
        stack.conv.kernel_size,
        strides=stack.conv.stride,
        padding=stack.conv.padding,
        dilation_rate=stack.conv.dilation,
        activation=stack.activation,
        dtype="float64",
    )
    lstm = keras.layers.LSTM(stack.lstm.hidden_size, return_sequences=True, return_state=True, dtype="float64")
    conv.build((None, None, None, stack.in_channels))
    lstm.build((None, None, stack.lstm.input_size))
    weights = {name: value.detach().numpy() for name, value in stack.named_parameters()}
    conv.set_weights([weights["conv.weight"].transpose(2, 3, 1, 0), weights["conv.bias"]])
    bias = weights["lstm.bias_ih_l0"] + weights["lstm.bias_hh_l0"]
    lstm.set_weights([weights["lstm.weight_ih_l0"].T, weights["lstm.weight_hh_l0"].T, bias])
    return conv, lstm


def random_stack(stack: Any) -> Any:
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter.normal_(std=0.5)
    return stack


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stride": 2},
        {"stride": (2, 3), "activation": "relu"},
        {"padding": "valid", "activation": "tanh"},
        {"dilation": 2},
    ],
    ids=str,
)
def test_per_pixel_it_is_keras_with_pixels_in_the_batch(options: dict[str, Any]) -> None:
    stack = random_stack(STACKS["pixel"](**options))
    conv, lstm = keras_layers(stack)
    x = torch.randn(3, 4, 2, 7, 6, dtype=torch.float64)
    maps = keras.layers.TimeDistributed(conv, dtype="float64")(x.movedim(2, -1))
    batch, steps, height, width, channels = maps.shape
    pixels = keras.layers.Permute((2, 3, 1, 4), dtype="float64")(maps)
    y, h, c = lstm(keras.ops.reshape(pixels, (batch * height * width, steps, channels)))
    ours, (h_ours, c_ours) = stack(x)
    rows = (batch, height, width)
    torch.testing.assert_close(ours, y.unflatten(0, rows).permute(0, 3, 4, 1, 2), **EXACT)
    torch.testing.assert_close(h_ours[0], h.unflatten(0, rows).movedim(-1, 1), **EXACT)
    torch.testing.assert_close(c_ours[0], c.unflatten(0, rows).movedim(-1, 1), **EXACT)


@pytest.mark.parametrize("options", [{}, {"stride": 2, "activation": "relu"}, {"padding": "valid"}], ids=str)
def test_flattened_it_is_keras(options: dict[str, Any]) -> None:
    """Keras flattens (y, x, channel) where ours flattens (channel, y, x)."""
    stack = random_stack(STACKS["flat"](**options))
    conv, lstm = keras_layers(stack)
    x = torch.randn(3, 4, 2, 7, 6, dtype=torch.float64)
    maps = keras.layers.TimeDistributed(conv, dtype="float64")(x.movedim(2, -1))
    flatten = keras.layers.TimeDistributed(keras.layers.Flatten(dtype="float64"), dtype="float64")
    y, h, c = lstm(flatten(keras.ops.transpose(maps, (0, 1, 4, 2, 3))))
    ours, (h_ours, c_ours) = stack(x)
    torch.testing.assert_close(ours, y, **EXACT)
    torch.testing.assert_close(h_ours[0], h, **EXACT)
    torch.testing.assert_close(c_ours[0], c, **EXACT)


@pytest.mark.parametrize("kind", STACKS)
def test_whole_and_split_sequences_agree(kind: str) -> None:
    stack = random_stack(STACKS[kind](num_layers=2, stride=2))
    x = torch.randn(3, 6, 2, 7, 6, dtype=torch.float64)
    y, (h, c) = stack(x)
    first, state = stack(x[:, :4])
    second, state = stack(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), y, **EXACT)
    torch.testing.assert_close(state, (h, c), **EXACT)
    size = (4, 3) if kind == "pixel" else ()
    assert y.shape == (3, 6, 5, *size)
    assert h.shape == c.shape == (2, 3, 5, *size)
    torch.testing.assert_close(h[-1], y[:, -1], **EXACT)


@pytest.mark.parametrize("kind", STACKS)
def test_both_directions_have_a_state_row_and_a_half_of_the_output_each(kind: str) -> None:
    stack = random_stack(STACKS[kind](num_layers=2, bidirectional=True))
    x = torch.randn(3, 4, 2, 7, 6, dtype=torch.float64)
    y, (h, c) = stack(x)
    assert y.shape[2] == 10
    assert h.shape[:3] == c.shape[:3] == (4, 3, 5)
    torch.testing.assert_close(h[2], y[:, -1, :5], **EXACT)
    torch.testing.assert_close(h[3], y[:, 0, 5:], **EXACT)
    again, _ = stack(x, (torch.zeros_like(h), torch.zeros_like(c)))
    torch.testing.assert_close(again, y, **EXACT)


def test_pixels_share_weights_and_nothing_else() -> None:
    stack = random_stack(Conv2dPixelLSTM(2, 5, 1, dtype=torch.float64))
    x = torch.randn(1, 4, 2, 3, 4, dtype=torch.float64)
    y, _ = stack(x)
    for row, column in np.ndindex(3, 4):
        alone, _ = stack(x[..., row : row + 1, column : column + 1])
        torch.testing.assert_close(alone[..., 0, 0], y[..., row, column], **EXACT)


def test_weights_start_as_in_the_layers() -> None:
    torch.manual_seed(0)
    stack = Conv2dPixelLSTM(3, 8, 3, conv_channels=16)
    limit = (6 / (9 * 3 + 9 * 16)) ** 0.5  # Glorot: fan in k²C, fan out k²·16
    assert limit * 0.95 < stack.conv.weight.abs().max() <= limit
    recurrent = stack.lstm.weight_hh_l0
    torch.testing.assert_close(recurrent.T @ recurrent, torch.eye(8), rtol=0, atol=1e-5)
    assert stack.lstm.bias_ih_l0.tolist() == [0] * 8 + [1] * 8 + [0] * 16
    assert stack.lstm.bias_hh_l0.abs().max() == stack.conv.bias.abs().max() == 0


@pytest.mark.parametrize("kind", STACKS)
def test_it_learns(kind: str) -> None:
    stack = STACKS[kind](num_layers=2, bidirectional=True, activation="tanh")
    stack(torch.randn(2, 3, 2, 7, 6, dtype=torch.float64))[0].square().mean().backward()
    for name, parameter in stack.named_parameters():
        assert parameter.grad.abs().sum() > 0, name


def test_no_bias_means_none_anywhere() -> None:
    names = {name for name, _ in STACKS["pixel"](bias=False).named_parameters()}
    assert names == {"conv.weight", "lstm.weight_ih_l0", "lstm.weight_hh_l0"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"in_channels": 0}, "must be ≥ 1. Received: 0 and 2"),
        ({"conv_channels": 0}, "must be ≥ 1. Received: 1 and 0"),
        ({"hidden_channels": 0, "conv_channels": 2}, "≥ 1 units and ≥ 1 layers. Received: 0 and 1"),
        ({"num_layers": 0}, "Received: 2 and 0"),
        ({"kernel_size": (3, 3, 3)}, r"or 2 of them. Received: \(3, 3, 3\)"),
        ({"stride": 0}, "stride must be an integer ≥ 1, or 2 of them. Received: 0"),
        ({"padding": "full"}, "Received: 'full'"),
        ({"activation": "swish"}, "activation must be callable or one of .* Received: 'swish'"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\). Received: 1.0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"in_channels": 1, "hidden_channels": 2, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        Conv2dPixelLSTM(**given)


def test_bad_shapes_are_named() -> None:
    pixel, flat = Conv2dPixelLSTM(1, 2, 3), Conv2dFlatLSTM(1, 2, 3, frame_size=(5, 4), conv_channels=3)
    for stack in (pixel, flat):
        with pytest.raises(ValueError, match=r"with 1 channels and at least one step. Received: \(2, 3, 2, 5, 4\)"):
            stack(torch.zeros(2, 3, 2, 5, 4))
        with pytest.raises(ValueError, match=r"at least one step. Received: \(2, 0, 1, 5, 4\)"):
            stack(torch.zeros(2, 0, 1, 5, 4))
        with pytest.raises(ValueError, match=r"state must be \(h, c\). Received: 1 tensors"):
            stack(torch.zeros(2, 3, 1, 5, 4), torch.zeros(1, 2, 2))
    with pytest.raises(ValueError, match=r"state c must have the shape \(1, 2, 2, 5, 4\). Received: \(1, 2, 2, 4, 5\)"):
        pixel(torch.zeros(2, 3, 1, 5, 4), (torch.zeros(1, 2, 2, 5, 4), torch.zeros(1, 2, 2, 4, 5)))
    with pytest.raises(ValueError, match=r"state h must have the shape \(1, 2, 2\). Received: \(1, 2, 3\)"):
        flat(torch.zeros(2, 3, 1, 5, 4), (torch.zeros(1, 2, 3), torch.zeros(1, 2, 2)))
    with pytest.raises(ValueError, match=r"made for frames of \(5, 4\). Received: \(4, 5\)"):
        flat(torch.zeros(2, 3, 1, 4, 5))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        Conv2dFlatLSTM(1, 2, 5, frame_size=4, conv_channels=3, padding="valid")


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(stormcell.nn.stacks, extraglobs={"torch": torch}).failed == 0
