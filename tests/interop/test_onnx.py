"""ONNX files run outside PyTorch, at any size, with its numbers; and their graphs are plain enough for strict parsers."""

from __future__ import annotations

import copy
import json
import logging
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves, tree_map

import stormcell
from stormcell import (
    ConvGRU1d,
    ConvGRU2d,
    ConvGRUCell2d,
    ConvLSTM1d,
    ConvLSTM2d,
    ConvLSTM3d,
    ConvLSTMCell1d,
    ConvLSTMCell3d,
    EncoderForecaster,
    InputError,
)
from stormcell.interop.onnx import to_onnx
from stormcell.nn import ACTIVATIONS

from ..nn.layers import random_layer

EPS = float(np.finfo(np.float32).eps)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run(ort: onnxruntime.InferenceSession, inputs: list[Tensor]) -> list[Tensor]:
    feed = {value.name: tensor.numpy() for value, tensor in zip(ort.get_inputs(), inputs)}
    return [torch.from_numpy(value) for value in ort.run(None, feed)]


def compare(path: Path, module: nn.Module, call: Any, given: Any) -> None:
    """The runtime errs, against float64, at most four times as much as PyTorch does in float32."""
    module = copy.deepcopy(module).eval()
    with torch.no_grad():
        single = tree_leaves(call(module, *given))
        exact = tree_leaves(call(copy.deepcopy(module).double(), *tree_map(Tensor.double, given)))
    got = run(session(path), tree_leaves(given))
    assert [value.shape for value in got] == [value.shape for value in exact]
    assert [value.dtype for value in got] == [value.dtype for value in single]
    for value, torchs, truth in zip(got, single, exact):
        bound = 4 * (torchs.double() - truth).abs().max() + EPS * truth.abs().max()
        assert (value.double() - truth).abs().max() <= bound


def step(layer: Any, x: Tensor, state: Any) -> Any:
    return layer.step(x, state)


def whole(layer: Any, x: Tensor, state: Any) -> Any:
    return layer(x, state)


def frames(*shape: int) -> Tensor:
    return torch.randn(shape)


def state(parts: int, *shape: int) -> Any:
    return tuple(torch.randn(parts, *shape)) if parts == 2 else torch.randn(shape)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# --- numbers, at any size ---


def test_a_step_runs_at_any_size_and_streams(tmp_path: Path) -> None:
    layer = random_layer(ConvLSTM2d(2, 3, 3, num_layers=2, peephole="channel", zoneout=0.2, input_dropout=0.5))
    path = tmp_path / "step.onnx"
    to_onnx(layer, path)
    for batch, size in ((3, (8, 5)), (1, (1, 6))):
        compare(path, layer, step, (frames(batch, 2, *size), state(2, 2, batch, 3, *size)))

    x = frames(2, 4, 2, 7, 6)
    layer.eval()
    y, last = layer(x)
    ort, carried = session(path), [torch.zeros(2, 2, 3, 7, 6)] * 2
    assert [value.name for value in ort.get_inputs()] == ["x", "h", "c"]
    assert [value.name for value in ort.get_outputs()] == ["y", "h_next", "c_next"]
    assert ort.get_inputs()[1].shape == [2, "batch", 3, "height", "width"]
    for t in range(4):
        y_t, *carried = run(ort, [x[:, t], *carried])
        torch.testing.assert_close(y_t, y[:, t])
    torch.testing.assert_close(tuple(carried), last)


def test_a_sequence_runs_at_any_size(tmp_path: Path) -> None:
    """Backwards, time before batch, with gains, peepholes and kernels of even size."""
    layer = random_layer(
        ConvLSTM1d(2, 4, 3, recurrent_kernel_size=2, reverse=True, batch_first=False, norm="group", peephole="channel")
    )
    path = tmp_path / "sequence.onnx"
    to_onnx(layer, path, steps=2)
    for batch, size in ((3, 8), (1, 5)):
        compare(path, layer, whole, (frames(2, batch, 2, size), state(2, 1, batch, 4, size)))
    ort = session(path)
    assert [value.name for value in ort.get_outputs()] == ["y", "h_n", "c_n"]
    assert ort.get_outputs()[0].shape == [2, "batch", 4, "width"]
    check_graph(path, convolutions=2 * 2)


