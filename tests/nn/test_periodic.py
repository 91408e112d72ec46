"""A periodic axis: what is rolled comes out rolled, whatever the layer and the engine."""

from __future__ import annotations

import pytest
import torch

from stormcell import ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, EncoderForecaster, InputError, engine
from stormcell.interop import to_keras
from stormcell.interop.layouts import to_torch


def rolled(value: torch.Tensor, by: int) -> torch.Tensor:
    return value.roll(by, dims=-1)


@pytest.mark.parametrize("layer_class", [ConvLSTM1d, ConvLSTM2d, ConvLSTM3d])
@pytest.mark.parametrize("kernel_size", [3, 4, 5])
def test_what_is_rolled_comes_out_rolled(layer_class: type, kernel_size: int) -> None:
    torch.manual_seed(0)
    layer = layer_class(2, 3, kernel_size, num_layers=2, dilation=2, periodic_x=True, bidirectional=True).double()
    frame = (5, 4, 11)[-layer.dims :]
    x = torch.randn(2, 4, 2, *frame, dtype=torch.float64)
    state = tuple(torch.randn(4, 2, 3, *frame, dtype=torch.float64) for _ in range(2))
    y, (h, c) = layer(x, state)
    for by in (1, -4):
        y_rolled, (h_rolled, c_rolled) = layer(rolled(x, by), tuple(rolled(value, by) for value in state))
        for value, other in ((y, y_rolled), (h, h_rolled), (c, c_rolled)):
            torch.testing.assert_close(rolled(value, by), other, rtol=1e-12, atol=1e-14)
    plain = layer_class(**{**layer.arguments(), "periodic_x": False}).double()
    plain.load_state_dict(layer.state_dict())
    assert (plain(x, state)[0] - y).abs().amax(dim=tuple(range(y.ndim - 1)))[
        [0, -1]
    ].min() > 1e-4  # the ends see each other


def test_inside_it_is_the_layer_that_it_was() -> None:
    """On frames repeated three times side by side, the middle of a layer with zeros around is the periodic one."""
    torch.manual_seed(0)
    layer = ConvLSTM2d(1, 4, 3, periodic_x=True).double()
    plain = ConvLSTM2d(1, 4, 3).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(1, 3, 1, 6, 9, dtype=torch.float64)
    torch.testing.assert_close(plain(x.repeat(1, 1, 1, 1, 3))[0][..., 9:18], layer(x)[0], rtol=1e-12, atol=1e-14)


def test_its_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    layer = ConvLSTM2d(1, 2, 3, periodic_x=True).double()
    x = torch.randn(1, 2, 1, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda value: layer(value)[0], (x,))


@pytest.mark.parametrize("patch", [1, 2])
def test_a_forecast_rolls_with_its_past(patch: int) -> None:
    torch.manual_seed(0)
    net = EncoderForecaster(1, (6, 4), 3, patch=patch, peephole="channel", periodic_x=True).double()
    x = torch.randn(1, 3, 1, 7, 12, dtype=torch.float64)
    torch.testing.assert_close(rolled(net(x, 4), 2 * patch), net(rolled(x, 2 * patch), 4), rtol=1e-12, atol=1e-14)


@pytest.mark.skipif(engine.engines()["winograd"] is not None, reason="the Winograd engine was not built")
@pytest.mark.parametrize("width", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("kernel_size", [3, 5])
def test_tiles_go_around(kernel_size: int, width: int) -> None:
    """Rows shorter than a tile, of whole tiles, and between; with the input in the same products and out of them."""
    if kernel_size // 2 > width:
        pytest.skip("a kernel reaches once around at most")
    torch.manual_seed(0)
    for own in (kernel_size, 1):
        layer = ConvLSTM2d(16, 16, own, recurrent_kernel_size=kernel_size, periodic_x=True)
        x, d_y = torch.randn(2, 4, 16, 6, width, requires_grad=True), torch.randn(2, 4, 16, 6, width)
        found = []
        for name in ("winograd", "reference"):
            layer.engine = name
            y, (_, c) = layer(x)
            found.append([y, c, *torch.autograd.grad((y * d_y).sum() + c.sum(), [x, *layer.parameters()])])
        for ours, exact in zip(*found):
            assert (ours - exact).norm() < 1e-5 * exact.norm()


def test_every_engine_goes_around() -> None:
    said = ConvLSTM2d(2, 32, 3, periodic_x=True).explain((64, 64), gradients=True)["l0"]
    assert not any("axis" in why for why in said.values())


def test_what_does_not_go_with_it() -> None:
    with pytest.raises(ValueError, match="periodic_x=True goes with padding=\"same\". Received: 'valid'"):
        ConvLSTM2d(1, 2, 3, padding="valid", periodic_x=True)
    with pytest.raises(ValueError, match="reach once around it at most, 4 pixels"):
        ConvLSTM2d(1, 2, 9, periodic_x=True)(torch.zeros(1, 1, 1, 8, 3))
    with pytest.raises(ValueError, match="a patch of 4 must divide the length of a periodic axis. Received: 10"):
        EncoderForecaster(1, (2,), 3, patch=4, periodic_x=True)(torch.zeros(1, 1, 1, 8, 10), 1)
    with pytest.raises(InputError, match="periodic_x=True"):
        to_torch(ConvLSTM2d(1, 2, 3, periodic_x=True), "ndrplz")
    with pytest.raises(ValueError, match="periodic_x=True"):
        ConvLSTM2d(1, 2, 3, periodic_x=True).to_dense_lstm((4, 4))
    with pytest.raises(InputError, match="a periodic axis"):
        to_keras(ConvLSTM2d(1, 2, 3, periodic_x=True))
