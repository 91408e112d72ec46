"""The written-out backward against the reference, case by case; what it keeps; and what PyTorch does with its operators."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from stormcell import engine
from stormcell.engine import bptt, reference, triton
from stormcell.engine.activations import ACTIVATIONS
from stormcell.engine.case import case_of
from stormcell.engine.reference import Drop, Form, Weights

from ..nn.layers import EXACT
from .cases import CASES, MASK, Call, Recipe, assert_shares_no_memory, outcome
from .test_reference import Bytes

BLOCKS = ("BLOCK_BYTES", "BLOCK_BYTES_CPU")


def set_blocks(monkeypatch: pytest.MonkeyPatch, step_bytes: int, *, block: float, kept: float) -> None:
    """Bounds in steps: of a block, and of the pre-activations that are kept."""
    for name in BLOCKS:
        monkeypatch.setattr(bptt, name, int(block * step_bytes))
    monkeypatch.setattr(bptt, "KEPT_BYTES", int(kept * step_bytes))


def arguments(call: Call) -> tuple[Any, ...]:
    """Of the operators, for "same" or "valid" padding and the usual activations."""
    form, drop = call.form, call.drop or Drop()
    tensors = (call.x, *call.state, *call.w[:4], call.mask, drop.inputs, drop.recurrent)
    return (*tensors, form.stride, form.padding, [], form.dilation, "tanh", "sigmoid", False, None)


def step_bytes(call: Call) -> int:
    """z of four gates, and φ(c')."""
    return max(1, 5 * call.state[1].nbytes)


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        torch.testing.assert_close(
            found[name], value, rtol=1e-12, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}"
        )


def exact_form(form: Form) -> Form:
    """In float64 torch multiplies the gradient of hard_sigmoid by the float32 that is nearest to 1/6."""
    if torch.nn.functional.hardsigmoid not in form[3:5]:
        return form
    functions = (
        (lambda z: (z / 6 + 0.5).clamp(0, 1)) if function is torch.nn.functional.hardsigmoid else function
        for function in form[3:5]
    )
    return Form(*form[:3], *functions)


@pytest.mark.parametrize("name", CASES)
def test_every_output_state_and_gradient_is_that_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything kept, nothing kept, and the last two steps kept; in blocks of one and two steps, and in one block."""
    call = CASES[name].make()
    assert bptt.supports(case_of(*call[:4], call.drop)) is None
    expected = outcome(reference.sequence, call._replace(form=exact_form(call.form)))
    for block, kept in ((100, 100), (2, 0), (1, 2)):
        set_blocks(monkeypatch, step_bytes(call), block=block, kept=kept)
        assert_same(outcome(bptt.sequence, call), expected)
    with torch.no_grad():
        y, (h, c) = bptt.sequence(*call)
    assert_same({"y": y, "last h": h, "last c": c}, {key: expected[key] for key in ("y", "last h", "last c")})


def rms(values: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Root mean square of all errors, each output and gradient in units of its own size."""
    errors = [((values[key].double() - exact[key]) / exact[key].square().mean().sqrt()).flatten() for key in exact]
    return torch.cat(errors).square().mean().sqrt().item()


@pytest.mark.parametrize("name", [name for name, recipe in CASES.items() if recipe.batch])
def test_in_float32_it_errs_at_most_four_times_as_much_as_the_reference(name: str) -> None:
    recipe = CASES[name]
    single = recipe.make(torch.float32)
    exact = outcome(
        reference.sequence,
        Call(
            single.x.double(),
            tuple(value.double() for value in single.state),
            Weights(*(None if value is None else value.double() for value in single.w)),
            *single[3:],
        ),
    )
    exact = {key: value for key, value in exact.items() if value.any()}
    assert rms(outcome(bptt.sequence, single), exact) <= 4 * rms(outcome(reference.sequence, single), exact)


