"""The Winograd engine against the reference: every output, state and gradient, its rounding bounded, on every instruction set."""

from __future__ import annotations

import dataclasses
import gc
import math
import os
import subprocess
import sys
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from stormcell import ConvLSTM2d, engine
from stormcell.engine import Weights, bptt, native, reference, winograd
from stormcell.engine.reference import Drop

from ..nn.layers import random_layer
from .cases import CASES, MASK, Call, Recipe, outcome
from .test_reference import Bytes

pytestmark = pytest.mark.skipif(native.LIBRARY is None, reason="the Winograd library was not built: no C++ compiler")

MOST = 16  # times the rounding of the reference in float32: the transforms amplify it (docs/engines.md)
MOST_AT_ITS_WORST = 32  # on 5×5: where gates are saturated, or a map is so small that a convolution has few terms
STEP = 6e-8  # of float32, relative: half its last place


def exact(call: Call) -> Call:
    """The same numbers in float64."""
    w = Weights(*(None if value is None else value.double() for value in call.w))
    return call._replace(x=call.x.double(), state=tuple(value.double() for value in call.state), w=w)


def error(found: dict[str, Tensor], truth: dict[str, Tensor], names: Iterable[str]) -> float:
    """Root of the mean squared error over some of the values, each array in units of its own size."""
    errors = []
    for name in names:
        size = truth[name].square().mean().sqrt()
        if size > 0:
            errors.append(((found[name].double() - truth[name]) / size).flatten())
    return torch.cat(errors).square().mean().sqrt().item() if errors else 0.0


def compare(call: Call, most: float = MOST) -> None:
    """Outputs, and gradients, within `most` times the reference's own rounding in float32 of the same case."""
    truth = outcome(reference.sequence, exact(call))
    theirs, ours = outcome(reference.sequence, call), outcome(winograd.sequence, call)
    assert list(ours) == list(truth)
    outputs = ("y", "last h", "last c")
    for names in (outputs, [name for name in truth if name not in outputs]):
        assert error(ours, truth, names) <= most * max(error(theirs, truth, names), STEP)
    for name, value in ours.items():
        assert value.shape == truth[name].shape, name
        if value.numel():  # and no single pixel is wrong
            largest, most_of_theirs = ((each[name] - truth[name]).abs().max() for each in (ours, theirs))
            assert largest <= 4 * most * most_of_theirs + 1e-4 * truth[name].abs().max(), name


def supports(call: Call) -> str | None:
    return winograd.supports(engine.case_of(*call[:4], call.drop))


CALLS = {
    name: recipe.make(torch.float32) for name, recipe in CASES.items() if supports(recipe.make(torch.float32)) is None
}


def test_most_cases_in_two_dimensions_are_computed() -> None:
    assert len(CALLS) >= 30
    assert any(call.mask is not None for call in CALLS.values())
    assert any(call.drop is not None for call in CALLS.values())


@pytest.mark.parametrize("name", CALLS)
def test_every_output_state_and_gradient_is_that_of_the_reference(name: str) -> None:
    compare(CALLS[name])


def made(frame: tuple[int, ...] = (7, 9), kernel: int = 3, **given: Any) -> Call:
    return Recipe(frame=frame, kernel=(kernel, kernel), **given).make(torch.float32)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("size", [(1, 2), (2, 3), (4, 4), (5, 8), (13, 6), (17, 33)])
def test_any_frame_size(size: tuple[int, int], kernel: int) -> None:
    most = MOST_AT_ITS_WORST if kernel == 5 and min(size) < 4 else MOST
    compare(made(size, kernel, hidden=16, channels=2 if kernel == 3 else 16), most)


@pytest.mark.parametrize("hidden", [1, 4, 7, 8, 15, 16, 17, 33])
@pytest.mark.parametrize("channels", [1, 5, 16, 18])
def test_any_number_of_channels(channels: int, hidden: int) -> None:
    compare(made((6, 5), channels=channels, hidden=hidden))


