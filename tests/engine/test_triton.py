"""The Triton engine against the reference, on a GPU where there is one, else in Triton's interpreter (conftest.py sees to it).

Memory that an operator takes is full of NaN beforehand, so that what a kernel forgets to write shows.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from stormcell import ConvLSTM2d, engine
from stormcell.engine import graphs, reference, triton
from stormcell.engine.case import Case, case_of
from stormcell.engine.reference import Weights

from .cases import CASES, MASK, Call, Recipe, assert_shares_no_memory, outcome
from .test_bptt import arguments, in_half, rms, set_blocks

ROOT = Path(__file__).parents[2]
MOST = 4  # times the rounding of the reference in the same precision
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
WAYS = {  # products up to which a step is fused, and rows from which on frame and state are joined
    "convolved by torch": (0, 2**60),
    "convolved in the kernel": (2**60, 2**60),
    "convolved together": (0, 0),
}
NAMES = ("x", "h", "c", "ih", "hh", "ch", "bias")

computes = pytest.mark.skipif(triton.unavailable() is not None, reason=f"the Triton engine: {triton.unavailable()}")


@pytest.fixture(autouse=True)
def memory_is_full_of_nan() -> Iterator[None]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def nothing_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(graphs.SWITCH, "0")


@pytest.fixture(autouse=True)
def products_of_float32_are_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cuda":
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    choose(monkeypatch, request.param)
    return request.param


def choose(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    for name, value in zip(("FUSED_PRODUCTS", "JOINT_ROWS"), WAYS[way]):
        monkeypatch.setattr(triton, name, value)
    monkeypatch.setattr(triton, "ALIGNED", 1)


def moved(call: Call, change: Any) -> Call:
    """A call with all its tensors changed."""

    def each(value: Any) -> Any:
        return change(value) if isinstance(value, Tensor) else value

    drop = None if call.drop is None else type(call.drop)(*map(each, call.drop))
    state = tuple(map(each, call.state))
    return Call(each(call.x), state, Weights(*map(each, call.w)), call.form, each(call.mask), drop)


def on_device(call: Call) -> Call:
    return moved(call, lambda value: value.to(DEVICE))


def exact(call: Call) -> Call:
    return moved(call, lambda value: value.double() if value.is_floating_point() else value)


def compare(call: Call, most: float = MOST) -> None:
    """Outputs and gradients by name: types, shapes, and errors against float64."""
    call = on_device(call)
    truth, theirs = outcome(reference.sequence, exact(call)), outcome(reference.sequence, call)
    ours = outcome(triton.sequence, call)
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert (ours[name].shape, ours[name].dtype) == (value.shape, value.dtype), name
        size, error = truth[name].double().norm(), (ours[name].double() - truth[name]).norm()
        own = (value.double() - truth[name]).norm()
        # A single small array may be rounded better by chance; all together may not be, below.
        assert error <= 4 * most * own + torch.finfo(value.dtype).eps * size, name
    truth = {name: value for name, value in truth.items() if value.any()}
    if truth:
        assert rms(ours, truth) <= most * rms(theirs, truth)


def supports(call: Call) -> str | None:
    case = case_of(*call[:4], call.drop)
    return triton.supports(case._replace(device="cpu") if DEVICE == "cpu" else case._replace(device="cuda"))


CALLS = {} if triton.unavailable() else {
    name: recipe for name, recipe in CASES.items() if supports(recipe.make(torch.float32)) is None
}  # fmt: skip
FUSED = (  # what the convolution in the kernel is about; the rest is slow in an interpreter
    *(
        "plain",
        "one step",
        "one of everything",
        "wide",
        "kernel larger than the frame",
        "even kernels",
        "mask, peepholes",
    ),
    *("recurrent kernel of its own", "no input, no bias", "1D", "1D, even kernel, stride", "3D", "3D, odd kernels"),
)
JOINED = (
    "plain",
    "channels last",
    "kernel larger than the frame",
    "mask, peepholes",
    "pixel peepholes",
    "1D",
    "3D, odd kernels",
)


OF_THE_INPUT = ("stride", "dilation", "valid", "padding")  # torch's work, however it is asked


def slow(value: Any) -> Any:
    return pytest.param(value, marks=pytest.mark.slow)


def cases() -> Iterator[Any]:
    for way in WAYS:
        for name in CALLS:
            fast = name in (JOINED if way == "convolved together" else FUSED) or (
                way == "convolved by torch" and name != "long" and not name.startswith(OF_THE_INPUT)
            )
            yield pytest.param(name, way, marks=() if fast else pytest.mark.slow)


@computes
def test_most_cases_are_computed() -> None:
    assert len(CALLS) >= 40
    assert set(FUSED) <= set(CALLS)


@computes
@pytest.mark.parametrize(("name", "way"), list(cases()))
def test_every_output_state_and_gradient_is_that_of_the_reference(
    name: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose(monkeypatch, way)
    compare(CALLS[name].make(torch.float32))


@computes
@pytest.mark.parametrize("name", JOINED)
def test_frame_and_state_are_convolved_together(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    call = CALLS[name].make(torch.float32)
    assert type(triton.Call.of(*arguments(call))) is triton.Call
    choose(monkeypatch, "convolved together")
    assert type(triton.Call.of(*arguments(call))) is triton.Joint


@computes
def test_of_any_number_of_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """More rows and channels than a tile has."""
    choose(monkeypatch, "convolved in the kernel")
    compare(Recipe(batch=2, steps=2, hidden=37, frame=(5, 7), kernel=(1, 3)).make(torch.float32))
    choose(monkeypatch, "convolved by torch")
    compare(Recipe(batch=3, steps=2, hidden=67, frame=(3, 7), peephole="channel").make(torch.float32))


@computes
@pytest.mark.parametrize("recurrent", range(6))
def test_every_activation(recurrent: int, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "convolved by torch")
    for activation, scale in ((triton.ACTIVATIONS[recurrent - 1], 0.3), (triton.ACTIVATIONS[recurrent - 2], 2.0)):
        names = {"activation": activation, "recurrent_activation": triton.ACTIVATIONS[recurrent]}
        compare(Recipe(**names, steps=2, frame=(3, 4), peephole="channel", scale=scale).make(torch.float32))


@computes
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["plain", slow("no input, no bias"), slow("mask, peepholes"), slow("shared dropout")])
def test_with_weights_in_half_precision(way: str, name: str, dtype: torch.dtype) -> None:
    compare(in_half(CASES[name].make(torch.float32), dtype))


@computes
@pytest.mark.parametrize("name", ["plain", "mask, peepholes"])
def test_under_autocast(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "convolved in the kernel")
    call = on_device(CASES[name].make(torch.float32))
    truth = outcome(reference.sequence, exact(call))
    with torch.autocast(DEVICE, torch.bfloat16):
        assert triton.supports(case_of(*call[:4], None)) is None
        theirs, ours = outcome(reference.sequence, call), outcome(triton.sequence, call)
    assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
    assert ours["y"].dtype == torch.bfloat16
    assert rms(ours, truth) <= MOST * rms(theirs, truth)


@computes
def test_tiny_values_keep_their_digits() -> None:
    """Element by element: a tanh that subtracts from one has none left."""
    call = on_device(Recipe(steps=1, bias=False).make(torch.float32))
    small = call._replace(state=tuple(1e-7 * value for value in call.state), x=1e-7 * call.x)
    with torch.no_grad():
        y, (_, c) = triton.sequence(*small)
        truth, (_, c_truth) = reference.sequence(*exact(small))
    torch.testing.assert_close(c.double(), c_truth, rtol=1e-5, atol=1e-12)
    torch.testing.assert_close(y.double(), truth, rtol=1e-5, atol=1e-12)


@computes
def test_large_values_overflow_nowhere() -> None:
    call = on_device(Recipe(steps=2).make(torch.float32))
    large = call._replace(x=1e4 * call.x, state=(call.state[0], 1e4 * call.state[1]))
    for name, value in outcome(triton.sequence, large).items():
        assert value.isfinite().all(), name
    with torch.no_grad():
        broken = triton.sequence(call.x.index_fill(0, torch.tensor([0], device=DEVICE), math.nan), *call[1:])[0]
    assert broken[0].isnan().all()
    assert broken[1].isfinite().all()


# --- what is kept, and computed anew ---


@computes
@pytest.mark.parametrize(("block", "kept"), [(2, 0), (1, 2)])
def test_blocks_and_what_is_kept_change_no_number(
    way: str, block: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing kept in blocks of two steps; the last two steps kept, in blocks of one."""
    recipe = Recipe(batch=3, steps=5, hidden=2, frame=(3, 4), mask=MASK, peephole="channel")
    each = 4 * recipe.make(torch.float32).state[1].nbytes
    set_blocks(monkeypatch, each, block=block, kept=0)
    monkeypatch.setattr(triton, "KEPT_BYTES", kept * each)
    compare(recipe.make(torch.float32))


