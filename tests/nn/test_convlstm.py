"""The layers: equal to torch.nn.LSTM where they must be, and the same numbers however a sequence is fed."""

from __future__ import annotations

import doctest
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import stormcell.nn.convlstm
import stormcell.nn.forecaster
from stormcell import ConvLSTM1d, ConvLSTM2d

from .layers import CELLS, EXACT, LAYERS, each, in_torch, random_layer


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_on_one_pixel_it_is_torch_lstm(dims: int, layers: int, bidirectional: bool) -> None:
    """With "same" padding only the centre tap of each kernel meets the pixel."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": layers, "bidirectional": bidirectional, "dtype": torch.float64}
    ours = random_layer(LAYERS["lstm", dims](3, 5, 3, **options))
    theirs = in_torch(ours, nn.LSTM(3, 5, batch_first=True, **options))
    rows = layers * (2 if bidirectional else 1)
    x = torch.randn(4, 6, 3, dtype=torch.float64)
    h, c = torch.randn(2, rows, 4, 5, dtype=torch.float64)
    pixel = (1,) * dims
    y, (h_n, c_n) = ours(x.view(4, 6, 3, *pixel), (h.view(rows, 4, 5, *pixel), c.view(rows, 4, 5, *pixel)))
    y_torch, (h_torch, c_torch) = theirs(x, (h, c))
    torch.testing.assert_close(y.flatten(2), y_torch, **EXACT)
    torch.testing.assert_close(h_n.flatten(2), h_torch, **EXACT)
    torch.testing.assert_close(c_n.flatten(2), c_torch, **EXACT)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_on_one_pixel_a_cell_is_torch_lstm_cell(dims: int) -> None:
    torch.manual_seed(0)
    ours = random_layer(CELLS["lstm", dims](3, 5, 3, dtype=torch.float64))
    theirs = in_torch(ours, nn.LSTMCell(3, 5, dtype=torch.float64))
    x, (h, c) = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 4, 5, dtype=torch.float64)
    pixel = (1,) * dims

    def with_pixel(state: Any) -> Any:
        return each(lambda value: value.view(*value.shape, *pixel), state)

    for batch, state in ((x, (h, c)), (x, None), (x[0], (h[0], c[0]))):
        own = None if state is None else with_pixel(state)
        torch.testing.assert_close(ours(with_pixel(batch), own), with_pixel(theirs(batch, state)), **EXACT)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lengths_are_what_packed_sequences_are_in_torch(bidirectional: bool) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"num_layers": 2, "bidirectional": bidirectional, "dtype": torch.float64}
    ours = random_layer(ConvLSTM2d(3, 5, 3, **options))
    theirs = in_torch(ours, nn.LSTM(3, 5, batch_first=True, **options))
    x, lengths = torch.randn(3, 6, 3, dtype=torch.float64), torch.tensor([4, 6, 1])
    y, state = ours(x.view(3, 6, 3, 1, 1), lengths=lengths)
    packed, state_torch = theirs(pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False))
    y_torch, _ = pad_packed_sequence(packed, batch_first=True)
    torch.testing.assert_close(each(lambda value: value.flatten(2), state), state_torch, **EXACT)
    for sample, length in enumerate(lengths):
        torch.testing.assert_close(y.flatten(2)[sample, :length], y_torch[sample, :length], **EXACT)


def test_with_kernels_of_one_pixel_every_pixel_is_a_sequence_of_its_own() -> None:
    torch.manual_seed(0)
    ours = random_layer(ConvLSTM2d(3, 5, 1, dtype=torch.float64))
    theirs = in_torch(ours, nn.LSTM(3, 5, batch_first=True, dtype=torch.float64))
    x = torch.randn(2, 4, 3, 3, 2, dtype=torch.float64)
    y, state = ours(x)
    y_torch, state_torch = theirs(x.permute(0, 3, 4, 1, 2).flatten(0, 2))
    torch.testing.assert_close(y, y_torch.unflatten(0, (2, 3, 2)).permute(0, 3, 4, 1, 2), **EXACT)
    as_maps = each(lambda value: value.unflatten(1, (2, 3, 2)).permute(0, 1, 4, 2, 3), state_torch)
    torch.testing.assert_close(state, as_maps, **EXACT)


@pytest.mark.parametrize("peephole", [None, "channel", "pixel"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_whole_split_and_stepped_sequences_agree(dims: int, peephole: str | None) -> None:
    torch.manual_seed(0)
    size = (5, 4, 3)[:dims]
    frame = size if peephole == "pixel" else None
    common: dict[str, Any] = {"peephole": peephole, "frame_size": frame, "dtype": torch.float64}
    layer = random_layer(LAYERS["lstm", dims](2, 3, 3, recurrent_kernel_size=2, **common))
    x = torch.randn(2, 6, 2, *size, dtype=torch.float64)
    y, (h, c) = layer(x)
    first, state = layer(x[:, :4])
    second, state = layer(x[:, 4:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), y, **EXACT)
    torch.testing.assert_close(state, (h, c), **EXACT)
    cell = CELLS["lstm", dims](2, 3, 3, recurrent_kernel_size=2, **common)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    stream, cell_state = None, None
    for t in range(6):
        y_t, stream = layer.step(x[:, t], stream)
        torch.testing.assert_close(y_t, y[:, t], **EXACT)
        cell_state = cell(x[:, t], cell_state)
        torch.testing.assert_close(cell_state[0], y[:, t], **EXACT)
    torch.testing.assert_close(stream, (h, c), **EXACT)


def test_one_row_of_pixels_is_the_layer_of_one_dimension_less() -> None:
    torch.manual_seed(0)
    line = random_layer(ConvLSTM1d(2, 3, 3, peephole="channel", dtype=torch.float64))
    image = ConvLSTM2d(2, 3, (1, 3), peephole="channel", dtype=torch.float64)
    image.load_state_dict({k: v.unsqueeze(2) if v.ndim == 3 else v for k, v in line.state_dict().items()})
    x = torch.randn(2, 4, 2, 7, dtype=torch.float64)
    torch.testing.assert_close(image(x.unsqueeze(3))[0].squeeze(3), line(x)[0], **EXACT)


def test_batch_first_false_only_swaps_axes() -> None:
    torch.manual_seed(0)
    a = ConvLSTM2d(1, 2, 3, num_layers=2, bidirectional=True)
    b = ConvLSTM2d(1, 2, 3, num_layers=2, bidirectional=True, batch_first=False)
    b.load_state_dict(a.state_dict())
    x, mask = torch.randn(3, 4, 1, 5, 5), torch.rand(3, 4) > 0.3
    y_a, state_a = a(x, mask=mask)
    y_b, state_b = b(x.transpose(0, 1), mask=mask.T)
    torch.testing.assert_close(y_b.transpose(0, 1), y_a)
    torch.testing.assert_close(state_b, state_a)


def test_a_masked_step_keeps_the_state_and_repeats_the_output() -> None:
    """Keras' rule: zeros before the first step that is used, whatever the initial state."""
    torch.manual_seed(0)
    layer = random_layer(ConvLSTM2d(1, 2, 3, peephole="channel", dtype=torch.float64))
    x = torch.randn(1, 5, 1, 4, 4, dtype=torch.float64)
    state = tuple(torch.randn(2, 1, 1, 2, 4, 4, dtype=torch.float64))
    mask = torch.tensor([[False, True, False, True, False]])
    y, last = layer(x, state, mask=mask)
    used, last_used = layer(x[:, mask[0]], state)
    torch.testing.assert_close(last, last_used, **EXACT)
    torch.testing.assert_close(y[:, 0], torch.zeros_like(y[:, 0]))
    for t, k in ((1, 0), (2, 0), (3, 1), (4, 1)):
        torch.testing.assert_close(y[:, t], used[:, k], **EXACT)


