"""The Keras layers: Keras' own tests and values, files, wrappers, state, and where Keras itself goes wrong."""

from __future__ import annotations

import doctest
import importlib
import inspect
import os
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

keras = pytest.importorskip("keras", reason="Keras is not installed: pip install 'stormcell[keras]'")

import stormcell.interop.keras as ours  # noqa: E402

# Keras hands its variables to NumPy in a way that NumPy 2 dislikes.
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
)
NAMES = ["ConvLSTM1D", "ConvLSTM2D", "ConvLSTM3D"]


def draw(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def pair(shape: tuple[int, ...], name: str = "ConvLSTM2D", **options: Any) -> tuple[Any, Any]:
    """A layer of Keras and one of ours with the same random weights."""
    own = {key: options.pop(key) for key in ["checkpoint_every"] if key in options}
    theirs, mine = getattr(keras.layers, name)(**options), getattr(ours, name)(**options, **own)
    theirs.build(shape)
    mine.build(shape)
    weights = [draw(*v.shape, seed=i) / max(np.prod(v.shape[:-1]), 4) ** 0.5 for i, v in enumerate(theirs.weights[:3])]
    for layer in (theirs, mine):
        for variable, value in zip(layer.weights, weights):
            variable.assign(value)
    return theirs, mine


def largest(a: Any, b: Any) -> float:
    return float((a.detach() - b.detach()).abs().max())


# --- Keras' own tests ---


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")  # Keras' harness does that
@pytest.mark.parametrize("module", ["conv_lstm1d_test", "conv_lstm2d_test", "conv_lstm3d_test", "conv_lstm_test"])
def test_keras_own_tests_pass_with_our_layers(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values, config round trip, serialisation, symbolic shapes, training: the files that Keras' wheel carries."""
    suite = importlib.import_module(f"keras.src.layers.rnn.{module}")
    made = []

    def watched(name: str) -> Any:
        class Watched(getattr(ours, name)):  # type: ignore[misc]
            __module__ = "keras.layers"

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                made.append(name)
                super().__init__(*args, **kwargs)

        Watched.__name__ = Watched.__qualname__ = name
        monkeypatch.setitem(keras.saving.get_custom_objects(), name, Watched)
        return Watched

    if module == "conv_lstm_test":
        layer = watched("ConvLSTM2D")
        monkeypatch.setattr(suite, "ConvLSTM", lambda rank, **options: layer(**options))
    else:
        name = f"ConvLSTM{module[9].upper()}D"
        monkeypatch.setattr(suite.layers, name, watched(name))
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromModule(suite).run(result)
    assert made
    assert result.testsRun >= 2
    assert not result.failures + result.errors, (result.failures + result.errors)[0][1]


@pytest.mark.parametrize(
    ("name", "shape", "scale", "expected"),
    [
        ("ConvLSTM1D", (2, 3, 4, 5), 10, [0.40807986, 0.46421072, 0.80933154, 0.8233646]),
        (
            "ConvLSTM2D",
            (2, 3, 4, 4, 5),
            100,
            [0.48694518, 0.50237733, 0.5461202, 0.5598283, 0.8661607, 0.86909103, 0.8774414, 0.8800861],
        ),
        (
            "ConvLSTM3D",
            (2, 3, 4, 4, 4, 5),
            100,
            [
                0.99149036,
                0.99180907,
                0.99258363,
                0.9927925,
                0.99413764,
                0.99420583,
                0.9943788,
                0.9944278,
                *[0.9950547] * 8,
            ],
        ),
    ],
)
def test_values_that_keras_publishes(name: str, shape: tuple[int, ...], scale: int, expected: list[float]) -> None:
    """keras/src/layers/rnn/conv_lstm{1,2,3}d_test.py, test_correctness; they stand here for machines without those files."""
    x = np.arange(np.prod(shape)).reshape(shape).astype(np.float32) / scale
    constant = keras.initializers.Constant
    layer = getattr(ours, name)(
        2,
        3,
        kernel_initializer=constant(0.01),
        recurrent_initializer=constant(0.02),
        bias_initializer=constant(0.03),
    )
    values = layer(x).detach().numpy()
    assert np.array_equal(values[..., 0], values[..., 1])  # all weights are equal, and so are the channels
    np.testing.assert_allclose(values[..., 0].ravel(), expected, rtol=2e-5)


# --- the same thing to a person who types ---


@pytest.mark.parametrize("name", NAMES)
def test_constructor_and_config_are_those_of_keras(name: str) -> None:
    theirs, mine = getattr(keras.layers, name), getattr(ours, name)
    signature = inspect.signature(theirs).parameters
    assert [p for p in inspect.signature(mine).parameters if p not in ("checkpoint_every", "engine")] == list(signature)
    a, b = theirs(4, 3, 2, "same", name="cells"), mine(4, 3, 2, "same", name="cells")
    assert isinstance(b, theirs)
    assert b.get_config() == a.get_config()
    with pytest.raises(ValueError, match="Unrecognized keyword arguments.*checkpoints"):
        mine(4, 3, checkpoints=5)


def test_options_of_ours_are_in_the_config_where_they_are_given() -> None:
    layer = ours.ConvLSTM2D(4, 3, checkpoint_every=5, engine="reference")
    again = ours.ConvLSTM2D.from_config(layer.get_config())
    assert (again.checkpoint_every, again.engine) == (5, "reference")
    with pytest.raises(ValueError, match=r"checkpoint_every must be None or ≥ 1. Received: 0"):
        ours.ConvLSTM2D(4, 3, checkpoint_every=0)


def test_examples_in_docstrings_run() -> None:
    assert doctest.testmod(ours).failed == 0


# --- any frame size ---


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("padding", ["same", "valid"])
def test_one_layer_takes_every_frame_size(padding: str, data_format: str) -> None:
    """Plain Keras needs a layer a size, and refuses None."""
    options = {"filters": 4, "kernel_size": 3, "padding": padding, "data_format": data_format, "return_sequences": True}
    last = data_format == "channels_last"
    unknown = (None, None, None, None, 2) if last else (None, None, 2, None, None)
    mine = ours.ConvLSTM2D(**options)
    inputs = keras.Input(unknown[1:])
    model = keras.Model(inputs, mine(inputs))
    assert model.output_shape == ((None, None, None, None, 4) if last else (None, None, 4, None, None))
    for size in ((5, 6), (9, 4)):
        x = draw(2, 3, *size, 2) if last else draw(2, 3, 2, *size)
        theirs = keras.layers.ConvLSTM2D(**options)
        theirs.build(x.shape)
        theirs.set_weights(mine.get_weights())
        assert largest(model(x), theirs(x)) < 1e-6
    with pytest.raises(ValueError, match="static input shapes"):
        keras.layers.ConvLSTM2D(**options)(inputs)


def test_state_goes_from_one_layer_to_another() -> None:
    encoder = ours.ConvLSTM2D(4, 3, padding="same", return_state=True)
    forecaster = ours.ConvLSTM2D(4, 3, padding="same", return_sequences=True)
    past, future = keras.Input((None, None, None, 1)), keras.Input((None, None, None, 1))
    _, h, c = encoder(past)
    model = keras.Model([past, future], forecaster(future, initial_state=[h, c]))
    x, z = draw(2, 3, 6, 5, 1), draw(2, 4, 6, 5, 1)
    theirs = keras.layers.ConvLSTM2D(4, 3, padding="same", return_state=True)
    theirs.build(x.shape)
    theirs.set_weights(encoder.get_weights())
    _, h, c = theirs(x)
    theirs.set_weights(forecaster.get_weights())
    theirs.return_sequences = True
    assert largest(model([x, z]), theirs(z, initial_state=[h, c])[0]) < 1e-6


# --- files ---


def model_with(layers: Any) -> Any:
    keras.utils.set_random_seed(1)
    return keras.Sequential(
        [
            keras.Input((4, 6, 5, 1)),
            layers.ConvLSTM2D(3, 3, padding="same", return_sequences=True, name="lower"),
            keras.layers.BatchNormalization(),
            keras.layers.Bidirectional(layers.ConvLSTM2D(2, (1, 3), activation="relu"), name="upper"),
        ]
    )


def test_weights_files_go_both_ways(tmp_path: Path) -> None:
    x = draw(2, 4, 6, 5, 1)
    theirs, mine = model_with(keras.layers), model_with(ours)
    for variable in mine.weights[:3]:
        variable.assign(variable * 1.5)
    mine.save_weights(tmp_path / "mine.weights.h5")
    assert largest(theirs(x), mine(x)) > 1e-3
    theirs.load_weights(tmp_path / "mine.weights.h5")
    assert largest(theirs(x), mine(x)) < 1e-6
    theirs.save_weights(tmp_path / "theirs.weights.h5")
    fresh = model_with(ours)
    fresh.load_weights(tmp_path / "theirs.weights.h5")
    assert largest(fresh(x), theirs(x)) < 1e-6


def test_a_saved_model_opens_in_plain_keras(tmp_path: Path) -> None:
    model = model_with(ours)
    model.compile("adam", "mse")
    path, x = tmp_path / "model.keras", draw(2, 4, 6, 5, 1)
    model.fit(x, np.zeros((2, 6, 3, 4)), verbose=0)
    model.save(path)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import sys, keras, numpy as np; model = keras.models.load_model('model.keras');"
        "assert not any(name.startswith('stormcell') for name in sys.modules);"
        "assert type(model.layers[0]).__module__.startswith('keras.src'), type(model.layers[0]);"
        "np.save('y.npy', model(np.load('x.npy')).detach().numpy())"
    )
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)
    expected = model(x).detach().numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-6)
    again = keras.models.load_model(path)
    assert [type(layer) for layer in again.layers[:1]] == [ours.ConvLSTM2D]
    assert type(again.layers[2].forward_layer) is ours.ConvLSTM2D
    assert largest(again(x), model(x)) == 0


