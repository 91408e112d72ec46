"""The same numbers as Keras: every combination of what its ConvLSTM layers can do, against Keras itself, weights random.

Weights have a standard deviation of 1/√fan-in: larger ones make the recurrence chaotic, so that rounding is all one measures.
"""

from __future__ import annotations

import itertools
import random
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'stormcell[keras]'")

import stormcell.interop.keras  # noqa: E402
from stormcell.engine import native  # noqa: E402
from stormcell.interop import from_keras  # noqa: E402

# Keras hands its variables to NumPy in a way that NumPy 2 dislikes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)

SIZES = {1: (7,), 2: (7, 6), 3: (5, 6, 4)}
ODD = {1: (3,), 2: (3, 5), 3: (3, 1, 3)}
EVEN = {1: (4,), 2: (2, 4), 3: (2, 3, 2)}
GEOMETRY = {
    "plain": {},
    "strided": {"strides": {1: (2,), 2: (2, 3), 3: (2, 1, 2)}},
    "dilated": {"dilation_rate": {1: (2,), 2: (2, 1), 3: (2, 1, 1)}},
}
ACTIVATIONS = [
    ("tanh", "sigmoid"),
    ("relu", "hard_sigmoid"),
    ("softsign", "hard_sigmoid"),
    ("elu", "sigmoid"),
    ("linear", "sigmoid"),
]


class Case(NamedTuple):
    dims: int
    size: tuple[int, ...]
    channels: int
    filters: int
    options: dict[str, Any]
    mask: str  # "none", "random", "late": the first steps are masked
    initial_state: bool

    def __str__(self) -> str:
        options = [f"{key}={value}" for key, value in self.options.items() if key not in ("return_state",)]
        parts = [f"{self.dims}D {self.filters} on {'×'.join(map(str, self.size))}", *options, f"mask {self.mask}"]
        return " ".join(parts + ["state"] * self.initial_state).replace("'", "")


def cases() -> list[Case]:
    choose = random.Random(0).choice
    found = []

    def add(dims: int, size: tuple[int, ...], channels: int, filters: int, mask: str, **given: Any) -> None:
        activation, recurrent_activation = choose(ACTIVATIONS)
        options = {
            **given,
            "activation": activation,
            "recurrent_activation": recurrent_activation,
            "use_bias": choose([True, True, False]),
            "go_backwards": choose([False, True]),
            "return_sequences": choose([True, True, False]),
            "return_state": choose([True, True, False]),
            "zero_output_for_mask": mask != "none" and choose([True, False]),
        }
        found.append(Case(dims, size, channels, filters, options, mask, choose([False, True])))

    every = itertools.product((1, 2, 3), ("same", "valid"), GEOMETRY, (ODD, EVEN), ("channels_last", "channels_first"))
    for dims, padding, geometry, kernels, data_format in every:
        shaped = {key: value[dims] for key, value in GEOMETRY[geometry].items()}
        for mask in ("none", "random", "late", choose(["none", "random", "late"])):
            common = {"kernel_size": kernels[dims], "padding": padding, "data_format": data_format}
            add(dims, SIZES[dims], 2, 3, mask, **common, **shaped)
    wide = itertools.product(("same", "valid"), GEOMETRY, ((3, 3), (5, 5), (4, 4)), ("none", "random"))
    for padding, geometry, kernel, mask in wide:
        shaped = {key: value[2] for key, value in GEOMETRY[geometry].items()}
        add(2, (16, 18), choose([1, 16]), choose([32, 48]), mask, kernel_size=kernel, padding=padding, **shaped)
    return found


CASES = cases()


def test_there_are_enough_combinations() -> None:
    assert len(set(map(str, CASES))) >= 300
    assert sum(case.filters >= 32 and min(case.size) >= 16 for case in CASES) >= 30


MOST = {"reference": 4, "bptt": 4, "winograd": 16}  # times Keras' own rounding error in float32


def is_for_winograd(case: Case) -> bool:
    """Written out here, so that a rule which leaves out too much is found: the engine raises for what it cannot compute."""
    kernel = case.options["kernel_size"]
    return native.LIBRARY is not None and (kernel == (3, 3) or (kernel == (5, 5) and case.filters >= 16))


def test_winograd_has_its_share() -> None:
    assert sum(case.options["kernel_size"] in ((3, 3), (5, 5)) for case in CASES) >= 24


def keras_layer(module: Any, case: Case, dtype: str, **ours: Any) -> Any:
    return getattr(module, f"ConvLSTM{case.dims}D")(case.filters, **case.options, **ours, dtype=dtype)


def channels_first(frames: torch.Tensor, case: Case) -> torch.Tensor:
    last = case.options.get("data_format", "channels_last") == "channels_last"
    return frames.movedim(-1, -1 - case.dims) if last else frames


class Arrays(NamedTuple):
    """Inputs of a case, all numbers those of float32, so that float64 computes the truth for them."""

    x: np.ndarray
    mask: np.ndarray | None
    state: list[np.ndarray] | None
    weights: list[np.ndarray]


