"""The reference against numbers worked by hand and plain loops, its gradients, and what `engine.run` adds for every engine."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stormcell import engine
from stormcell.engine.reference import Drop, Form, Weights, pads, sequence, state_size, step

from ..nn.layers import EXACT

FORM = Form((1, 1), "same", (1, 1), torch.tanh, torch.sigmoid)
GRU = FORM._replace(cell="gru")
FORMS = {"lstm": FORM, "gru": GRU}
GATES = {"lstm": 4, "gru": 3}


def random_weights(
    form: Form = FORM,
    channels: int = 2,
    hidden: int = 3,
    *,
    kernel: tuple[int, int] = (3, 3),
    recurrent: tuple[int, int] = (3, 3),
    peephole: tuple[int, ...] | None = None,
    norm: bool = False,
) -> Weights:
    """Random weights; `peephole` is the shape of one gate's peephole after its channels, () for one a channel."""
    gates = GATES[form.cell] * hidden
    rng = np.random.default_rng(1)

    def draw(*shape: int, fan_in: int = 4) -> Tensor:
        return torch.tensor(rng.normal(size=shape) / fan_in**0.5)

    return Weights(
        draw(gates, channels, *kernel, fan_in=channels * math.prod(kernel)) if channels else None,
        draw(gates, hidden, *recurrent, fan_in=hidden * math.prod(recurrent)),
        None if peephole is None else draw(3 * hidden, *peephole),
        draw(4 * hidden),
        draw(gates) if norm and channels else None,
        draw(gates) if norm else None,
    )


def random_state(form: Form, *shape: int) -> tuple[Tensor, ...]:
    return tuple(torch.randn(*shape, dtype=torch.float64) for _ in range(2 if form.cell == "lstm" else 1))


def given(weights: Weights) -> dict[str, Tensor]:
    return {name: value for name, value in weights._asdict().items() if value is not None}


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def test_a_step_worked_by_hand() -> None:
    """One pixel, one channel, every weight different: any two gates or peepholes exchanged would show."""
    weights = Weights(
        ih=torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64).view(4, 1, 1, 1),
        hh=torch.tensor([0.5, -0.6, 0.7, 0.8], dtype=torch.float64).view(4, 1, 1, 1),
        ch=torch.tensor([0.9, -1.0, 1.1], dtype=torch.float64),
        bias=torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64),
    )
    x, h, c = 2.0, 0.3, -0.4
    i = sigmoid(0.1 * x + 0.5 * h + 0.9 * c + 0.01)
    f = sigmoid(0.2 * x - 0.6 * h - 1.0 * c + 0.02)
    g = math.tanh(0.3 * x + 0.7 * h + 0.03)
    c_next = f * c + i * g
    o = sigmoid(0.4 * x + 0.8 * h + 1.1 * c_next + 0.04)
    h_next = o * math.tanh(c_next)
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    h_out, c_out = step(x * one, (h * one, c * one), weights, FORM)
    assert h_out.item() == pytest.approx(h_next, abs=1e-15)
    assert c_out.item() == pytest.approx(c_next, abs=1e-15)


def test_a_step_of_the_gru_worked_by_hand() -> None:
    """One pixel, one channel, every weight different; the reset gate multiplies what the recurrent kernel made of h."""
    weights = Weights(
        ih=torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64).view(3, 1, 1, 1),
        hh=torch.tensor([0.5, -0.6, 0.7], dtype=torch.float64).view(3, 1, 1, 1),
        bias=torch.tensor([0.01, 0.02, 0.03, 0.04], dtype=torch.float64),
    )
    x, h = 2.0, 0.3
    r = sigmoid(0.1 * x + 0.5 * h + 0.01)
    z = sigmoid(0.2 * x - 0.6 * h + 0.02)
    n = math.tanh(0.3 * x + 0.03 + r * (0.7 * h + 0.04))
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    (h_out,) = step(x * one, (h * one,), weights, GRU)
    assert h_out.item() == pytest.approx((1 - z) * n + z * h, abs=1e-15)


