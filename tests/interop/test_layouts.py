"""Other people's weights in our layers give their numbers; what our layers cannot compute is refused, as is a hostile file."""

from __future__ import annotations

import argparse
import io
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from stormcell import ConvGRU2d, ConvLSTM1d, ConvLSTM2d, ConvLSTMCell2d, EncoderForecaster, InputError
from stormcell.interop.layer_file import write_layers
from stormcell.interop.layouts import LAYOUTS, from_torch, to_torch
from stormcell.interop.torch_files import read_torch_file, write_torch_file
from stormcell.nn.recurrent import RecurrentLayer

FIXTURE = Path(__file__).with_name("flax_haiku.npz")


# --- the public cells, in our own words: their names, their equations ---


class JointCell(nn.Module):
    """ndrplz/ConvLSTM_pytorch: one convolution over [x, h]; i, f, o, g."""

    def __init__(
        self, inputs: int, hidden: int, kernel: tuple[int, int], bias: bool = True, order: str = "ifog"
    ) -> None:
        super().__init__()
        self.hidden, self.order = hidden, order
        padding = (kernel[0] // 2, kernel[1] // 2)
        self.conv = nn.Conv2d(inputs + hidden, 4 * hidden, kernel, padding=padding, bias=bias)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        z = dict(zip(self.order, self.conv(torch.cat([x, h], 1)).chunk(4, 1)))
        c = z["f"].sigmoid() * c + z["i"].sigmoid() * z["g"].tanh()
        return z["o"].sigmoid() * c.tanh(), c


class ApartCell(nn.Module):
    """OpenSTL: two convolutions without bias, LayerNorm over channels and pixels if asked; i, f, g, o."""

    def __init__(self, inputs: int, hidden: int, kernel: int, frame: tuple[int, int] | None) -> None:
        super().__init__()
        self.hidden = hidden

        def part(channels: int, out: int) -> nn.Sequential:
            norm = [] if frame is None else [nn.LayerNorm([out, *frame])]
            return nn.Sequential(nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False), *norm)

        self.conv_x, self.conv_h = part(inputs, 4 * hidden), part(hidden, 4 * hidden)
        self.conv_o = part(2 * hidden, hidden)  # never used
        self.conv_last = nn.Conv2d(2 * hidden, hidden, 1, bias=False)  # never used

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        i, f, g, o = (self.conv_x(x) + self.conv_h(h)).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        return o.sigmoid() * c.tanh(), c