def arrays(case: Case) -> Arrays:
    rng = np.random.default_rng(len(str(case)))
    batch, steps = 2, 4
    last = case.options.get("data_format", "channels_last") == "channels_last"
    frame = (*case.size, case.channels) if last else (case.channels, *case.size)
    layer = keras_layer(keras.layers, case, "float64")
    layer.build((batch, steps, *frame))
    state = layer.cell.compute_output_shape((batch, *frame))[0]

    def draw(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    weights = []
    for variable in layer.weights:
        fan_in = np.prod(variable.shape[:-1]) if len(variable.shape) > 1 else 4
        weights.append(draw(*variable.shape, scale=fan_in**-0.5))
    mask = None
    if case.mask != "none":
        mask = rng.random((batch, steps)) < 0.6
        mask[0, 0] = case.mask == "random"
        mask[:, 2] = True
    given = [draw(*state), draw(*state)] if case.initial_state else None
    return Arrays(draw(batch, steps, *frame), mask, given, weights)


def compute(layer: Any, given: Arrays, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output and states of a Keras layer, by whichever package."""
    tensors = None if given.state is None else [torch.tensor(value, dtype=dtype) for value in given.state]
    layer.build(given.x.shape)
    layer.set_weights(given.weights)
    mask = None if given.mask is None else torch.tensor(given.mask)
    out = layer(torch.tensor(given.x, dtype=dtype), initial_state=tensors, mask=mask)
    return [value.detach() for value in (out if isinstance(out, (list, tuple)) else [out])]


def compute_with_torch_layer(case: Case, given: Arrays, source: Any) -> list[torch.Tensor]:
    """The same from the torch layer that `from_keras` makes, brought to Keras' order of steps and of axes."""
    layer = from_keras(source)
    x = channels_first(torch.tensor(given.x, dtype=torch.float64), case)
    state = None
    if given.state is not None:
        h, c = (channels_first(torch.tensor(value, dtype=torch.float64), case)[None] for value in given.state)
        state = (h, c)
    mask = None if given.mask is None else torch.tensor(given.mask)
    with torch.no_grad():
        y, (h, c) = layer(x, state, mask=mask)
    if mask is not None and case.options["zero_output_for_mask"]:
        y = y * mask.view(*mask.shape, *(1,) * (y.ndim - 2))
    if case.options["go_backwards"]:
        y = y.flip(1)
    if not case.options["return_sequences"]:
        y = y[:, -1]
    return [y, h[0], c[0]] if case.options["return_state"] else [y]


def error(values: list[torch.Tensor], truth: list[torch.Tensor]) -> float:
    """Root of the mean squared difference over all outputs."""
    squares = [(a.double() - b).square().flatten() for a, b in zip(values, truth)]
    return float(torch.cat(squares).mean().sqrt())


@pytest.mark.filterwarnings("ignore:.*zero_output_for_mask:UserWarning")
@pytest.mark.parametrize("case", CASES, ids=map(str, CASES))
def test_parity(case: Case) -> None:
    given = arrays(case)
    source = keras_layer(keras.layers, case, "float64")
    truth = compute(source, given, torch.float64)
    ours = compute(keras_layer(stormcell.interop.keras, case, "float64"), given, torch.float64)
    torch_layer = compute_with_torch_layer(case, given, source)
    assert len(ours) == len(torch_layer) == len(truth)
    for expected, value, other in zip(truth, ours, torch_layer):
        assert value.shape == expected.shape
        bound = 1e-12 * (1 + expected.abs())
        assert torch.all((value - expected).abs() <= bound)
        assert torch.all((other - channels_first(expected, case)).abs() <= channels_first(bound, case))

    theirs32 = compute(keras_layer(keras.layers, case, "float32"), given, torch.float32)
    for name, most in MOST.items():
        if name == "winograd" and not is_for_winograd(case):
            continue
        ours32 = compute(keras_layer(stormcell.interop.keras, case, "float32", engine=name), given, torch.float32)
        assert error(ours32, truth) <= most * error(theirs32, truth), name


GRADIENTS = [case for case in CASES if case.filters < 32][::12]


@pytest.mark.parametrize("case", GRADIENTS, ids=map(str, GRADIENTS))
def test_gradients_are_those_of_keras(case: Case) -> None:
    given = arrays(case)
    gradients = []
    for module in (keras.layers, stormcell.interop.keras):
        layer = keras_layer(module, case, "float64")
        layer.build(given.x.shape)
        layer.set_weights(given.weights)
        x = torch.tensor(given.x, dtype=torch.float64, requires_grad=True)
        mask = None if given.mask is None else torch.tensor(given.mask)
        out = layer(x, mask=mask)
        total = sum((value**2).sum() for value in (out if isinstance(out, (list, tuple)) else [out]))
        gradients.append(torch.autograd.grad(total, [x, *(v.value for v in layer.trainable_variables)]))
    assert len(gradients[0]) == 1 + len(given.weights)
    for theirs, ours in zip(*gradients):
        assert torch.all((ours - theirs).abs() <= 1e-12 * (1 + theirs.abs()))