def test_layers_are_exchanged_in_a_model_that_is_there() -> None:
    theirs, x = model_with(keras.layers), draw(2, 4, 6, 5, 1)
    theirs.compile("adam", "mse")
    mine = ours.replace_layers(theirs)
    assert type(mine.get_layer("lower")) is ours.ConvLSTM2D
    assert type(mine.get_layer("upper").forward_layer) is ours.ConvLSTM2D
    assert type(theirs.get_layer("lower")) is keras.layers.ConvLSTM2D
    assert largest(mine(x), theirs(x)) < 1e-6
    assert mine.evaluate(x, np.zeros((2, 6, 3, 4)), verbose=0) == pytest.approx(
        theirs.evaluate(x, np.zeros((2, 6, 3, 4)), verbose=0), rel=1e-5
    )


# --- training ---


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_dropout_draws_the_masks_of_keras(data_format: str) -> None:
    x = draw(2, 4, 6, 5, 3) if data_format == "channels_last" else draw(2, 4, 3, 6, 5)
    theirs, mine = pair(
        x.shape,
        filters=4,
        kernel_size=3,
        data_format=data_format,
        dropout=0.4,
        recurrent_dropout=0.3,
        seed=7,
        dtype="float64",
    )
    for _ in range(2):  # the second call has other masks
        assert largest(mine(x, training=True), theirs(x, training=True)) < 1e-14
    before = mine.cell.seed_generator.state.numpy().copy()
    assert largest(mine(x, training=True), mine(x, training=True)) > 1e-3
    after = mine.cell.seed_generator.state.numpy().copy()
    assert largest(mine(x), mine(x)) == 0
    assert np.array_equal(mine.cell.seed_generator.state.numpy(), after)  # inference leaves the seed alone
    assert not np.array_equal(before, after)


