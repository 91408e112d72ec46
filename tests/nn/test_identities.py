"""ConvLSTM and Conv2D + LSTM: the same to 1e-12 where the mathematics says so, and different where it does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from stormcell import ConvGRU2d, ConvLSTM1d, ConvLSTM2d, ConvLSTMCell2d
from stormcell.nn.identities import (
    from_conv_and_pixel_lstm,
    from_pixel_lstm,
    to_conv_and_pixel_lstm,
    to_dense_lstm,
    to_pixel_lstm,
)
from stormcell.nn.stacks import Conv2dPixelLSTM

from .layers import EXACT, LAYERS, random_layer

FRAMES = {1: (7,), 2: (5, 4), 3: (4, 3, 2)}
STRUCTURES: list[dict[str, Any]] = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "bias": False},
    {"num_layers": 2, "batch_first": False},
]


def float64_layer(dims: int, kernel_size: Any, **options: Any) -> Any:
    return random_layer(LAYERS["lstm", dims](2, 3, kernel_size, dtype=torch.float64, **options))


def random_stack(**options: Any) -> Conv2dPixelLSTM:
    stack = Conv2dPixelLSTM(2, 3, dtype=torch.float64, **options)
    random_layer(stack.lstm)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in stack.conv.parameters():
            fan_in = stack.conv.weight[0].numel()
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    return stack


def frames(layer: Any, frame: tuple[int, ...]) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Three samples of four steps, and a state to begin with."""
    torch.manual_seed(0)
    x = torch.randn(3, 4, layer.in_channels, *frame, dtype=torch.float64)
    x = x if getattr(layer, "batch_first", True) else x.transpose(0, 1).contiguous()
    h = layer(x)[1][0]
    return x, (torch.randn_like(h), torch.randn_like(h))