@pytest.mark.parametrize("instruction_set", native.INSTRUCTION_SETS)
@pytest.mark.parametrize("kernel", [3, 5])
def test_every_instruction_set(instruction_set: str, kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    best = native.INSTRUCTION_SETS.index(native.INSTRUCTION_SET)
    if native.INSTRUCTION_SETS.index(instruction_set) > best:
        pytest.skip(f"this processor has no {instruction_set}")
    monkeypatch.setattr(native, "INSTRUCTION_SET", instruction_set)
    mask = [[1, 0, 1], [0, 1, 1]]
    for call in (
        made(kernel=kernel, channels=16, hidden=16),
        made((9, 6), kernel, channels=18, hidden=33, peephole="pixel", mask=mask),
    ):
        compare(call)


def test_an_instruction_set_can_be_asked_for(tmp_path: Any) -> None:
    code = "from stormcell.engine import native; print(native.INSTRUCTION_SET)"
    for asked, expected in (("plain", "plain"), ("avx1024", "STORMCELL_ISA must be one of plain, avx2, avx512")):
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "STORMCELL_ISA": asked}, capture_output=True, text=True
        )
        assert expected in done.stdout + done.stderr


# --- rounding ---


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize(
    ("scale", "gain"),
    [(1.0, 1.0), (1e3, 1.0), (1e-4, 1.0), (1e-12, 1.0), (1.0, 0.1), (30.0, 2.0)],
    ids=["usual", "large", "small", "tiny", "faint", "saturated"],
)
def test_rounding_over_a_hundred_steps(scale: float, gain: float, kernel: int) -> None:
    """The whole sequence, and its last step alone; gradients reach back through all of it."""
    call = made((9, 8), kernel, batch=1, steps=100, channels=16, hidden=32, scale=gain)
    call = call._replace(x=scale * call.x, state=(call.state[0], scale * call.state[1]))
    most = MOST_AT_ITS_WORST if kernel == 5 and scale > 1 else MOST
    compare(call, most)
    runs = [(reference.sequence, exact(call)), (reference.sequence, call), (winograd.sequence, call)]
    truth, theirs, ours = ({"y": compute(*each)[0][:, -1]} for compute, each in runs)
    assert error(ours, truth, ["y"]) <= most * error(theirs, truth, ["y"])


def test_nan_and_infinity_go_through() -> None:
    call = made()
    for value in (math.nan, math.inf):
        x = call.x.clone()
        x[0, 1, 0, 3, 3] = value
        y, _ = winograd.sequence(*call._replace(x=x))
        assert torch.isfinite(y[0, 0]).all()
        assert torch.isfinite(y[1]).all()
        assert torch.isnan(y[0, 1]).any()


# --- threads and memory ---


def test_numbers_do_not_depend_on_threads_or_on_whose_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, weights' gradients too: sums have one order. Threads of the library's own, where torch lends none."""
    call = made((13, 9), 5, batch=3, steps=4, channels=5, hidden=18, peephole="channel")
    expected = outcome(winograd.sequence, call)
    before = torch.get_num_threads()
    try:
        for team in (native.TEAM, {}):
            monkeypatch.setattr(native, "TEAM", team)
            for threads in (1, 2, 5):
                torch.set_num_threads(threads)
                found = outcome(winograd.sequence, call)
                same = {name for name in found if torch.equal(found[name], expected[name])}
                assert set(found) - same <= {"d_bias", "d_ch"}, threads  # sums over pixels, a part a thread
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    "change", [{"mask": MASK}, {"drop": "shared"}, {"kernel": (2, 2), "mask": MASK}]
)  # the last is hoisted
def test_samples_together_and_one_by_one_give_the_same(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(batch=3, steps=5, frame=(9, 6), recurrent=(3, 3), peephole="pixel")
    call = dataclasses.replace(recipe, **change).make(torch.float32)
    found = []
    for tiles, parts in ((18, 1), (12, 2), (1, 3)):
        monkeypatch.setattr(winograd, "TOGETHER", tiles)
        assert len(winograd._parts(call.state[0])) == parts
        found.append(outcome(winograd.sequence, call))
    for apart in found[1:]:
        torch.testing.assert_close(apart, found[0], rtol=1e-4, atol=1e-4)


def test_the_state_that_layers_begin_with_is_not_copied_and_is_that_of_zeros() -> None:
    for channels in (0, 3):
        layer = random_layer(ConvLSTM2d(channels, 5, 3, peephole="pixel", frame_size=(7, 9), engine="winograd"))
        x = torch.randn(2, 4, channels, 7, 9, requires_grad=True)
        mask = torch.tensor([[False, True, True, False], [True, False, True, True]])
        zeros = (torch.zeros(1, 2, 5, 7, 9),) * 2
        results = []
        for state in (None, zeros):
            y, (h, c) = layer(x, state, mask=mask)
            gradients = torch.autograd.grad(y.square().sum() + c.sum(), [x, *layer.parameters()])
            results.append((y, h, c, *gradients))
        torch.testing.assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [3, 5])
def test_what_is_kept_and_what_is_computed_anew_give_the_same(kernel: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for input_kernel in (kernel, 2):
        recipe = Recipe(
            steps=6, channels=16, hidden=16, frame=(7, 9), kernel=(input_kernel,) * 2, recurrent=(kernel,) * 2
        )
        call = recipe.make(torch.float32)
        expected = outcome(winograd.sequence, call)
        step = call.state[1].nbytes // 16 * winograd._columns(16)
        for kept in (0, 6 * step):
            for hoisted in (1, 10**9):  # one step, and all of them
                monkeypatch.setattr(winograd, "KEPT_BYTES", kept)
                monkeypatch.setattr(winograd, "HOISTED_BYTES", hoisted)
                torch.testing.assert_close(outcome(winograd.sequence, call), expected, rtol=1e-4, atol=1e-3)


def test_memory_that_was_not_written_is_not_read() -> None:
    """Deterministic mode fills new memory with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        for recurrent in (3, 5):
            call = Recipe(channels=5, hidden=18, frame=(9, 10), recurrent=(recurrent, recurrent)).make(torch.float32)
            assert all(torch.isfinite(value).all() for value in outcome(winograd.sequence, call).values())
    finally:
        torch.use_deterministic_algorithms(False)


