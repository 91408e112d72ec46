"""What ConvLSTM and ConvGRU share: dropout, zoneout and norms as a layer has them, precision, training, errors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from stormcell import engine
from stormcell.engine import Drop, reference
from stormcell.nn.recurrent import ACTIVATIONS

from .layers import CELLS, EXACT, LAYERS, each, random_layer

both_kinds = pytest.mark.parametrize("kind", ["lstm", "gru"])
GATES = {"lstm": 4, "gru": 3}


def tensors(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


# Dropout, zoneout, norms


@pytest.fixture
def drops(monkeypatch: pytest.MonkeyPatch) -> list[Drop]:
    """What each run of a layer, direction or cell leaves out, in their order."""
    seen = []

    def sequence(x: Tensor, state: Any, weights: Any, form: Any, mask: Tensor | None, drop: Drop) -> Any:
        seen.append(drop)
        return reference.sequence(x, state, weights, form, mask, drop)

    def nothing(*_: Any) -> None:
        return None

    spy = SimpleNamespace(sequence=sequence, unavailable=nothing, supports=nothing, passed_over=nothing)
    monkeypatch.setattr(engine, "_ENGINES", {"spy": spy})
    return seen


@both_kinds
@pytest.mark.parametrize("masks", ["gate", "shared"])
def test_masks_drop_as_often_as_they_say_and_make_up_for_it(kind: str, masks: str, drops: list[Drop]) -> None:
    """The share within five standard deviations; what is left is 1/(1-p) times as large."""
    torch.manual_seed(0)
    layer = LAYERS[kind, 2](3, 4, 3, input_dropout=0.3, recurrent_dropout=0.2, dropout_masks=masks, stride=2)
    layer(torch.randn(8, 2, 3, 30, 20))
    ((inputs, recurrent, training),) = drops
    assert training
    assert inputs is not None
    assert recurrent is not None
    rows = GATES[kind] if masks == "gate" else 1
    assert inputs.shape == (8, rows, 3, 30, 20)
    assert recurrent.shape == (8, rows, 4, 15, 10)  # of the state: half the frame
    for mask, p in ((inputs, 0.3), (recurrent, 0.2)):
        dropped = mask == 0
        torch.testing.assert_close(mask[~dropped].unique(), torch.tensor([1 / (1 - p)]))
        # Sample, gate, channel and pixel are drawn apart: two of them agree as often as two coins do.
        for a, b in (
            (dropped[0], dropped[1]),
            (dropped[:, :, 0], dropped[:, :, 1]),
            (dropped[..., 0], dropped[..., 1]),
        ):
            agree = p**2 + (1 - p) ** 2
            assert abs((a == b).double().mean() - agree) < 5 * (agree * (1 - agree) / a.numel()) ** 0.5
        for row in range(rows):
            share = dropped[:, row].double().mean()
            assert abs(share - p) < 5 * (p * (1 - p) / dropped[:, row].numel()) ** 0.5
            others = [other for other in range(rows) if other != row]
            assert all(0.5 < (dropped[:, row] == dropped[:, other]).double().mean() < 0.8 for other in others)


@both_kinds
def test_a_call_draws_new_masks_for_every_layer_and_direction(kind: str, drops: list[Drop]) -> None:
    torch.manual_seed(0)
    options = {"input_dropout": 0.3, "recurrent_dropout": 0.2}
    layer = LAYERS[kind, 2](4, 4, 3, num_layers=2, bidirectional=True, **options)
    x = torch.randn(2, 5, 4, 6, 6)
    layer(x)
    layer(x)
    assert len(drops) == 2 * 4  # one set of masks for all steps
    cell = CELLS[kind, 2](4, 4, 3, **options)
    cell(x[:, 0])
    cell(x[:, 0])
    assert len(drops) == 2 * 4 + 2
    for field in ("inputs", "recurrent"):
        for n, one in enumerate(drops):
            assert not any(torch.equal(getattr(one, field)[:, :, :4], getattr(o, field)[:, :, :4]) for o in drops[:n])


@both_kinds
def test_masks_are_the_same_at_every_step(kind: str) -> None:
    """Seen from outside: where nothing is remembered, equal frames have equal outputs, though much is dropped."""
    torch.manual_seed(0)
    layer = random_layer(LAYERS[kind, 2](2, 3, 3, input_dropout=0.5, dtype=torch.float64))
    with torch.no_grad():
        forget = slice(3, 6)  # f of an LSTM, z of a GRU: 0 makes the next state one of the frame alone
        layer.weight_hh_l0.zero_()
        layer.weight_ih_l0[forget] = 0
        layer.bias_l0[forget] = -1000
    x = torch.randn(1, 1, 2, 6, 6, dtype=torch.float64).expand(3, 4, -1, -1, -1)
    y, _ = layer(x)
    torch.testing.assert_close(y, y[:, :1].expand_as(y), **EXACT)
    again, _ = layer(x)
    assert not torch.allclose(y[0], y[1])
    assert not torch.allclose(y, again)
    y_eval, _ = layer.eval()(x)
    torch.testing.assert_close(y_eval, y_eval[:1, :1].expand_as(y), **EXACT)


@both_kinds
@pytest.mark.parametrize("option", ["dropout", "input_dropout", "recurrent_dropout", "zoneout"])
def test_what_is_random_changes_training_and_nothing_else(kind: str, option: str, drops: list[Drop]) -> None:
    """A version of Keras once had a dropout that did nothing. zoneout alone has an effect (its mean) on eval mode."""
    torch.manual_seed(0)
    plain = random_layer(LAYERS[kind, 2](2, 3, 3, num_layers=2, dtype=torch.float64))
    layer = random_layer(LAYERS[kind, 2](2, 3, 3, num_layers=2, **{option: 0.4}, dtype=torch.float64))
    x = torch.randn(2, 3, 2, 6, 6, dtype=torch.float64)
    y, _ = plain(x)
    first, second = layer(x)[0], layer(x)[0]
    assert (first - y).abs().max() > 0.01
    assert (first - second).abs().max() > 0.01
    del drops[:]
    y_eval, y_eval_again = layer.eval()(x)[0], layer(x)[0]
    assert all(drop == Drop(None, None, False) for drop in drops)
    torch.testing.assert_close(y_eval, y_eval_again, **EXACT)
    if option == "zoneout":
        assert (y_eval - y).abs().max() > 0.01
    else:
        torch.testing.assert_close(y_eval, y, **EXACT)


@both_kinds
def test_dropout_is_between_layers_and_not_after_the_last(kind: str) -> None:
    torch.manual_seed(0)
    layer = random_layer(LAYERS[kind, 2](2, 3, 3, num_layers=2, dropout=0.5, dtype=torch.float64))
    lower, upper = (LAYERS[kind, 2](channels, 3, 3, dropout=0.9, dtype=torch.float64) for channels in (2, 3))
    for n, single in enumerate((lower, upper)):
        own = {k.replace(f"_l{n}", "_l0"): v for k, v in layer.state_dict().items() if k.endswith(f"_l{n}")}
        single.load_state_dict(own)
    x = torch.randn(2, 3, 2, 6, 6, dtype=torch.float64)
    torch.manual_seed(1)
    y, state = layer(x)
    torch.manual_seed(1)
    between, state_0 = lower(x)
    expected, state_1 = upper(nnf.dropout(between, 0.5))
    torch.testing.assert_close(y, expected, **EXACT)
    for value, value_0, value_1 in zip(tensors(state), tensors(state_0), tensors(state_1)):
        torch.testing.assert_close(value, torch.cat([value_0, value_1]), **EXACT)


@both_kinds
@pytest.mark.parametrize("zoneout", [0.3, (0.2, 0.5)])
def test_zoneout_of_a_layer_keeps_part_of_each_tensor_of_its_state(kind: str, zoneout: Any) -> None:
    torch.manual_seed(0)
    if kind == "gru" and isinstance(zoneout, tuple):
        zoneout = zoneout[:1]
    layer = random_layer(LAYERS[kind, 2](2, 3, 3, zoneout=zoneout, dtype=torch.float64)).eval()
    cell = CELLS[kind, 2](2, 3, 3, dtype=torch.float64)
    cell.load_state_dict({name.removesuffix("_l0"): value for name, value in layer.state_dict().items()})
    x = torch.randn(2, 4, 2, 5, 5, dtype=torch.float64)
    y, last = layer(x)
    state = each(lambda value: torch.zeros_like(value[0]), last)
    for t in range(4):
        mixed = tuple(
            p * a + (1 - p) * b for p, a, b in zip(layer.zoneout, tensors(state), tensors(cell(x[:, t], state)))
        )
        state = mixed if kind == "lstm" else mixed[0]
        torch.testing.assert_close(y[:, t], mixed[0], **EXACT)
    torch.testing.assert_close(each(lambda value: value[0], last), state, **EXACT)


@both_kinds
def test_norms_by_name_and_their_gains(kind: str) -> None:
    """One gain for every gate's every channel, for each convolution, in every layer and direction; they start at 1."""
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 5, 5, dtype=torch.float64)

    def layer(**options: Any) -> Any:
        return LAYERS[kind, 2](2, 4, 3, **options, num_layers=2, bidirectional=True, dtype=torch.float64)

    fresh = layer(norm="layer")
    gains = {name: value for name, value in fresh.named_parameters() if name.startswith("norm")}
    assert set(gains) == {f"norm_{part}_l{n}{way}" for part in ("ih", "hh") for n in (0, 1) for way in ("", "_reverse")}
    assert all(value.shape == (4 * GATES[kind],) and torch.all(value == 1) for value in gains.values())
    fresh(x)[0].square().mean().backward()
    assert all(value.grad is not None and torch.all(value.grad != 0) for value in gains.values())

    def y(**options: Any) -> Tensor:
        return random_layer(layer(**options))(x)[0]

    torch.testing.assert_close(y(norm="layer"), y(norm="group", norm_groups=1), **EXACT)
    torch.testing.assert_close(y(norm="group"), y(norm="group", norm_groups=GATES[kind]), **EXACT)
    assert (y(norm="layer") - y(norm="group")).abs().max() > 0.01
    assert not any(name.startswith("norm") for name in layer().state_dict())
    assert "norm_ih_l0" not in LAYERS[kind, 2](0, 4, 3, norm="layer").state_dict()


