"""From one program's files and layers to another's: the same numbers on both sides, and a sentence where that cannot be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stormcell import ConvGRU2d, ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, InputError
from stormcell.cli import main
from stormcell.interop import (
    from_keras,
    from_torch,
    read_keras,
    read_layers,
    read_torch_file,
    to_keras,
    write_keras,
    write_layers,
)
from tests.nn.layers import EXACT, random_layer

keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'stormcell[keras]'")
import stormcell.interop.keras as ours  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
SIZES = {1: (7,), 2: (7, 6), 3: (4, 5, 3)}
LAYERS = {1: ConvLSTM1d, 2: ConvLSTM2d, 3: ConvLSTM3d}
LAYER = ConvLSTM2d(1, 2, 3)


def as_keras(frames: Tensor) -> Tensor:
    return frames.movedim(2, -1)


def frames_for(layer: Any) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(2, 3, layer.in_channels, *SIZES[layer.dims], dtype=torch.float64)


def assert_keras_agrees(theirs: Any, layer: Any) -> None:
    x = frames_for(layer)
    with torch.no_grad():
        y = layer(x)[0]
        expected = theirs(as_keras(x)).movedim(-1, 2)
    torch.testing.assert_close(y.flip(1) if layer.reverse else y, expected, **EXACT)


# --- layers ---


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize(
    ("dims", "options"),
    [
        (1, {"stride": 2, "bias": False}),
        (2, {"padding": "valid", "dilation": (1, 2), "activation": "relu"}),
        (2, {"reverse": True, "recurrent_activation": "hard_sigmoid"}),
        (2, {"bidirectional": True}),
        (2, {"num_layers": 3}),
        (2, {"num_layers": 2, "bidirectional": True}),
        (3, {}),
    ],
)
def test_a_layer_goes_to_keras_and_comes_back(dims: int, options: dict[str, Any], plain: bool) -> None:
    layer = random_layer(LAYERS[dims](2, 3, 3, **options, dtype=torch.float64)).eval()
    theirs = to_keras(layer, frame_size=SIZES[dims] if plain else None, name="rain")
    assert_keras_agrees(theirs, layer)
    stack = isinstance(theirs, keras.Sequential)
    assert stack == (layer.num_layers > 1)
    rows = theirs.layers if stack else [theirs]
    assert [row.name for row in rows] == [f"rain_{n}" if n else "rain" for n in range(layer.num_layers)]
    for row in rows:
        inner = row.forward_layer if layer.bidirectional else row
        assert isinstance(inner, ours._Engine) == (not plain)
    if stack:
        y = x = frames_for(layer)
        for again in from_keras(theirs).values():
            y, _ = again(y)
        torch.testing.assert_close(y, layer(x)[0], **EXACT)
        return
    again = from_keras(theirs)
    kept = {**layer.arguments(), "padding": again.padding, "unit_forget_bias": again.unit_forget_bias}
    assert again.arguments() == kept
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in layer.state_dict().items())


def test_a_layer_of_any_frame_size_takes_them() -> None:
    layer = random_layer(ConvLSTM2d(1, 2, 3, dtype=torch.float64)).eval()
    theirs = to_keras(layer)
    for size in ((5, 4), (9, 12)):
        x = torch.randn(1, 2, 1, *size, dtype=torch.float64)
        torch.testing.assert_close(theirs(as_keras(x)).detach().movedim(-1, 2), layer(x)[0].detach(), **EXACT)


def test_nothing_is_shared_with_keras() -> None:
    theirs = keras.layers.ConvLSTM2D(2, 3)
    theirs.build((None, None, 5, 5, 1))
    layer = from_keras(theirs)
    before = layer.weight_ih_l0.clone()
    theirs.set_weights([2 + w for w in theirs.get_weights()])
    assert torch.equal(layer.weight_ih_l0, before)
    back = to_keras(layer)
    back.set_weights([3 + w for w in back.get_weights()])
    assert torch.equal(layer.weight_ih_l0, before)


def test_a_model_gives_its_layers_by_name() -> None:
    model = keras.Sequential(
        [
            keras.Input((None, 7, 6, 1)),
            keras.layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True, name="lower"),
            keras.layers.BatchNormalization(),
            keras.layers.Bidirectional(keras.layers.ConvLSTM2D(2, 3, return_sequences=True), name="upper"),
        ]
    )
    layers = from_keras(model)
    assert {name: type(layer) for name, layer in layers.items()} == {"lower": ConvLSTM2d, "upper": ConvLSTM2d}
    kernel = np.moveaxis(model.get_layer("lower").get_weights()[0], (-1, -2), (0, 1))
    np.testing.assert_array_equal(layers["lower"].weight_ih_l0.detach().numpy(), kernel)
    assert layers["upper"].bidirectional


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (lambda: from_keras(3), "expected a path, or a layer or model of Keras 3. Received: int"),
        (lambda: from_keras(keras.layers.ConvLSTM2D(2, 3, name="dry")), "layer dry has no weights yet: build it"),
        (lambda: from_keras(built(keras.layers.Dense(2, name="flat"), 3)), "flat is no ConvLSTM layer .*: Dense"),
        (
            lambda: from_keras(built(keras.layers.ConvLSTM1D(2, 3), 4, 3), options={"strides": 1}),
            "leave the options out",
        ),
        (lambda: to_keras(ConvLSTM2d(1, 2, 3, peephole="channel")), "Keras 3 cannot express peepholes"),
        (
            lambda: to_keras(ConvLSTM2d(1, 2, 3), frame_size=(4, 4, 4)),
            "frame_size must be 2 integers. Received: .4, 4, 4",
        ),
        (lambda: to_keras(ConvGRU2d(1, 2, 3)), "Keras has ConvLSTM layers only"),  # type: ignore[arg-type]
    ],
)
def test_what_has_no_counterpart_is_one_sentence(act: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        act()


def built(layer: Any, *shape: int) -> Any:
    layer.build((None, *shape) if len(shape) == 1 else (None, None, *shape))
    return layer


def test_on_another_backend_a_layer_for_any_size_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A plain one asks for nothing of torch's: it is made by Keras alone."""
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="or give frame_size. Received: the backend 'jax'"):
        to_keras(LAYER)
    assert not isinstance(to_keras(LAYER, frame_size=5), ours._Engine)


