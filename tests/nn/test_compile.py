"""What PyTorch does with modules – compile, export, transform, copy, save, cast – leaves the layers' numbers as they are."""

from __future__ import annotations

import copy
import io
import pickle
import shutil
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, parametrize
from torch.utils._pytree import tree_leaves

import stormcell.engine
from stormcell import ConvGRU1d, ConvGRU2d, ConvLSTM1d, ConvLSTM2d, ConvLSTMCell2d, ConvLSTMCell3d, EncoderForecaster

from .layers import EXACT, LAYERS, random_layer

F64: dict[str, Any] = {"dtype": torch.float64}
Call = tuple[tuple[Any, ...], dict[str, Any]]


def numbers_and_gradients(module: nn.Module, run: Callable[..., Any], call: Call) -> list[Tensor]:
    """All outputs of `run`, then the gradients of the module's parameters for a loss that reads every output."""
    module.zero_grad()
    outputs = tree_leaves(run(*call[0], **call[1]))
    loss = sum((value * torch.linspace(0.5, 1.5, value.numel(), **F64).view_as(value)).sum() for value in outputs)
    loss.backward()
    return [value.detach() for value in outputs] + [parameter.grad.clone() for parameter in module.parameters()]


# --- torch.compile ---


class Everything(nn.Module):
    """A network of all kinds of layers: frames, a state and a mask in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = ConvLSTM2d(2, 3, 3, stride=2, peephole="channel", **F64)
        self.second = ConvLSTM2d(3, 2, 2, num_layers=2, reverse=True, norm="layer", **F64)
        self.third = ConvGRU2d(2, 2, 3, bidirectional=True, zoneout=0.1, norm="group", checkpoint_every=1, **F64).eval()
        self.cell = ConvLSTMCell2d(4, 2, 3, padding="valid", **F64)

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor], mask: Tensor) -> Any:
        y, state = self.first(x, state, mask=mask)
        y, _ = self.second(y, mask=mask)
        y, h = self.third(y, lengths=mask.sum(1))
        return self.cell(y[:, -1]), state, h


def everything(batch: int, *size: int) -> Call:
    state_size = [-(-n // 2) for n in size]
    state = tuple(torch.randn(2, 1, batch, 3, *state_size, **F64))
    return (torch.randn(batch, 2, 2, *size, **F64), state, torch.rand(batch, 2) > 0.3), {}


def test_a_compiled_network_has_the_same_numbers_and_gradients_without_graph_breaks() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    net = random_layer(Everything())
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    call = everything(4, 9, 6)
    torch.testing.assert_close(
        numbers_and_gradients(net, compiled, call), numbers_and_gradients(net, net, call), **EXACT
    )


def test_a_compiled_layer_chooses_its_engine_without_graph_breaks() -> None:
    """As most people have it: float32, and the engine that "auto" takes for each size."""
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = ConvLSTM2d(3, 32, 3)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch, steps, *size in ((2, 2, 16, 16), (3, 4, 12, 20), (1, 1, 4, 4), (2, 3, 64, 64)):
        call: Call = (torch.randn(batch, steps, 3, *size),), {}
        torch.testing.assert_close(
            numbers_and_gradients(layer, compiled, call),
            numbers_and_gradients(layer, layer, call),
            rtol=1e-4,
            atol=1e-4,
        )
    step = torch.compile(layer.step, backend="aot_eager", fullgraph=True)
    frame = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(step(frame)[0], layer.step(frame)[0])


def test_a_compiled_layer_is_compiled_anew_once_at_most_for_other_sizes() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    counts.clear()
    layer = random_layer(ConvLSTM1d(2, 3, 3, peephole="channel", **F64))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch, size in ((4, 5), (6, 8), (7, 11), (9, 12), (4, 5)):
        call: Call = (torch.randn(batch, 2, 2, size, **F64),), {}
        torch.testing.assert_close(
            numbers_and_gradients(layer, compiled, call), numbers_and_gradients(layer, layer, call), **EXACT
        )
    assert counts["stats"]["unique_graphs"] == 2


@pytest.mark.slow
def test_a_deep_layer_is_compiled_anew_once_at_most_for_other_sizes() -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    counts.clear()
    layer = random_layer(ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, norm="layer", **F64))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for batch, *size in ((5, 9, 6), (6, 7, 8), (7, 8, 11), (9, 12, 10)):
        state = tuple(torch.randn(2, 4, batch, 3, *size, **F64))
        call: Call = (torch.randn(batch, 2, 2, *size, **F64), state), {"mask": torch.rand(batch, 2) > 0.3}
        torch.testing.assert_close(
            numbers_and_gradients(layer, compiled, call), numbers_and_gradients(layer, layer, call), **EXACT
        )
    assert counts["stats"]["unique_graphs"] == 2


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # torch's own, where inductor is imported
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_inductor_has_the_same_numbers_and_gradients(kind: str) -> None:
    torch.manual_seed(0)
    torch._dynamo.reset()
    layer = random_layer(LAYERS[kind, 2](2, 3, 3, stride=2, norm="layer", checkpoint_every=1, **F64))
    call: Call = (torch.randn(4, 2, 2, 7, 6, **F64),), {"mask": torch.rand(4, 2) > 0.3}
    compiled = torch.compile(layer, fullgraph=True)
    torch.testing.assert_close(
        numbers_and_gradients(layer, compiled, call), numbers_and_gradients(layer, layer, call), **EXACT
    )


# --- torch.export ---


class Step(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer: Any = layer

    def forward(self, x: Tensor, state: Any) -> Any:
        return self.layer.step(x, state)


def test_a_step_is_exported_for_any_batch_and_frame_size() -> None:
    torch.manual_seed(0)
    layer = random_layer(ConvLSTM2d(2, 3, 3, recurrent_kernel_size=2, num_layers=2, peephole="channel", **F64))

    def inputs(batch: int, *size: int) -> Any:
        return torch.randn(batch, 2, *size, **F64), tuple(torch.randn(2, 2, batch, 3, *size, **F64))

    batch, height, width = Dim("batch"), Dim("height"), Dim("width")
    state_axes = {1: batch, 3: height, 4: width}
    axes = ({0: batch, 2: height, 3: width}, (state_axes, state_axes))
    program = torch.export.export(Step(layer), inputs(2, 5, 7), dynamic_shapes=axes)
    for sizes in ((3, 8, 4), (1, 2, 9)):
        given = inputs(*sizes)
        torch.testing.assert_close(program.module()(*given), layer.step(*given), **EXACT)


@pytest.mark.parametrize(
    ("layer", "padding"),
    [
        (ConvLSTM1d(2, 3, 3, norm="layer", bidirectional=True, **F64), "same"),
        (ConvLSTM1d(2, 3, 4, stride=3, **F64), "same"),
        (ConvLSTM1d(2, 3, 2, stride=3, **F64), "same"),
        (ConvGRU1d(2, 3, 3, stride=2, padding="valid", zoneout=0.2, **F64), "valid"),
    ],
    ids=["normalised", "strided", "strided past its kernel", "valid"],
)
def test_a_sequence_is_exported_for_any_batch_and_frame_size(layer: Any, padding: str) -> None:
    torch.manual_seed(0)
    random_layer(layer).eval()
    mask = torch.tensor([[True, False]])

    def call(batch: int, size: int) -> tuple[Tensor, Tensor]:
        return torch.randn(batch, 2, 2, size, **F64), mask.expand(batch, 2)

    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            return self.layer(x, mask=mask)

    axes = ({0: Dim.DYNAMIC, 3: Dim.DYNAMIC}, {0: Dim.DYNAMIC})
    program = torch.export.export(Masked(), call(2, 12), dynamic_shapes=axes)
    for batch, size in ((3, 13), (1, 14), (2, 9)):
        x, used = call(batch, size)
        torch.testing.assert_close(program.module()(x, used), layer(x, mask=used), **EXACT)


@pytest.mark.parametrize("strict", [False, True])
def test_export_takes_the_reference_without_checkpoints(strict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = random_layer(ConvLSTM1d(1, 2, 3, checkpoint_every=1, **F64))
    x = torch.randn(1, 2, 1, 5, **F64)
    expected = layer(x)

    def sequence(*_: Any) -> Any:
        raise AssertionError("no graph can be made of this engine")

    def nothing(*_: Any) -> None:
        return None

    fused = SimpleNamespace(sequence=sequence, unavailable=nothing, supports=nothing, passed_over=nothing)
    monkeypatch.setitem(stormcell.engine._ENGINES, "fused", fused)
    layer.engine = "fused"
    with pytest.raises(AssertionError, match="no graph"):
        layer(x)
    torch.testing.assert_close(torch.export.export(layer, (x,), strict=strict).module()(x), expected, **EXACT)


# --- torch.func ---


def loss(layer: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    y, state = functional_call(layer, parameters, (x,))
    return y.square().sum() + sum(value.sin().sum() for value in tree_leaves(state))


def detached(layer: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in layer.named_parameters()}


@pytest.fixture(params=["lstm", "gru"])
def layer(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    peephole = {"peephole": "channel"} if request.param == "lstm" else {}
    return random_layer(LAYERS[request.param, 2](2, 3, 3, num_layers=2, bidirectional=True, **peephole, **F64))


def test_functional_call_takes_parameters_from_outside(layer: Any) -> None:
    x = torch.randn(2, 3, 2, 4, 5, **F64)
    expected = layer(x)
    given = detached(layer)
    other = random_layer(copy.deepcopy(layer), seed=2)
    torch.testing.assert_close(functional_call(other, given, (x,)), expected, **EXACT)
    torch.testing.assert_close(grad(lambda p: loss(other, p, x))(given), _gradients(layer, x), **EXACT)


def _gradients(layer: nn.Module, x: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    loss(layer, dict(layer.named_parameters()), x).backward()
    return {name: parameter.grad.clone() for name, parameter in layer.named_parameters()}


def test_vmap_over_batches_is_a_loop_over_them(layer: Any) -> None:
    x = torch.randn(3, 2, 4, 2, 4, 5, **F64)
    mask = torch.rand(3, 2, 4) > 0.4
    each = [layer(part, mask=used) for part, used in zip(x, mask)]
    torch.testing.assert_close(
        tree_leaves(vmap(lambda part, used: layer(part, mask=used))(x, mask)),
        [torch.stack(values) for values in zip(*map(tree_leaves, each))],
        **EXACT,
    )


def test_vmap_over_an_ensemble_is_a_loop_over_its_members(layer: Any) -> None:
    members = [random_layer(copy.deepcopy(layer), seed) for seed in (3, 4, 5)]
    parameters, _ = stack_module_state(members)
    x = torch.randn(2, 3, 2, 4, 5, **F64)
    with torch.device("meta"):
        skeleton = type(layer)(**layer.arguments())
    together = vmap(lambda p: functional_call(skeleton, p, (x,)))(parameters)
    each = [tree_leaves(member(x)) for member in members]
    torch.testing.assert_close(tree_leaves(together), [torch.stack(values) for values in zip(*each)], **EXACT)


def test_gradients_of_each_sample_are_those_of_a_batch_of_one(layer: Any) -> None:
    x = torch.randn(3, 2, 2, 4, 5, **F64)
    of_each = vmap(grad(lambda p, one: loss(layer, p, one)), in_dims=(None, 0))(detached(layer), x)
    for k in range(3):
        expected = _gradients(layer, x[k : k + 1])
        torch.testing.assert_close({name: value[k] for name, value in of_each.items()}, expected, **EXACT)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in its jvp
def test_forward_mode_agrees_with_the_backward(layer: Any) -> None:
    x, tangent = torch.randn(2, 1, 2, 2, 3, 3, **F64)
    parameters = detached(layer)
    value, slope = jvp(lambda v: loss(layer, parameters, v), (x,), (tangent,))
    gradient = grad(lambda v: loss(layer, parameters, v))(x)
    torch.testing.assert_close(value, loss(layer, parameters, x), **EXACT)
    torch.testing.assert_close(slope, (gradient * tangent).sum(), **EXACT)

    def last(v: Tensor) -> Tensor:
        return functional_call(layer, parameters, (v,))[0][0, -1, :, 1, 1]

    torch.testing.assert_close(jacfwd(last)(x), jacrev(last)(x), **EXACT)


# --- copies, files, dtypes ---


@pytest.mark.parametrize("way", ["deepcopy", "pickle", "torch.save"])
@pytest.mark.parametrize(
    "module",
    [
        ConvLSTM2d(2, 3, 3, peephole="pixel", frame_size=(4, 5), num_layers=2, activation="relu", **F64),
        ConvGRU2d(2, 3, 3, norm="group", recurrent_activation=torch.sigmoid, **F64),
        ConvLSTMCell3d(2, 3, 3, **F64),
        EncoderForecaster(2, (3, 2), 3, patch=2).double(),
    ],
    ids=lambda module: type(module).__name__,
)
def test_copies_compute_the_same_and_share_nothing(module: Any, way: str) -> None:
    random_layer(module)
    if way == "deepcopy":
        twin = copy.deepcopy(module)
    elif way == "pickle":
        twin = pickle.loads(pickle.dumps(module))
    else:
        file = io.BytesIO()
        torch.save(module, file)
        file.seek(0)
        twin = torch.load(file, weights_only=False)  # written a line above
    shape = (2, 2, 3, 4, 5) if isinstance(module, ConvLSTMCell3d) else (2, 3, 2, 4, 5)
    given = (torch.randn(shape, **F64), *([2] if isinstance(module, EncoderForecaster) else []))
    expected = module(*given)
    assert repr(twin) == repr(module)
    torch.testing.assert_close(twin(*given), expected, **EXACT)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    torch.testing.assert_close(module(*given), expected, **EXACT)


def test_a_layer_made_on_meta_takes_weights_by_assignment(layer: Any) -> None:
    """torch.load(mmap=True), then load_state_dict(assign=True): no memory is filled twice."""
    x = torch.randn(2, 3, 2, 4, 5, **F64)
    skeleton = type(layer)(**layer.arguments(), device="meta", **F64)
    y, _ = skeleton(x.to("meta"))
    assert y.device.type == "meta"
    assert y.shape == layer(x)[0].shape
    weights = layer.state_dict()
    skeleton.load_state_dict(weights, assign=True)
    assert skeleton.weight_hh_l1_reverse.data_ptr() == weights["weight_hh_l1_reverse"].data_ptr()
    torch.testing.assert_close(skeleton(x), layer(x), **EXACT)
    emptied = copy.deepcopy(layer).to("meta").to_empty(device="cpu")
    emptied.load_state_dict(weights)
    torch.testing.assert_close(emptied(x), layer(x), **EXACT)


def test_a_state_dict_of_another_layer_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"Missing key.*weight_ch_l0"):
        ConvLSTM2d(2, 3, 3, peephole="channel").load_state_dict(ConvLSTM2d(2, 3, 3).state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_in_lower_precision_it_errs_no_more_than_torch_does(kind: str, dtype: torch.dtype) -> None:
    """Against float64, on one pixel; the bound is four times the error of torch's own layer with the same weights."""
    torch.manual_seed(0)
    ours = random_layer(LAYERS[kind, 1](3, 5, 3)).to(dtype)
    theirs = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](3, 5, batch_first=True, dtype=dtype)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(ours.weight_ih_l0[..., 1])
        theirs.weight_hh_l0.copy_(ours.weight_hh_l0[..., 1])
        bias = ours.bias_l0
        theirs.bias_ih_l0.copy_(bias[: theirs.bias_ih_l0.numel()])
        theirs.bias_hh_l0.zero_()
        if kind == "gru":
            theirs.bias_hh_l0[10:].copy_(bias[15:])
    x = torch.randn(4, 20, 3, dtype=dtype)
    y, state = ours(x.unsqueeze(3))
    y_torch, _ = theirs(x)
    exact, _ = copy.deepcopy(ours).double()(x.double().unsqueeze(3))
    assert y.dtype == dtype
    precise = state[-1] if kind == "lstm" else state
    assert precise.dtype == torch.float32
    error = (y.double() - exact).abs().max()
    assert error <= 4 * (y_torch.double() - exact.squeeze(3)).abs().max()


