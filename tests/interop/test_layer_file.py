"""Layers in a file of their own: what goes in comes out, and nothing else comes in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from stormcell import ConvGRU1d, ConvLSTM2d, ConvLSTM3d, InputError, load
from stormcell.interop import read_layers, write_layers
from stormcell.interop.layer_file import is_layer_file


def test_layers_come_back_with_their_names_arguments_and_weights(tmp_path: Path) -> None:
    layers = {
        "a.b/c": ConvLSTM2d(
            2, 3, (3, 5), stride=(1, 2), num_layers=2, bidirectional=True, dropout=0.1, dtype=torch.float64
        ),
        "a": ConvLSTM3d(
            0, 2, 3, peephole="pixel", frame_size=(2, 3, 4), zoneout=(0.1, 0.2), norm="group", norm_groups=2
        ),
        "gru": ConvGRU1d(1, 2, 4, padding=2, bias=False, reverse=True, activation="relu", checkpoint_every=3),
    }
    path = tmp_path / "layers.safetensors"
    write_layers(layers, path)
    again = read_layers(path)
    assert list(again) == list(layers)
    for name, layer in layers.items():
        assert type(again[name]) is type(layer)
        assert again[name].arguments() == layer.arguments()
        assert not again[name].training
        for key, value in layer.state_dict().items():
            assert torch.equal(again[name].state_dict()[key], value)
            assert again[name].state_dict()[key].dtype == value.dtype
    x = torch.randn(2, 4, 2, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(again["a.b/c"](x)[0], layers["a.b/c"].eval()(x)[0], rtol=0, atol=0)
    write_layers(layers["gru"], path)
    assert list(read_layers(path)) == ["layer"]


def test_a_function_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer cell: activation is a function, which a file cannot hold"):
        write_layers({"cell": ConvLSTM2d(1, 2, 3, activation=torch.tanh)}, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def write_header(path: Path, header: Any, **tensors: torch.Tensor) -> None:
    save_file(tensors, path, metadata={"stormcell": json.dumps(header)})


HUGE = {"in_channels": 10**6, "hidden_channels": 10**6, "kernel_size": [3, 3]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 2, "layers": {}}, "has format 2; this version of Stormcell reads 1"),
        ({"format": 1, "layers": {"x": {"class": "Popen", "arguments": {"args": "ls"}}}}, "Popen"),
        ({"format": 1, "layers": {"x": {"class": "ConvLSTM2d", "arguments": {"widths": 3}}}}, "widths"),
        (
            {"format": 1, "layers": {"x": {"class": "ConvLSTM2d", "arguments": HUGE}}},
            "weights of layer x are not those",
        ),
        ({"format": 1, "layers": ["x"]}, "not a file of Stormcell layers"),
        ([1], "not a file of Stormcell layers"),
    ],
)
def test_other_contents_are_one_sentence(header: Any, message: str, tmp_path: Path) -> None:
    """A layer that claims 10^13 weights is refused before any is allocated."""
    path = tmp_path / "x.safetensors"
    write_header(path, header, unused=torch.zeros(1))
    with pytest.raises(InputError, match=message) as caught:
        read_layers(path)
    assert "\n" not in str(caught.value)


def test_broken_files_are_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "layer.safetensors"
    write_layers(ConvLSTM2d(1, 2, 3), path)
    assert is_layer_file(path)
    whole = path.read_bytes()
    for damaged in (whole[:-10], whole[:20], b"", b"not a file" * 100):
        path.write_bytes(damaged)
        assert not is_layer_file(path)
        with pytest.raises(InputError, match="not a file of Stormcell layers, or breaks off"):
            read_layers(path)
    with pytest.raises(InputError, match="nowhere"):
        read_layers(tmp_path / "nowhere.safetensors")


def test_a_forecast_from_layers_says_what_they_are(tmp_path: Path) -> None:
    path = tmp_path / "layer.safetensors"
    write_layers(ConvLSTM2d(1, 2, 3), path)
    with pytest.raises(
        InputError, match="holds ConvLSTM layers, not a forecaster: stormcell.interop.read_layers reads them"
    ):
        load(path)