@computes
def test_for_the_backward_outputs_cell_states_and_preactivations_are_kept() -> None:
    call = on_device(in_half(CASES["plain"].make(torch.float32), torch.bfloat16))
    y, _, _, cs, z = torch.ops.stormcell.triton_train(*arguments(call))
    assert (cs.dtype, z.dtype) == (torch.float32, torch.bfloat16)
    assert (tuple(cs.shape[:3]), tuple(z.shape[:3])) == ((3, 2, 3), (3, 2, 12))
    assert cs.movedim(2, -1).is_contiguous()
    assert z.movedim(2, -1).is_contiguous()
    assert y.transpose(0, 1).movedim(2, -1).is_contiguous()


@computes
def test_outputs_share_no_memory_with_inputs_or_each_other(way: str) -> None:
    for name in ("one step", "no input"):
        for gradients in (True, False):
            call = on_device(CASES[name].make(torch.float32)).detached(lambda _, gradients=gradients: gradients)
            assert_shares_no_memory(triton.sequence, call)


# --- gradients ---


@computes
@pytest.mark.parametrize("name", ["x", "h", "ch", *map(slow, ("c", "ih", "hh", "bias"))])
@pytest.mark.parametrize("joined", ["convolved by torch", "convolved together"])
def test_a_gradient_alone_is_that_among_others(name: str, joined: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, joined)
    call = on_device(
        Recipe(batch=2, steps=2, frame=(3, 4), mask=[[1, 0], [1, 1]], peephole="pixel").make(torch.float32)
    )
    expected = outcome(triton.sequence, call)
    for needed in ({name}, set(NAMES) - {name}):
        found = outcome(triton.sequence, call, needed.__contains__)
        assert {key for key in found if key.startswith("d_")} == {f"d_{each}" for each in needed}
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], rtol=1e-6, atol=1e-6)