def acts_as_1x1(layer: Any, *names: str) -> Any:
    """Zeros around the centre tap of the kernels so called."""
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.startswith(names):
                place = tuple((k - 1) // 2 for k in parameter.shape[2:])
                centre = parameter[(..., *place)].clone()
                parameter.zero_()
                parameter[(..., *place)] = centre
    return layer


def to_pixels(x: Tensor, batch_axis: int, channel_axis: int) -> Tensor:
    """Frames and states with the pixels moved behind the batch and flattened into it."""
    dims = x.ndim - channel_axis - 1
    moved = x.movedim(tuple(range(-dims, 0)), tuple(range(batch_axis + 1, batch_axis + 1 + dims)))
    return moved.flatten(batch_axis, batch_axis + dims)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


def assert_same_flattened(layer: Any, lstm: nn.LSTM, frame: tuple[int, ...]) -> None:
    x, (h, c) = frames(layer, frame)
    y, (h_n, c_n) = layer(x, (h, c))
    y_lstm, (h_lstm, c_lstm) = lstm(x.flatten(2), (h.flatten(2), c.flatten(2)))
    close(y_lstm, y.flatten(2))
    close(h_lstm, h_n.flatten(2))
    close(c_lstm, c_n.flatten(2))


def assert_same_per_pixel(layer: Any, lstm: nn.LSTM, frame: tuple[int, ...]) -> None:
    x, (h, c) = frames(layer, frame)
    y, (h_n, c_n) = layer(x, (h, c))
    batch_axis = 0 if layer.batch_first else 1
    before = (to_pixels(h, 1, 2).contiguous(), to_pixels(c, 1, 2).contiguous())
    y_lstm, (h_lstm, c_lstm) = lstm(to_pixels(x, batch_axis, 2), before)
    close(y_lstm, to_pixels(y, batch_axis, 2))
    close(h_lstm, to_pixels(h_n, 1, 2))
    close(c_lstm, to_pixels(c_n, 1, 2))


def assert_same_maps(layer: Any, stack: Conv2dPixelLSTM, frame: tuple[int, ...]) -> None:
    x, state = frames(layer, frame)
    close(stack(x, state), layer(x, state))


# Any ConvLSTM is a dense LSTM on the flattened map.


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_any_convlstm_is_a_dense_lstm_on_the_flattened_map(dims: int, structure: dict[str, Any]) -> None:
    kernel, recurrent = (3, 2, 3)[:dims], (3, 3, 2)[:dims]
    layer = float64_layer(dims, kernel, recurrent_kernel_size=recurrent, **structure)
    assert_same_flattened(layer, to_dense_lstm(layer, FRAMES[dims]), FRAMES[dims])


@pytest.mark.parametrize(
    "options",
    [
        {"stride": 2},
        {"stride": (3, 2), "num_layers": 2},
        {"padding": "valid"},
        {"padding": "valid", "stride": (1, 2)},
        {"padding": (0, 2)},
        {"padding": 1, "dilation": 2},
        {"dilation": (2, 3)},
        {"kernel_size": (4, 2), "bidirectional": True},
        {"kernel_size": 5, "recurrent_kernel_size": 1},
    ],
    ids=str,
)
def test_whatever_the_stride_padding_and_dilation(options: dict[str, Any]) -> None:
    layer = float64_layer(2, **{"kernel_size": 3, **options})
    assert_same_flattened(layer, to_dense_lstm(layer, (7, 6)), (7, 6))


def test_its_weights_are_those_of_the_layer_along_diagonals() -> None:
    """By hand: a kernel (a b c) over four pixels."""
    layer = ConvLSTM1d(1, 1, 3)
    with torch.no_grad():
        layer.weight_ih_l0[0, 0] = torch.tensor([1.0, 2.0, 3.0])
    rows = to_dense_lstm(layer, 4).weight_ih_l0[:4]
    assert rows.tolist() == [[2, 3, 0, 0], [1, 2, 3, 0], [0, 1, 2, 3], [0, 0, 1, 2]]


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_on_one_pixel_it_is_the_lstm_of_its_centre_taps(dims: int, structure: dict[str, Any]) -> None:
    layer = float64_layer(dims, 3, **structure)
    lstm = to_dense_lstm(layer, 1)
    for name, parameter in layer.named_parameters():
        if name.startswith("weight"):
            assert torch.equal(getattr(lstm, name), parameter[(..., *(1,) * dims)])
    assert_same_flattened(layer, lstm, (1,) * dims)


def test_too_many_weights_are_refused_with_their_count() -> None:
    layer = ConvLSTM2d(1, 64, 3)
    with pytest.raises(ValueError, match=r"would have 279,\d{3},\d{3},\d{3} weights.* Received: frame_size=\(64, 64\)"):
        to_dense_lstm(layer, (64, 64))


def test_the_converse_does_not_hold() -> None:
    """A dense LSTM with weights of its own does another thing at another place, which no ConvLSTM does."""
    lstm = to_dense_lstm(float64_layer(1, 3), 9)
    x = torch.zeros(1, 3, 2, 9, dtype=torch.float64)
    x[..., 3] = 1

    def differs_when_moved() -> float:
        y, moved = (lstm(v.flatten(2))[0].detach().unflatten(2, (3, 9)) for v in (x, x.roll(1, dims=-1)))
        return float((moved[..., 4] - y[..., 3]).abs().max())

    assert differs_when_moved() < 1e-12
    random_layer(lstm)
    assert differs_when_moved() > 1e-2


# With 1×1 kernels it is one LSTM that all pixels share.


@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_with_kernels_of_one_pixel_it_is_an_lstm_per_pixel(dims: int, structure: dict[str, Any]) -> None:
    layer = float64_layer(dims, 1, **structure)
    assert_same_per_pixel(layer, to_pixel_lstm(layer), FRAMES[dims])


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (2, 4)},
        {"kernel_size": 3, "dilation": 2},
        {"kernel_size": 3, "padding": 1},
        {"kernel_size": (3, 1), "padding": (2, 0), "dilation": (2, 1)},
        {"kernel_size": 1, "padding": "valid", "recurrent_kernel_size": 3},
    ],
    ids=str,
)
def test_zeros_around_the_centre_are_as_good(options: dict[str, Any]) -> None:
    layer = acts_as_1x1(float64_layer(2, num_layers=2, **options), "weight")
    assert_same_per_pixel(layer, to_pixel_lstm(layer), (5, 4))


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1_reverse"])
def test_one_outer_weight_is_enough_to_differ(name: str) -> None:
    layer = acts_as_1x1(float64_layer(2, 3, num_layers=2, bidirectional=True), "weight")
    lstm = to_pixel_lstm(layer)
    with torch.no_grad():
        getattr(layer, name)[4, 1, 0, 1] = -0.25
    x, _ = frames(layer, (5, 4))
    difference = lstm(to_pixels(x, 0, 2))[0] - to_pixels(layer(x)[0], 0, 2)
    assert difference.abs().max() > 1e-6
    with pytest.raises(ValueError, match=f"{name} sees more than a pixel.* Received: up to 0.25"):
        to_pixel_lstm(layer)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 1, "stride": 2},
        {"kernel_size": 3, "padding": "valid"},
        {"kernel_size": 3, "padding": 2},
        {"kernel_size": 1, "padding": 1},
        {"kernel_size": 2, "dilation": 2},
    ],
    ids=str,
)
def test_pixels_must_stay_where_they_are(options: dict[str, Any]) -> None:
    layer = acts_as_1x1(float64_layer(2, **options), "weight")
    with pytest.raises(ValueError, match=r"weight_ih_l0 does not take each pixel to itself. Received: a kernel"):
        to_pixel_lstm(layer)