def test_a_stride_runs_at_any_size(tmp_path: Path) -> None:
    """Padding "same" then depends on the frame's size: the file works it out."""
    layer = random_layer(ConvGRU1d(2, 3, 4, stride=3))
    path = tmp_path / "strided.onnx"
    to_onnx(layer, path)
    for batch, size in ((3, 9), (1, 10), (2, 11), (1, 1)):
        compare(path, layer, step, (frames(batch, 2, size), state(1, 1, batch, 3, -(-size // 3))))
    ort = session(path)
    assert [value.shape for value in ort.get_inputs()] == [["batch", 2, "width"], [1, "batch", 3, "state_width"]]
    check_graph(path, convolutions=2)


def test_an_encoder_forecaster_runs_at_any_size(tmp_path: Path) -> None:
    """Frames that the patch does not divide are padded and cropped in the file, too."""
    net = random_layer(EncoderForecaster(2, (3,), 3, patch=2, peephole="channel", out_channels=1))
    path = tmp_path / "net.onnx"
    to_onnx(net, path, past=2, steps=2)
    for batch, size in ((3, (8, 6)), (1, (7, 5))):
        compare(path, net, lambda net, x: net(x, steps=2), (frames(batch, 2, 2, *size),))
    ort = session(path)
    assert ort.get_inputs()[0].shape == ["batch", 2, 2, "height", "width"]
    assert ort.get_outputs()[0].shape == ["batch", 2, 1, "height", "width"]
    check_graph(path, convolutions=2 * 2 + 2 + 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "options", "call", "given"),
    [
        (
            ConvLSTM2d(2, 3, 2, stride=(3, 1)),
            {"steps": 2},
            whole,
            [(frames(3, 2, 2, height, 5), state(2, 1, 3, 3, -(-height // 3), 5)) for height in (6, 7, 8)],
        ),
        (
            ConvLSTM2d(2, 3, 3, padding="valid", dilation=2, reverse=True),
            {"steps": 3},
            whole,
            [(frames(3, 3, 2, 7, 9), state(2, 1, 3, 3, 3, 5)), (frames(1, 3, 2, 5, 6), state(2, 1, 1, 3, 1, 2))],
        ),
        (
            ConvLSTM2d(2, 4, 3, recurrent_kernel_size=2, num_layers=2, bidirectional=True, norm="group"),
            {"steps": 2},
            whole,
            [(frames(3, 2, 2, 7, 5), state(2, 4, 3, 4, 7, 5))],
        ),
        (ConvLSTM2d(2, 3, 3, padding=(0, 2)), {}, step, [(frames(3, 2, 7, 5), state(2, 1, 3, 3, 5, 7))]),
        (
            ConvGRU2d(2, 3, 3, num_layers=2, norm="layer", zoneout=0.3, recurrent_dropout=0.2, dropout=0.2),
            {"steps": 2},
            whole,
            [(frames(1, 2, 2, 4, 5), state(1, 2, 1, 3, 4, 5))],
        ),
        (ConvLSTM3d(1, 2, 3), {"steps": 2}, whole, [(frames(1, 2, 1, 4, 5, 3), state(2, 1, 1, 2, 4, 5, 3))]),
        (ConvLSTM1d(0, 3, 3), {"steps": 2}, whole, [(frames(4, 2, 0, 5), state(2, 1, 4, 3, 5))]),
        (ConvGRUCell2d(2, 3, 3), {}, whole, [(frames(3, 2, 7, 5), state(1, 3, 3, 7, 5))]),
        (
            EncoderForecaster(1, (4, 3), 3, patch=4, readout="top"),
            {"past": 3, "steps": 2},
            lambda net, x: net(x, steps=2),
            [(frames(3, 3, 1, 9, 14),), (frames(1, 3, 1, 16, 4),)],
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_other_arguments_run_at_any_size(module: Any, options: Any, call: Any, given: Any, tmp_path: Path) -> None:
    random_layer(module)
    path = tmp_path / "m.onnx"
    to_onnx(module, path, **options)
    for case in given:
        compare(path, module, call, case)
    check_graph(path)


@pytest.mark.slow
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_exported(name: str, tmp_path: Path) -> None:
    cell = random_layer(ConvLSTMCell1d(2, 3, 3, activation=name, recurrent_activation=name))
    path = tmp_path / "cell.onnx"
    to_onnx(cell, path, frame_size=5)
    compare(path, cell, whole, (frames(2, 2, 5), state(2, 2, 3, 5)))


# --- the graph ---


def check_graph(path: Path, convolutions: int | None = None) -> Any:
    """No loops, branches or sequences; each convolution reads its kernel from a constant."""
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert not model.functions
    kinds = Counter(node.op_type for node in model.graph.node)
    assert all(node.domain == "" for node in model.graph.node)
    assert not {"Loop", "If", "Scan"} & set(kinds)
    assert not [kind for kind in kinds if "Sequence" in kind or "Random" in kind or kind == "Dropout"]
    constants = {value.name for value in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv":
            assert node.input[1] in constants
    assert convolutions in (None, kinds["Conv"])
    return model


def test_pixel_peepholes_fix_the_frame_and_a_fixed_frame_leaves_no_arithmetic_on_sizes(tmp_path: Path) -> None:
    cell = random_layer(ConvLSTMCell3d(2, 3, 3, stride=2, peephole="pixel", frame_size=(4, 5, 3)))
    path = tmp_path / "cell.onnx"
    to_onnx(cell, path)
    compare(path, cell, whole, (frames(3, 2, 4, 5, 3), state(2, 3, 3, 2, 3, 2)))
    model = check_graph(path, convolutions=2)
    assert not {"Shape", "Mod", "Max", "Div"} & {node.op_type for node in model.graph.node}
    ort = session(path)
    assert [value.shape for value in ort.get_inputs()] == [["batch", 2, 4, 5, 3], *[["batch", 3, 2, 3, 2]] * 2]
    assert [value.name for value in ort.get_outputs()] == ["h_next", "c_next"]


def test_the_file_says_what_it_is_and_nothing_of_the_machine(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    cell = ConvLSTMCell1d(2, 3, 3, activation=torch.tanh, peephole="channel", zoneout=0.2)
    cell.train()
    random_state = torch.get_rng_state()
    path = tmp_path / "cell.onnx"
    to_onnx(cell, str(path), opset=20)
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert cell.training
    assert torch.equal(torch.get_rng_state(), random_state)
    model = check_graph(path)
    assert (model.producer_name, model.producer_version) == ("stormcell", stormcell.__version__)
    assert model.opset_import[0].version == 20
    about = json.loads({entry.key: entry.value for entry in model.metadata_props}["stormcell"])
    assert about["class"] == "ConvLSTMCell1d"
    assert about["arguments"]["kernel_size"] == [3]
    assert about["arguments"]["activation"] == "tanh"
    assert str(Path(stormcell.__file__).parent).encode() not in path.read_bytes()
    assert list(tmp_path.iterdir()) == [path]


# --- what cannot be ---


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (nn.Linear(2, 2), {}, "goes through torch.onnx.export.*Received: Linear"),
        (ConvLSTM1d(1, 2, 3), {"steps": 0}, "steps must be ≥ 1, or None for one step. Received: 0"),
        (ConvLSTM1d(1, 2, 3), {"past": 3}, "a layer takes steps"),
        (ConvLSTM1d(1, 2, 3), {"opset": 17}, "opset must lie between 18 and .*Received: 17"),
        (ConvLSTM1d(1, 2, 3), {"opset": 99}, "Received: 99"),
        (ConvLSTM1d(1, 2, 3, dtype=torch.bfloat16), {}, "bfloat16 came with opset 22"),
        (ConvLSTMCell1d(1, 2, 3), {"steps": 3}, "leave out steps, or export the layer"),
        (EncoderForecaster(1, (2,), 3), {"steps": 3}, "needs past and steps, both ≥ 1. Received: None and 3"),
    ],
)
def test_options_that_do_not_fit_are_named(module: nn.Module, options: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        to_onnx(module, tmp_path / "m.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_what_the_layer_cannot_do_it_says_itself(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot stream"):
        to_onnx(ConvLSTM1d(1, 2, 3, bidirectional=True), tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=r"made for frames of \(4,\). Received: \(5,\)"):
        to_onnx(ConvLSTM1d(1, 2, 3, peephole="pixel", frame_size=4), tmp_path / "m.onnx", frame_size=5)
    with pytest.raises(ValueError, match="smaller than the kernel"):
        to_onnx(ConvLSTM1d(1, 2, 5, padding="valid"), tmp_path / "m.onnx", frame_size=4)
    with pytest.raises(ValueError, match="frame_size must be an integer ≥ 1, or 2 of them"):
        to_onnx(ConvLSTM2d(1, 2, 5), tmp_path / "m.onnx", frame_size=(4, 4, 4))


def test_a_kernel_under_a_parametrisation_is_named(tmp_path: Path) -> None:
    layer = parametrizations.weight_norm(ConvLSTM1d(1, 2, 3), "weight_hh_l0")
    with pytest.raises(InputError, match="remove_parametrizations"):
        to_onnx(layer, tmp_path / "m.onnx")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        to_onnx(ConvLSTM1d(1, 2, 3), tmp_path / "nowhere" / "m.onnx")


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_what_to_install_is_said(package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r"pip install 'stormcell\[onnx\]'"):
        to_onnx(ConvLSTM1d(1, 2, 3), tmp_path / "m.onnx")


def test_a_torch_that_is_too_old_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", TorchVersion("2.7.1"))
    with pytest.raises(InputError, match="torch ≥ 2.8. Installed: 2.7.1"):
        to_onnx(ConvLSTM1d(1, 2, 3), tmp_path / "m.onnx")