def naive_convolution(
    x: np.ndarray, w: np.ndarray, before: tuple[int, int], out: tuple[int, int], s: int, d: int = 1
) -> np.ndarray:
    """Cross-correlation of x (C, Y, X) with w (O, C, kY, kX), stride s and dilation d, written as its definition."""
    result = np.zeros((w.shape[0], *out))
    for row in range(out[0]):
        for col in range(out[1]):
            for ky in range(w.shape[2]):
                for kx in range(w.shape[3]):
                    y, z = row * s + ky * d - before[0], col * s + kx * d - before[1]
                    if 0 <= y < x.shape[1] and 0 <= z < x.shape[2]:
                        result[:, row, col] += w[:, :, ky, kx] @ x[:, y, z]
    return result


def geometry(size: tuple[int, int], kernel: tuple[int, int], s: int, d: int, padding: Any) -> Any:
    """Zeros before each axis, and the size of the output."""
    if padding == "same":
        out = tuple(-(-n // s) for n in size)
        before = tuple(max((o - 1) * s + (k - 1) * d + 1 - n, 0) // 2 for o, k, n in zip(out, kernel, size))
        return before, out
    before = (0, 0) if padding == "valid" else padding
    return before, tuple((n + 2 * p - (k - 1) * d - 1) // s + 1 for n, k, p in zip(size, kernel, before))


SPATIAL = pytest.mark.parametrize(
    ("kernel", "recurrent", "stride", "dilation", "padding"),
    [
        ((3, 3), (3, 3), 1, 1, "same"),
        ((4, 2), (2, 4), 1, 1, "same"),
        ((3, 5), (1, 3), 2, 1, "same"),
        ((2, 3), (3, 2), 1, 2, "same"),
        ((2, 3), (3, 3), 1, 2, "valid"),
        ((3, 2), (3, 3), 2, 1, (2, 0)),
        ((3, 4), (2, 3), 1, 3, (3, 4)),
    ],
)


@SPATIAL
def test_sequence_against_the_definition_of_convolution(
    kernel: tuple[int, int], recurrent: tuple[int, int], stride: int, dilation: int, padding: Any
) -> None:
    """Even kernels and strides pad as TensorFlow does: the odd zero comes after. The recurrent one is always "same"."""
    rng = np.random.default_rng(0)
    channels, hidden, steps, size = 2, 3, 3, (5, 6)
    form = FORM._replace(stride=(stride, stride), dilation=(dilation, dilation), padding=padding)
    w = {
        "ih": rng.normal(size=(4 * hidden, channels, *kernel)),
        "hh": rng.normal(size=(4 * hidden, hidden, *recurrent)),
        "ch": rng.normal(size=(3 * hidden,)),
        "bias": rng.normal(size=(4 * hidden,)),
    }
    x = rng.normal(size=(steps, channels, *size))
    before, out = geometry(size, kernel, stride, dilation, padding)
    before_h = tuple((k - 1) // 2 for k in recurrent)
    h, c = rng.normal(size=(2, hidden, *out))
    y, _ = sequence(
        torch.tensor(x)[None],
        (torch.tensor(h)[None], torch.tensor(c)[None]),
        Weights(*(torch.tensor(w[k]) for k in ("ih", "hh", "ch", "bias"))),
        form,
    )
    peephole = w["ch"].reshape(3, hidden, 1, 1)
    for t in range(steps):
        z = naive_convolution(x[t], w["ih"], before, out, stride, dilation) + naive_convolution(
            h, w["hh"], before_h, out, 1
        )
        i, f, g, o = (z + w["bias"][:, None, None]).reshape(4, hidden, *out)
        squash = np.vectorize(sigmoid)
        c, c_old = squash(f + peephole[1] * c) * c + squash(i + peephole[0] * c) * np.tanh(g), c
        assert not np.allclose(c, c_old)
        h = squash(o + peephole[2] * c) * np.tanh(c)
        np.testing.assert_allclose(y[0, t].numpy(), h, atol=1e-12)


@SPATIAL
def test_gru_sequence_against_the_definition_of_convolution(
    kernel: tuple[int, int], recurrent: tuple[int, int], stride: int, dilation: int, padding: Any
) -> None:
    channels, hidden, steps, size = 2, 3, 3, (5, 6)
    form = GRU._replace(stride=(stride, stride), dilation=(dilation, dilation), padding=padding)
    rng = np.random.default_rng(0)
    weights = random_weights(form, channels, hidden, kernel=kernel, recurrent=recurrent)
    assert weights.ih is not None
    assert weights.bias is not None
    before, out = geometry(size, kernel, stride, dilation, padding)
    before_h = tuple((k - 1) // 2 for k in recurrent)
    x, h = rng.normal(size=(steps, channels, *size)), rng.normal(size=(hidden, *out))
    y, (last,) = sequence(torch.tensor(x)[None], (torch.tensor(h)[None],), weights, form)
    b_r, b_z, b_n, b_m = weights.bias.numpy().reshape(4, hidden, 1, 1)
    squash = np.vectorize(sigmoid)
    for t in range(steps):
        from_x = naive_convolution(x[t], weights.ih.numpy(), before, out, stride, dilation).reshape(3, hidden, *out)
        from_h = naive_convolution(h, weights.hh.numpy(), before_h, out, 1).reshape(3, hidden, *out)
        r, z = squash(from_x[0] + from_h[0] + b_r), squash(from_x[1] + from_h[1] + b_z)
        n = np.tanh(from_x[2] + b_n + r * (from_h[2] + b_m))
        h = (1 - z) * n + z * h
        np.testing.assert_allclose(y[0, t].numpy(), h, atol=1e-12)
    assert torch.equal(last, y[:, -1])


@pytest.mark.parametrize("masks", ["gate", "shared"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_dropped_inputs_and_states_against_a_loop_gate_by_gate(cell: str, masks: str) -> None:
    torch.manual_seed(0)
    form, hidden, gates = FORMS[cell], 3, GATES[cell]
    rows = gates if masks == "gate" else 1
    w = random_weights(form, 2, hidden)
    assert w.ih is not None
    assert w.bias is not None
    x, start = torch.randn(2, 4, 2, 5, 4, dtype=torch.float64), random_state(form, 2, hidden, 5, 4)
    # Any factors will do: with zeros and 1/(1-p) alone, two gates could share theirs by chance.
    inputs, recurrent = (
        torch.rand(2, rows, channels, 5, 4, dtype=torch.float64).add(0.5).mul(torch.rand(2, rows, channels, 5, 4) > 0.4)
        for channels in (2, hidden)
    )
    y, last = sequence(x, start, w, form, None, Drop(inputs, recurrent))

    kernels_x, kernels_h, biases = w.ih.chunk(gates), w.hh.chunk(gates), w.bias.view(4, hidden, 1, 1)
    h, c = start[0], start[-1]
    for t in range(4):
        from_x = [nnf.conv2d(x[:, t] * inputs[:, g % rows], kernels_x[g], padding=1) for g in range(gates)]
        from_h = [nnf.conv2d(h * recurrent[:, g % rows], kernels_h[g], padding=1) for g in range(gates)]
        if cell == "lstm":
            i, f, o = (torch.sigmoid(from_x[g] + from_h[g] + biases[g]) for g in (0, 1, 3))
            c = f * c + i * torch.tanh(from_x[2] + from_h[2] + biases[2])
            h = o * torch.tanh(c)
        else:
            r, z = (torch.sigmoid(from_x[g] + from_h[g] + biases[g]) for g in (0, 1))
            n = torch.tanh(from_x[2] + biases[2] + r * (from_h[2] + biases[3]))
            h = (1 - z) * n + z * h  # the h that is carried on is not dropped
        torch.testing.assert_close(y[:, t], h, **EXACT)
    torch.testing.assert_close(last, (h, c) if cell == "lstm" else (h,), **EXACT)


@pytest.mark.parametrize("zoneout", [(0.3, 0.3), (0.0, 0.6), (0.5, 0.0)])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_without_training_zoneout_is_its_expected_value(cell: str, zoneout: tuple[float, float]) -> None:
    """Of each tensor of the state with its own probability, after h' was computed from the new c."""
    torch.manual_seed(0)
    form, w = FORMS[cell], random_weights(FORMS[cell])
    x, state = torch.randn(2, 4, 2, 5, 4, dtype=torch.float64), random_state(form, 2, 3, 5, 4)
    chances = zoneout[: len(state)]
    y, last = sequence(x, state, w, form._replace(zoneout=chances))
    for t in range(4):
        new = step(x[:, t], state, w, form)
        state = tuple(p * before + (1 - p) * after for p, before, after in zip(chances, state, new))
        torch.testing.assert_close(y[:, t], state[0], **EXACT)
    torch.testing.assert_close(last, state, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_in_training_zoneout_keeps_elements_as_often_as_it_says(cell: str, dtype: torch.dtype) -> None:
    """Within five standard deviations; in bfloat16, a draw of 8 bits would be off by more."""
    torch.manual_seed(0)
    form = FORMS[cell]
    zoneout = (0.002, 0.3)[: len(form.cell) - 2]
    w = Weights(*(None if value is None else value.to(dtype) for value in random_weights(form, hidden=8)))
    x, state = torch.randn(4, 2, 64, 64).to(dtype), tuple(v.to(dtype) for v in random_state(form, 4, 8, 64, 64))
    new = step(x, state, w, form)
    drawn = step(x, state, w, form._replace(zoneout=zoneout), Drop(training=True))
    kept = [now == before for now, before in zip(drawn, state)]
    for p, now, before, after, same in zip(zoneout, drawn, state, new, kept):
        assert torch.equal(now, torch.where(same, before, after))
        by_chance = (before == after).double().mean().item()  # in bfloat16 a step may change nothing
        share, sigma = same.double().mean().item(), (p * (1 - p) / same.numel()) ** 0.5
        assert abs(share - p - (1 - p) * by_chance) < 5 * sigma
    if cell == "lstm":  # drawn apart: of what h keeps, c keeps its usual share
        share, count = kept[1][kept[0]].double().mean().item(), kept[0].sum().item()
        assert abs(share - 0.3) < 5 * (0.21 / count) ** 0.5
    again = step(x, state, w, form._replace(zoneout=zoneout), Drop(training=True))
    assert not torch.equal(again[0], drawn[0])


@pytest.mark.parametrize("groups", [1, 2, None])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_norm_is_that_of_torch_on_each_convolution(cell: str, groups: int | None) -> None:
    """One group is nn.LayerNorm over channels and pixels; gains come after it, biases after the sum."""
    torch.manual_seed(0)
    form, hidden, gates = FORMS[cell], 2, GATES[cell]
    count = gates if groups is None else groups
    w = random_weights(form, 2, hidden, norm=True)
    assert w.ih is not None
    assert w.norm_ih is not None
    assert w.norm_hh is not None
    assert w.bias is not None
    x, (h, *rest) = torch.randn(2, 2, 5, 4, dtype=torch.float64), random_state(form, 2, hidden, 5, 4)
    after = step(x, (h, *rest), w, form._replace(norm_groups=count))

    def normed(z: Tensor, gain: Tensor) -> Tensor:
        if count == 1:
            return nn.LayerNorm(z.shape[1:], elementwise_affine=False)(z) * gain.view(-1, 1, 1)
        norm = nn.GroupNorm(count, gates * hidden, dtype=torch.float64)
        with torch.no_grad():
            norm.weight.copy_(gain)
        return norm(z)

    from_x = normed(nnf.conv2d(x, w.ih, padding=1), w.norm_ih).chunk(gates, 1)
    from_h = normed(nnf.conv2d(h, w.hh, padding=1), w.norm_hh).chunk(gates, 1)
    b = w.bias.view(4, hidden, 1, 1)
    if cell == "lstm":
        i, f, g, o = (from_x[gate] + from_h[gate] + b[gate] for gate in range(4))
        c = torch.sigmoid(f) * rest[0] + torch.sigmoid(i) * torch.tanh(g)
        expected: tuple[Tensor, ...] = (torch.sigmoid(o) * torch.tanh(c), c)
    else:
        r, z = (torch.sigmoid(from_x[gate] + from_h[gate] + b[gate]) for gate in range(2))
        expected = ((1 - z) * torch.tanh(from_x[2] + b[2] + r * (from_h[2] + b[3])) + z * h,)
    torch.testing.assert_close(after, expected, **EXACT)


def test_padding_follows_tensorflow() -> None:
    same = Form((2, 3), "same", (1, 1), torch.tanh, torch.sigmoid)
    assert pads((7, 8), (4, 2), same) == [(1, 2), (0, 0)]  # (ceil(7/2)-1)·2+4-7 = 3; (ceil(8/3)-1)·3+2-8 = 0
    assert state_size((7, 8), (4, 2), same) == (4, 3)
    assert pads((7, 8), (4, 2), same._replace(padding="valid")) == [(0, 0), (0, 0)]
    assert state_size((7, 8), (3, 3), same._replace(padding=(2, 1), stride=(1, 1))) == (9, 8)


GRADIENT_CASES: dict[str, tuple[Form, dict[str, Any]]] = {
    "lstm": (FORM, {}),
    "lstm, channel peepholes": (FORM, {"peephole": ()}),
    "lstm, pixel peepholes": (FORM, {"peephole": (2, 3)}),
    "lstm, stride and even kernels": (FORM._replace(stride=(1, 2)), {"kernel": (2, 4), "recurrent": (2, 2)}),
    "lstm, valid and dilation": (FORM._replace(padding="valid", dilation=(1, 2)), {"kernel": (1, 2)}),
    "lstm, layer norm": (FORM, {"norm": True, "peephole": ()}),
    "lstm, group norm": (FORM._replace(norm_groups=4), {"norm": True}),
    "lstm, zoneout": (FORM._replace(zoneout=(0.2, 0.4)), {"peephole": ()}),
    "lstm, no input": (FORM, {"channels": 0}),
    "lstm, mask and dropout": (FORM, {"peephole": ()}),
    "gru": (GRU, {}),
    "gru, mask and dropout": (GRU, {}),
    "gru, stride and even kernels": (GRU._replace(stride=(2, 1)), {"kernel": (4, 2), "recurrent": (2, 1)}),
    "gru, group norm": (GRU._replace(norm_groups=3), {"norm": True}),
    "gru, zoneout": (GRU._replace(zoneout=(0.3,)), {}),
}


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_first_and_second_gradients_are_those_of_finite_differences(case: str) -> None:
    """Of every output by every input, state and weight; where there is dropout, its masks are held fixed."""
    torch.manual_seed(0)
    form, options = GRADIENT_CASES[case]
    weights = random_weights(form, **{"channels": 1, "hidden": 2, "kernel": (2, 2), "recurrent": (1, 2)} | options)
    channels = 0 if weights.ih is None else 1
    size = state_size((2, 3), (1, 1) if weights.ih is None else tuple(weights.ih.shape[2:]), form)
    x, state = torch.randn(2, 2, channels, 2, 3, dtype=torch.float64), random_state(form, 2, 2, *size)
    mask = drop = None
    if case.endswith("mask and dropout"):
        mask = torch.tensor([[True, False], [True, True]])
        drop = Drop(*(2.0 * (torch.rand(2, rows, n, 2, 3) > 0.5) for rows, n in ((GATES[form.cell], 1), (1, 2))))
    names = list(given(weights))
    tensors = [value.requires_grad_() for value in ([x] if channels else []) + [*state, *given(weights).values()]]

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        first = values[: -len(names)]
        frames, before = (first[0], first[1:]) if channels else (x, first)
        w = Weights(**{"ih": None, **dict(zip(names, values[-len(names) :]))})
        y, last = engine.run(frames, before, w, form, mask=mask, drop=drop)
        return y, *last

    assert torch.autograd.gradcheck(run, tensors)
    assert torch.autograd.gradgradcheck(run, tensors, fast_mode=True)


def test_a_state_that_is_detached_cuts_the_backward_through_time_there() -> None:
    """Truncated backpropagation: the same numbers, and no gradient of what comes later by what came earlier."""
    torch.manual_seed(0)
    for form in (FORM, GRU):
        w = random_weights(form)
        early, late = torch.randn(2, 2, 3, 2, 4, 4, dtype=torch.float64)
        early.requires_grad_()
        late.requires_grad_()
        _, state = sequence(early, random_state(form, 2, 3, 4, 4), w, form)
        y, _ = sequence(late, state, w, form)
        y_cut, _ = sequence(late, tuple(value.detach() for value in state), w, form)
        assert torch.equal(y_cut, y)
        assert torch.autograd.grad(y_cut.sum(), early, allow_unused=True, retain_graph=True)[0] is None
        (by_late,) = torch.autograd.grad(y_cut.sum(), late)
        by_early, by_late_whole = torch.autograd.grad(y.sum(), [early, late])
        assert torch.all(by_early != 0)
        torch.testing.assert_close(by_late, by_late_whole, **EXACT)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_frames_that_the_mask_leaves_out_may_be_anything(cell: str) -> None:
    """NaN too: neither numbers nor gradients know of it, though 0 · NaN is NaN."""
    torch.manual_seed(0)
    form, mask = FORMS[cell], torch.tensor([[False, True, False, True]])
    state = random_state(form, 1, 3, 4, 4)
    results = []
    for filler in (0.0, math.nan, math.inf):
        weights = random_weights(form, peephole=() if cell == "lstm" else None)
        x = torch.ones(1, 4, 2, 4, 4, dtype=torch.float64)
        x[~mask] = filler
        tensors = [value.requires_grad_() for value in (x, *given(weights).values())]
        y, last = engine.run(x, state, weights, form, mask=mask)
        by_x, *by_weights = torch.autograd.grad(y.sum() + last[-1].sum(), tensors)
        assert torch.all(by_x[~mask] == 0)
        results.append([y, *last, by_x, *by_weights])
    for others in results[1:]:
        assert all(torch.equal(other, zeros) for other, zeros in zip(others, results[0], strict=True))


def test_outputs_share_no_memory_with_inputs_or_each_other() -> None:
    torch.manual_seed(0)
    mask = torch.tensor([[False], [True]])
    for form, used in ((FORM, None), (GRU, None), (FORM, mask), (GRU, mask), (FORM._replace(zoneout=(0.5, 0.5)), None)):
        x, state = torch.randn(2, 1, 2, 4, 4, dtype=torch.float64), random_state(form, 2, 3, 4, 4)
        y, last = engine.run(x, state, random_weights(form), form, mask=used)
        places = [value.untyped_storage().data_ptr() for value in (x, y, *state, *last)]
        assert len(set(places)) == len(places)


class Bytes(TorchDispatchMode):
    """Counts the bytes of tensors that operations made and that something still holds: Python or the backward graph."""

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        taken = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
        for value in tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage()._cdata not in taken:  # made here, and no view
                storage = value.untyped_storage()
                self.held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.count())
        return result

    def count(self) -> int:
        self.held = {key: entry for key, entry in self.held.items() if not entry[0].expired()}
        return sum(size for _, size in self.held.values())


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_checkpoints_keep_outputs_and_states_between_parts_for_the_backward(cell: str) -> None:
    """In units of one state, (B, F, Y, X). Without checkpoints each of 20 steps keeps its gates, at least six units.

    With one after every 5 of them, only outputs and the states after each part are there when the backward begins; it
    makes one part's steps anew at a time, a quarter of all, so that at its worst it holds less than half.
    """
    torch.manual_seed(0)
    form, w = FORMS[cell], random_weights(FORMS[cell], 1, 4)
    x, state = torch.randn(1, 20, 1, 32, 32, dtype=torch.float64), random_state(form, 1, 4, 32, 32)
    for value in given(w).values():
        value.requires_grad_()
    kept, peaks = [], []
    for every in (None, 5):
        with Bytes() as counter:
            y, last = engine.run(x, state, w, form, checkpoint_every=every, engine="reference")
            kept.append(counter.count() / state[0].nbytes)
            counter.peak = 0
            y.sum().backward()
            peaks.append(counter.peak / state[0].nbytes)
        del y, last
    assert kept[0] >= 6 * 20
    assert kept[1] == 20 + len(state) * 20 / 5
    assert peaks[1] < 0.5 * peaks[0]


def test_without_gradients_nothing_is_kept() -> None:
    torch.manual_seed(0)
    w = random_weights()
    for value in given(w).values():
        value.requires_grad_()
    x, state = torch.randn(1, 6, 2, 8, 8, dtype=torch.float64), random_state(FORM, 1, 3, 8, 8)
    for every in (None, 2):
        with torch.no_grad(), Bytes() as counter:
            y, last = engine.run(x, state, w, FORM, checkpoint_every=every)
            assert counter.count() == sum(value.nbytes for value in (y, *last))