@pytest.mark.parametrize("kernel_size", [1, 3, (2, 5)])
@pytest.mark.parametrize("structure", STRUCTURES, ids=str)
def test_an_lstm_per_pixel_is_a_convlstm(structure: dict[str, Any], kernel_size: Any) -> None:
    lstm = random_layer(nn.LSTM(2, 3, dtype=torch.float64, **{"batch_first": True, **structure}))
    layer = from_pixel_lstm(lstm, kernel_size=kernel_size)
    assert_same_per_pixel(layer, lstm, (5, 4))
    assert_same_per_pixel(layer, to_pixel_lstm(layer), (5, 4))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_in_any_dimensions(dims: int) -> None:
    lstm = random_layer(nn.LSTM(2, 3, num_layers=2, batch_first=True, dtype=torch.float64))
    layer = from_pixel_lstm(lstm, dims=dims, kernel_size=3)
    assert type(layer) is LAYERS["lstm", dims]
    assert_same_per_pixel(layer, lstm, FRAMES[dims])


def test_projections_and_other_dimensions_are_refused() -> None:
    with pytest.raises(ValueError, match="Received: proj_size=2"):
        from_pixel_lstm(nn.LSTM(2, 3, proj_size=2))
    with pytest.raises(ValueError, match="dims must be 1, 2 or 3. Received: 4"):
        from_pixel_lstm(nn.LSTM(2, 3), dims=4)


# With a 1×1 recurrent kernel it is a linear convolution and an LSTM per pixel.


@pytest.mark.parametrize("structure", STRUCTURES[:-1], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (2, 5), "recurrent_kernel_size": 3},
        {"kernel_size": 3, "stride": 2},
        {"kernel_size": (3, 4), "padding": "valid", "stride": (2, 1)},
        {"kernel_size": 3, "padding": (2, 0), "dilation": 2},
    ],
    ids=str,
)
def test_without_recurrent_neighbours_it_is_a_convolution_and_an_lstm_per_pixel(
    options: dict[str, Any], structure: dict[str, Any]
) -> None:
    names = ("weight_hh", *(f"weight_ih_l{number}" for number in (1, 2)))  # upper layers must not look around
    layer = acts_as_1x1(float64_layer(2, **{"recurrent_kernel_size": 1, **options}, **structure), *names)
    stack = to_conv_and_pixel_lstm(layer)
    assert stack.conv_channels == 4 * 3 * (2 if layer.bidirectional else 1)
    assert_same_maps(layer, stack, (7, 6))
    assert_same_maps(from_conv_and_pixel_lstm(stack), stack, (7, 6))