# The state


@both_kinds
def test_gradients_reach_the_state_that_a_layer_is_given(kind: str) -> None:
    torch.manual_seed(0)
    layer = random_layer(LAYERS[kind, 2](1, 2, (1, 2), num_layers=2, bidirectional=True, dtype=torch.float64))
    x = torch.randn(1, 2, 1, 2, 2, dtype=torch.float64)
    start = tuple(torch.randn_like(value).requires_grad_() for value in tensors(layer(x)[1]))

    def run(*values: Tensor) -> tuple[Tensor, ...]:
        y, state = layer(x, values if kind == "lstm" else values[0])
        return y, *tensors(state)

    assert torch.autograd.gradcheck(run, start)


@both_kinds
def test_a_detached_state_cuts_the_backward_through_time(kind: str) -> None:
    torch.manual_seed(0)
    layer = random_layer(LAYERS[kind, 2](1, 2, 3, num_layers=2, dtype=torch.float64))
    early, late = torch.randn(2, 1, 3, 1, 4, 4, dtype=torch.float64)
    early.requires_grad_()
    _, state = layer(early)
    y, _ = layer(late, state)
    y_cut, _ = layer(late, each(Tensor.detach, state))
    assert torch.equal(y, y_cut)
    assert torch.autograd.grad(y_cut.sum(), early, allow_unused=True)[0] is None
    assert torch.all(torch.autograd.grad(y.sum(), early)[0] != 0)


