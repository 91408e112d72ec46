"""What holds for every layer, whatever its options: checked on options and shapes that hypothesis draws."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import stormcell.nn

from .layers import CELLS, EXACT, LAYERS, each, random_layer


def examples(count: int) -> settings:
    """The same examples in every run, however slow the machine."""
    return settings(
        max_examples=count,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )


@dataclass(frozen=True)
class Case:
    """A layer and frames that fit it. Options that only training has are there too: eval mode must not know them."""

    kind: str
    dims: int
    options: dict[str, Any]
    frame: tuple[int, ...]
    batch: int
    steps: int
    seed: int

    def layer(self, **changed: Any) -> Any:
        options = {**self.options, **changed}
        return random_layer(LAYERS[self.kind, self.dims](**options, dtype=torch.float64), self.seed).eval()

    @property
    def time(self) -> int:
        return 1 if self.options["batch_first"] else 0

    def frames(self) -> Tensor:
        """x with the axes that the layer takes."""
        torch.manual_seed(self.seed)
        x = torch.randn(self.batch, self.steps, self.options["in_channels"], *self.frame, dtype=torch.float64)
        return x if self.time == 1 else x.transpose(0, 1)

    def mask(self) -> Tensor:
        """Any steps, (B, T): now and then a sample has none."""
        generator = torch.Generator().manual_seed(self.seed)
        return torch.rand(self.batch, self.steps, generator=generator) > 0.4

    def with_time(self, mask: Tensor) -> Tensor:
        return mask if self.time == 1 else mask.T


@st.composite
def cases(draw: st.DrawFn, **fixed: Any) -> Case:
    """Any options that fit each other, and frames down to the smallest that go through."""
    kind, dims = draw(st.sampled_from(["lstm", "gru"])), draw(st.sampled_from([1, 2, 2, 3]))
    hidden = draw(st.integers(1, 3))

    def sizes(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    ones = (1,) * dims
    kernel = sizes(1, 4)
    stride, dilation = draw(st.sampled_from([(ones, ones), (sizes(1, 3), ones), (ones, sizes(1, 3))]))
    padding = draw(st.sampled_from(["same", "same", "valid", 1, sizes(0, 2)]))
    added = {"same": kernel, "valid": (0,) * dims, 1: ones}.get(padding, padding)
    smallest = [1 if padding == "same" else max(1, (k - 1) * d + 1 - 2 * p) for k, d, p in zip(kernel, dilation, added)]
    frame = tuple(n + draw(st.integers(0, 3)) for n in smallest)
    norm = draw(st.sampled_from([None, None, "layer", "group"]))
    gates = (4 if kind == "lstm" else 3) * hidden
    # Groups of one channel on one pixel would have no variance, which torch takes for a mistake in a batch of one.
    groups = [n for n in range(1, gates) if gates % n == 0]
    directions = draw(st.sampled_from(["forward", "reverse", "bidirectional"]))
    options: dict[str, Any] = {
        "in_channels": draw(st.sampled_from([0, 1, 2, 2])),
        "hidden_channels": hidden,
        "kernel_size": kernel,
        "recurrent_kernel_size": draw(st.sampled_from([None, sizes(1, 3)])),
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "bias": draw(st.booleans()),
        "num_layers": draw(st.sampled_from([1, 1, 2])),
        "bidirectional": directions == "bidirectional",
        "reverse": directions == "reverse",
        "batch_first": draw(st.booleans()),
        "activation": draw(st.sampled_from(["tanh", "relu", "softsign"])),
        "recurrent_activation": draw(st.sampled_from(["sigmoid", "hard_sigmoid", "keras2_hard_sigmoid"])),
        "dropout": draw(st.sampled_from([0.0, 0.4])),
        "input_dropout": draw(st.sampled_from([0.0, 0.3])),
        "recurrent_dropout": draw(st.sampled_from([0.0, 0.2])),
        "dropout_masks": draw(st.sampled_from(["gate", "shared"])),
        "zoneout": draw(st.sampled_from([0.0, 0.25, (0.1, 0.5) if kind == "lstm" else (0.5,)])),
        "norm": norm,
        "norm_groups": draw(st.sampled_from(groups)) if norm == "group" else None,
    }
    if kind == "lstm":
        peephole = draw(st.sampled_from([None, "channel", "pixel"]))
        options |= {"peephole": peephole, "frame_size": frame if peephole == "pixel" else None}
    options |= fixed
    batch, steps, seed = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(0, 1000))
    return Case(kind, dims, options, frame, batch, steps, seed)


def tensors(y: Tensor, state: Any) -> tuple[Tensor, ...]:
    return (y, *(state if isinstance(state, tuple) else (state,)))


def of_sample(state: Any, sample: int | Tensor) -> Any:
    return each(lambda value: value[:, sample], state)


def close(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, **EXACT)


@examples(100)
@given(cases(bidirectional=False), st.floats(0, 1))
def test_a_sequence_in_parts_or_steps_is_the_whole(case: Case, place: float) -> None:
    """A layer with reverse=True takes the parts and steps from the last to the first."""
    layer, x, time = case.layer(), case.frames(), case.time
    start = each(torch.randn_like, layer(x)[1])
    y, last = layer(x, start)

    cut = round(place * (case.steps - 1))
    parts = [part for part in x.split([cut, case.steps - cut], dim=time) if part.shape[time]]
    outputs, state = [], start
    for part in reversed(parts) if layer.reverse else parts:
        y_part, state = layer(part, state)
        outputs.append(y_part)
    close(torch.cat(outputs[::-1] if layer.reverse else outputs, dim=time), y)
    close(state, last)

    state = start
    order = range(case.steps)
    for t in reversed(order) if layer.reverse else order:
        y_t, state = layer.step(x.select(time, t), state)
        close(y_t, y.select(time, t))
    close(state, last)


@examples(40)
@given(cases(num_layers=1, bidirectional=False, reverse=False, batch_first=True))
def test_a_cell_is_one_step_of_a_layer(case: Case) -> None:
    layer, x = case.layer(), case.frames()
    cell_class = CELLS[case.kind, case.dims]
    taken = inspect.signature(cell_class).parameters
    cell = cell_class(**{k: v for k, v in case.options.items() if k in taken}, dtype=torch.float64).eval()
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    y, last = layer(x)
    state = None
    for t in range(case.steps):
        state = cell(x[:, t], state)
        close(state[0] if case.kind == "lstm" else state, y[:, t])
    close(each(lambda value: value.unsqueeze(0), state), last)


@examples(60)
@given(cases(reverse=True, bidirectional=False))
def test_reverse_is_a_flip_before_and_after(case: Case) -> None:
    backward, forward, x = case.layer(), case.layer(reverse=False), case.frames()
    mask = case.with_time(case.mask())
    flipped, last = forward(x.flip(case.time), mask=mask.flip(case.time))
    close(backward(x, mask=mask), (flipped.flip(case.time), last))


@examples(40)
@given(cases(bidirectional=True, reverse=False, num_layers=1))
def test_bidirectional_is_a_forward_and_a_reverse_layer_side_by_side(case: Case) -> None:
    both, x, mask = case.layer(), case.frames(), case.with_time(case.mask())
    forward, backward = case.layer(bidirectional=False), case.layer(bidirectional=False, reverse=True)
    weights = both.state_dict()
    forward.load_state_dict({k: v for k, v in weights.items() if not k.endswith("_reverse")})
    backward.load_state_dict({k.removesuffix("_reverse"): v for k, v in weights.items() if k.endswith("_reverse")})
    start = each(torch.randn_like, both(x)[1])
    y, last = both(x, start, mask=mask)
    y_f, last_f = forward(x, each(lambda value: value[:1], start), mask=mask)
    y_b, last_b = backward(x, each(lambda value: value[1:], start), mask=mask)
    close(y, torch.cat([y_f, y_b], dim=2))
    close(each(lambda value: value[:1], last), last_f)
    close(each(lambda value: value[1:], last), last_b)


@examples(60)
@given(cases())
def test_samples_know_nothing_of_each_other(case: Case) -> None:
    """Neither of their order nor of their number; alone, a sample may come without batch axis."""
    layer, x, mask = case.layer(), case.frames(), case.mask()
    batch_axis = 1 - case.time
    start = each(torch.randn_like, layer(x)[1])
    y, last = layer(x, start, mask=case.with_time(mask))

    order = torch.randperm(case.batch, generator=torch.Generator().manual_seed(case.seed))
    y_p, last_p = layer(x.index_select(batch_axis, order), of_sample(start, order), mask=case.with_time(mask[order]))
    close(y_p, y.index_select(batch_axis, order))
    close(last_p, of_sample(last, order))

    for sample in range(case.batch):
        y_1, last_1 = layer(x.select(batch_axis, sample), of_sample(start, sample), mask=mask[sample])
        close(y_1, y.select(batch_axis, sample))
        close(last_1, of_sample(last, sample))
        if not layer.bidirectional:
            y_t, state = layer.step(x.select(batch_axis, sample)[0], of_sample(start, sample))
            y_b, states = layer.step(x.select(case.time, 0), start)
            close(y_t, y_b[sample])
            close(state, of_sample(states, sample))


@examples(60)
@given(cases())
def test_steps_under_the_mask_might_as_well_not_be_there(case: Case) -> None:
    layer, x, mask = case.layer(), case.frames(), case.mask()
    batch_axis = 1 - case.time
    start = each(torch.randn_like, layer(x)[1])
    y, last = layer(x, start, mask=case.with_time(mask))
    for sample in range(case.batch):
        own = of_sample(start, sample)
        if mask[sample].any():
            y_used, last_used = layer(x.select(batch_axis, sample)[mask[sample]], own)
        else:
            y_used, last_used = y.new_zeros(0, *y.shape[2:]), own
        y_own = y.select(batch_axis, sample)
        close(y_own[mask[sample]], y_used)
        close(of_sample(last, sample), last_used)
        if layer.bidirectional:
            continue
        shown = torch.zeros_like(y_own[0])
        for t in range(case.steps)[:: -1 if layer.reverse else 1]:
            shown = y_own[t] if mask[sample, t] else shown
            close(y_own[t], shown)


@examples(30)
@given(cases())
def test_lengths_are_short_for_a_mask(case: Case) -> None:
    layer, x = case.layer(), case.frames()
    lengths = torch.randint(case.steps + 1, (case.batch,), generator=torch.Generator().manual_seed(case.seed))
    mask = torch.stack([torch.arange(case.steps) < n for n in lengths])
    expected = layer(x, mask=case.with_time(mask))
    close(layer(x, lengths=lengths), expected)
    close(layer(x, lengths=lengths.tolist()), expected)


@examples(50)
@given(cases(norm=None, norm_groups=None), st.data())
def test_where_rain_moves_its_output_moves(case: Case, data: st.DataObject) -> None:
    """A shift by the stride is a shift of the output by one pixel, wherever neither border is seen."""
    assume(case.options.get("peephole") != "pixel")
    layer = case.layer()
    axis = data.draw(st.integers(0, case.dims - 1))
    kernel, recurrent, stride, reach = (
        layer.kernel_size[axis],
        layer.recurrent_kernel_size[axis],
        layer.stride[axis],
        (layer.kernel_size[axis] - 1) * layer.dilation[axis],
    )
    seen = -(-max(reach, 2) // stride) + 1  # output pixels that see a border through the first convolution; padding ≤ 2
    seen += (layer.num_layers - 1) * (kernel - 1) + layer.num_layers * case.steps * (recurrent - 1)
    frame = list(case.frame)
    frame[axis] = stride * (2 * seen + 5) + reach
    longer = replace(case, frame=tuple(frame)).frames()
    from_end = axis - case.dims
    n = frame[axis] - stride
    y, _ = layer(longer.narrow(from_end, 0, n))
    moved, _ = layer(longer.narrow(from_end, stride, n))
    inner = y.shape[from_end] - 2 * seen - 1
    assert inner > 1
    close(moved.narrow(from_end, seen, inner), y.narrow(from_end, seen + 1, inner))


@examples(40)
@given(cases(in_channels=2), st.integers(1, 6), st.booleans())
def test_checkpoints_change_no_number(case: Case, every: int, masked: bool) -> None:
    """In training, where dropout and zoneout must be drawn alike twice; outputs to the bit, gradients but for rounding."""
    mask = case.with_time(case.mask()) if masked else None
    outputs, gradients = [], []
    for checkpoint_every in (None, every):
        layer, x = case.layer(checkpoint_every=checkpoint_every), case.frames().requires_grad_()
        start = each(lambda v: torch.full_like(v, 0.3).requires_grad_(), layer(x)[1])
        torch.manual_seed(case.seed)
        y, last = layer.train()(x, start, mask=mask)
        outputs.append(tensors(y, last))
        torch.autograd.backward([value.sin().sum() for value in outputs[-1]])
        gradients.append({name: p.grad for name, p in layer.named_parameters()})
        gradients[-1] |= {f"input {i}": value.grad for i, value in enumerate(tensors(x, start))}
    assert all(torch.equal(ours, plain) for ours, plain in zip(outputs[1], outputs[0]))
    close(gradients[1], gradients[0])


@examples(60)
@given(cases())
def test_a_layer_is_written_so_that_its_twin_can_be_made(case: Case) -> None:
    """By its arguments and by its repr, which leaves out what is at its default."""
    layer, x = case.layer(), case.frames()
    for twin in (type(layer)(**layer.arguments()), eval(repr(layer), vars(stormcell.nn))):
        assert twin.arguments() == layer.arguments()
        assert {k: v.shape for k, v in twin.state_dict().items()} == {k: v.shape for k, v in layer.state_dict().items()}
        twin.to(torch.float64).eval().load_state_dict(layer.state_dict())
        close(twin(x), layer(x))
    assert len(inspect.signature(type(layer)).parameters) == len(layer.arguments()) + 2  # device and dtype