@pytest.mark.parametrize(("peephole", "frame_size"), [("channel", None), ("pixel", (4, 4))])
def test_peepholes_learn(peephole: str, frame_size: tuple[int, int] | None) -> None:
    torch.manual_seed(0)
    layer = ConvLSTM2d(1, 2, 3, peephole=peephole, frame_size=frame_size)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    layer(torch.randn(2, 3, 1, 4, 4))[0].square().mean().backward()
    assert torch.all(layer.weight_ch_l0.grad != 0)
    optimizer.step()
    assert torch.all(layer.weight_ch_l0 != 0)


def test_a_layer_without_input_runs_on_its_state_alone() -> None:
    layer = random_layer(ConvLSTM2d(0, 3, 3))
    assert layer.weight_ih_l0 is None
    state = tuple(torch.randn(2, 1, 2, 3, 5, 5))
    y, _ = layer(torch.empty(2, 4, 0, 5, 5), state)
    with_input = ConvLSTM2d(1, 3, 3)
    with_input.load_state_dict({"weight_ih_l0": torch.randn(12, 1, 3, 3), **layer.state_dict()})
    torch.testing.assert_close(with_input(torch.zeros(2, 4, 1, 5, 5), state)[0], y)


def test_weights_start_as_in_keras() -> None:
    torch.manual_seed(0)
    layer = ConvLSTM2d(3, 8, 3, peephole="channel")
    limit = (6 / (9 * 3 + 9 * 32)) ** 0.5  # Glorot: fan in k²C, fan out k²·4F
    assert limit * 0.95 < layer.weight_ih_l0.abs().max() <= limit
    rows = layer.weight_hh_l0.flatten(1)
    torch.testing.assert_close(rows @ rows.T, torch.eye(32), rtol=0, atol=1e-5)
    assert layer.bias_l0.tolist() == [0] * 8 + [1] * 8 + [0] * 16
    assert ConvLSTM2d(3, 8, 3, unit_forget_bias=False).bias_l0.abs().max() == 0