# Precision


@both_kinds
@pytest.mark.parametrize("norm", [None, "layer"])
def test_what_sums_over_time_is_float32_in_half_precision(kind: str, norm: str | None) -> None:
    """Under autocast and with weights in bfloat16; in training, with everything random, and when the state comes back."""
    torch.manual_seed(0)
    options = {"input_dropout": 0.2, "recurrent_dropout": 0.2, "zoneout": 0.1, "dropout": 0.2, "norm": norm}
    mask = torch.tensor([[True, False, True], [False, True, True]])
    for dtype in (torch.float32, torch.bfloat16):
        layer = LAYERS[kind, 2](2, 3, 3, num_layers=2, bidirectional=True, **options, dtype=dtype)
        x, state = torch.randn(2, 3, 2, 5, 5).to(dtype), None
        for _ in range(2):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
                y, state = layer(x, state, mask=mask)
            assert tensors(state)[-1].dtype == torch.float32
            if dtype == torch.bfloat16:
                assert y.dtype == torch.bfloat16
        y, state = layer(x, state)  # the state of a call under autocast, after it
        assert y.dtype == dtype
        assert tensors(state)[-1].dtype == torch.float32
        y.sum().backward()
        assert all(value.grad is not None and value.grad.dtype == dtype for value in layer.parameters())