def test_a_dropout_of_one_is_refused() -> None:
    """Keras takes it and drops nothing."""
    with pytest.raises(ValueError, match=r"recurrent_dropout must lie in \[0, 1\). Received: 1.0"):
        ours.ConvLSTM2D(4, 3, recurrent_dropout=1.0)


@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
def test_fit_learns_like_keras_with_regularisers_and_constraints() -> None:
    x, y = draw(8, 4, 6, 5, 1), draw(8, 6, 5, 2, seed=3)
    options = {
        "filters": 2,
        "kernel_size": 3,
        "padding": "same",
        "kernel_regularizer": "l2",
        "recurrent_constraint": "unit_norm",
        "activity_regularizer": "l2",
    }
    losses = []
    for layer in pair(x.shape, **options):
        model = keras.Sequential([keras.Input(x.shape[1:]), layer])
        model.compile(keras.optimizers.SGD(0.5), "mse")
        losses.append(model.fit(x, y, epochs=4, batch_size=4, shuffle=False, verbose=0).history["loss"])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
    assert losses[0][-1] < losses[0][0]


def test_checkpoints_change_no_number() -> None:
    x = draw(2, 7, 6, 5, 1)
    _, plain = pair(x.shape, filters=4, kernel_size=3, return_sequences=True, dropout=0.2, seed=1, dtype="float64")
    _, thrifty = pair(
        x.shape,
        filters=4,
        kernel_size=3,
        return_sequences=True,
        dropout=0.2,
        seed=1,
        dtype="float64",
        checkpoint_every=3,
    )
    gradients = []
    for layer in (plain, thrifty):
        total = (layer(x, training=True) ** 2).sum()
        gradients.append(torch.autograd.grad(total, [v.value for v in layer.trainable_variables]))
    for a, b in zip(*gradients):
        assert largest(a, b) < 1e-12


def test_half_precision_keeps_the_cell_state_in_float32() -> None:
    """Long sums of small numbers: Keras adds them up in half precision, where they stop to count."""
    x = draw(1, 60, 4, 4, 1)
    options = {"filters": 2, "kernel_size": 3, "padding": "same"}
    truth, _ = pair(x.shape, **options, dtype="float64")
    theirs, mine = pair(x.shape, **options, dtype="mixed_bfloat16")
    for layer in (truth, theirs, mine):
        layer.cell.bias.assign(np.repeat([-3.0, 6.0, 1.0, 0.0], 2))  # little comes in, nothing is forgotten
    expected = truth(x)
    assert mine(x).dtype == torch.bfloat16
    assert largest(mine(x).double(), expected) < 0.25 * largest(theirs(x).double(), expected)


