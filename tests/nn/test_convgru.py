"""The GRU layers: torch.nn.GRU on one pixel, and what is theirs alone."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import stormcell.nn.convgru
from stormcell.nn import ConvGRU2d, ConvLSTM2d

from .layers import CELLS, EXACT, LAYERS, in_torch, random_layer


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_on_one_pixel_it_is_torch_gru(dims: int, layers: int, bidirectional: bool, bias: bool) -> None:
    """With "same" padding only the centre tap of each kernel meets the pixel. Gradients of weights agree too."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "num_layers": layers,
        "bidirectional": bidirectional,
        "bias": bias,
        "dtype": torch.float64,
    }
    ours = random_layer(LAYERS["gru", dims](3, 5, 3, **options))
    theirs = in_torch(ours, nn.GRU(3, 5, batch_first=True, **options))
    rows, pixel = layers * (2 if bidirectional else 1), (1,) * dims
    x, h = torch.randn(4, 6, 3, dtype=torch.float64), torch.randn(rows, 4, 5, dtype=torch.float64)
    y, h_n = ours(x.view(4, 6, 3, *pixel), h.view(rows, 4, 5, *pixel))
    y_torch, h_torch = theirs(x, h)
    torch.testing.assert_close(y.flatten(2), y_torch, **EXACT)
    torch.testing.assert_close(h_n.flatten(2), h_torch, **EXACT)
    y.sin().sum().backward()
    y_torch.sin().sum().backward()
    for name, parameter in ours.named_parameters():
        if name.startswith("weight"):
            centre = parameter.grad[(slice(None), slice(None), *(1,) * dims)]
            torch.testing.assert_close(centre, getattr(theirs, name).grad, **EXACT)
        else:
            grads = (getattr(theirs, name.replace("bias", f"bias_{half}")).grad for half in ("ih", "hh"))
            (r, z, n), (_, _, m) = (grad.chunk(3) for grad in grads)
            torch.testing.assert_close(parameter.grad, torch.cat([r, z, n, m]), **EXACT)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_what_packed_sequences_are_in_torch(bidirectional: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional, "dtype": torch.float64}
    ours = random_layer(LAYERS["gru", 2](3, 5, 3, **options))
    theirs = in_torch(ours, nn.GRU(3, 5, batch_first=True, **options))
    x, lengths = torch.randn(3, 6, 3, dtype=torch.float64), torch.tensor([4, 6, 1])
    y, h = ours(x.view(3, 6, 3, 1, 1), lengths=lengths)
    packed, h_torch = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    y_torch, _ = pad_packed_sequence(packed, batch_first=True)
    torch.testing.assert_close(h.flatten(2), h_torch, **EXACT)
    for sample, length in enumerate(lengths):
        torch.testing.assert_close(y.flatten(2)[sample, :length], y_torch[sample, :length], **EXACT)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_on_one_pixel_a_cell_is_torch_gru_cell(dims: int) -> None:
    torch.manual_seed(0)
    ours = random_layer(CELLS["gru", dims](3, 5, 3, dtype=torch.float64))
    theirs = in_torch(ours, nn.GRUCell(3, 5, dtype=torch.float64))
    x, h = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    pixel = (1,) * dims
    torch.testing.assert_close(ours(x.view(4, 3, *pixel), h.view(4, 5, *pixel)).flatten(1), theirs(x, h), **EXACT)
    torch.testing.assert_close(ours(x.view(4, 3, *pixel)).flatten(1), theirs(x), **EXACT)
    torch.testing.assert_close(ours(x[0].view(3, *pixel), h[0].view(5, *pixel)).flatten(), theirs(x[0], h[0]), **EXACT)


def test_with_kernels_of_one_pixel_every_pixel_is_a_sequence_of_its_own() -> None:
    torch.manual_seed(0)
    ours = random_layer(ConvGRU2d(3, 5, 1, dtype=torch.float64))
    theirs = in_torch(ours, nn.GRU(3, 5, batch_first=True, dtype=torch.float64))
    x = torch.randn(2, 4, 3, 3, 2, dtype=torch.float64)
    y, h = ours(x)
    y_torch, h_torch = theirs(x.permute(0, 3, 4, 1, 2).flatten(0, 2))
    torch.testing.assert_close(y, y_torch.unflatten(0, (2, 3, 2)).permute(0, 3, 4, 1, 2), **EXACT)
    torch.testing.assert_close(h[0], h_torch[0].unflatten(0, (2, 3, 2)).permute(0, 3, 1, 2), **EXACT)