@both_kinds
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["autocast", "bfloat16 weights"])
def test_small_increments_add_up_in_half_precision(kind: str, dtype: torch.dtype) -> None:
    """A thousand steps that each add a thousandth: a sum in bfloat16 would stand still at a half, or before."""
    layer = LAYERS[kind, 1](1, 1, 1, dtype=dtype)
    biases = {"lstm": [20.0, 20.0, math.atanh(0.001), 0.0], "gru": [0.0, math.log(999), 20.0, 0.0]}[kind]
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        layer.bias_l0.copy_(torch.tensor(biases))
        x = torch.zeros(1, 500, 1, 1)
        precise = LAYERS[kind, 1](1, 1, 1, dtype=torch.float64)
        precise.load_state_dict(layer.state_dict())
        expected = tensors(precise(x.double(), precise(x.double())[1])[1])[-1]
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.float32):
            _, state = layer(x.to(dtype))
            _, state = layer(x.to(dtype), state)
    assert 0.6 < expected.item() < 1.01
    torch.testing.assert_close(tensors(state)[-1].double(), expected, rtol=1e-3, atol=0)


@dataclass
class Rough:
    """A value, and how far off a computation that rounds to bfloat16 here and there may be: 8 bits, so by 2⁻⁸ at most."""

    value: Tensor
    error: Tensor

    @classmethod
    def exact(cls, value: Tensor) -> Rough:
        return cls(value, torch.zeros_like(value))

    def __add__(self, other: Rough) -> Rough:
        return Rough(self.value + other.value, self.error + other.error)

    def __mul__(self, other: Rough) -> Rough:
        cross = self.error * other.value.abs() + self.value.abs() * other.error
        return Rough(self.value * other.value, cross + self.error * other.error)

    def rounded(self) -> Rough:
        return Rough(self.value, self.error + 2**-8 * (self.value.abs() + self.error))

    def convolved(self, weight: Tensor) -> Rough:
        w = Rough.exact(weight.detach()).rounded()
        widest = nnf.conv2d(self.value.abs() + self.error, w.value.abs() + w.error, padding=1)
        return Rough(
            nnf.conv2d(self.value, w.value, padding=1),
            widest - nnf.conv2d(self.value.abs(), w.value.abs(), padding=1),
        ).rounded()

    def squashed(self, function: Callable[[Tensor], Tensor], steepest: float) -> Rough:
        return Rough(function(self.value), steepest * self.error)

    def chunk(self, count: int) -> list[Rough]:
        return [Rough(v, e) for v, e in zip(self.value.chunk(count, 1), self.error.chunk(count, 1))]