# --- state ---


def test_a_stateful_layer_goes_on_where_it_stopped() -> None:
    x = draw(2, 6, 6, 5, 1)
    _, whole = pair(x.shape, filters=3, kernel_size=3, padding="same", return_sequences=True)
    _, layer = pair((2, 3, 6, 5, 1), filters=3, kernel_size=3, padding="same", return_sequences=True, stateful=True)
    model = keras.Sequential([keras.Input(batch_shape=(2, 3, 6, 5, 1)), layer])
    model.compile("sgd", "mse")
    expected = whole(x).detach().numpy()
    for part in (slice(0, 3), slice(3, 6)):
        np.testing.assert_allclose(model.predict(x[:, part], verbose=0), expected[:, part], atol=1e-6)
    layer.reset_state()
    np.testing.assert_allclose(model.predict(x[:, :3], verbose=0), expected[:, :3], atol=1e-6)
    model.fit(x[:, :3], draw(2, 3, 6, 5, 3), epochs=2, verbose=0)  # the backward survives that the state is overwritten
    with pytest.raises(ValueError, match="frame size that is known"):
        ours.ConvLSTM2D(3, 3, stateful=True).build((2, 3, None, 5, 1))


# --- wrappers, masks, activations ---


@pytest.mark.parametrize("merge_mode", ["concat", "sum", "ave", None])
def test_bidirectional_runs_our_layers(merge_mode: str | None) -> None:
    x, mask = draw(2, 4, 6, 5, 1), torch.tensor([[True, True, True, False], [False, True, True, True]])
    outputs = []
    for module in (keras.layers, ours):
        keras.utils.set_random_seed(3)
        wrapper = keras.layers.Bidirectional(
            module.ConvLSTM2D(3, 3, return_sequences=True, return_state=True), merge_mode=merge_mode
        )
        outputs.append(wrapper(x, mask=mask))
        assert type(wrapper.backward_layer) is module.ConvLSTM2D
    for theirs, mine in zip(*outputs):
        assert largest(mine, theirs) < 1e-6


def test_a_masking_layer_before_it_masks() -> None:
    x = draw(2, 4, 6, 1)
    x[0, 1] = x[1, :2] = 0
    outputs = []
    for layer in pair(x.shape, "ConvLSTM1D", filters=3, kernel_size=3):
        flat = keras.layers.Masking()(x.reshape(2, 4, 6))
        mask = flat._keras_mask
        outputs.append(layer(x, mask=mask))
    assert mask.tolist() == [[True, False, True, True], [False, False, True, True]]
    assert largest(*outputs) < 1e-6
    unmasked = layer(x)
    assert largest(outputs[1], unmasked) > 1e-4


def test_unroll_mask_and_backwards_work_together() -> None:
    """In Keras on torch this combination is an error."""
    x, mask = draw(2, 4, 6, 5, 1), torch.tensor([[True, True, False, True], [False, True, True, True]])
    rolled, _ = pair(x.shape, filters=3, kernel_size=3, go_backwards=True)
    _, unrolled = pair(x.shape, filters=3, kernel_size=3, go_backwards=True, unroll=True)
    assert largest(unrolled(x, mask=mask), rolled(x, mask=mask)) < 1e-6


def swish_of_two(z: Any) -> Any:
    return keras.ops.silu(2 * z)


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("activation", ["softmax", "leaky_relu", swish_of_two, "gelu", "selu", "softplus", "hard_silu"])
def test_activations_that_only_keras_has(activation: Any, data_format: str) -> None:
    """Softmax takes the last axis, wherever the channels are."""
    x = draw(2, 3, 6, 5, 2) if data_format == "channels_last" else draw(2, 3, 2, 6, 5)
    theirs, mine = pair(
        x.shape, filters=3, kernel_size=3, activation=activation, data_format=data_format, dtype="float64"
    )
    assert largest(mine(x), theirs(x)) < 1e-12


def test_another_backend_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "keras").mkdir()  # a Keras on another backend, without installing one
    (tmp_path / "keras" / "__init__.py").write_text("class backend:\n    backend = staticmethod(lambda: 'jax')\n")
    run = subprocess.run(
        [sys.executable, "-c", "import stormcell.interop.keras"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    assert run.returncode == 1
    assert (
        "set the environment variable KERAS_BACKEND=torch before keras is imported. Received: the backend 'jax'"
        in run.stderr
    )