def test_parameters_have_torchs_names_and_one_bias_of_four_parts() -> None:
    layer = ConvGRU2d(3, 8, (3, 5), recurrent_kernel_size=1, num_layers=2, bidirectional=True, norm="layer")
    shapes = {name: tuple(value.shape) for name, value in layer.named_parameters()}
    for n, channels in ((0, 3), (1, 16)):
        for way in ("", "_reverse"):
            assert shapes.pop(f"weight_ih_l{n}{way}") == (24, channels, 3, 5)
            assert shapes.pop(f"weight_hh_l{n}{way}") == (24, 8, 1, 1)
            assert shapes.pop(f"bias_l{n}{way}") == (32,)
            assert shapes.pop(f"norm_ih_l{n}{way}") == shapes.pop(f"norm_hh_l{n}{way}") == (24,)
    assert shapes == {}


def test_weights_start_as_in_keras() -> None:
    torch.manual_seed(0)
    layer = ConvGRU2d(3, 8, 3)
    limit = (6 / (9 * 3 + 9 * 24)) ** 0.5  # Glorot: fan in k²C, fan out k²·3F
    assert limit * 0.95 < layer.weight_ih_l0.abs().max() <= limit
    rows = layer.weight_hh_l0.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(24), rtol=0, atol=1e-5)
    assert torch.all(layer.bias_l0 == 0)
    before = layer.weight_hh_l0.clone()
    layer.reset_parameters()
    assert not torch.equal(layer.weight_hh_l0, before)


def test_a_masked_step_keeps_the_state_and_repeats_the_output() -> None:
    """Keras' rule: zeros before the first step that is used, whatever the initial state."""
    torch.manual_seed(0)
    layer = random_layer(ConvGRU2d(1, 2, 3, dtype=torch.float64))
    x, h = torch.randn(1, 5, 1, 4, 4, dtype=torch.float64), torch.randn(1, 1, 2, 4, 4, dtype=torch.float64)
    mask = torch.tensor([[False, True, False, True, False]])
    y, last = layer(x, h, mask=mask)
    used, last_used = layer(x[:, mask[0]], h)
    torch.testing.assert_close(last, last_used, **EXACT)
    torch.testing.assert_close(y, torch.cat([torch.zeros_like(used[:, :1]), used[:, [0, 0, 1, 1]]], 1), **EXACT)
    nothing, same = layer(x, h, lengths=[0])
    assert torch.all(nothing == 0)
    assert torch.equal(same, h)


def test_a_layer_without_input_runs_on_its_state_alone() -> None:
    torch.manual_seed(0)
    layer = random_layer(ConvGRU2d(0, 3, 3))
    assert layer.weight_ih_l0 is None
    h = torch.randn(1, 2, 3, 5, 5)
    y, _ = layer(torch.empty(2, 4, 0, 5, 5), h)
    with_input = ConvGRU2d(1, 3, 3)
    with_input.load_state_dict({"weight_ih_l0": torch.randn(9, 1, 3, 3), **layer.state_dict()})
    torch.testing.assert_close(with_input(torch.zeros(2, 4, 1, 5, 5), h)[0], y)


@pytest.mark.parametrize("option", [{"peephole": "channel"}, {"unit_forget_bias": False}, {"frame_size": 4}])
def test_what_belongs_to_the_lstm_alone_raises(option: dict[str, Any]) -> None:
    for gru in (ConvGRU2d, CELLS["gru", 2]):
        with pytest.raises(TypeError, match=next(iter(option))):
            gru(1, 2, 3, **option)


def test_weights_of_an_lstm_do_not_load() -> None:
    with pytest.raises(RuntimeError, match="size mismatch"):
        ConvGRU2d(1, 2, 3).load_state_dict(ConvLSTM2d(1, 2, 3).state_dict())


def test_the_state_is_a_tensor_and_not_a_tuple() -> None:
    y, h = ConvGRU2d(1, 2, 3)(torch.zeros(1, 2, 1, 4, 4))
    assert isinstance(h, Tensor)
    assert isinstance(CELLS["gru", 2](1, 2, 3)(torch.zeros(1, 1, 4, 4)), Tensor)
    assert y.shape == (1, 2, 2, 4, 4)


def test_examples_in_docstrings_run() -> None:
    results = doctest.testmod(stormcell.nn.convgru, extraglobs={"torch": torch})
    assert results.attempted >= 5
    assert results.failed == 0