@both_kinds
def test_autocast_rounds_no_more_than_it_must(kind: str) -> None:
    """Against float64, with the error of each rounding carried through the equations: frames, weights and h into a
    convolution, what it puts out, and h of an LSTM are bfloat16, and nothing else is."""
    torch.manual_seed(0)
    layer = random_layer(LAYERS[kind, 2](2, 3, 3))
    x = torch.randn(1, 2, 2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        y, _ = layer(x)
    w_x, w_h, bias = layer.weight_ih_l0.double(), layer.weight_hh_l0.double(), layer.bias_l0.detach().double()
    b = [Rough.exact(part.view(1, -1, 1, 1)) for part in bias.chunk(4)]
    h = c = Rough.exact(torch.zeros(1, 3, 6, 6, dtype=torch.float64))
    one, minus = Rough.exact(torch.ones_like(h.value)), Rough.exact(-torch.ones_like(h.value))
    for t in range(2):
        from_x, from_h = Rough.exact(x[:, t].double()).rounded().convolved(w_x), h.rounded().convolved(w_h)
        if kind == "lstm":
            i, f, g, o = (z + b_z for z, b_z in zip((from_x + from_h).rounded().chunk(4), b))
            i, f, o = (z.squashed(torch.sigmoid, 0.25) for z in (i, f, o))
            c = f * c + i * g.squashed(torch.tanh, 1)
            h = (o * c.squashed(torch.tanh, 1)).rounded()
        else:
            (r_x, z_x, n_x), (r_h, z_h, n_h) = from_x.chunk(3), from_h.chunk(3)
            r, z = (v.squashed(torch.sigmoid, 0.25) for v in (r_x + r_h + b[0], z_x + z_h + b[1]))
            n = (n_x + b[2] + r * (n_h + b[3])).squashed(torch.tanh, 1)
            h = (one + minus * z) * n + z * h
        off = (y[:, t].double() - h.value).abs()
        assert torch.all(off <= h.error + 1e-6)  # 1e-6: a few roundings of float32
        assert 1e-4 < off.max() < h.error.max() < 0.25  # it does compute in bfloat16, and the bound says something


# Training


@both_kinds
@pytest.mark.parametrize("checkpoint_every", [None, 2])
@pytest.mark.parametrize("autocast", [False, True])
def test_steps_of_training_lower_the_loss(kind: str, checkpoint_every: int | None, autocast: bool) -> None:
    torch.manual_seed(0)
    layer = LAYERS[kind, 2](1, 4, 3, num_layers=2, norm="group", checkpoint_every=checkpoint_every)
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.01)
    x = torch.rand(4, 5, 1, 8, 8)
    truth = x.roll(1, 1).expand(-1, -1, 4, -1, -1) * 0.5  # the frame before: only a memory knows it
    losses = []
    for _ in range(12):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, _ = layer(x)
            loss = nnf.mse_loss(y[:, 1:].float(), truth[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


@both_kinds
def test_under_autocast_checkpoints_change_no_output(kind: str) -> None:
    """Gradients of weights are summed over 5 steps in bfloat16, in one order or another: each sum rounds by 2⁻⁸ at most."""
    results = []
    for checkpoint_every in (None, 2):
        layer = random_layer(LAYERS[kind, 2](1, 3, 3, zoneout=0.2, checkpoint_every=checkpoint_every))
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16):
            y, state = layer(torch.randn(2, 5, 1, 5, 5))
        y.float().square().sum().backward()
        results.append([y, *tensors(state), *(value.grad for value in layer.parameters())])
    count = len(results[0]) - len(list(layer.parameters()))
    for plain, checkpointed in zip(*(values[:count] for values in results)):
        assert torch.equal(checkpointed, plain)
    for plain, checkpointed in zip(*(values[count:] for values in results)):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=2 * 5 * 2**-8 * plain.abs().max().item())


@both_kinds
def test_weights_may_be_made_by_parametrizations(kind: str) -> None:
    """weight_norm, say, leaves a layer without bias no parameter of its own."""
    torch.manual_seed(0)
    layer = random_layer(LAYERS[kind, 2](1, 3, 3, bias=False, dtype=torch.float64))
    x = torch.randn(1, 3, 1, 5, 5, dtype=torch.float64)
    expected, _ = layer(x)
    for name in ("weight_ih_l0", "weight_hh_l0"):
        parametrizations.weight_norm(layer, name)
    y, _ = layer(x)
    torch.testing.assert_close(y, expected, **EXACT)
    y.sum().backward()
    assert all(value.grad is not None for value in layer.parameters())


# Arguments and errors


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_is_what_its_name_says_in_keras(name: str) -> None:
    z = torch.linspace(-9, 9, 181, dtype=torch.float64)
    softplus = torch.log(1 + torch.exp(z))
    alpha, scale = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, appendix: "magic numbers"
    expected = {
        "tanh": torch.tanh(z),
        "sigmoid": 1 / (1 + torch.exp(-z)),
        "relu": z.clamp(min=0),
        "hard_sigmoid": (z / 6 + 0.5).clamp(0, 1),
        "keras2_hard_sigmoid": (z / 5 + 0.5).clamp(0, 1),
        "linear": z,
        "elu": torch.where(z > 0, z, torch.exp(z) - 1),
        "exponential": torch.exp(z),
        "gelu": z * (1 + torch.erf(z / 2**0.5)) / 2,
        "mish": z * torch.tanh(softplus),
        "relu6": z.clamp(0, 6),
        "selu": scale * torch.where(z > 0, z, alpha * (torch.exp(z) - 1)),
        "silu": z / (1 + torch.exp(-z)),
        "softplus": softplus,
        "softsign": z / (1 + z.abs()),
    }
    torch.testing.assert_close(ACTIVATIONS[name](z), expected[name], **EXACT)