# --- parametrisations ---


@pytest.mark.parametrize(
    "rule", [parametrizations.weight_norm, parametrizations.spectral_norm, parametrizations.orthogonal]
)
def test_a_parametrised_kernel_computes_as_its_value_and_learns(rule: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    layer: Any = random_layer(ConvLSTM2d(2, 3, 3, bias=False, **F64))
    rule(layer, "weight_hh_l0")
    rule(layer, "weight_ih_l0")
    layer.eval()  # spectral norm moves its vectors in training
    x = torch.randn(2, 3, 2, 4, 5, **F64)
    plain = ConvLSTM2d(2, 3, 3, bias=False, **F64)
    plain.load_state_dict({"weight_ih_l0": layer.weight_ih_l0, "weight_hh_l0": layer.weight_hh_l0})
    y, _ = layer(x)
    torch.testing.assert_close(y, plain(x)[0], **EXACT)
    y.sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())
    parametrize.remove_parametrizations(layer, "weight_hh_l0")
    torch.testing.assert_close(layer(x)[0], y, **EXACT)


def test_gradients_are_clipped_to_a_norm(layer: Any) -> None:
    given = _gradients(layer, torch.randn(2, 3, 2, 4, 5, **F64))
    norm = sum(value.square().sum() for value in given.values()).sqrt()
    torch.testing.assert_close(nn.utils.clip_grad_norm_(layer.parameters(), 0.1), norm, **EXACT)
    for name, parameter in layer.named_parameters():
        torch.testing.assert_close(parameter.grad, given[name] * 0.1 / (norm + 1e-6), **EXACT)  # torch's own 1e-6