def test_without_gradients_only_outputs_are_held() -> None:
    call = made((12, 12), steps=6, channels=4, hidden=8).detached()
    with torch.no_grad():
        winograd.sequence(*call)  # the kernels are remembered
        with Bytes() as counter:
            y, state = winograd.sequence(*call)
            assert counter.count() <= sum(value.nbytes for value in (y, *state))


def test_with_checkpoints_little_is_kept_beside_the_output() -> None:
    """What autograd saves for the backward, in units of a state: the output's h, and h and c after every five steps."""
    call = made((16, 16), batch=1, steps=20, channels=4, hidden=16).detached()
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    inputs = {value.untyped_storage().data_ptr() for value in call.differentiable().values()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        engine.run(*call[:4], checkpoint_every=5, engine="winograd")
    kept = sum(size for place, size in saved.items() if place not in inputs)
    assert kept <= 2 * 4 * call.state[0].nbytes


# --- kernels that are remembered ---


def test_changed_weights_are_transformed_anew() -> None:
    layer = random_layer(ConvLSTM2d(2, 4, 3, engine="winograd")).eval()
    x = torch.randn(1, 2, 9, 9)
    with torch.no_grad():
        for change in (
            lambda: None,
            lambda: layer.weight_hh_l0.mul_(2),
            lambda: layer.weight_hh_l0.data.add_(1),  # which no version counter sees
            lambda: layer.weight_ih_l0.zero_(),
        ):
            change()
            y, _ = layer.step(x)
            layer.engine = "reference"
            expected, _ = layer.step(x)
            layer.engine = "winograd"
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        size = len(winograd._remembered)
        layer.load_state_dict(random_layer(ConvLSTM2d(2, 4, 3), seed=5).state_dict())
        y, _ = layer.step(x)
        layer.engine = "reference"
        torch.testing.assert_close(y, layer.step(x)[0], rtol=1e-4, atol=1e-5)
        assert len(winograd._remembered) == size
    del layer
    gc.collect()
    assert len(winograd._remembered) < size


def test_layers_that_are_made_and_run_in_inference_mode() -> None:
    with torch.inference_mode():
        layer = random_layer(ConvLSTM2d(2, 4, 3, engine="winograd")).eval()
        x = torch.randn(1, 3, 2, 9, 9)
        y, _ = layer(x)
        layer.engine = "reference"
        torch.testing.assert_close(y, layer(x)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "recipe", [Recipe(peephole="pixel", batch=3, steps=5, mask=MASK), Recipe(channels=0, drop="shared")]
)
def test_the_operator_does_what_it_says_of_itself(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    real = winograd._run
    with monkeypatch.context() as patch:
        patch.setattr(winograd, "_run", lambda *given: seen.append(given) or real(*given))
        winograd.sequence(*recipe.make(torch.float32).detached())
    torch.library.opcheck(torch.ops.stormcell.winograd.default, seen[0])


# --- rules ---


def a_case(**changes: Any) -> engine.Case:
    call = made((32, 32), hidden=32)
    return engine.case_of(*call[:4], None)._replace(**changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"device": "cuda"}, "it runs on a CPU"),
        ({"cell": "gru"}, "not a ConvGRU"),
        ({"size": (32,)}, "two dimensions"),
        ({"dtype": torch.float64}, "computes in float32"),
        ({"state_dtype": torch.float64}, "computes in float32"),
        ({"autocast": True}, "autocast asks for half precision"),
        ({"recurrent_kernel": (7, 7)}, "3×3 and 5×5"),
        ({"recurrent_kernel": (3, 5)}, "3×3 and 5×5"),
        ({"recurrent_kernel": (5, 5), "hidden_channels": 15}, "fewer than 16 hidden channels"),
        ({"size": (1, 1)}, "one pixel"),
        ({"norm": True}, "a norm needs all of a map"),
        ({"zoneout": True}, "zoneout"),
        ({"dropout": "gate"}, "a mask for each gate"),
        ({"activations": (None, "sigmoid")}, "a function has no counterpart"),
        ({"transformed": True}, "torch.func"),
    ],
)
def test_what_it_leaves_to_others_and_why(changes: dict[str, Any], reason: str) -> None:
    assert winograd.supports(a_case()) is None
    assert reason in str(winograd.supports(a_case(**changes)))
    said = engine.explain(a_case(**changes))
    assert reason in said["winograd"]
    assert "chosen" in (said["bptt"], said["reference"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"hidden_channels": 1, "size": (64, 64)}, "so few hidden channels"),
        ({"size": (4, 4), "batch": 1, "steps": 10, "gradients": True}, "transforming the kernels takes longer"),
    ],
)
def test_what_auto_leaves_to_others_though_it_could(changes: dict[str, Any], reason: str) -> None:
    for ours, chosen in (({}, "winograd"), (changes, None)):
        said = engine.explain(a_case(**ours))
        assert (said["winograd"] == "chosen") == (chosen is not None)
        assert chosen or reason in said["winograd"]
    assert winograd.supports(a_case(**changes)) is None
    assert winograd.passed_over(a_case(size=(4, 4), batch=1, steps=10, gradients=False)) is None