@both_kinds
@pytest.mark.parametrize("name", ["softsign", "relu"])
def test_both_activations_go_where_they_belong(kind: str, name: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 2, 4, 4, dtype=torch.float64)

    def y(activation: Any, recurrent_activation: Any) -> Tensor:
        options = {"activation": activation, "recurrent_activation": recurrent_activation}
        return random_layer(LAYERS[kind, 2](2, 3, 3, **options, dtype=torch.float64))(x)[0]

    function = ACTIVATIONS[name]
    torch.testing.assert_close(y(name, "sigmoid"), y(function, torch.sigmoid), **EXACT)
    torch.testing.assert_close(y("tanh", name), y(torch.tanh, function), **EXACT)
    assert (y(name, "sigmoid") - y("tanh", name)).abs().max() > 0.01


SHARED_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"in_channels": -1}, r"in_channels must be ≥ 0 and hidden_channels ≥ 1\. Received: -1 and 2"),
    ({"hidden_channels": 0}, r"hidden_channels ≥ 1\. Received: 1 and 0"),
    ({"kernel_size": 0}, r"kernel_size must be an integer ≥ 1, or 2 of them\. Received: 0"),
    ({"kernel_size": 2.5}, r"kernel_size must be an integer ≥ 1, or 2 of them\. Received: 2.5"),
    ({"kernel_size": None}, r"kernel_size must be an integer ≥ 1, or 2 of them\. Received: None"),
    ({"kernel_size": (3, 3, 3)}, r"kernel_size must be an integer ≥ 1, or 2 of them\. Received: \(3, 3, 3\)"),
    ({"kernel_size": (3, "3")}, "kernel_size must be"),
    ({"recurrent_kernel_size": (3,)}, r"recurrent_kernel_size must be an integer ≥ 1, or 2 of them\. Received: \(3,\)"),
    ({"stride": 0}, "stride must be an integer ≥ 1, or 2 of them. Received: 0"),
    ({"dilation": (1, 0)}, r"dilation must be an integer ≥ 1, or 2 of them\. Received: \(1, 0\)"),
    ({"padding": -1}, "padding must be an integer ≥ 0, or 2 of them. Received: -1"),
    ({"padding": "causal"}, """padding must be "same", "valid", an integer or a tuple. Received: 'causal'"""),
    ({"stride": (1, 2), "dilation": 2}, r"stride > 1 does not go with dilation > 1\. Received: \(1, 2\) and 2"),
    ({"activation": "tahn"}, "^activation must be callable or one of tanh, .*softsign. Received: 'tahn'"),
    ({"recurrent_activation": "swish"}, "recurrent_activation must be callable or one of tanh, .* Received: 'swish'"),
    ({"input_dropout": 1.0}, r"input_dropout must lie in \[0, 1\)\. Received: 1.0"),
    ({"recurrent_dropout": -0.1}, r"recurrent_dropout must lie in \[0, 1\)\. Received: -0.1"),
    ({"input_dropout": math.nan}, r"input_dropout must lie in \[0, 1\)\. Received: nan"),
    ({"dropout_masks": "time"}, """dropout_masks must be "gate" or "shared". Received: 'time'"""),
    ({"zoneout": 1}, r"zoneout must lie in \[0, 1\)\. Received: 1"),
    (
        {"zoneout": (0.1, 0.1, 0.1)},
        r"zoneout must be a probability, or one for each of h.* Received: \(0.1, 0.1, 0.1\)",
    ),
    ({"norm": "batch"}, """norm must be None, "layer" or "group". Received: 'batch'"""),
    ({"norm_groups": 2}, 'norm_groups goes with norm="group" only'),
    ({"norm": "layer", "norm_groups": 2}, 'norm_groups goes with norm="group" only'),
    ({"norm": "group", "norm_groups": 5}, r"norm_groups must divide the (8|6) gate channels\. Received: 5"),
    ({"norm": "group", "norm_groups": 0}, r"norm_groups must divide the (8|6) gate channels\. Received: 0"),
]
LAYER_MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"num_layers": 0}, "num_layers must be ≥ 1. Received: 0"),
    ({"bidirectional": True, "reverse": True}, "runs in both directions already: leave out reverse=True"),
    ({"checkpoint_every": 0}, "checkpoint_every must be None or ≥ 1. Received: 0"),
    ({"dropout": 1.5}, r"^dropout must lie in \[0, 1\)\. Received: 1.5"),
]


