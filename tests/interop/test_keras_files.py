"""Keras files without Keras: real files of five versions give Keras' own numbers, and broken or hostile ones a sentence."""

from __future__ import annotations

import contextlib
import gzip
import json
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor

from stormcell import ConvGRU2d, ConvLSTM1d, ConvLSTM2d, ConvLSTM3d, InputError
from stormcell.interop.keras_config import from_config, to_config, to_weights
from stormcell.interop.keras_read import read_keras
from stormcell.interop.keras_write import write_keras
from tests.nn.layers import EXACT, random_layer

FOLDER = Path(__file__).parent / "keras_files"
SAME = {
    "padding": "same",
    "strides": 1,
    "dilation_rate": 1,
    "activation": "tanh",
    "recurrent_activation": "sigmoid",
    "merge_mode": "concat",
}
NAMES = {  # the models of make_keras_files.py in the words of options, for Keras 2 and 3
    keras: {
        "zulu": {**SAME, "recurrent_activation": usual},
        "conv_lstm2d_1": {**SAME, "recurrent_activation": hard},
        "conv_lstm2d": {**SAME, "recurrent_activation": usual, "activation": "softsign"},
        "pair": {**SAME, "recurrent_activation": usual},
    }
    for keras, usual, hard in ((2, "keras2_hard_sigmoid", "keras2_hard_sigmoid"), (3, "sigmoid", "hard_sigmoid"))
}
OLD = "keras2_hard_sigmoid"
SHAPES = {
    "conv_lstm1d": {**SAME, "strides": 2, "activation": "relu", "recurrent_activation": OLD},
    "conv_lstm2d": {**SAME, "padding": "valid", "dilation_rate": (1, 2), "recurrent_activation": OLD},
    "conv_lstm2d_1": {**SAME, "strides": (2, 3), "recurrent_activation": OLD, "go_backwards": True},
    "conv_lstm3d": {**SAME, "padding": "valid"},
}
OPTIONS = {
    "keras-2.21-names-weights.h5": NAMES[2],
    "keras-3.15-names.weights.h5": NAMES[3],
    "keras-2.21-shapes.weights.h5": SHAPES,
}
FILES = sorted(path.name.removesuffix(".gz") for path in FOLDER.glob("*.gz"))


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((FOLDER / f"{name}.gz").read_bytes()))
    return path