@pytest.mark.parametrize("structure", STRUCTURES[:-1], ids=str)
@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3},
        {"kernel_size": (2, 5), "conv_channels": 7, "activation": "linear"},
        {"kernel_size": 3, "conv_channels": 1, "stride": 2},
        {"kernel_size": (3, 4), "padding": "valid", "stride": (2, 1)},
        {"kernel_size": 3, "padding": (2, 0), "dilation": 2},
    ],
    ids=str,
)
def test_a_linear_convolution_and_an_lstm_per_pixel_are_a_convlstm(
    options: dict[str, Any], structure: dict[str, Any]
) -> None:
    stack = random_stack(**options, **structure)
    layer = from_conv_and_pixel_lstm(stack)
    assert layer.recurrent_kernel_size == (1, 1)
    assert_same_maps(stack, layer, (7, 6))


def test_the_input_kernel_has_the_rank_of_the_convolution() -> None:
    layer = from_conv_and_pixel_lstm(random_stack(kernel_size=3, conv_channels=2))
    assert torch.linalg.matrix_rank(layer.weight_ih_l0.flatten(1)) == 2
    layer = from_conv_and_pixel_lstm(random_stack(kernel_size=3, conv_channels=12))
    assert torch.linalg.matrix_rank(layer.weight_ih_l0.flatten(1)) == 12


def test_with_an_activation_between_it_is_a_convolution_and_then_a_convlstm() -> None:
    stack = random_stack(kernel_size=3, conv_channels=4, activation="relu")
    with pytest.raises(ValueError, match=r"with an activation between.* Received: activation='relu'"):
        from_conv_and_pixel_lstm(stack)
    x, state = frames(stack, (5, 4))
    maps = stack.conv(x.flatten(0, 1)).relu().unflatten(0, (3, 4))
    close(from_pixel_lstm(stack.lstm)(maps, state), stack(x, state))
    stack.activation, linear = None, stack(x, state)[0]
    assert (from_conv_and_pixel_lstm(stack)(x, state)[0] - linear).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"recurrent_kernel_size": 3}, "weight_hh_l0"),
        ({"recurrent_kernel_size": 1, "num_layers": 2}, "weight_ih_l1"),
        ({"recurrent_kernel_size": (1, 2), "bidirectional": True}, "weight_hh_l0"),
    ],
)
def test_a_state_that_looks_around_is_refused(options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} sees more than a pixel"):
        to_conv_and_pixel_lstm(float64_layer(2, 3, **options))


def test_a_recurrent_kernel_that_looks_around_gives_other_numbers() -> None:
    layer = float64_layer(2, 3)
    alone = acts_as_1x1(float64_layer(2, 3), "weight_hh")
    stack = to_conv_and_pixel_lstm(alone)
    x, _ = frames(layer, (5, 4))
    close(stack(x)[0], alone(x)[0])
    close(stack(x)[0][:, 0], layer(x)[0][:, 0])  # in the first step there is no state to see
    assert (stack(x)[0] - layer(x)[0])[:, 1:].abs().max() > 1e-2


def test_a_stack_is_two_dimensional_and_has_its_batch_first() -> None:
    for layer in (ConvLSTM1d(2, 3, 1), ConvLSTM2d(2, 3, 1, batch_first=False)):
        with pytest.raises(ValueError, match=f"Received: {type(layer).__name__} with batch_first={layer.batch_first}"):
            to_conv_and_pixel_lstm(layer)  # type: ignore[arg-type]


# All of them.