@computes
@pytest.mark.parametrize("read", ["y", "h", "c", "y, last step"])
def test_a_loss_may_read_one_output_alone_and_go_back_twice(way: str, read: str) -> None:
    call = on_device(Recipe(batch=2, steps=2, frame=(3, 4), mask=[[1, 0], [1, 1]]).make(torch.float32))
    gradients = []
    for sequence, own in ((reference.sequence, exact(call).detached()), (triton.sequence, call.detached())):
        y, (h, c) = sequence(*own)
        loss = {"y": y, "h": h, "c": c, "y, last step": y[:, -1]}[read].sin().sum()
        leaves = list(own.differentiable().values())
        first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second))
        gradients.append(first)
    for ours, truth in zip(gradients[1], gradients[0]):
        torch.testing.assert_close(ours.double(), truth, rtol=1e-4, atol=1e-5)


@computes
def test_second_gradients_are_those_of_the_reference() -> None:
    found = []
    for sequence in (reference.sequence, triton.sequence):
        call = on_device(Recipe(steps=2, frame=(3, 4)).make(torch.float32)).detached()
        leaves = list(call.differentiable().values())
        y, _ = sequence(*call)
        first = torch.autograd.grad(y.square().sum(), leaves, create_graph=True)
        found.append(torch.autograd.grad(sum(value.square().sum() for value in first), leaves))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