@both_kinds
@pytest.mark.parametrize(("mistake", "message"), [*SHARED_MISTAKES, *LAYER_MISTAKES])
def test_wrong_arguments_are_named_with_what_was_received(kind: str, mistake: dict[str, Any], message: str) -> None:
    options = {"in_channels": 1, "hidden_channels": 2, "kernel_size": 3, **mistake}
    with pytest.raises(ValueError, match=message):
        LAYERS[kind, 2](**options)
    if (mistake, message) in SHARED_MISTAKES:
        with pytest.raises(ValueError, match=message):
            CELLS[kind, 2](**options)


@pytest.mark.parametrize("taken", [*LAYERS.values(), *CELLS.values()], ids=lambda taken: taken.__name__)
def test_misspelt_and_misplaced_options_raise(taken: Any) -> None:
    with pytest.raises(TypeError, match="zone_out"):
        taken(1, 2, 3, zone_out=0.1)
    with pytest.raises(TypeError, match="positional"):
        taken(1, 2, 3, 3)
    layer = taken(1, 2, 1)
    x = torch.zeros((1,) * (layer.dims + (3 if taken in LAYERS.values() else 2)))
    with pytest.raises(TypeError, match="masks"):
        layer(x, masks=None)
    with pytest.raises(TypeError, match="positional"):
        layer(x, None, None)


@both_kinds
def test_shapes_that_do_not_fit_are_named_as_the_caller_sees_them(kind: str) -> None:
    layer, times_first = LAYERS[kind, 2](1, 2, 3), LAYERS[kind, 2](1, 2, 3, batch_first=False)
    cell, valid = CELLS[kind, 2](1, 2, 3), LAYERS[kind, 2](1, 2, (3, 5), padding="valid")

    def raises(message: str, call: Any, *arguments: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=message):
            call(*arguments, **options)

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(shape)

    x = zeros(2, 3, 1, 4, 4)
    raises(r"expected x \(B, T, C, Y, X\) with 1 channels. Received: \(2, 3, 4, 4, 1\)", layer, zeros(2, 3, 4, 4, 1))
    raises(r"expected x \(T, B, C, Y, X\) with 1 channels. Received: \(4, 4\)", times_first, zeros(4, 4))
    raises(r"expected x \(T, C, Y, X\) with 1 channels. Received: \(3, 2, 4, 4\)", layer, zeros(3, 2, 4, 4))
    raises(r"expected x \(B, C, Y, X\) with 1 channels. Received: \(3, 2, 4, 4\)", cell, zeros(3, 2, 4, 4))
    raises(r"expected x \(C, Y, X\) with 1 channels. Received: \(2, 4, 4\)", cell, zeros(2, 4, 4))
    raises(r"expected x \(B, T, C, Z, Y, X\)", LAYERS[kind, 3](1, 2, 3), zeros(2, 3, 1, 4))
    raises("a sequence needs at least one step", layer, zeros(2, 0, 1, 4, 4))
    raises(r"frames of \(3, 4\) are smaller than the kernel \(3, 5\) with padding 'valid'", valid, zeros(1, 1, 1, 3, 4))
    raises("smaller than the kernel", layer, zeros(2, 3, 1, 0, 4))

    good, wide = zeros(1, 2, 2, 4, 4), zeros(1, 2, 2, 4, 5)
    states = {"lstm": [(wide, good), (good, wide)], "gru": [wide]}[kind]
    for state, name in zip(states, "hc"):
        message = rf"state {name} must have the shape \(1, 2, 2, 4, 4\). Received: \(1, 2, 2, 4, 5\)"
        raises(message, layer, x, state)
    raises("state h must have the shape", cell, x[:, 0], each(lambda value: value, states[0]))
    if kind == "lstm":
        raises(r"state must be \(h, c\). Received: 1 tensors", layer, x, (good,))
        raises(r"state must be \(h, c\). Received: 3 tensors", layer, x, (good, good, good))
    else:
        raises(r"state h must have the shape .* Received: a tuple", layer, x, (good,))

    raises(r"mask must have the shape \(2, 3\). Received: \(3, 2\)", layer, x, mask=zeros(3, 2))
    raises(r"mask must have the shape \(3, 2\). Received: \(2, 3\)", times_first, x.transpose(0, 1), mask=zeros(2, 3))
    raises(r"mask must have the shape \(3,\). Received: \(1, 3\)", layer, x[0], mask=zeros(1, 3))
    raises("give mask or lengths, not both", layer, x, mask=torch.ones(2, 3), lengths=[3, 3])
    raises(r"lengths must have the shape \(2,\). Received: \(3,\)", layer, x, lengths=[1, 2, 3])
    raises(r"lengths must lie between 0 and 3. Received: \[4, 1\]", layer, x, lengths=[4, 1])
    raises(r"lengths must lie between 0 and 3. Received: \[2, -1\]", layer, x, lengths=torch.tensor([2, -1]))
    raises("a bidirectional layer cannot stream", LAYERS[kind, 2](1, 2, 3, bidirectional=True).step, x[:, 0])
    raises(
        "unknown engine. Expected one of: auto, .*reference.* Received: 'warp'",
        LAYERS[kind, 2](1, 2, 3, engine="warp"),
        x,
    )