class GateByGateCell(nn.Module):
    """automan000/Convolutional_LSTM_PyTorch: a convolution for each gate and half; peepholes as a fork may register them."""

    def __init__(self, inputs: int, hidden: int, kernel: int, peephole: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.hidden = hidden
        for gate in "ifco":
            setattr(self, f"Wx{gate}", nn.Conv2d(inputs, hidden, kernel, padding=kernel // 2))
            setattr(self, f"Wh{gate}", nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2, bias=False))
        for gate in "ifo":
            value = None if peephole is None else nn.Parameter(torch.zeros(1, hidden, *peephole))
            self.register_parameter(f"Wc{gate}", value)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        def z(gate: str, memory: Tensor | None = None) -> Tensor:
            peephole = getattr(self, f"Wc{gate}", None)
            total = getattr(self, f"Wx{gate}")(x) + getattr(self, f"Wh{gate}")(h)
            return total if memory is None or peephole is None else total + peephole * memory

        i, f = z("i", c).sigmoid(), z("f", c).sigmoid()
        c = f * c + i * z("c").tanh()
        return z("o", c).sigmoid() * c.tanh(), c


class Stack(nn.Module):
    def __init__(self, *cells: nn.Module) -> None:
        super().__init__()
        self.cell_list = nn.ModuleList(cells)

    def forward(self, x: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        last = []
        for cell in self.cell_list:
            h = c = x.new_zeros(x.shape[0], cell.hidden, *x.shape[3:])
            outputs = []
            for t in range(x.shape[1]):
                h, c = cell(x[:, t], h, c)
                outputs.append(h)
            x = torch.stack(outputs, 1)
            last.append((h, c))
        return x, last


def drawn(module: nn.Module, seed: int = 0) -> Any:
    """Double precision, weights of standard deviation 1/sqrt(fan-in), biases, gains and peepholes of 1."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.double().parameters():
        with torch.no_grad():
            parameter.normal_(generator=generator)
            if parameter.ndim == 4 and parameter.shape[0] > 1:
                parameter /= parameter[0].numel() ** 0.5
    return module


def frames(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_same_stack(net: nn.Module, layers: Mapping[str, RecurrentLayer], x: Tensor) -> None:
    with torch.no_grad():
        expected, last = net(x)
        for layer, (h, c) in zip(layers.values(), last, strict=True):
            x, (h_n, c_n) = layer(x)
            torch.testing.assert_close(h_n[0], h, rtol=0, atol=1e-12)
            torch.testing.assert_close(c_n[0], c, rtol=0, atol=1e-12)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-12)
    assert expected.std() > 0.01


# --- theirs → ours ---


@pytest.mark.parametrize("bias", [True, False])
def test_a_stack_of_ndrplz_with_unequal_layers_gives_equal_outputs(bias: bool) -> None:
    net = drawn(Stack(JointCell(2, 5, (3, 5), bias), JointCell(5, 3, (1, 3), bias)))
    layers = from_torch(net.state_dict())
    assert list(layers) == ["cell_list.0", "cell_list.1"]
    assert [(layer.in_channels, layer.hidden_channels, layer.kernel_size) for layer in layers.values()] == [
        (2, 5, (3, 5)),
        (5, 3, (1, 3)),
    ]
    assert_same_stack(net, layers, frames(2, 5, 2, 7, 6))


@pytest.mark.parametrize("norm", [False, True])
def test_cells_of_openstl_give_equal_outputs(norm: bool) -> None:
    frame = (6, 5)
    net = drawn(Stack(ApartCell(2, 4, 5, frame if norm else None), ApartCell(4, 3, 3, frame if norm else None)))
    if norm:  # one gain a channel; shifts that differ from pixel to pixel, and whose sum does not
        with torch.no_grad():
            for cell in net.cell_list:
                for part in (cell.conv_x, cell.conv_h):
                    part[1].weight.copy_(part[1].weight[:, :1, :1].expand_as(part[1].weight))
                shift = cell.conv_x[1].bias.mul_(8).round_().div_(8)
                cell.conv_h[1].bias.copy_(torch.arange(shift.shape[0])[:, None, None] / 8 - shift)
    layers = from_torch(net.state_dict())
    assert [layer.norm for layer in layers.values()] == ["layer" if norm else None] * 2
    assert_same_stack(net, layers, frames(2, 4, 2, *frame))


def test_a_gain_or_shift_for_each_pixel_is_refused() -> None:
    cell = ApartCell(2, 4, 3, (6, 5))
    assert from_torch(cell.state_dict())[""].norm == "layer"
    with torch.no_grad():
        cell.conv_h[1].weight[2, 3, 1] = 1.5
    with pytest.raises(InputError, match=r'as "openstl", the gains conv_h.1.weight differ from pixel to pixel'):
        from_torch(cell.state_dict())
    with torch.no_grad():
        cell.conv_h[1].weight.fill_(1)
        cell.conv_x[1].bias[2, 3, 1] = 1.5
    with pytest.raises(InputError, match=r"the shifts conv_x.1.bias \+ conv_h.1.bias differ from pixel to pixel"):
        from_torch(cell.state_dict())


@pytest.mark.parametrize("peephole", [None, (6, 5), (1, 1)])
def test_cells_of_automan000_give_equal_outputs(peephole: tuple[int, int] | None) -> None:
    cells = drawn(nn.ModuleList([GateByGateCell(2, 4, 3, peephole), GateByGateCell(4, 2, 3, peephole)]))
    layers = from_torch({f"cell{n}.{name}": t for n, cell in enumerate(cells) for name, t in cell.state_dict().items()})
    assert list(layers) == ["cell0", "cell1"]
    expected = {None: None, (6, 5): "pixel", (1, 1): "channel"}[peephole]
    assert [layer.peephole for layer in layers.values()] == [expected] * 2
    assert_same_stack(Stack(*cells), layers, frames(2, 4, 2, 6, 5))


def case(name: str) -> tuple[dict[str, np.ndarray], dict[str, Tensor]]:
    """Parameters, and what the library computed with them, channels before pixels."""
    with np.load(FIXTURE) as file:
        own = {key.removeprefix(f"{name}/"): file[key] for key in file.files if key.startswith(f"{name}/")}
    params = {key.removeprefix("params/"): value for key, value in own.items() if key.startswith("params/")}
    axis = {"x": 2, "y": 2, "h": 1, "c": 1}
    return params, {key: torch.from_numpy(own[key]).movedim(-1, axis[key]) for key in axis}


def nested(params: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """As Flax keeps them."""
    tree: dict[str, Any] = {}
    for name, value in params.items():
        *modules, last = name.split("/")
        inner = tree
        for module in modules:
            inner = inner.setdefault(module, {})
        inner[last] = value
    return tree


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("flax", ["ConvLSTMCell_0", "ConvLSTMCell_1"]),
        ("flax-no-bias", ["ConvLSTMCell_0"]),
        ("haiku", ["conv2_dlstm", "conv2_dlstm_1"]),
        ("haiku-3d", ["conv3_dlstm"]),
    ],
)
def test_layers_compute_what_flax_and_haiku_computed(name: str, cells: list[str]) -> None:
    params, theirs = case(name)
    layers = from_torch(params)
    assert list(layers) == cells
    y = theirs["x"]
    with torch.no_grad():
        for layer in layers.values():
            y, (h, c) = layer(y)
    for ours, key in ((y, "y"), (h[0], "h"), (c[0], "c")):
        torch.testing.assert_close(ours, theirs[key], rtol=0, atol=1e-12)
    assert theirs["y"].std() > 0.1


def test_nested_parameters_read_like_flat_ones() -> None:
    params, _ = case("flax")
    flat = from_torch(params)
    by_tuple = {tuple(name.split("/")): value for name, value in params.items()}
    for other in (nested(params), {"params": nested(params), "batch_stats": {"mean": np.zeros(3)}}, by_tuple):
        again = from_torch(other)
        assert list(again) == list(flat)
        assert all(torch.equal(again[n].weight_ih_l0, flat[n].weight_ih_l0) for n in flat)
    params, _ = case("haiku")
    two_levels = {}
    for name, value in params.items():
        module, _, last = name.rpartition("/")
        two_levels.setdefault(module, {})[last] = value
    assert torch.equal(from_torch(two_levels)["conv2_dlstm"].bias_l0, from_torch(params)["conv2_dlstm"].bias_l0)


@pytest.mark.parametrize(
    "layer",
    [
        ConvLSTM2d(2, 3, (3, 2), recurrent_kernel_size=1, num_layers=2, bidirectional=True),
        ConvLSTM2d(0, 3, 3, peephole="pixel", frame_size=(4, 5), bias=False),
        ConvLSTM1d(1, 2, 5, peephole="channel", num_layers=3),
        ConvGRU2d(2, 3, 3, num_layers=2),
    ],
)
def test_our_own_state_dicts_come_back(layer: RecurrentLayer) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3), layer)
    (again,) = from_torch(net.state_dict()).values()
    assert type(again) is type(layer)
    assert again.arguments() == layer.arguments()
    assert all(torch.equal(value, layer.state_dict()[key]) for key, value in again.state_dict().items())
    cell = ConvLSTMCell2d(1, 2, 3)
    assert torch.equal(from_torch(cell.state_dict())[""].weight_hh_l0, cell.weight_hh)
    assert len(from_torch(EncoderForecaster(1, (3, 2), 3, patch=2, peephole="channel").state_dict())) == 4


def test_a_network_around_the_cells_and_what_is_put_before_its_names_are_seen_through() -> None:
    net = drawn(Stack(JointCell(2, 4, (3, 3)), JointCell(4, 4, (3, 3))))
    around = {
        "encoder.conv.weight": torch.zeros(16, 8, 3, 3),
        **{f"convlstm.{name}": value for name, value in net.state_dict().items()},
        "convlstm.conv.weight": torch.zeros(8, 4, 1, 1),
        "head.weight": torch.zeros(3),
    }
    wrapped = {f"module._orig_mod.{name}": value for name, value in around.items()}
    checkpoint = {
        "epoch": 3,
        "state_dict": wrapped,
        "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(16, 6, 3, 3)}}}],
        "hyper_parameters": {"lr": 1e-3},
    }
    layers = from_torch(checkpoint)
    assert list(layers) == ["convlstm.cell_list.0", "convlstm.cell_list.1"]
    assert_same_stack(net, layers, frames(1, 3, 2, 5, 5))
    assert list(from_torch(checkpoint, prefix="convlstm.cell_list.1")) == ["convlstm.cell_list.1"]
    with pytest.raises(
        InputError, match=r"no name begins with the prefix 'decoder'. Received: encoder.conv.weight, con"
    ):
        from_torch(checkpoint, prefix="decoder")


def test_a_lone_cell_and_cells_under_unusual_names() -> None:
    cell = drawn(JointCell(2, 3, (3, 3)))
    alone = from_torch(cell.state_dict())
    assert list(alone) == [""]
    assert_same_stack(Stack(cell), alone, frames(1, 3, 2, 5, 5))
    named = {f"down.1.{name}": value for name, value in cell.state_dict().items()}
    with pytest.raises(InputError, match="no ConvLSTM of a known layout is here"):
        from_torch(named)
    for layers in (
        from_torch(named, "ndrplz"),
        from_torch(named, prefix="down.1"),
        from_torch(named, prefix="down."),
    ):
        assert torch.equal(layers["down.1"].weight_hh_l0, alone[""].weight_hh_l0)
    assert list(from_torch({f"encoder_1_convlstm.{name}": value for name, value in cell.state_dict().items()}))


def test_a_fork_with_another_order_of_gates() -> None:
    net = drawn(Stack(JointCell(2, 3, (3, 3), order="ofig")))
    assert_same_stack(net, from_torch(net.state_dict(), gates="ofig"), frames(1, 3, 2, 5, 5))
    with pytest.raises(
        InputError, match=r"gates must be the letters i, f, g, o in the order of the file.*Received: 'ifco'"
    ):
        from_torch(net.state_dict(), gates="ifco")
    with pytest.raises(InputError, match='cell0, read as "automan000", needs no gates='):
        from_torch({f"cell0.{k}": v for k, v in GateByGateCell(1, 2, 3).state_dict().items()}, gates="ifgo")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_precision_stays_and_nothing_is_shared(dtype: torch.dtype) -> None:
    theirs = Stack(ApartCell(1, 2, 3, None)).to(dtype).state_dict()
    layer = from_torch(theirs)["cell_list.0"]
    assert layer.weight_ih_l0.dtype == dtype
    assert layer.weight_ih_l0.requires_grad
    before = layer.weight_ih_l0.detach().clone()
    theirs["cell_list.0.conv_x.0.weight"].zero_()
    assert torch.equal(layer.weight_ih_l0, before)


def test_cells_come_in_the_order_of_the_file_and_of_their_numbers() -> None:
    cell = JointCell(1, 1, (1, 1)).state_dict()
    names = ["b.cell10", "b.cell2", "a.cell1.lstm", "b.cell1", "a.cell0.lstm"]
    layers = from_torch({f"{name}.{key}": value for name in names for key, value in cell.items()})
    assert list(layers) == ["b.cell1", "b.cell2", "b.cell10", "a.cell0.lstm", "a.cell1.lstm"]


def test_arrays_of_any_byte_order_and_of_bfloat16() -> None:
    params, _ = case("flax")
    swapped = {name: value.astype(">f8") for name, value in params.items()}
    for value in swapped.values():
        value.flags.writeable = False
    name = "ConvLSTMCell_0"
    assert torch.equal(from_torch(swapped)[name].weight_hh_l0, from_torch(params)[name].weight_hh_l0)
    bfloat16 = pytest.importorskip("ml_dtypes", reason="ml_dtypes, which JAX brings along, is not installed").bfloat16
    layer = from_torch({key: value.astype(bfloat16) for key, value in params.items()})[name]
    expected = from_torch(params)[name].weight_hh_l0.to(torch.bfloat16)
    assert torch.equal(layer.weight_hh_l0, expected)


def jhhuang96() -> dict[str, Tensor]:
    conv = nn.Sequential(nn.Conv2d(3 + 8, 32, 3), nn.GroupNorm(1, 32))
    return {f"encoder.rnn1.conv.{name}": value for name, value in conv.state_dict().items()}


def two_layouts() -> dict[str, Tensor]:
    return {
        **Stack(JointCell(1, 2, (3, 3))).state_dict(),
        **{f"cell0.{name}": value for name, value in GateByGateCell(1, 2, 3).state_dict().items()},
    }


@pytest.mark.parametrize(
    ("theirs", "options", "message"),
    [
        (
            lambda: two_layouts(),
            {},
            r'more than one layout are here: "ndrplz" \(cell_list.0\), "automan000" \(cell0\): give',
        ),
        (
            lambda: nn.LSTM(3, 4).state_dict(),
            {},
            r"no ConvLSTM of a known layout is here \(ndrplz, .*weight_ih_l0, weight",
        ),
        (lambda: nn.Conv2d(3, 4, 3).state_dict(), {}, r"Received: weight, bias$"),
        (dict, {}, "Received: no weights"),
        (lambda: {"epoch": 3}, {}, "Received: no weights"),
        (lambda: [torch.zeros(3)], {}, "a state dict. Received: list"),
        (lambda: two_layouts(), {"layout": "flax"}, 'no cell of the layout "flax" is here .*leave out layout='),
        (lambda: two_layouts(), {"layout": "keras"}, "layout must be one of ndrplz, openstl, .*Received: 'keras'"),
        (jhhuang96, {}, "encoder.rnn1.conv looks like a convolution and a GroupNorm of its sum over input and state"),
        (
            lambda: JointCell(1, 2, (4, 3)).state_dict(),
            {},
            'the state dict, read as "ndrplz", has a kernel of even size, with which frames would grow',
        ),
        (lambda: {"conv.weight": torch.zeros(8, 2, 3, 3)}, {}, "conv.weight has no channels for an input"),
        (lambda: {"conv.weight": torch.zeros(6, 3, 3, 3)}, {}, r"do not fit together: conv.weight \(6, 3, 3, 3\)"),
        (
            lambda: {"conv.weight": torch.zeros(8, 3, 3, 3), "conv.bias": torch.zeros(4)},
            {},
            r"do not fit together: conv.bias \(4,\), conv.weight \(8, 3, 3, 3\)",
        ),
        (
            lambda: {"conv.weight": torch.zeros(8, 3, 3, 3, dtype=torch.int8)},
            {},
            "holds torch.int8, not floating-point numbers",
        ),
        (
            lambda: {"hh/kernel": np.zeros((3, 2, 8), int), "ih/kernel": np.zeros((3, 2, 8))},
            {},
            "holds int64, not floating-point numbers",
        ),
        (lambda: {"cell/hh/kernel": np.zeros((3, 2, 8))}, {}, 'cell, read as "flax", lacks ih.kernel'),
        (
            lambda: {f"cell_list.0.{k}": torch.zeros(8, 3, 3, 3) for k in ("conv.weight", "conv_mask.weight", "Wci")},
            {},
            "cell_list.0, .* holds what that layout does not compute with: Wci, conv_mask.weight",
        ),
        (lambda: {"weight_hh_l0": torch.zeros(10, 2, 3, 3)}, {}, r"do not fit together: weight_hh_l0 \(10, 2, 3, 3\)"),
        (
            lambda: ConvLSTM2d(1, 2, 3, norm="group").state_dict(),
            {},
            'as "stormcell", has gains of a norm, and names and shapes do not tell "layer" from "group"',
        ),
        (
            lambda: {"conv_h.0.weight": torch.zeros(8, 2, 3, 3), "conv_x.0.weight": torch.zeros(12, 1, 3, 3)},
            {},
            "do not fit together: ",
        ),
    ],
)
def test_what_is_no_convlstm_that_we_can_compute_is_refused(
    theirs: Callable[[], Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        from_torch(theirs(), **options)


def test_layouts_beside_each_other_are_read_one_at_a_time() -> None:
    assert list(from_torch(two_layouts(), "ndrplz")) == ["cell_list.0"]
    assert list(from_torch(two_layouts(), "automan000")) == ["cell0"]
    assert list(from_torch(two_layouts(), prefix="cell_list")) == ["cell_list.0"]


def test_a_mapping_within_itself_ends() -> None:
    loop: dict[str, Any] = {}
    loop["state_dict"] = loop
    loop["a"] = loop
    with pytest.raises(InputError, match="nested more than 32 deep"):
        from_torch(loop)
    wide: dict[str, Any] = {}
    for _ in range(30):
        wide = {"a": wide, "b": wide}
    with pytest.raises(InputError, match="more than 100,000 entries"):
        from_torch(wide)


# --- ours → theirs ---

PLAIN = {
    "ndrplz": {"num_layers": 2},
    "openstl": {"num_layers": 2, "bias": False},
    "automan000": {"num_layers": 2, "peephole": "channel"},
    "flax": {"num_layers": 2},
    "haiku": {"num_layers": 2},
}


@pytest.mark.parametrize("layout", PLAIN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_go_there_and_come_back_bit_for_bit(layout: str, dtype: torch.dtype) -> None:
    layer = drawn(ConvLSTM2d(2, 4, 3, **PLAIN[layout]), seed=5).to(dtype)
    again = from_torch(to_torch(layer, layout))
    assert len(again) == 2
    for row, single in enumerate(again.values()):
        expected = {k.replace(f"_l{row}", "_l0"): v for k, v in layer.state_dict().items() if k.endswith(f"_l{row}")}
        assert single.state_dict().keys() == expected.keys()
        assert all(torch.equal(single.state_dict()[key], value) for key, value in expected.items())
        assert single.weight_ih_l0.dtype == dtype
    assert list(from_torch(to_torch(again, layout))) == list(again)


def test_their_own_modules_load_what_we_write_and_compute_the_same() -> None:
    x = frames(2, 4, 2, 6, 5)
    plain = drawn(ConvLSTM2d(2, 4, 3, num_layers=2))
    unbiased = drawn(ConvLSTM2d(2, 4, 3, num_layers=2, bias=False))
    nets = {
        "ndrplz": (plain, Stack(JointCell(2, 4, (3, 3)), JointCell(4, 4, (3, 3)))),
        "openstl": (unbiased, Stack(ApartCell(2, 4, 3, None), ApartCell(4, 4, 3, None))),
        "automan000": (plain, Stack(GateByGateCell(2, 4, 3), GateByGateCell(4, 4, 3))),
    }
    for layout, (layer, net) in nets.items():
        theirs = to_torch(layer, layout)
        if layout == "automan000":
            theirs = {name.replace("cell", "cell_list."): value for name, value in theirs.items()}
        net.double().load_state_dict(theirs)
        with torch.no_grad():
            torch.testing.assert_close(layer(x)[0], net(x)[0], rtol=0, atol=1e-12)


def test_flax_and_haiku_get_the_names_and_shapes_that_they_made_themselves() -> None:
    for name, layout in (("flax", "flax"), ("haiku", "haiku"), ("haiku-3d", "haiku")):
        params, _ = case(name)
        theirs = to_torch(from_torch(params), layout)
        flat = {
            "/".join(path): value
            for path, value in (
                [((m, k), v) for m, inner in theirs.items() for k, v in inner.items()]
                if layout == "haiku"
                else [
                    ((c, m, k), v) for c, cell in theirs.items() for m, inner in cell.items() for k, v in inner.items()
                ]
            )
        }
        assert {key: value.shape for key, value in flat.items()} == {key: value.shape for key, value in params.items()}
        for key, value in flat.items():
            assert isinstance(value, np.ndarray)
            if key.endswith(("kernel", "w")):
                np.testing.assert_array_equal(value, params[key])
    assert list(to_torch(ConvLSTM2d(1, 2, 3), "flax")) == ["ih", "hh"]
    assert list(to_torch(ConvLSTM1d(1, 2, 3), "haiku")) == [
        "conv1_dlstm/input_to_hidden",
        "conv1_dlstm/hidden_to_hidden",
    ]
    assert to_torch(ConvLSTM2d(1, 2, 3, dtype=torch.bfloat16), "flax")["ih"]["kernel"].dtype == np.float32
    forget = to_torch(ConvLSTM2d(1, 2, 3), "flax")  # unit_forget_bias, which Flax adds itself
    np.testing.assert_array_equal(forget["ih"]["bias"] + forget["hh"]["bias"], np.zeros(8))


@pytest.mark.parametrize(
    ("layout", "arguments", "message"),
    [
        ("ndrplz", {"peephole": "channel"}, "peephole='channel'"),
        ("ndrplz", {"kernel_size": 4}, r"kernel_size=\(4, 4\)"),
        ("ndrplz", {"activation": "relu", "recurrent_activation": "hard_sigmoid"}, "activation='relu', recurrent_act"),
        ("ndrplz", {"activation": torch.relu}, "activation=<"),
        ("ndrplz", {"recurrent_kernel_size": 5}, r"recurrent_kernel_size=\(5, 5\)"),
        ("ndrplz", {"stride": 2}, r"stride=\(2, 2\)"),
        ("ndrplz", {"padding": "valid"}, "padding='valid'"),
        ("ndrplz", {"padding": 2}, r"padding=\(2, 2\)"),
        ("ndrplz", {"dilation": 2}, r"dilation=\(2, 2\)"),
        ("ndrplz", {"bidirectional": True}, "bidirectional=True"),
        ("ndrplz", {"reverse": True}, "reverse=True"),
        ("ndrplz", {"zoneout": 0.1}, r"zoneout=\(0.1, 0.1\)"),
        ("ndrplz", {"norm": "layer"}, "norm='layer'"),
        ("ndrplz", {"in_channels": 0}, "in_channels=0"),
        ("openstl", {}, 'cell_list.0 has bias=True, which a cell of the layout "openstl" cannot have'),
        ("openstl", {"bias": False, "kernel_size": (3, 5)}, r"kernel_size=\(3, 5\)"),
        ("automan000", {"hidden_channels": 3}, "hidden_channels=3"),
        ("flax", {"peephole": "channel"}, "the layer has peephole='channel'"),
        ("haiku", {"norm": "group"}, "conv2_dlstm has norm='group'"),
    ],
)
def test_what_a_cell_of_theirs_cannot_compute_is_named(layout: str, arguments: dict[str, Any], message: str) -> None:
    layer = ConvLSTM2d(**{"in_channels": 2, "hidden_channels": 4, "kernel_size": 3, **arguments})
    with pytest.raises(InputError, match=message):
        to_torch(layer, layout)


def test_what_changes_nothing_in_theirs_is_no_obstacle() -> None:
    assert len(to_torch(ConvLSTM2d(2, 4, (3, 5), padding=(1, 2), dropout=0.1, recurrent_dropout=0.2), "ndrplz")) == 2
    assert len(to_torch(ConvLSTM2d(2, 4, 3, unit_forget_bias=False), "openstl")) == 4  # a bias of zeros
    assert torch.equal(to_torch(ConvLSTM2d(2, 4, 3, bias=False), "automan000")["cell0.Wxi.bias"], torch.zeros(4))
    assert list(to_torch({"a.cell": ConvLSTM2d(2, 4, 3)}, "ndrplz")) == ["a.cell.conv.weight", "a.cell.conv.bias"]


def test_only_convlstm_layers_have_other_layouts() -> None:
    with pytest.raises(InputError, match="expected ConvLSTM layers. Received: ConvGRU2d"):
        to_torch(ConvGRU2d(1, 2, 3), "ndrplz")
    with pytest.raises(InputError, match="expected ConvLSTM layers. Received: Conv2d"):
        to_torch({"a": nn.Conv2d(1, 2, 3)}, "ndrplz")  # type: ignore[dict-item]
    with pytest.raises(
        InputError, match="layout must be one of ndrplz, openstl, automan000, flax, haiku. Received: 'stormcell'"
    ):
        to_torch(ConvLSTM2d(1, 2, 3), "stormcell")
    assert set(PLAIN) == {name for name, layout in LAYOUTS.items() if layout.write}


# --- files ---


def save_compressed_npz(weights: Mapping[str, Tensor], path: Path) -> None:
    np.savez_compressed(path, **{name: value.numpy() for name, value in weights.items()})


@pytest.mark.parametrize(
    ("suffix", "save"),
    [
        (".pt", torch.save),
        (".ckpt", lambda w, p: torch.save({"state_dict": w, "epoch": 3, "lr": [0.1, None]}, p)),
        (".pth", lambda w, p: torch.save(w, p, _use_new_zipfile_serialization=False)),
        (".safetensors", lambda w, p: save_file(dict(w), p)),
        (".npz", save_compressed_npz),
        (".pt", write_torch_file),
        (".safetensors", write_torch_file),
        (".npz", write_torch_file),
    ],
)
def test_weights_are_read_from_files_whatever_they_are_called(
    tmp_path: Path, suffix: str, save: Callable[[Any, Path], None]
) -> None:
    weights = drawn(Stack(JointCell(2, 3, (3, 3)), JointCell(3, 4, (3, 3)))).state_dict()
    path = tmp_path / f"weights{suffix}"
    save(weights, path)
    assert os.listdir(tmp_path) == [path.name]
    path = path.rename(tmp_path / "renamed.bin")
    read = read_torch_file(path)
    assert read.keys() == weights.keys()
    layers, expected = from_torch(read), from_torch(weights)
    assert list(layers) == list(expected)
    for name, layer in layers.items():
        assert all(torch.equal(value, expected[name].state_dict()[key]) for key, value in layer.state_dict().items())


def test_parameters_of_flax_go_through_a_file(tmp_path: Path) -> None:
    params, _ = case("flax")
    theirs = to_torch(from_torch(params), "flax")
    for suffix in (".npz", ".pt", ".safetensors"):
        write_torch_file(theirs, tmp_path / f"flax{suffix}")
        read = read_torch_file(tmp_path / f"flax{suffix}")
        assert sorted(read) == sorted(params)
        for name, layer in from_torch(read).items():
            assert all(torch.equal(v, from_torch(params)[name].state_dict()[k]) for k, v in layer.state_dict().items())
    with pytest.raises(
        InputError, match=r"flax.msgpack: name a file that ends in .pt, .pth, .ckpt, .safetensors, .npz"
    ):
        write_torch_file(theirs, tmp_path / "flax.msgpack")


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


class Huge:
    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10**12,)


def evil(path: Path, old: bool = False) -> None:
    weights = {"conv.weight": torch.zeros(8, 3, 3, 3), "x": Evil(path.with_suffix(".marker"))}
    torch.save(weights, path, _use_new_zipfile_serialization=not old)


def truncated(path: Path, save: Callable[[Any, Path], None] = torch.save) -> None:
    save({"conv.weight": torch.randn(8, 3, 3, 3)}, path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def rewritten(path: Path, change: Callable[[bytes], bytes], compression: int = zipfile.ZIP_STORED) -> None:
    """A file of torch.save with 4 numbers, whose pickle says something else."""
    stream = io.BytesIO()
    torch.save({"conv.weight": torch.zeros(4)}, stream)
    with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", compression) as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                assert change(data) != data or compression
                data = change(data)
            new.writestr(entry.filename, data)


def claim_more(path: Path) -> None:
    """10**6 numbers where there are 4."""
    size = b"\x8a\x03" + (10**6).to_bytes(3, "little")
    rewritten(path, lambda data: data.replace(b"K\x04", size))


def claim_more_in_the_old_format(path: Path) -> None:
    torch.save(OrderedDict(w=torch.zeros(4)), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes().replace(b"K\x04N", b"\x8a\x05" + (2**38).to_bytes(5, "little") + b"N"))


def keyless_old_format(path: Path) -> None:
    """Storages that the file names, and for which it has no bytes."""
    torch.save(OrderedDict(w=torch.zeros(4)), path, _use_new_zipfile_serialization=False)
    *_, end = [n for n in range(path.stat().st_size) if path.read_bytes()[n : n + 2] == b"\x80\x02"]
    path.write_bytes(path.read_bytes()[:end] + pickle.dumps([], 2))


def bomb(path: Path) -> None:
    np.savez_compressed(path, w=np.zeros(10**7, np.float32))


def forged_npz(path: Path) -> None:
    """A header of 10**12 numbers before 4."""
    stream = io.BytesIO()
    np.save(stream, np.zeros(4))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.npy", stream.getvalue().replace(b"(4,), }" + b" " * 12, b"(1000000000000,), }"))


def forged_safetensors(path: Path) -> None:
    header = b'{"w": {"dtype": "F32", "shape": [1000000000], "data_offsets": [0, 4000000000]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(16))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (evil, r"holds a Python object \((posix|nt).system\), which is not unpickled: save the state dict alone"),
        (lambda p: evil(p, old=True), r"holds a Python object \((posix|nt).system\)"),
        (lambda p: torch.save({"a": argparse.Namespace(b=1)}, p), r"\(argparse.Namespace\)"),
        (lambda p: torch.save(nn.Conv2d(1, 2, 3), p), r"\(torch.nn.modules.conv.Conv2d\)"),
        (lambda p: torch.save({"a": Huge()}, p), r"\(__builtin__.bytearray\)"),
        (lambda p: torch.save([torch.zeros(3)], p), "holds a list, not a state dict"),
        (truncated, "breaks off, or is not what it seems"),
        (lambda p: truncated(p, lambda w, q: torch.save(w, q, _use_new_zipfile_serialization=False)), "breaks off"),
        (lambda p: truncated(p, save_file), "breaks off"),
        (lambda p: truncated(p, save_compressed_npz), "breaks off"),
        (
            lambda p: torch.save({"a": torch.zeros(1).expand(10**6, 10**6)}, p),
            r"has \d+ bytes of numbers, and claims more than that at a \(1000000, 1000000\)",
        ),
        (
            lambda p: torch.save({str(n): t for t in [torch.zeros(1000)] for n in range(100)}, p),
            "claims more than that at ",
        ),
        (claim_more, "breaks off, or is not what it seems"),
        (claim_more_in_the_old_format, "breaks off, or is not what it seems"),
        (keyless_old_format, "claims more than that at w"),
        (lambda p: rewritten(p, lambda data: data, zipfile.ZIP_DEFLATED), "is compressed or claims more than it holds"),
        (lambda p: np.savez(p, w=np.array([{}, 1], dtype=object)), "Object arrays cannot be loaded"),
        (bomb, r"unpacks to 40000128 bytes, far more than weights do: save it with numpy.savez"),
        (forged_npz, "breaks off, or is not what it seems"),
        (forged_safetensors, "breaks off, or is not what it seems"),
        (lambda p: write_layers(ConvLSTM2d(1, 2, 3), p), "is a file of Stormcell's own: stormcell.interop.read_layers"),
        (lambda p: p.write_bytes(b""), "is no file of weights that Stormcell reads"),
        (lambda p: p.write_text("a,b\n1,2\n"), r"numpy.savez\(path, \*\*flax.traverse_util.flatten_dict"),
        (
            lambda p: zipfile.ZipFile(p, "w").writestr("config.json", "{}"),
            "a Keras file goes to stormcell.interop.from_k",
        ),
        (lambda p: p.mkdir(), r"cannot be read \(Is a directory\)"),
        (lambda p: None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_hostile_broken_or_other_file_is_one_sentence(
    tmp_path: Path, make: Callable[[Path], Any], message: str
) -> None:
    path = tmp_path / "weights.npz"  # numpy.savez adds the suffix where it is missing
    make(path)
    with pytest.raises(InputError, match=message) as caught:
        read_torch_file(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("*.marker"))
