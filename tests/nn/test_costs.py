"""Parameters, MACs and receptive fields: the formulas, torch's own count, and gradients."""

from __future__ import annotations

import doctest
from math import inf
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import stormcell.nn.costs
from stormcell import ConvLSTM2d, EncoderForecaster, paper_model
from stormcell.nn.costs import cost, forecast_macs
from stormcell.nn.identities import to_dense_lstm
from stormcell.nn.stacks import Conv2dFlatLSTM, Conv2dPixelLSTM

from .layers import CELLS, LAYERS, random_layer

FRAME = (64, 64)
PIXELS = 64 * 64


def convlstm(kernel: int, **options: Any) -> ConvLSTM2d:
    return ConvLSTM2d(1, 64, kernel, device="meta", **options)


@pytest.mark.parametrize(
    ("layer", "parameters", "macs"),
    [
        (convlstm(3), 150_016, 613_416_960),
        (convlstm(5), 416_256, 1_703_936_000),
        (convlstm(3, recurrent_kernel_size=1), 18_944, 76_546_048),
        (convlstm(3, peephole="channel"), 150_016 + 192, 613_416_960 + 786_432),
        (convlstm(3, peephole="pixel", frame_size=64), 150_016 + 786_432, 613_416_960 + 786_432),
    ],
)
def test_convlstm_by_hand(layer: ConvLSTM2d, parameters: int, macs: int) -> None:
    """64×64 pixels, one channel in, 64 out: 4F(kx²C + kh²F + 1) and 4F·Y·X(kx²C + kh²F)."""
    found = cost(layer, FRAME)
    assert (found.parameters, found.macs_per_step, found.output_size) == (parameters, macs, (64, 64, 64))


def test_conv2d_and_lstm_by_hand() -> None:
    """Keras' counts and the second bias of torch.nn.LSTM, 4F and 4U."""
    pixel = cost(Conv2dPixelLSTM(1, 64, 3, device="meta"), FRAME)
    assert (pixel.parameters, pixel.macs_per_step) == (33_664 + 4 * 64, PIXELS * (9 * 64 + 4 * 64 * 128))
    assert pixel.macs_per_step == 136_577_024
    assert pixel.output_size == (64, 64, 64)
    flat = cost(Conv2dFlatLSTM(1, 256, 3, frame_size=64, conv_channels=64, device="meta"))
    assert (flat.parameters, flat.macs_per_step) == (268_699_264 + 4 * 256, 271_056_896)
    assert flat.output_size == (256,)


def test_a_net_that_no_machine_can_hold_can_be_asked() -> None:
    """The dense LSTM that contains every ConvLSTM with F = 64 on 64×64 pixels."""
    units = 64 * PIXELS
    whole = cost(nn.LSTM(PIXELS, units, device="meta"), FRAME)
    assert whole.macs_per_step == 4 * units * (PIXELS + units) == 279_172_874_240
    assert whole.parameters == whole.macs_per_step + 8 * units
    assert cost(Conv2dFlatLSTM(1, units, 3, frame_size=64, conv_channels=64, device="meta")).parameters > 5.4e11


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_macs_are_those_that_torch_counts(kind: str, dims: int, layers: int, bidirectional: bool) -> None:
    frame = (9, 8, 7)[:dims]
    layer = LAYERS[kind, dims](
        3,
        4,
        (3, 2, 5)[:dims],
        recurrent_kernel_size=3,
        stride=2,
        num_layers=layers,
        bidirectional=bidirectional,
        engine="reference",  # torch counts what it computes itself
    )
    found = cost(layer, frame)
    x = torch.zeros(2, 5, 3, *frame)
    with FlopCounterMode(display=False) as counter:
        y, _ = layer(x)
    assert counter.get_total_flops() == 2 * 2 * 5 * found.macs_per_step  # torch counts two per MAC; B = 2, T = 5
    assert found.output_size == tuple(y.shape[2:])
    assert found.parameters == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_a_cell_costs_what_a_layer_costs(kind: str) -> None:
    assert cost(CELLS[kind, 2](2, 3, 3), (5, 4)) == cost(LAYERS[kind, 2](2, 3, 3), (5, 4))