def test_between_layers_there_is_dropout_in_training_only() -> None:
    torch.manual_seed(0)
    layer = ConvLSTM2d(1, 4, 3, num_layers=2, dropout=0.5)
    x = torch.randn(1, 3, 1, 6, 6)
    assert not torch.equal(layer(x)[0], layer(x)[0])
    layer.eval()
    assert torch.equal(layer(x)[0], layer(x)[0])


def test_under_autocast_the_cell_state_stays_float32() -> None:
    layer = ConvLSTM2d(1, 4, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, (_, c) = layer(torch.randn(1, 3, 1, 6, 6))
    assert c.dtype == torch.float32


@pytest.mark.parametrize("name", ["tanh", "relu", "linear", "sigmoid", "hard_sigmoid", "keras2_hard_sigmoid"])
def test_activations_by_name(name: str) -> None:
    z = torch.linspace(-4, 4, 17)
    expected = {
        "tanh": z.tanh(),
        "relu": z.clamp(min=0),
        "linear": z,
        "sigmoid": 1 / (1 + torch.exp(-z)),
        "hard_sigmoid": ((z + 3) / 6).clamp(0, 1),
        "keras2_hard_sigmoid": (0.2 * z + 0.5).clamp(0, 1),
    }[name]
    torch.testing.assert_close(stormcell.nn.convlstm.ACTIVATIONS[name](z), expected)
    by_name, by_callable = ConvLSTM2d(1, 2, 3, activation=name), ConvLSTM2d(1, 2, 3, activation=lambda v: v * 0)
    by_callable.load_state_dict(by_name.state_dict())
    x = torch.randn(1, 2, 1, 3, 3)
    assert not torch.equal(by_name(x)[0], by_callable(x)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": 0}, "kernel_size must be an integer ≥ 1"),
        ({"kernel_size": (3, 3, 3)}, "or 2 of them"),
        ({"peephole": "all"}, "Received: 'all'"),
        ({"peephole": "pixel"}, "needs frame_size"),
        ({"frame_size": (4, 4)}, "needs frame_size"),
        ({"padding": "full"}, "Received: 'full'"),
        ({"stride": 2, "dilation": 2}, "does not go with dilation"),
        ({"activation": "swish"}, "activation must be callable or one of"),
        ({"num_layers": 0}, "num_layers must be ≥ 1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"hidden_channels": 0}, "hidden_channels ≥ 1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"in_channels": 1, "hidden_channels": 2, "kernel_size": 3, **arguments}
    with pytest.raises(ValueError, match=message):
        ConvLSTM2d(**given)


def test_bad_peepholes_are_named_by_cells_too() -> None:
    cell = CELLS["lstm", 2]
    with pytest.raises(ValueError, match="""peephole must be None, "channel" or "pixel". Received: 'all'"""):
        cell(1, 2, 3, peephole="all")
    with pytest.raises(ValueError, match='peephole="pixel" needs frame_size, and nothing else takes it'):
        cell(1, 2, 3, peephole="channel", frame_size=4)
    with pytest.raises(ValueError, match=r"frame_size must be an integer ≥ 1, or 2 of them. Received: \(4, 4, 4\)"):
        cell(1, 2, 3, peephole="pixel", frame_size=(4, 4, 4))
    with pytest.raises(ValueError, match=r"pixel peepholes were made for frames of \(4, 4\). Received: \(4, 5\)"):
        cell(1, 2, 3, peephole="pixel", frame_size=4)(torch.zeros(1, 1, 4, 5))


def test_pixel_peepholes_have_the_size_of_the_state() -> None:
    layer = ConvLSTM2d(1, 2, 3, stride=(2, 1), padding=(1, 0), peephole="pixel", frame_size=(7, 6), num_layers=2)
    assert layer.weight_ch_l0.shape == layer.weight_ch_l1.shape == (6, 4, 4)
    y, _ = layer(torch.zeros(1, 2, 1, 7, 6))
    assert y.shape == (1, 2, 2, 4, 4)


def test_every_layer_and_direction_starts_with_a_forget_bias_of_one() -> None:
    layer = ConvLSTM2d(1, 2, 3, num_layers=2, bidirectional=True)
    biases = {name: value.tolist() for name, value in layer.named_parameters() if name.startswith("bias")}
    assert biases == {f"bias_l{n}{way}": [0, 0, 1, 1, 0, 0, 0, 0] for n in (0, 1) for way in ("", "_reverse")}
    assert CELLS["lstm", 2](1, 2, 3).bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]


def test_a_misspelt_option_raises() -> None:
    with pytest.raises(TypeError, match="peepholes"):
        ConvLSTM2d(1, 2, 3, peepholes="channel")  # type: ignore[call-arg]


def test_bad_shapes_are_named() -> None:
    layer = ConvLSTM2d(1, 2, 3)
    with pytest.raises(ValueError, match=r"expected x \(B, T, C, Y, X\) with 1 channels. Received: \(2, 3, 2, 4, 4\)"):
        layer(torch.zeros(2, 3, 2, 4, 4))
    with pytest.raises(ValueError, match="at least one step"):
        layer(torch.zeros(2, 0, 1, 4, 4))
    with pytest.raises(ValueError, match=r"state h must have the shape \(1, 2, 2, 4, 4\)"):
        layer(torch.zeros(2, 3, 1, 4, 4), (torch.zeros(1, 2, 2, 4, 5), torch.zeros(1, 2, 2, 4, 5)))
    with pytest.raises(ValueError, match=r"mask must have the shape \(2, 3\)"):
        layer(torch.zeros(2, 3, 1, 4, 4), mask=torch.ones(2, 4))
    with pytest.raises(ValueError, match=r"made for frames of \(4, 4\)"):
        ConvLSTM2d(1, 2, 3, peephole="pixel", frame_size=4)(torch.zeros(1, 1, 1, 5, 4))
    with pytest.raises(ValueError, match="smaller than the kernel"):
        ConvLSTM2d(1, 2, 5, padding="valid")(torch.zeros(1, 1, 1, 4, 4))
    with pytest.raises(ValueError, match="cannot stream"):
        ConvLSTM2d(1, 2, 3, bidirectional=True).step(torch.zeros(1, 1, 4, 4))


@pytest.mark.parametrize("module", [stormcell.nn.convlstm, stormcell.nn.forecaster])
def test_examples_in_docstrings_run(module: Any) -> None:
    results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.attempted > 0
    assert results.failed == 0