def changed(path: Path, change: Callable[[Any], Any], entry: str = "config.json") -> Path:
    """The same `.keras` with another configuration."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    content = json.loads(entries[entry])
    entries[entry] = json.dumps(change(content) or content).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return path


def of_keras(frames: np.ndarray) -> Tensor:
    """(B, T, *frame, C) → (B, T, C, *frame)."""
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(frames, -1, 2)))


def check_values(name: str, layer: Any, record: Any) -> None:
    y, _ = layer(of_keras(record[f"{name}.x"]))
    expected = of_keras(record[f"{name}.y"])
    assert y.dtype == expected.dtype
    scale = float(expected.abs().max())
    atol = 1e-12 if y.dtype == torch.float64 else 1e-6 * scale
    torch.testing.assert_close(y.flip(1) if layer.reverse else y, expected, rtol=0, atol=atol)


# --- reading ---


@pytest.mark.parametrize("name", FILES)
def test_layers_of_real_files_give_the_numbers_of_keras(name: str, tmp_path: Path) -> None:
    layers = read_keras(unpacked(name, tmp_path), options=OPTIONS.get(name))
    version, model = name.split("-")[1], name.split("-")[2].split(".")[0]
    record = np.load(FOLDER / f"keras-{version}-{model}.npz")
    names = {key.split(".")[0]: None for key in record}
    if name == "keras-2.21-shapes.weights.h5":  # which holds no names
        layers = dict(zip(names, layers.values()))
    assert set(layers) == set(names)
    for key, layer in layers.items():
        assert not layer.training
        check_values(key, layer, record)


@pytest.mark.parametrize(("name", "hard"), [("keras-2.21-shapes.h5", OLD), ("keras-3.15-shapes.keras", "hard_sigmoid")])
def test_arguments_are_those_of_the_file(name: str, hard: str, tmp_path: Path) -> None:
    layers = read_keras(unpacked(name, tmp_path))
    assert [type(layer) for layer in layers.values()] == [ConvLSTM1d, ConvLSTM2d, ConvLSTM2d, ConvLSTM3d]
    usual = "sigmoid" if hard == "hard_sigmoid" else OLD
    expected = {
        "line": ConvLSTM1d(2, 2, 4, stride=2, bias=False, activation="relu", recurrent_activation=usual),
        "dilated": ConvLSTM2d(
            2, 2, (3, 2), padding="valid", dilation=(1, 2), recurrent_activation=hard, unit_forget_bias=False
        ),
        "backwards": ConvLSTM2d(
            1,
            2,
            (4, 2),
            stride=(2, 3),
            recurrent_activation=usual,
            reverse=True,
            input_dropout=0.25,
            recurrent_dropout=0.5,
        ),
        "volume": ConvLSTM3d(1, 1, 2, padding="valid", recurrent_activation="sigmoid"),
    }
    assert list(layers) == list(expected)
    for key, layer in layers.items():
        assert layer.arguments() == expected[key].arguments()


def test_a_file_is_known_by_its_contents(tmp_path: Path) -> None:
    """Keras before 2.13 writes HDF5 into NAME.keras."""
    path = unpacked("keras-2.21-names.h5", tmp_path)
    assert set(read_keras(path.rename(tmp_path / "model.keras"))) == set(NAMES[2])


def test_one_mapping_of_options_goes_for_all_layers(tmp_path: Path) -> None:
    path = unpacked("keras-2.21-names-weights.h5", tmp_path)
    layers = read_keras(path, options={**NAMES[2]["zulu"], "padding": "VALID", "strides": [1, 2]})
    assert {(layer.padding, layer.stride) for layer in layers.values()} == {("valid", (1, 2))}
    assert layers["pair"].bidirectional
    layers = read_keras(path, options={**NAMES[2]["zulu"], "zulu": {"strides": 3}})  # and for one, what is said of it
    assert {name: layer.stride for name, layer in layers.items() if layer.stride != (1, 1)} == {"zulu": (3, 3)}


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in SAME.items() if name != key}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "keras-2.21-names-weights.h5",
            None,
            "layer conv_lstm2d: the file holds weights only, and does not say padding,",
        ),
        ("keras-2.21-names-weights.h5", without("strides"), "does not say strides. Give .*: strides=1, or"),
        (
            "keras-2.21-names-weights.h5",
            without("merge_mode"),
            "layer pair: the file holds .* not say merge_mode. Give",
        ),
        ("keras-2.21-names-weights.h5", {**SAME, "stride": 2}, "options are padding, .* Received: 'stride'"),
        (
            "keras-2.21-names-weights.h5",
            {**NAMES[2], "mike": SAME},
            "options name the layer 'mike'; .* for conv_lstm2d,",
        ),
        ("keras-2.21-names-weights.h5", {**NAMES[2], "zulu": 3}, "options are padding, .* Received: 'zulu'"),
        ("keras-2.21-names-weights.h5", {"zulu": SAME}, "layer conv_lstm2d: the file holds weights only"),
        (
            "keras-2.21-names-weights.h5",
            {**SAME, "recurrent_activation": "hard_sigmoid"},
            "calls .keras2_hard_sigmoid.;",
        ),
        (
            "keras-2.21-names-weights.h5",
            {**SAME, "go_backwards": True},
            "pair runs in both directions: leave out go_back",
        ),
        ("keras-2.21-names-weights.h5", {**SAME, "activation": "sotfmax"}, "has no activation 'sotfmax'; it has tanh,"),
        ("keras-2.21-names-weights.h5", {**SAME, "padding": "full"}, 'layer conv_lstm2d: padding must be "same", '),
        ("keras-2.21-names-weights.h5", {**SAME, "strides": 2, "dilation_rate": 2}, "stride > 1 does not go with"),
        ("keras-2.21-names.h5", SAME, "says itself what its layers are: leave the options out"),
    ],
)
def test_what_a_file_does_not_say_is_asked_for(name: str, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_keras(unpacked(name, tmp_path), options=options)
    assert "\n" not in str(caught.value)


def layer_config(config: Any, name: str) -> Any:
    """The serialised layer of that name, wherever it stands."""
    if isinstance(config, dict):
        if config.get("class_name") and isinstance(config.get("config"), dict) and config["config"].get("name") == name:
            return config
        config = list(config.values())
    if isinstance(config, list):
        return next((found for part in config if (found := layer_config(part, name))), None)
    return None


def test_a_bidirectional_that_does_not_concatenate_becomes_two_layers(tmp_path: Path) -> None:
    def summed(config: Any) -> None:
        layer_config(config, "pair")["config"]["merge_mode"] = "sum"

    layers = read_keras(changed(unpacked("keras-3.15-names.keras", tmp_path), summed))
    assert set(layers) == {"zulu", "conv_lstm2d_1", "conv_lstm2d", "pair/forward", "pair/backward"}
    record = np.load(FOLDER / "keras-3.15-names.npz")
    x = of_keras(record["pair.x"])
    halves = torch.cat([layers["pair/forward"](x)[0], layers["pair/backward"](x)[0]], dim=2)
    torch.testing.assert_close(halves, of_keras(record["pair.y"]), **EXACT)


def test_zero_output_for_mask_is_warned_of(tmp_path: Path) -> None:
    def zeros(config: Any) -> None:
        layer_config(config, "zulu")["config"]["zero_output_for_mask"] = True

    with pytest.warns(UserWarning, match="layer zulu has zero_output_for_mask=True.* multiply y by the mask"):
        read_keras(changed(unpacked("keras-3.15-names.keras", tmp_path), zeros))


def test_layers_of_stormcell_in_keras_count_and_others_of_the_name_do_not(tmp_path: Path) -> None:
    path = unpacked("keras-3.15-names.keras", tmp_path)

    def ours(config: Any) -> None:
        layer_config(config, "zulu").update(module="stormcell.interop.keras", registered_name="stormcell>ConvLSTM2D")

    def theirs(config: Any) -> None:
        layer_config(config, "zulu").update(module="my.layers", registered_name="my>ConvLSTM2D")

    assert "zulu" in read_keras(changed(path, ours))
    with pytest.raises(InputError, match="layer zulu: the file holds weights only"):
        read_keras(changed(path, theirs))
    layers = read_keras(path, options={"zulu": NAMES[3]["zulu"]})
    check_values("zulu", layers["zulu"], np.load(FOLDER / "keras-3.15-names.npz"))
    with pytest.raises(InputError, match="options name the layer 'pair'; .* needs them for zulu"):
        read_keras(path, options={"pair": SAME})


def test_models_of_a_class_of_ones_own_are_asked_about(tmp_path: Path) -> None:
    """Their configuration says nothing of the layers in them."""
    path = unpacked("keras-3.15-names.keras", tmp_path)
    changed(path, lambda config: {"class_name": "Nowcaster", "config": {"width": 3}, "module": None})
    with pytest.raises(InputError, match="layer pair: the file holds weights only"):
        read_keras(path)
    layers = read_keras(path, options=NAMES[3])
    for name in NAMES[3]:
        check_values(name, layers[name], np.load(FOLDER / "keras-3.15-names.npz"))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (None, "linear"),
        ("swish", "silu"),
        ({"module": "builtins", "class_name": "function", "config": "relu", "registered_name": "function"}, "relu"),
    ],
)
def test_activations_come_in_several_forms(value: Any, name: str, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        layer_config(config, "conv_lstm2d")["config"]["activation"] = value

    path = changed(unpacked("keras-3.15-names.keras", tmp_path), change)
    assert read_keras(path)["conv_lstm2d"].activation == name


@pytest.mark.parametrize(
    "value",
    ["softmax", {"class_name": "ReLU", "config": {"max_value": 6}}, {"class_name": "function", "config": "mine"}],
)
def test_an_activation_that_we_lack_is_named_with_its_layer(value: Any, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        layer_config(config, "conv_lstm2d")["config"]["recurrent_activation"] = value

    path = changed(unpacked("keras-3.15-names.keras", tmp_path), change)
    with pytest.raises(InputError, match="layer conv_lstm2d: Stormcell has no recurrent_activation"):
        read_keras(path)


def weights_file(path: Path, dtype: Any = "f4", **arrays: Any) -> Path:
    """A `.weights.h5` of one layer, with arrays in place of its own."""
    own = {"0": (3, 3, 1, 8), "1": (3, 3, 2, 8), "2": (8,)}
    with h5py.File(path, "w") as file:
        group = file.create_group("layers/conv_lstm2d/cell/vars")
        for key, shape in own.items():
            value = arrays.get(f"array_{key}", np.full(shape, 0.1))
            if value is not None:
                group.create_dataset(key, data=np.asarray(value), dtype=dtype)
    return path


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f2", torch.float32), ("f4", torch.float32), ("f8", torch.float64), (">f4", torch.float32)]
)
def test_layers_are_float32_or_float64(dtype: str, expected: torch.dtype, tmp_path: Path) -> None:
    path = weights_file(tmp_path / "x.weights.h5", dtype, array_2=[float("nan")] * 8)
    layer = read_keras(path, options=SAME)["conv_lstm2d"]
    assert {parameter.dtype for parameter in layer.parameters()} == {expected}
    assert all(parameter.requires_grad for parameter in layer.parameters())
    torch.testing.assert_close(layer.weight_ih_l0.double(), torch.full((8, 1, 3, 3), 0.1).double(), rtol=1e-3, atol=0)
    assert layer.bias_l0.isnan().all()  # as it is in the file


# --- broken and hostile files ---


def one_sentence(path: Path, message: str, options: Any = None) -> None:
    with pytest.raises(InputError, match=message) as caught:
        read_keras(path, options=options)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["keras-3.15-names.keras", "keras-2.21-names.h5", "keras-3.15-names.weights.h5"])
def test_files_that_break_off_are_one_sentence(name: str, tmp_path: Path) -> None:
    path = unpacked(name, tmp_path)
    whole = path.read_bytes()
    for length in [0, 3, 4, 20, *range(100, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        one_sentence(path, "not a Keras file")


@pytest.mark.parametrize("name", ["keras-3.15-shapes.keras", "keras-2.21-shapes.h5"])
def test_damaged_files_are_read_or_one_sentence(name: str, tmp_path: Path) -> None:
    path = unpacked(name, tmp_path)
    whole = path.read_bytes()
    draw = np.random.default_rng(1)
    for _ in range(100):
        damaged = bytearray(whole)
        for place in draw.integers(0, len(whole), 30):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(InputError):
                read_keras(path)


def test_what_is_no_keras_file_is_one_sentence(tmp_path: Path) -> None:
    one_sentence(tmp_path / "nowhere.keras", "there is no file")
    one_sentence(tmp_path, "is a folder")
    path = tmp_path / "x.keras"
    path.write_bytes(b"not a file" * 1000)
    one_sentence(path, "neither a zip .* nor HDF5")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    one_sentence(path, "a zip, but not of Keras")
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a/b"] = np.zeros(3)
    one_sentence(tmp_path / "x.h5", "holds no ConvLSTM layer", SAME)


@pytest.mark.parametrize(
    ("entry", "content", "message"),
    [
        ("config.json", b"{'not': 'json'}", "not a Keras file, or breaks off"),
        ("config.json", b"[" * 100_000, "not a Keras file, or breaks off"),
        ("config.json", b'{"config":' * 100_000 + b"1" + b"}" * 100_000, "not a Keras file, or breaks off"),
        ("config.json", b'{"class_name": "Model", "config": {"layers": [' * 90 + b"]}}" * 90, "holds weights only"),
        ("config.json", b'{"class_name": "Model", "config": {"layers": [' * 5000 + b"]}}" * 5000, "not a Keras file"),
        ("config.json", b"[1, 2]", "not a Keras file, or breaks off"),
        ("config.json", b" " * 2**25, "config.json claims 33554432 bytes, more than it can have"),
        ("metadata.json", b'{"keras_version": "three"}', "not a Keras file, or breaks off"),
        ("metadata.json", b"{}", "not a Keras file, or breaks off .'keras_version'"),
        ("model.weights.h5", b"not HDF5", "not a Keras file, or breaks off"),
    ],
    ids=[
        "text",
        "deep list",
        "deep dict",
        "deep models",
        "deeper models",
        "list",
        "long",
        "version",
        "none",
        "weights",
    ],
)
def test_other_contents_are_one_sentence(entry: str, content: bytes, message: str, tmp_path: Path) -> None:
    path = unpacked("keras-3.15-names.keras", tmp_path)
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in {**entries, entry: content}.items():
            archive.writestr(name, data)
    one_sentence(path, message)


def test_a_layer_without_its_weights_is_one_sentence(tmp_path: Path) -> None:
    def more(config: Any) -> None:
        layers = config["config"]["layers"]
        again = json.loads(json.dumps(layer_config(config, "zulu")))
        again["config"]["name"] = "again"
        layers.append(again)

    message = "layer again is in the configuration, but its weights are not in the file"
    for name in ("keras-3.15-names.keras", "keras-2.21-names.keras", "keras-2.12-names.keras"):
        one_sentence(changed(unpacked(name, tmp_path), more), message)
    path = unpacked("keras-2.21-names.h5", tmp_path)
    with h5py.File(path, "r+") as file:
        config = json.loads(file.attrs["model_config"])
        more(config)
        file.attrs["model_config"] = json.dumps(config)
    one_sentence(path, message)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("filters", 3, "its weights do not fit together, or not its configuration"),
        ("kernel_size", [3, 1], "its weights do not fit together, or not its configuration"),
        ("use_bias", False, "its weights do not fit together, or not its configuration"),
        ("dropout", "much", "layer zulu: "),
        ("dropout", 1.0, "input_dropout must lie in"),
        ("strides", [1, "a"], "stride must be an integer"),
        ("padding", [1, 1], "padding must be"),
        ("padding", None, "padding must be"),
    ],
)
def test_a_configuration_that_does_not_fit_is_one_sentence(key: str, value: Any, message: str, tmp_path: Path) -> None:
    def change(config: Any) -> None:
        layer_config(config, "zulu")["config"][key] = value

    one_sentence(changed(unpacked("keras-3.15-names.keras", tmp_path), change), message)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"array_0": np.zeros((3, 3, 1, 12))}, "do not fit together"),
        ({"array_0": np.zeros((3, 3, 1, 9))}, "do not fit together"),
        ({"array_0": np.zeros((3, 5, 1, 8))}, "do not fit together"),
        ({"array_1": np.zeros((3, 3, 3, 8))}, "do not fit together"),
        ({"array_1": np.zeros((3, 2, 8))}, "do not fit together"),
        ({"array_2": np.zeros((4, 2))}, "do not fit together"),
        ({"array_1": None}, "do not fit together"),
        ({"array_0": np.zeros((3, 1, 8, 0))}, "do not fit together"),
    ],
)
def test_arrays_that_do_not_fit_together_are_one_sentence(arrays: Any, message: str, tmp_path: Path) -> None:
    one_sentence(weights_file(tmp_path / "x.weights.h5", **arrays), message, SAME)


def test_arrays_of_other_types_are_one_sentence(tmp_path: Path) -> None:
    one_sentence(weights_file(tmp_path / "x.weights.h5", "i4"), "weight_ih_l0 is of type int32", SAME)


def far_away(file: Any) -> None:
    file["layers/conv_lstm2d/cell/vars"].create_dataset(
        "3", (3,), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)]
    )


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((3,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (3,))
    file.create_virtual_dataset("x", layout)


def link(path: str, target: Any) -> Callable[[Any], None]:
    def make(file: Any) -> None:
        file[path] = target if not callable(target) else target(file)

    return make


def dataset(**options: Any) -> Callable[[Any], None]:
    return lambda file: file.create_dataset("x", dtype="f4", **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dataset(shape=(10**6, 10**6)), "x claims 4000000000000 bytes, more than the file has for it"),
        (dataset(shape=(10**6, 10**6), chunks=True), "claims 4000000000000 bytes, more than the file has"),
        (dataset(shape=(10**6, 10**6), chunks=True, compression="gzip"), "claims 4000000000000 bytes, more"),
        (far_away, "3 lies in another file"),
        (virtual, "x lies in another file"),
        (link("layers/more", h5py.ExternalLink("/etc/passwd", "/")), "more is a link, and Keras writes none"),
        (link("layers/more", h5py.SoftLink("/layers/conv_lstm2d")), "more is a link, and Keras writes none"),
        (link("model_weights", h5py.ExternalLink("other.h5", "/")), "model_weights is a link"),
        (link("layers/more", lambda file: file["layers"]), "layers/more is there twice"),
        (lambda file: file.create_group("/".join("a" * 100)), "nested deeper than 64"),
        (link("model_weights", np.zeros(3)), "its weights are no group"),
    ],
    ids=["huge", "huge chunks", "packed", "far", "virtual", "external", "soft", "root", "cycle", "deep", "array"],
)
def test_files_that_claim_too_much_or_lead_elsewhere_are_one_sentence(
    change: Callable[[Any], None], message: str, tmp_path: Path
) -> None:
    path = weights_file(tmp_path / "x.weights.h5")
    with h5py.File(path, "r+") as file:
        change(file)
    one_sentence(path, message, SAME)


def test_without_h5py_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = unpacked("keras-3.15-names.keras", tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(InputError, match=r"Keras files need h5py: pip install 'stormcell\[keras\]'"):
        read_keras(path)
    with pytest.raises(InputError, match=r"Keras files need h5py: pip install 'stormcell\[keras\]'"):
        write_keras(ConvLSTM2d(1, 2, 3), tmp_path / "x.h5")


# --- writing ---

WRITABLE: dict[str, Any] = {
    "1d": ConvLSTM1d(2, 3, 4, stride=2, activation="relu", bias=False, dtype=torch.float64),
    "2d": ConvLSTM2d(2, 3, (3, 2), padding="valid", dilation=(1, 2), unit_forget_bias=False, input_dropout=0.25),
    "3d": ConvLSTM3d(1, 2, (1, 2, 3), recurrent_dropout=0.5, activation="silu"),
    "pair": ConvLSTM2d(2, 3, 3, bidirectional=True, stride=(1, 2), dtype=torch.float64),
    "reverse": ConvLSTM2d(1, 2, 3, reverse=True, recurrent_activation="linear"),
}


def options_of(layer: Any) -> dict[str, Any]:
    return {
        "padding": layer.padding,
        "strides": layer.stride,
        "dilation_rate": layer.dilation,
        "activation": layer.activation,
        "recurrent_activation": layer.recurrent_activation,
        "go_backwards": layer.reverse,
        "merge_mode": "concat",
    }


@pytest.mark.parametrize("name", WRITABLE)
@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_a_layer_comes_back_from_a_file_as_it_was(name: str, suffix: str, tmp_path: Path) -> None:
    layer = random_layer(WRITABLE[name])
    path = tmp_path / f"x{suffix}"
    write_keras({name: layer}, path, frame_size=(6, 8, 7)[: layer.dims])
    (again,) = read_keras(path, options=None if suffix == ".keras" else options_of(layer)).items()
    assert again[0] == name
    training = {"input_dropout", "recurrent_dropout", "unit_forget_bias"} if suffix != ".keras" else set()
    expected = {key: value for key, value in layer.arguments().items() if key not in training}
    assert {key: value for key, value in again[1].arguments().items() if key not in training} == expected
    for key, value in layer.state_dict().items():
        assert again[1].state_dict()[key].dtype == value.dtype
        assert torch.equal(again[1].state_dict()[key], value)
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_layers_make_the_same_file(tmp_path: Path) -> None:
    layer = random_layer(ConvLSTM2d(1, 2, 3))
    for name in ("a.keras", "b.keras"):
        write_keras(layer, tmp_path / name, frame_size=5)
    assert (tmp_path / "a.keras").read_bytes() == (tmp_path / "b.keras").read_bytes()
    assert list(read_keras(tmp_path / "a.keras")) == ["conv_lstm2d"]


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5", ".h5"])
def test_stacked_layers_become_several(suffix: str, tmp_path: Path) -> None:
    layer = random_layer(
        ConvLSTM2d(2, 3, 3, num_layers=3, stride=2, padding=0, bidirectional=True, dtype=torch.float64)
    )
    path = tmp_path / f"x{suffix}"
    write_keras({"deep": layer}, path, frame_size=9)
    options = {"deep": {**SAME, "strides": 2, "padding": "valid"}, "deep_1": SAME, "deep_2": SAME}
    layers = read_keras(path, options=None if suffix == ".keras" else options)
    assert list(layers) == ["deep", "deep_1", "deep_2"]
    x = torch.randn(2, 4, 2, 9, 9, dtype=torch.float64)
    y = x
    for each in layers.values():
        y, _ = each(y)
    torch.testing.assert_close(y, layer(x)[0], **EXACT)


def test_paddings_in_numbers_are_written_where_keras_has_a_word(tmp_path: Path) -> None:
    path = tmp_path / "x.keras"
    for layer, word in [
        (ConvLSTM2d(1, 1, (3, 5), padding=(1, 2)), "same"),
        (ConvLSTM2d(1, 1, 3, padding=2, dilation=2), "same"),
        (ConvLSTM2d(1, 1, 3, padding=0, stride=2), "valid"),
    ]:
        write_keras(layer, path, frame_size=9)
        assert read_keras(path)["conv_lstm2d"].padding == word


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (ConvLSTM2d(1, 1, 3, peephole="channel"), "Keras 3 cannot express peepholes"),
        (ConvLSTM2d(0, 1, 3), "cannot express layers without input"),
        (ConvLSTM2d(1, 1, 3, recurrent_kernel_size=5), "cannot express a recurrent kernel of a size of its own"),
        (ConvLSTM2d(1, 1, 3, padding=(1, 0)), r"cannot express the padding \(1, 0\)"),
        (ConvLSTM2d(1, 1, 3, padding=1, stride=2), r"cannot express the padding \(1, 1\)"),
        (ConvLSTM2d(1, 1, 4, padding=2), r"cannot express the padding \(2, 2\)"),
        (ConvLSTM2d(1, 1, 3, norm="layer"), "cannot express norm='layer'"),
        (ConvLSTM2d(1, 1, 3, zoneout=(0, 0.1)), "cannot express zoneout"),
        (ConvLSTM2d(1, 1, 3, num_layers=2, dropout=0.1), "cannot express dropout between layers"),
        (ConvLSTM2d(1, 1, 3, input_dropout=0.1, dropout_masks="shared"), "cannot express dropout_masks="),
        (ConvLSTM2d(1, 1, 3, activation=torch.tanh), "cannot express a function as activation"),
        (ConvLSTM2d(1, 1, 3, recurrent_activation=OLD), "Keras 3 cannot express the recurrent_activation 'keras2_"),
        (ConvGRU2d(1, 1, 3), "layer conv_lstm2d: Keras has ConvLSTM layers only. Received: ConvGRU2d"),
        (ConvLSTM2d(1, 1, 3, norm="layer", zoneout=0.1), "cannot express norm='layer', zoneout"),
        ({"a/b": ConvLSTM2d(1, 1, 3)}, "Keras takes no layer of the name 'a/b'"),
        ({"": ConvLSTM2d(1, 1, 3)}, "Keras takes no layer of the name ''"),
        ({"a": ConvLSTM2d(1, 1, 3, num_layers=2), "a_1": ConvLSTM2d(1, 1, 3)}, "two layers would be called 'a_1'"),
        ({}, "there is no layer to write"),
        (
            {"a": ConvLSTM2d(1, 2, 3), "b": ConvLSTM2d(1, 2, 3)},
            "layer b does not take what layer a gives .2 channels, 2d",
        ),
        ({"a": ConvLSTM2d(1, 2, 3), "b": ConvLSTM1d(2, 2, 3)}, "layer b does not take what layer a gives"),
        ({"a": ConvLSTM2d(1, 2, 3, reverse=True), "b": ConvLSTM2d(2, 2, 3)}, "layer a runs in reverse"),
        (ConvLSTM2d(1, 1, 11, padding="valid"), "layer conv_lstm2d: frames of .9, 9. are smaller than the kernel"),
    ],
)
def test_what_keras_cannot_express_is_refused_by_name(layer: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        write_keras(layer, tmp_path / "x.keras", frame_size=9)
    assert list(tmp_path.iterdir()) == []


def test_hard_sigmoid_goes_to_the_keras_that_has_it(tmp_path: Path) -> None:
    old, new = ConvLSTM2d(1, 1, 3, recurrent_activation=OLD), ConvLSTM2d(1, 1, 3, recurrent_activation="hard_sigmoid")
    write_keras(old, tmp_path / "old.h5")
    write_keras(new, tmp_path / "new.weights.h5")
    with pytest.raises(InputError, match="Keras 2 cannot express the recurrent_activation 'hard_sigmoid'"):
        write_keras(new, tmp_path / "new.h5")
    assert to_config(old, keras=2)[0]["config"]["recurrent_activation"] == "hard_sigmoid"


def test_a_file_for_plain_keras_needs_a_frame_size_and_a_suffix(tmp_path: Path) -> None:
    layer = ConvLSTM2d(1, 1, 3)
    for size in (None, (3,), (3, 0), (3.0, 3), -1):
        with pytest.raises(InputError, match=r"give frame_size, 2 integers for a .keras file"):
            write_keras(layer, tmp_path / "x.keras", frame_size=size)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"x.hdf: name a file that ends in .weights.h5, .keras, .h5"):
        write_keras(layer, tmp_path / "x.hdf")
    assert list(tmp_path.iterdir()) == []


def test_config_and_weights_make_the_layer_again() -> None:
    for layer in WRITABLE.values():
        (config,), (weights,) = to_config(layer, name="it"), to_weights(layer)
        assert config["config"]["name"] == "it"
        again = from_config(config, weights)
        assert again.arguments() == layer.arguments()
        assert all(torch.equal(value, again.state_dict()[key]) for key, value in layer.state_dict().items())
    config["config"]["class_name"] = config["class_name"] = "LSTM"
    with pytest.raises(InputError, match="x is no ConvLSTM layer of Keras. Received: LSTM"):
        from_config(config, weights, name="x")
    (config,), (weights,) = to_config(WRITABLE["pair"]), to_weights(WRITABLE["pair"])
    config["config"]["merge_mode"] = "ave"
    with pytest.raises(InputError, match="x merges its directions by 'ave'"):
        from_config(config, weights, name="x")


# --- plain Keras reads what was written ---


@pytest.fixture
def keras() -> Any:
    return pytest.importorskip("keras", reason="Keras is not installed: pip install 'stormcell[keras]'")


CHAINS: dict[str, Any] = {
    **{name: {name: layer} for name, layer in WRITABLE.items()},
    "deep": {"a": ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, stride=2, dtype=torch.float64)},
    "deep reverse": {"a": ConvLSTM2d(2, 3, 3, num_layers=3, reverse=True, dtype=torch.float64)},
    "chain": {
        "zulu": ConvLSTM2d(1, 2, 3, padding="valid", recurrent_activation="hard_sigmoid"),
        "conv_lstm2d_1": ConvLSTM2d(2, 2, (4, 2), bidirectional=True),
        "conv_lstm2d": ConvLSTM2d(4, 2, 3, reverse=True),
    },
}


@pytest.mark.parametrize("suffix", [".keras", ".weights.h5"])
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning")
def test_plain_keras_gives_the_same_numbers(name: str, suffix: str, keras: Any, tmp_path: Path) -> None:
    layers = {key: random_layer(layer.double(), seed=i).eval() for i, (key, layer) in enumerate(CHAINS[name].items())}
    first = next(iter(layers.values()))
    size = (7, 6, 5)[: first.dims]
    path = tmp_path / f"x{suffix}"
    write_keras(layers, path, frame_size=size)
    if suffix == ".keras":
        model = keras.models.load_model(path)
        configs = [each for key, layer in layers.items() for each in to_config(layer, name=key)]
        assert [layer.name for layer in model.layers] == [config["config"]["name"] for config in configs]
    else:
        own = [keras.layers.deserialize(each) for layer in layers.values() for each in to_config(layer)]
        for number, layer in enumerate(own):
            layer.name = f"layer_{number}"  # such files go by order
        model = keras.Sequential([keras.Input((None, *size, first.in_channels), dtype="float64"), *own])
        model.load_weights(path)
    assert type(model.layers[0]).__module__.startswith("keras.src.")
    x = torch.randn(2, 3, first.in_channels, *size, dtype=torch.float64)
    y, reverse = x, False
    for layer in layers.values():
        y, _ = layer(y)
        reverse = layer.reverse
    theirs = model(x.movedim(2, -1), training=False).movedim(-1, 2)
    torch.testing.assert_close(theirs, y.flip(1) if reverse else y, **EXACT)