def test_where_the_library_is_missing_another_engine_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORMCELL_ENGINE", raising=False)
    monkeypatch.setattr(native, "LIBRARY", None)
    assert "was not built" in str(engine.engines()["winograd"])
    assert engine.explain(a_case(gradients=True))["bptt"] == "chosen"
    with pytest.raises(ValueError, match='engine="winograd" cannot compute this: its C.. library was not built'):
        ConvLSTM2d(1, 2, 3, engine="winograd")(torch.zeros(1, 2, 1, 8, 8))
    ConvLSTM2d(1, 2, 3)(torch.zeros(1, 2, 1, 8, 8))


def test_a_gradient_of_gradients_goes_through_the_reference() -> None:
    call, results = made((5, 4)), []
    for sequence in (winograd.sequence, reference.sequence):
        x, hh = call.x.clone().requires_grad_(), call.w.hh.clone().requires_grad_()
        y, (_, c) = sequence(*call._replace(x=x, w=call.w._replace(hh=hh)))
        (d_x,) = torch.autograd.grad(y.square().sum() + c.sum(), x, create_graph=True)
        results.append([d_x.detach(), *torch.autograd.grad(d_x.square().sum(), [x, hh])])
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_torch_compile_passes_over_it() -> None:
    torch._dynamo.reset()
    layer = random_layer(ConvLSTM2d(3, 5, 3, peephole="channel", num_layers=2, engine="winograd"))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    for shape in ((2, 3, 3, 8, 9), (1, 4, 3, 12, 7)):
        x = torch.randn(shape, requires_grad=True)
        y, state = layer(x)
        expected = torch.autograd.grad(y.sum() + state[1].sum(), [x, *layer.parameters()])
        y_c, state_c = compiled(x)
        found = torch.autograd.grad(y_c.sum() + state_c[1].sum(), [x, *layer.parameters()])
        torch.testing.assert_close((y_c, state_c, found), (y, state, expected), rtol=0, atol=1e-6)


def test_masks_of_inputs_or_of_states_alone() -> None:
    call = CALLS["shared dropout"]
    assert call.drop is not None
    for drop in (Drop(call.drop.inputs), Drop(None, call.drop.recurrent)):
        compare(call._replace(drop=drop))


def test_it_is_the_first_choice_on_a_cpu_and_bptt_the_second() -> None:
    assert list(engine.engines()) == ["winograd", "triton", "bptt", "reference"]  # triton is for GPUs
    assert bptt.supports(a_case()) is None