@computes
def test_second_gradients_under_autocast() -> None:
    found = []
    for sequence, dtype in ((reference.sequence, torch.float64), (triton.sequence, torch.float32)):
        call = on_device(Recipe(steps=2, frame=(3, 4)).make(dtype)).detached()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=dtype == torch.float32):
            y, _ = sequence(*call)
        (first,) = torch.autograd.grad(y.to(dtype).square().sum(), [call.x], create_graph=True)
        assert first.dtype == dtype
        second = torch.autograd.grad(first.square().sum(), list(call.differentiable().values()))
        found.append({f"d_{name}": value for name, value in zip(call.differentiable(), second)})
    assert rms(found[1], found[0]) <= 0.05  # the reference under autocast: 0.02


@computes
@pytest.mark.parametrize("part", ["h", "c", "both"])
def test_a_state_of_another_shape_is_refused(part: str) -> None:
    """Kernels do not look: they would read memory that is somebody else's."""
    call = on_device(CASES["plain"].make(torch.float32))
    for shape in ((2, 3, 5, 7), (1, 3, 5, 6), (2, 4, 5, 6)):
        wrong = torch.zeros(shape, device=DEVICE)
        state = tuple(wrong if part in (name, "both") else value for name, value in zip("hc", call.state))
        with pytest.raises(RuntimeError, match=r"(h|c) is \(.*\) where frames and weights make \(2, 3, 5, 6\)"):
            triton.sequence(*call._replace(state=state))


@computes
def test_frames_that_the_mask_leaves_out_may_be_anything() -> None:
    mask = torch.tensor([[0, 1], [1, 0]], dtype=torch.bool, device=DEVICE)
    results = []
    for filler in (0.0, math.nan):
        call = on_device(Recipe(steps=2, frame=(3, 4)).make(torch.float32)).detached()
        with torch.no_grad():
            call.x[~mask] = filler
        y, last = engine.run(*call[:4], mask=mask, engine="triton")
        gradients = torch.autograd.grad(y.sum() + last[1].sum(), list(call.differentiable().values()))
        assert not gradients[0][~mask].any()
        results.append([y, *last, *gradients])
    assert all(torch.equal(a, b) for a, b in zip(*results))


# --- layers, torch.compile and torch.library ---


@computes
def test_a_layer_of_layers_and_directions() -> None:
    torch.manual_seed(0)
    ours = ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, engine="triton").to(DEVICE)
    theirs = ConvLSTM2d(2, 3, 3, num_layers=2, bidirectional=True, engine="reference").to(DEVICE)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 2, 2, 4, 3, device=DEVICE)
    found = []
    for layer in (ours, theirs):
        y, (h, c) = layer(x)
        (y.square().sum() + h.sum() * c.sum()).backward()
        found.append([y, h, c, *(parameter.grad for parameter in layer.parameters())])
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@computes
def test_a_compiled_call_has_the_same_numbers_without_graph_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "convolved by torch")
    torch._dynamo.reset()
    compiled = torch.compile(triton.sequence, backend="aot_eager", fullgraph=True)
    for batch, frame in ((2, (3, 4)), (3, (4, 5))):
        call = on_device(Recipe(batch=batch, frame=frame, steps=2, peephole="channel").make(torch.float32))
        found, expected = outcome(compiled, call), outcome(triton.sequence, call)
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