def in_half(call: Call, dtype: torch.dtype) -> Call:
    """Weights, frames and h in half precision, c in float32: as a layer calls."""

    def half(value: Tensor | None) -> Any:
        return None if value is None else value.to(dtype)

    h, c = call.state
    return Call(half(call.x), (half(h), c.float()), Weights(*map(half, call.w)), *call[3:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", ["plain", "channel peepholes", "no input, no bias", "mask, peepholes", "shared dropout"]
)
def test_with_weights_in_half_precision(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Types as of the reference, and errors at most four times its own, also where gradients are summed over blocks."""
    call = in_half(CASES[name].make(torch.float32), dtype)
    double = Call(
        call.x.double(),
        tuple(value.double() for value in call.state),
        Weights(*(None if value is None else value.double() for value in call.w)),
        *call[3:],
    )
    exact, theirs = outcome(reference.sequence, double), outcome(reference.sequence, call)
    for block, kept in ((100, 100), (1, 0)):
        set_blocks(monkeypatch, step_bytes(call), block=block, kept=kept)
        ours = outcome(bptt.sequence, call)
        assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
        torch.testing.assert_close(ours["y"], theirs["y"], rtol=0, atol=torch.finfo(dtype).eps)  # one last place
        assert rms(ours, exact) <= 4 * rms(theirs, exact)


@pytest.mark.parametrize("name", ["plain", "mask, peepholes", "no input", "shared dropout"])
def test_under_autocast_it_rounds_as_the_reference_does(name: str) -> None:
    call = CASES[name].make(torch.float32)
    exact = outcome(reference.sequence, CASES[name].make())
    with torch.autocast("cpu", torch.bfloat16):
        theirs, ours = outcome(reference.sequence, call), outcome(bptt.sequence, call)
        again = call.detached()
        y, _ = bptt.sequence(*again)
    assert {key: value.dtype for key, value in ours.items()} == {key: value.dtype for key, value in theirs.items()}
    assert ours["y"].dtype == torch.bfloat16
    assert rms(ours, exact) <= 4 * rms(theirs, exact)
    (slope,) = torch.autograd.grad(y.float().square().sum(), again.state[1], create_graph=True)
    slope.sum().backward()  # the reference, outside of autocast, on what was rounded
    assert again.w.hh.grad is not None
    double = CASES[name].make()
    with torch.autocast("cpu", torch.bfloat16):  # leaves float64 as it is
        assert_same(outcome(bptt.sequence, double), outcome(reference.sequence, double))


# Gradients


SMALL: dict[str, dict[str, Any]] = {"frame": (2, 3), "steps": 2, "hidden": 2, "channels": 1}
DERIVATIVES = {
    "plain": Recipe(**SMALL, kernel=(2, 2), recurrent=(1, 2)),
    "peepholes, mask": Recipe(**SMALL, kernel=(1, 2), peephole="pixel", mask=[[1, 0], [1, 1]]),
    "stride, no bias, other activations": Recipe(
        **SMALL, kernel=(2, 2), stride=(1, 2), bias=False, activation="softplus", recurrent_activation="silu"
    ),
    "no input, channel peepholes": Recipe(**SMALL | {"channels": 0}, kernel=(1, 2), peephole="channel"),
    "gate dropout": Recipe(**SMALL, kernel=(1, 2), drop="gate"),
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_first_and_second_gradients_are_those_of_finite_differences(name: str) -> None:
    call = DERIVATIVES[name].make().detached()
    values = call.differentiable()

    def run(*changed: Tensor) -> tuple[Tensor, ...]:
        by_name = dict(zip(values, changed))
        w = Weights(**{key: by_name.get(key) for key in Weights._fields})
        y, state = bptt.sequence(by_name.get("x", call.x), (by_name["h"], by_name["c"]), w, *call[3:])
        return y, *state

    assert torch.autograd.gradcheck(run, list(values.values()))
    assert torch.autograd.gradgradcheck(run, list(values.values()), fast_mode=True)


def test_second_gradients_count_a_tensor_once_that_is_given_twice() -> None:
    """h made of x, and one tensor as both kernels: gradients by an argument stop there."""
    call = Recipe(channels=3, hidden=3).make()
    results = []
    for sequence in (reference.sequence, bptt.sequence):
        x, kernel = call.x.clone().requires_grad_(), call.w.hh.clone().requires_grad_()
        y, _ = sequence(x, (x[:, 0].sin(), x[:, 1].cos()), Weights(kernel, kernel), call.form)
        first = torch.autograd.grad(y.square().sum(), [x, kernel], create_graph=True)
        results.append([*first, *torch.autograd.grad(sum(value.square().sum() for value in first), [x, kernel])])
    torch.testing.assert_close(results[1], results[0], rtol=1e-12, atol=1e-10)  # squares of gradients, up to 1e3


@pytest.mark.parametrize("name", ["x", "h", "c", "ih", "hh", "ch", "bias"])
@pytest.mark.parametrize("recipe", ["mask, peepholes", "pixel peepholes"])
def test_a_gradient_alone_is_that_among_others(name: str, recipe: str) -> None:
    call = CASES[recipe].make()
    expected = outcome(bptt.sequence, call)
    for needed in ({name}, {"x", "h", "c", "ih", "hh", "ch", "bias"} - {name}):
        found = outcome(bptt.sequence, call, needed.__contains__)
        assert {key for key in found if key.startswith("d_")} == {f"d_{each}" for each in needed}
        for key, value in found.items():
            torch.testing.assert_close(value, expected[key], **EXACT)


def test_a_backward_leaves_what_was_kept_as_it_was() -> None:
    call = CASES["mask, peepholes"].make().detached()
    y, (h, c) = bptt.sequence(*call)
    inputs = list(call.differentiable().values())
    first, second = (torch.autograd.grad((y + h.sum() * c.sum()).sum(), inputs, retain_graph=True) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("read", ["y", "h", "c", "y, last step"])
def test_a_loss_may_read_one_output_alone(read: str) -> None:
    call = CASES["mask, peepholes"].make()
    gradients = []
    for sequence in (reference.sequence, bptt.sequence):
        own = call.detached()
        y, (h, c) = sequence(*own)
        loss = {"y": y, "h": h, "c": c, "y, last step": y[:, -1]}[read].sin().sum()
        gradients.append(torch.autograd.grad(loss, list(own.differentiable().values())))
    torch.testing.assert_close(gradients[1], gradients[0], **EXACT)


def test_frames_that_the_mask_leaves_out_may_be_anything() -> None:
    recipe = CASES["mask, peepholes"]
    mask = torch.tensor(MASK, dtype=torch.bool)
    results = []
    for filler in (0.0, math.nan, math.inf):
        call = recipe.make().detached()
        with torch.no_grad():
            call.x[~mask] = filler
        y, last = engine.run(*call[:4], mask=mask, engine="bptt")
        gradients = torch.autograd.grad(y.sum() + last[1].sum(), list(call.differentiable().values()))
        assert not gradients[0][~mask].any()
        results.append([y, *last, *gradients])
    for others in results[1:]:
        assert all(torch.equal(other, zeros) for other, zeros in zip(others, results[0], strict=True))


@pytest.mark.parametrize("every", [1, 2, 3])
def test_checkpoints_change_no_number(every: int) -> None:
    call = CASES["mask, peepholes"].make()

    def run(*call: Any) -> Any:
        x, state, w, form, mask, drop = call
        return engine.run(x, state, w, form, mask=mask, drop=drop, checkpoint_every=every, engine="bptt")

    def whole(*call: Any) -> Any:
        x, state, w, form, mask, drop = call
        return engine.run(x, state, w, form, mask=mask, drop=drop, engine="reference")

    assert_same(outcome(run, call), outcome(whole, call))


# Memory


def test_outputs_share_no_memory_with_inputs_or_each_other() -> None:
    for name in ("one step", "one sample", "mask", "no input", "linear and mish"):
        for gradients in (True, False):
            call = CASES[name].make()
            assert_shares_no_memory(bptt.sequence, call.detached(lambda _, gradients=gradients: gradients))


def test_without_gradients_nothing_is_kept() -> None:
    call = Recipe(batch=1, steps=6).make().detached()
    with torch.no_grad(), Bytes() as counter:
        y, last = bptt.sequence(*call)
        assert counter.count() == sum(value.nbytes for value in (y, *last))


@pytest.mark.parametrize("kept", [0, 5, 20])
def test_for_the_backward_outputs_and_cell_states_are_kept_and_what_the_bound_allows(
    kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In units of one state, of 20 steps, in blocks of two."""
    call = Recipe(batch=1, steps=20, channels=1, hidden=4, frame=(32, 32), peephole="channel").make().detached()
    set_blocks(monkeypatch, step_bytes(call), block=2, kept=kept)
    with Bytes() as counter:
        outputs = bptt.sequence(*call)
        assert counter.count() / call.state[0].nbytes == 20 + 20 + 5 * kept + 2
        del outputs


@pytest.mark.parametrize("kept", [0, 20])
def test_at_its_worst_it_holds_a_few_blocks_besides(kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In units of one state. Forward: the input's part of z of a block of two steps, z of a step and the recurrent part
    of it, five results of operations. Backward: gradients, d_z of a block, and while z is computed anew both its parts, the
    frames and h that go in, z itself; while it goes back, z and nine results of operations.
    """
    call = Recipe(batch=1, steps=20, channels=1, hidden=4, frame=(32, 32), peephole="channel").make()
    set_blocks(monkeypatch, step_bytes(call), block=2, kept=kept)
    unit = call.state[0].nbytes
    with torch.no_grad(), Bytes() as counter:  # the operators' own functions: a mode does not see into an operator
        y, h, c, cs, memory = bptt._train(bptt.Call, *arguments(call))
        assert counter.peak / unit <= 20 + 20 + 5 * kept + 2 + 2 * 4 + (5 + 4) + 5
        counter.peak, before = 0, counter.count()
        gradients = bptt._backward(bptt.Call, y, h, c, y, cs, memory, [True] * 7, *arguments(call))
        needed = sum(value.nbytes for value in gradients) / unit
        again = 2 * (4 + 4 + 1 + 1 + 5) if kept == 0 else 0
        assert (counter.peak - before) / unit <= needed + 2 * 4 + max(again, 2 * 5 + 9)


# torch.compile and torch.library


def test_a_compiled_call_has_the_same_numbers_without_graph_breaks_and_in_other_sizes() -> None:
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters
    counts.clear()
    compiled = torch.compile(bptt.sequence, backend="aot_eager", fullgraph=True)
    for batch, frame in ((4, (5, 6)), (6, (8, 9)), (7, (11, 4)), (9, (12, 7))):
        call = Recipe(
            batch=batch, frame=frame, kernel=(2, 3), stride=(1, 2), peephole="channel", mask=[[1, 0, 1]] * batch
        ).make()
        assert_same(outcome(compiled, call), outcome(bptt.sequence, call))
        with torch.no_grad():
            torch.testing.assert_close(compiled(*call), bptt.sequence(*call), **EXACT)
    assert counts["stats"]["unique_graphs"] <= 4  # with and without gradients, each for one size and for any


@pytest.mark.parametrize(
    "name", ["plain", "mask, peepholes", "no input, no bias", "gate dropout, even kernels, stride"]
)
def test_operators_do_what_they_say_of_themselves(name: str) -> None:
    call = CASES[name].make()
    torch.library.opcheck(torch.ops.stormcell.bptt_train.default, arguments(call.detached()))
    torch.library.opcheck(torch.ops.stormcell.bptt_infer.default, arguments(call))
    y, h, _, cs, kept = torch.ops.stormcell.bptt_train(*arguments(call))
    by = [value is not None for value in (call.x if call.w.ih is not None else None, *call.state, *call.w[:4])]
    torch.library.opcheck(torch.ops.stormcell.bptt_backward.default, (y, h, None, y, cs, kept, by, *arguments(call)))


def test_on_meta_there_are_shapes() -> None:
    call = CASES["stride"].make()
    meta = Call(
        call.x.to("meta"),
        tuple(value.to("meta") for value in call.state),
        Weights(*(None if value is None else value.to("meta") for value in call.w)),
        *call[3:],
    )
    assert [value.shape for value in outcome(bptt.sequence, meta).values()] == [
        value.shape for value in outcome(bptt.sequence, call).values()
    ]


# What it leaves to the reference


def test_what_it_does_not_compute_it_names() -> None:
    call = CASES["plain"].make()
    case = case_of(*call[:4], None)
    form, w = call.form, call.w
    assert bptt.unavailable() is None
    for other, words in (
        (case._replace(cell="gru"), "LSTM"),
        (case._replace(norm=True), "normalised"),
        (case._replace(zoneout=True), "zoneout"),
        (case._replace(transformed=True), "torch.func"),
        (case._replace(dtype=torch.complex64), "real"),
        (case_of(call.x, call.state, w, form._replace(activation=lambda z: z.sin()), None), "have a name"),
    ):
        assert words in (bptt.supports(other) or "")


def test_auto_leaves_to_the_reference_what_it_does_not_save_memory_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORMCELL_ENGINE", raising=False)
    call = Recipe(batch=2, hidden=16, frame=(16, 16)).make().detached()
    case = case_of(*call[:4], None)
    assert bptt.passed_over(case) is None
    assert engine.explain(case)["bptt"] == "chosen"  # in float64 winograd does not run
    for other, words in (
        (case._replace(steps=1), "single step"),
        (case._replace(gradients=False), "without gradients"),
        (case._replace(batch=1), "small"),
    ):
        assert words in (bptt.passed_over(other) or "")
    assert bptt.passed_over(case._replace(device="cuda", gradients=False)) is None


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, in its jvp
def test_dual_numbers_go_to_the_reference() -> None:
    call = CASES["plain"].make()
    with forward_ad.dual_level():
        x = forward_ad.make_dual(call.x, torch.ones_like(call.x))
        assert bptt.supports(case_of(x, *call[1:4], None)) is not None
        y, _ = engine.run(x, call.state, call.w, call.form)
        slope = forward_ad.unpack_dual(y).tangent
    assert slope is not None
    (by_x,) = torch.autograd.functional.jvp(
        lambda x: reference.sequence(x, *call[1:])[0].sum(), call.x, torch.ones_like(call.x)
    )[1:]
    torch.testing.assert_close(slope.sum(), by_x, **EXACT)


def test_all_named_activations_are_among_the_cases() -> None:
    made = {(recipe.activation, recipe.recurrent_activation) for recipe in CASES.values()}
    assert {name for name, _ in made} == {name for _, name in made} == set(ACTIVATIONS)


def test_a_cell_state_that_is_narrower_than_the_weights_is_widened() -> None:
    call = CASES["plain"].make(torch.float32)
    y, (_, c) = bptt.sequence(call.x, (call.state[0], call.state[1].bfloat16()), *call[2:])
    assert (y.dtype, c.dtype) == (torch.float32, torch.float32)


@pytest.mark.parametrize("engine", ["bptt", "triton"])
def test_frames_of_another_precision_are_refused(engine: str) -> None:
    call = CASES["plain"].make(torch.float32)
    with pytest.raises(RuntimeError, match="frames are float64 and weights float32"):
        {"bptt": bptt, "triton": triton}[engine].sequence(call.x.double(), *call[1:])