CONVERSIONS: dict[str, Any] = {
    "dense": lambda layer: to_dense_lstm(layer, (3, 3)),
    "pixel": to_pixel_lstm,
    "conv and pixel": to_conv_and_pixel_lstm,
}


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize(
    "option",
    [
        {"peephole": "channel"},
        {"activation": "relu"},
        {"recurrent_activation": "hard_sigmoid"},
        {"norm": "layer"},
        {"zoneout": (0.1, 0.0)},
        {"input_dropout": 0.1},
        {"recurrent_dropout": 0.1},
        {"reverse": True},
        {"in_channels": 0},
    ],
    ids=str,
)
def test_what_torch_lstm_has_not_is_named(conversion: str, option: dict[str, Any]) -> None:
    layer = ConvLSTM2d(**{"in_channels": 1, "hidden_channels": 2, "kernel_size": 1, **option})
    ((name, value),) = option.items()
    with pytest.raises(ValueError) as caught:
        CONVERSIONS[conversion](layer)
    assert str(caught.value).endswith(f"Received: a layer with {name}={value!r}")


@pytest.mark.parametrize("conversion", CONVERSIONS)
@pytest.mark.parametrize(
    "other", [ConvGRU2d(1, 2, 1), ConvLSTMCell2d(1, 2, 1), nn.LSTM(1, 2)], ids=lambda m: m._get_name()
)
def test_other_modules_are_named(conversion: str, other: nn.Module) -> None:
    with pytest.raises(ValueError, match=f"expected ConvLSTM1d, .* Received: {type(other).__name__}"):
        CONVERSIONS[conversion](other)


@pytest.mark.parametrize("conversion", CONVERSIONS)
def test_what_carries_over(conversion: str) -> None:
    """Dtype, device, dropout between layers, training mode; activations may be callables; no random number is drawn."""
    layer = ConvLSTM2d(
        1, 2, 1, num_layers=2, dropout=0.5, activation=torch.tanh, recurrent_activation="sigmoid", dtype=torch.bfloat16
    ).eval()
    before = torch.get_rng_state()
    new = CONVERSIONS[conversion](layer)
    assert torch.equal(torch.get_rng_state(), before)
    lstm = getattr(new, "lstm", new)
    assert lstm.dropout == 0.5
    assert not new.training
    assert {parameter.dtype for parameter in new.parameters()} == {torch.bfloat16}
    assert all(parameter.requires_grad for parameter in new.parameters())
    assert CONVERSIONS[conversion](layer.train()).training
    meta = ConvLSTM2d(1, 2, 1, device="meta")
    assert {parameter.device.type for parameter in CONVERSIONS[conversion](meta).parameters()} == {"meta"}


@pytest.mark.parametrize("back", ["pixel", "conv and pixel"])
def test_and_back(back: str) -> None:
    source = nn.LSTM(2, 3, num_layers=2, dropout=0.25, batch_first=True, dtype=torch.bfloat16).eval()
    stack = Conv2dPixelLSTM(2, 3, 3, num_layers=2, dropout=0.25, dtype=torch.bfloat16).eval()
    before = torch.get_rng_state()
    layer = from_pixel_lstm(source) if back == "pixel" else from_conv_and_pixel_lstm(stack)
    assert torch.equal(torch.get_rng_state(), before)
    assert (layer.num_layers, layer.dropout, layer.training) == (2, 0.25, False)
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.bfloat16}


def test_layers_have_these_as_methods() -> None:
    layer = random_layer(ConvLSTM2d(2, 3, 1, dtype=torch.float64))
    for method, function in (
        (layer.to_dense_lstm((4, 3)), to_dense_lstm(layer, (4, 3))),
        (layer.to_dense_lstm(3), to_dense_lstm(layer, 3)),
        (layer.to_pixel_lstm(), to_pixel_lstm(layer)),
    ):
        assert repr(method) == repr(function)
        assert all(torch.equal(value, function.state_dict()[key]) for key, value in method.state_dict().items())