@computes
@pytest.mark.filterwarnings("ignore:.*TRITON_.*:UserWarning")
@pytest.mark.parametrize("name", [slow("mask, peepholes"), "no input, no bias"])
def test_operators_do_what_they_say_of_themselves(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    choose(monkeypatch, "convolved by torch")
    torch.use_deterministic_algorithms(False)  # opcheck compares what is made twice, bit by bit
    call = on_device(CASES[name].make(torch.float32))
    torch.library.opcheck(torch.ops.stormcell.triton_train.default, arguments(call.detached()))
    y, h, _, cs, kept = torch.ops.stormcell.triton_train(*arguments(call))
    by = [value is not None for value in (call.x if call.w.ih is not None else None, *call.state, *call.w[:4])]
    torch.library.opcheck(torch.ops.stormcell.triton_backward.default, (y, h, None, y, cs, kept, by, *arguments(call)))


# --- kernels as machine code ---


def compiled_for(*processors: str) -> list[str]:
    pytest.importorskip("triton", reason="Triton is not installed")
    if sys.platform != "linux":
        pytest.skip("Triton compiles for GPUs on Linux only")
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.engine.compile_kernels", *processors],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_kernels_compile_for_a_gpu_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    lines = compiled_for("80")
    fused = [line for line in lines if " fused " in line]
    assert fused
    assert all(line.endswith("True") for line in fused)  # on tensor cores


@pytest.mark.slow
def test_all_kernels_compile_for_several_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    assert len(compiled_for("80", "90", "100")) >= 60


# --- rules ---


def case(**changed: Any) -> Case:
    call = CASES["plain"].make(torch.float32)
    return case_of(*call[:4], None)._replace(**changed)


def test_what_it_does_not_compute_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert triton.supports(case()) is None
    for changed, words in (
        ({"device": "mps"}, "CUDA"),
        ({"cell": "gru"}, "LSTM"),
        ({"norm": True}, "normalised"),
        ({"zoneout": True}, "zoneout"),
        ({"transformed": True}, "torch.func"),
        ({"dtype": torch.float64}, "float32 and half"),
        ({"state_dtype": torch.float64}, "cell state is float32"),
        ({"activations": ("gelu", "sigmoid")}, "know the activations tanh, "),
        ({"activations": ("tanh", None)}, "know the activations tanh, "),
    ):
        assert words in (triton.supports(case(**changed)) or "")
    monkeypatch.delenv("TRITON_INTERPRET")
    assert "CUDA" in (triton.supports(case()) or "")


@pytest.mark.parametrize(("capability", "refused"), [((6, 1), True), ((7, 5), False), ((8, 0), False)])
def test_old_gpus(capability: tuple[int, int], refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    single, *half = (
        triton.supports(case(device="cuda", dtype=dtype)) for dtype in (torch.float32, torch.float16, torch.bfloat16)
    )
    assert (single is not None) == refused
    for reason in half:
        assert (reason is None) == (capability >= (8, 0))
        assert reason is None or "capability 8.0" in reason


def test_auto_takes_it_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORMCELL_ENGINE", raising=False)
    assert engine.explain(case())["triton"] != "chosen"
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton, "_is_installed", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    for changed in ({}, {"gradients": False}, {"steps": 1}, {"dtype": torch.bfloat16}, {"size": (512, 512)}):
        assert engine.explain(case(device="cuda", **changed))["triton"] == "chosen"
        assert engine.explain(case(**changed))["triton"] != "chosen"
    assert engine.explain(case(device="cuda", dtype=torch.float64))["bptt"] == "chosen"


@pytest.mark.parametrize(("installed", "words"), [(False, "Triton is not installed"), (True, "no CUDA GPU")])
def test_without_it_cuda_goes_to_bptt_and_explain_says_why(
    installed: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("STORMCELL_ENGINE", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(triton, "_is_installed", lambda: installed)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    said = engine.explain(case(device="cuda"))
    assert said["bptt"] == "chosen"
    assert words in said["triton"]
    call = CASES["plain"].make(torch.float32)
    with pytest.raises(ValueError, match=words):
        engine.run(*call[:4], engine="triton")


@computes
def test_small_maps_are_fused_and_large_ones_are_not() -> None:
    for hidden, size, kernel, fused in ((64, 16, 5, True), (64, 64, 3, True), (64, 128, 3, False), (128, 16, 5, False)):
        batch = 1 if size == 64 else 16
        x = torch.empty(batch, 1, 1, size, size, device="meta")
        state = [torch.empty(batch, hidden, size, size, device="meta")] * 2
        weights = [torch.empty(4 * hidden, n, kernel, kernel, device="meta") for n in (1, hidden)]
        plain = ((1, 1), "same", [], (1, 1), "tanh", "sigmoid", False, None)
        assert triton.Call(x, *state, *weights, None, None, None, None, None, *plain).fused == fused


def test_nothing_imports_triton_before_it_computes() -> None:
    code = (
        "import sys, torch; from stormcell import ConvLSTM2d, engine; engine.engines(); "
        "ConvLSTM2d(1, 4, 3)(torch.zeros(1, 2, 1, 8, 8))[0].sum().backward(); sys.exit('triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