def test_several_layers_directions_and_projections_of_an_lstm() -> None:
    lstm = nn.LSTM(5, 4, num_layers=2, bidirectional=True, device="meta")
    found = cost(lstm)
    assert found.macs_per_step == 2 * 16 * (5 + 4) + 2 * 16 * (8 + 4)
    assert (found.output_size, found.receptive_radius(3)) == ((8,), ())
    assert cost(nn.LSTM(5, 4, proj_size=2)).macs_per_step == 16 * (5 + 2) + 2 * 4
    stack = Conv2dPixelLSTM(3, 4, 3, conv_channels=5, stride=2, num_layers=2, bidirectional=True)
    assert cost(stack, (9, 7)).macs_per_step == 5 * 4 * (5 * 9 * 3 + found.macs_per_step)
    assert cost(stack, (9, 7)).output_size == (8, 5, 4)


def seen(module: nn.Module, steps: int, frame: tuple[int, ...], channels: int = 1) -> torch.Tensor:
    """Where the gradient of the last output's middle pixel with respect to the first frame is not zero."""
    torch.manual_seed(0)
    x = torch.randn(1, steps, channels, *frame, dtype=torch.float64, requires_grad=True)
    y = module(x)[0][0, -1]
    middle = tuple(n // 2 for n in y.shape[1:])
    (gradient,) = torch.autograd.grad(y[(slice(None), *middle)].sum(), x)
    return (gradient[0, 0].abs().sum(0) > 0).nonzero()


ODD: list[tuple[str, int, dict[str, Any]]] = [
    ("lstm", 1, {"kernel_size": 3}),
    ("lstm", 2, {"kernel_size": (3, 5), "recurrent_kernel_size": (5, 3)}),
    ("lstm", 2, {"kernel_size": 5, "recurrent_kernel_size": 1}),
    ("lstm", 3, {"kernel_size": (1, 3, 1), "recurrent_kernel_size": (3, 1, 3)}),
    ("gru", 1, {"kernel_size": 5}),
    ("gru", 2, {"kernel_size": (3, 1)}),
    ("lstm", 1, {"kernel_size": 3, "num_layers": 3}),
    ("lstm", 1, {"kernel_size": 3, "bidirectional": True}),
    ("lstm", 1, {"kernel_size": 3, "num_layers": 2, "bidirectional": True}),
    ("gru", 1, {"kernel_size": 3, "num_layers": 3, "bidirectional": True}),
    ("gru", 1, {"kernel_size": 3, "num_layers": 4, "bidirectional": True}),
    ("lstm", 2, {"kernel_size": 3, "peephole": "channel"}),
]


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize(("kind", "dims", "options"), ODD, ids=str)
def test_gradients_reach_exactly_as_far_as_the_radius(
    kind: str, dims: int, options: dict[str, Any], steps: int
) -> None:
    """All pixels of the box, and none outside it."""
    layer = random_layer(LAYERS[kind, dims](1, 2, dtype=torch.float64, engine="reference", **options))
    frame = (41, 31, 21)[:dims]
    radius = cost(layer, frame).receptive_radius(steps)
    assert all(isinstance(r, int) for r in radius)
    expected = torch.cartesian_prod(*(torch.arange(n // 2 - r, n // 2 + r + 1) for n, r in zip(frame, radius)))
    assert torch.equal(seen(layer, steps, frame), expected.view(-1, dims))


def test_by_hand_a_radius_of_one_grows_by_one() -> None:
    found = cost(convlstm(3), FRAME)
    assert [found.receptive_radius(step) for step in (1, 2, 10)] == [(1, 1), (2, 2), (10, 10)]
    found = cost(convlstm(9, recurrent_kernel_size=1), FRAME)
    assert [found.receptive_radius(step) for step in (1, 2, 10)] == [(4, 4), (4, 4), (4, 4)]
    with pytest.raises(ValueError, match="step must be ≥ 1: the first is 1. Received: 0"):
        found.receptive_radius(0)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": 5, "stride": 3, "num_layers": 2},
        {"kernel_size": 3, "dilation": 4},
        {"kernel_size": 4},
        {"kernel_size": 2, "recurrent_kernel_size": 4},
        {"kernel_size": 4, "dilation": 3, "num_layers": 2},
        {"kernel_size": 3, "recurrent_kernel_size": 5, "stride": 2, "padding": 1},
        {"kernel_size": 5, "padding": "valid", "stride": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_with_strides_dilation_and_even_kernels_the_farthest_pixel_is_at_the_radius(
    options: dict[str, Any], steps: int
) -> None:
    """Counted from the middle of the input kernel's window; even kernels see one pixel less before."""
    layer = random_layer(LAYERS["lstm", 1](1, 2, dtype=torch.float64, engine="reference", **options))
    frame = (85 if options.get("stride", 1) < 3 else 127,)
    (radius,) = cost(layer, frame).receptive_radius(steps)
    first, last = (int(seen(layer, 1, frame)[at]) for at in (0, -1))
    reach = (layer.kernel_size[0] - 1) * layer.dilation[0]
    place = seen(layer, steps, frame)
    if layer.num_layers == 1:
        assert last - first == reach
        middle = first + reach // 2
    else:
        middle = last - int(cost(layer, frame).radius[0])
    even = (layer.kernel_size[0] + 1) % 2 * (layer.num_layers - 1) * layer.stride[0] + reach % 2
    even += (layer.recurrent_kernel_size[0] + 1) % 2 * (steps - 1) * layer.stride[0]
    assert int(place[-1]) == middle + radius
    assert int(place[0]) == middle - radius + even


@pytest.mark.parametrize("steps", [1, 4])
def test_an_lstm_per_pixel_never_sees_farther(steps: int) -> None:
    stack = Conv2dPixelLSTM(1, 2, (3, 5), num_layers=2, bidirectional=True, activation="tanh", dtype=torch.float64)
    random_layer(stack.lstm)
    radius = cost(stack, (15, 15)).receptive_radius(steps)
    assert radius == (1, 2)
    expected = torch.cartesian_prod(torch.arange(6, 9), torch.arange(5, 10))
    assert torch.equal(seen(stack, steps, (15, 15)), expected)


def test_what_is_flattened_or_normalised_sees_everything_at_once() -> None:
    flat = Conv2dFlatLSTM(1, 2, 3, frame_size=(6, 5), conv_channels=2, dtype=torch.float64)
    assert cost(flat, (6, 5)).receptive_radius(1) == cost(flat).receptive_radius(7) == (inf, inf)
    assert len(seen(flat, 1, (6, 5))) == 30
    normalised = random_layer(ConvLSTM2d(1, 2, 3, norm="layer", dtype=torch.float64))
    assert cost(normalised, (6, 5)).receptive_radius(1) == (inf, inf)
    assert len(seen(normalised, 1, (6, 5))) == 30
    dense = to_dense_lstm(ConvLSTM2d(1, 2, 3), (6, 5))
    assert cost(dense, (6, 5)).receptive_radius(1) == (inf, inf)


def test_forecasts_of_the_paper() -> None:
    """By hand: 5×5 kernels, patches of 4×4 on 64×64 pixels, 10 frames in and 10 out, peepholes per channel."""
    pixels, c, f = 16 * 16, 16, 256
    encoder = pixels * (4 * f * 25 * (c + f) + 3 * f)
    forecaster = pixels * (4 * f * 25 * f + 3 * f) + pixels * f * c
    assert forecast_macs(paper_model("convlstm-5x5-256"), 64, past=10, steps=10) == 10 * (encoder + forecaster)


def test_forecasts_cost_what_torch_counts() -> None:
    """Frames that the patch does not divide, other numbers of steps; without peepholes, which torch does not count."""
    model = EncoderForecaster(2, (5, 4), 3, recurrent_kernel_size=5, patch=3, engine="reference")
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 4, 2, 10, 8), steps=6)
    assert counter.get_total_flops() == 2 * forecast_macs(model, (10, 8), past=4, steps=6)


def test_what_does_not_fit_is_named() -> None:
    with pytest.raises(ValueError, match=r"frame_size must be an integer ≥ 1, or 2 of them. Received: \(\)"):
        cost(ConvLSTM2d(1, 2, 3))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        cost(ConvLSTM2d(1, 2, 5, padding="valid"), 4)
    with pytest.raises(ValueError, match=r"made for frames of \(4, 4\)"):
        cost(ConvLSTM2d(1, 2, 3, peephole="pixel", frame_size=4), 5)
    with pytest.raises(ValueError, match=r"made for frames of \(4, 4\). Received: 5"):
        cost(Conv2dFlatLSTM(1, 2, 3, frame_size=4, conv_channels=1), 5)
    with pytest.raises(ValueError, match="expected a ConvLSTM, a ConvGRU, .* Received: Conv2d"):
        cost(nn.Conv2d(1, 2, 3), 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="past and steps must be ≥ 1. Received: 0 and 3"):
        forecast_macs(EncoderForecaster(1, (2,), 3), 4, past=0, steps=3)


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(stormcell.nn.costs, extraglobs={"ConvLSTM2d": ConvLSTM2d}).failed == 0