def test_arguments_are_those_given_with_sizes_for_each_axis() -> None:
    given = {
        "in_channels": 2,
        "hidden_channels": 4,
        "kernel_size": (3, 5),
        "recurrent_kernel_size": (1, 3),
        "stride": (2, 1),
        "padding": (1, 0),
        "dilation": (1, 1),
        "bias": False,
        "num_layers": 3,
        "bidirectional": True,
        "reverse": False,
        "batch_first": False,
        "activation": "relu",
        "recurrent_activation": torch.sigmoid,
        "dropout": 0.1,
        "input_dropout": 0.2,
        "recurrent_dropout": 0.3,
        "dropout_masks": "shared",
        "norm": "group",
        "norm_groups": 2,
        "checkpoint_every": 7,
        "engine": "reference",
    }
    lstm = {**given, "peephole": "pixel", "frame_size": (9, 8), "unit_forget_bias": False, "zoneout": (0.4, 0.5)}
    lstm["periodic_x"] = False
    assert LAYERS["lstm", 2](**lstm).arguments() == lstm
    assert LAYERS["gru", 2](**given, zoneout=0.4).arguments() == {**given, "zoneout": (0.4,)}
    layers_only = ("num_layers", "bidirectional", "reverse", "batch_first", "dropout", "checkpoint_every", "periodic_x")
    of_cell = {name: value for name, value in lstm.items() if name not in layers_only}
    assert CELLS["lstm", 2](**of_cell).arguments() == of_cell


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (LAYERS["lstm", 2](1, 8, 3), "ConvLSTM2d(1, 8, kernel_size=(3, 3))"),
        (LAYERS["gru", 1](1, 8, 3, recurrent_kernel_size=3, stride=1), "ConvGRU1d(1, 8, kernel_size=(3,))"),
        (
            LAYERS["lstm", 2](1, 8, (3, 5), recurrent_kernel_size=3, peephole="pixel", frame_size=4, bias=False),
            "ConvLSTM2d(1, 8, kernel_size=(3, 5), recurrent_kernel_size=(3, 3), peephole='pixel', frame_size=(4, 4), "
            "bias=False)",
        ),
        (
            LAYERS["gru", 1](0, 2, 3, zoneout=0.1, padding=1, batch_first=False),
            "ConvGRU1d(0, 2, kernel_size=(3,), padding=(1,), batch_first=False, zoneout=(0.1,))",
        ),
        (
            CELLS["lstm", 3](1, 2, 1, norm="group", norm_groups=2, zoneout=(0.0, 0.1)),
            "ConvLSTMCell3d(1, 2, kernel_size=(1, 1, 1), zoneout=(0.0, 0.1), norm='group', norm_groups=2)",
        ),
    ],
)
def test_repr_shows_what_differs_from_the_defaults(layer: nn.Module, expected: str) -> None:
    assert repr(layer) == expected