# --- files, on the command line ---


def run(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    capsys.readouterr()
    assert main(["convert", *map(str, arguments)]) == code
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return err if code else out


def same(layer: Any, other: Any) -> None:
    assert type(other) is type(layer)
    assert all(torch.equal(value, other.state_dict()[key]) for key, value in layer.state_dict().items())


def test_every_kind_of_file_becomes_every_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Around the circle, through all formats, without losing a bit."""
    layers = {"conv_lstm2d": random_layer(ConvLSTM2d(1, 4, 3)), "conv_lstm2d_1": random_layer(ConvLSTM2d(4, 2, 3))}
    write_layers(layers, tmp_path / "a.safetensors")
    options = [f"-O{key}" for key in ("padding=same", "strides=1", "dilation_rate=1,1", "activation=tanh")]
    steps: list[tuple[str, str, list[object]]] = [
        ("a.safetensors", "b.keras", ["--frame-size", "16,12"]),
        ("b.keras", "c.weights.h5", []),
        ("c.weights.h5", "d.h5", [*options, "-O", "recurrent_activation=sigmoid"]),
        ("d.h5", "e.pt", [*options, "-O", "recurrent_activation=sigmoid", "--to", "ndrplz"]),
        ("e.pt", "f.npz", ["--to", "automan000"]),
        ("f.npz", "g.safetensors", ["--to", "ndrplz"]),
        ("g.safetensors", "h.safetensors", ["--layout", "ndrplz"]),
    ]
    for source, target, more in steps:
        out = run(capsys, tmp_path / source, tmp_path / target, *more)
        assert out.splitlines()[-1] == f"wrote {tmp_path / target}"
        assert "conv_lstm2d: ConvLSTM2d(1, 4, kernel_size=(3, 3)" in out
    found = read_layers(tmp_path / "h.safetensors")
    assert list(found) == list(layers)
    for name, layer in layers.items():
        same(layer, found[name])


def test_flax_parameters_come_and_go(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layer = random_layer(ConvLSTM2d(1, 4, (3, 2), dtype=torch.float64))
    write_layers(layer, tmp_path / "a.safetensors")
    run(capsys, tmp_path / "a.safetensors", tmp_path / "flax.npz", "--to", "flax")
    run(capsys, tmp_path / "flax.npz", tmp_path / "b.safetensors")
    (found,) = read_layers(tmp_path / "b.safetensors").values()
    same(layer, found)


def test_a_lone_cell_of_pytorch_becomes_a_layer_of_the_usual_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = {"conv.weight": torch.randn(8, 3, 3, 3), "conv.bias": torch.randn(8)}
    torch.save(theirs, tmp_path / "cell.pt")
    assert run(capsys, tmp_path / "cell.pt", tmp_path / "cell.safetensors").startswith("layer: ConvLSTM2d(1, 2, ")
    same(from_torch(theirs)[""], read_layers(tmp_path / "cell.safetensors")["layer"])
    run(capsys, tmp_path / "cell.pt", tmp_path / "cell.keras", "--frame-size", "8,8")
    same(from_torch(theirs)[""], read_keras(tmp_path / "cell.keras")["conv_lstm2d"])
    run(capsys, tmp_path / "cell.pt", tmp_path / "back.pt", "--to", "ndrplz")
    assert torch.equal(read_torch_file(tmp_path / "back.pt")["cell_list.0.conv.weight"], theirs["conv.weight"])


def test_a_layer_becomes_an_onnx_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnxruntime = pytest.importorskip(
        "onnxruntime", reason="onnxruntime is not installed: pip install 'stormcell[onnx]'"
    )
    layers = {"lower": random_layer(ConvLSTM2d(1, 4, 3)), "upper": random_layer(ConvLSTM2d(4, 2, 3))}
    write_layers(layers, tmp_path / "a.safetensors")
    err = run(capsys, tmp_path / "a.safetensors", tmp_path / "a.onnx", code=2)
    assert "an .onnx file is one layer: choose one of lower, upper" in err
    run(capsys, tmp_path / "a.safetensors", tmp_path / "a.onnx", "--only", "upper", "--steps", 3)
    x, state = torch.randn(2, 3, 4, 6, 5), torch.zeros(1, 2, 2, 6, 5)
    session = onnxruntime.InferenceSession(tmp_path / "a.onnx")
    y, *_ = session.run(None, {"x": x.numpy(), "h": state.numpy(), "c": state.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(y), layers["upper"](x)[0], rtol=0, atol=1e-5)


def test_one_option_for_all_layers_and_another_for_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    layers = {name: random_layer(ConvLSTM2d(1, 2, 3)) for name in ("one", "two")}
    write_keras(layers, tmp_path / "w.weights.h5")
    err = run(capsys, tmp_path / "w.weights.h5", tmp_path / "l.safetensors", code=2)
    assert "layer one: the file holds weights only, and does not say padding, strides, dilation_rate, activation" in err
    assert not (tmp_path / "l.safetensors").exists()
    told = ["padding=same", "strides=2", "dilation_rate=1", "activation=tanh", "recurrent_activation=sigmoid"]
    told += ["two:strides=1,3", "two:go_backwards=true", "two:activation=relu"]
    run(
        capsys, tmp_path / "w.weights.h5", tmp_path / "l.safetensors", *(part for each in told for part in ("-O", each))
    )
    found = read_layers(tmp_path / "l.safetensors")
    assert {name: layer.stride for name, layer in found.items()} == {"one": (2, 2), "two": (1, 3)}
    assert {name: layer.activation for name, layer in found.items()} == {"one": "tanh", "two": "relu"}
    assert {name: layer.reverse for name, layer in found.items()} == {"one": False, "two": True}


def test_a_model_with_our_options_becomes_one_for_plain_keras(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other layers, weights and all else stay as they were."""
    options: dict[str, Any] = {
        "padding": "same",
        "return_sequences": True,
        "checkpoint_every": 2,
        "engine": "reference",
    }
    model = keras.Sequential(
        [
            keras.Input((None, 8, 8, 1)),
            ours.ConvLSTM2D(3, 3, **options),
            keras.layers.BatchNormalization(),
            keras.layers.Bidirectional(ours.ConvLSTM2D(2, 3, **options)),
            keras.layers.Conv3D(1, (1, 3, 3), padding="same"),
        ]
    )
    model.save(tmp_path / "model.keras")
    x = np.random.default_rng(0).random((2, 4, 8, 8, 1), np.float32)
    np.save(tmp_path / "x.npy", x)
    load = (
        "import keras, numpy as np; model = keras.models.load_model('{}.keras');"
        "np.save('y.npy', model(np.load('x.npy')).detach())"
    )
    environment = {**os.environ, "KERAS_BACKEND": "torch"}

    def in_plain_keras(name: str) -> int:
        command = [sys.executable, "-c", load.format(name)]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True).returncode

    assert in_plain_keras("model") != 0
    out = run(capsys, tmp_path / "model.keras", tmp_path / "plain.keras")
    assert "conv_lstm2d" in out
    assert in_plain_keras("plain") == 0
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x).detach().numpy(), atol=1e-6)
    with zipfile.ZipFile(tmp_path / "model.keras") as old, zipfile.ZipFile(tmp_path / "plain.keras") as new:
        assert old.read("model.weights.h5") == new.read("model.weights.h5")
        before, after = (json.loads(archive.read("config.json")) for archive in (old, new))
    text = json.dumps(after)
    assert "checkpoint_every" not in text
    assert text == json.dumps(before).replace(', "checkpoint_every": 2, "engine": "reference"', "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.pt", "a.keras"], "there is no file none.pt"),
        ([".", "a.keras"], ". is a folder: name a file"),
        (["l.safetensors", "a.txt"], "a.txt: name a file that ends in .weights.h5, .keras, .h5, .pt,"),
        (["l.safetensors", "l.safetensors"], "l.safetensors is the file that is read"),
        (["l.safetensors", "a.pt"], "say which layout, one of ndrplz, openstl, automan000, flax, haiku"),
        (["l.safetensors", "a.pt", "--to", "stormcell"], "layout must be one of ndrplz, openstl"),
        (["l.safetensors", "a.keras"], "knows one frame size: give frame_size, 2 integers"),
        (["l.safetensors", "a.keras", "--frame-size", "4,x"], "--frame-size takes numbers with commas between"),
        (["l.safetensors", "a.h5", "--frame-size", "4,4"], "frame_size goes with an output of .keras or .onnx only"),
        (
            ["l.safetensors", "a.h5", "--to", "ndrplz"],
            "to goes with an output of .pt, .pth, .ckpt, .safetensors, .npz only",
        ),
        (["l.safetensors", "a.h5", "--steps", "3"], "steps goes with an output of .onnx only"),
        (["l.safetensors", "a.h5", "-O", "strides=1"], "options goes with a file of Keras that holds weights only"),
        (["w.weights.h5", "a.safetensors", "-O", "strides"], "-O takes KEY=VALUE or LAYER:KEY=VALUE"),
        (["w.weights.h5", "a.safetensors", "-O", "stride=1"], "options are padding, .* Received: 'stride'"),
        (
            ["w.weights.h5", "a.safetensors", "--layout", "flax"],
            "layout goes with weights of PyTorch, Flax or Haiku only",
        ),
        (["l.safetensors", "a.h5", "--only", "lstm"], "l.safetensors has no layer 'lstm'; it has 'layer'"),
        (["p.safetensors", "a.keras", "--frame-size", "4,4"], "layer layer: Keras 3 cannot express peepholes"),
        (["p.safetensors", "a.pt", "--to", "ndrplz"], "layer has peephole='channel', which a cell of the layout"),
        (["half.keras", "a.safetensors"], "half.keras .*breaks off"),
        (["half.keras", "b.keras"], "half.keras .*breaks off"),
        (["half.safetensors", "a.pt", "--to", "ndrplz"], "half.safetensors breaks off, or is not what it seems"),
        (["text.pt", "a.safetensors"], "text.pt is no file of weights that Stormcell reads"),
        (["net.pt", "a.safetensors"], "net.pt: no ConvLSTM of a known layout is here"),
        (["evil.pt", "a.safetensors"], "evil.pt holds a Python object .*os|posix"),
        (["l.safetensors", "nowhere/a.h5"], "the folder .*nowhere does not exist"),
    ],
)
def test_what_cannot_be_converted_is_one_sentence(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write_layers(LAYER, "l.safetensors")
    write_layers(ConvLSTM2d(1, 2, 3, peephole="channel"), "p.safetensors")
    write_keras(LAYER, "w.weights.h5")
    write_keras(LAYER, "whole.keras", frame_size=4)
    for source, half in (("whole.keras", "half.keras"), ("l.safetensors", "half.safetensors")):
        content = Path(source).read_bytes()
        Path(half).write_bytes(content[: len(content) // 2])
    Path("text.pt").write_text("not a tensor")
    torch.save(torch.nn.Linear(2, 2).state_dict(), "net.pt")
    torch.save({"conv.weight": os.system}, "evil.pt")
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    err = run(capsys, *arguments, code=2)
    (line,) = [line for line in err.splitlines() if line.startswith("stormcell: ")]
    assert re.search(message, line), line
    assert {path: path.read_bytes() for path in Path().iterdir() if path.is_file()} == before
