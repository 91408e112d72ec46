"""Makes the files in keras_files/ with a Keras of any version, each with a record of inputs and Keras' own outputs.

    python make_keras_files.py keras        # the Keras of this environment
    python make_keras_files.py tf_keras     # Keras 2 beside TensorFlow 2.16 and later

The files in the repository come from Python 3.11 and: tensorflow-cpu 2.12.1 (its own Keras 2.12); tensorflow-cpu 2.21 with
tf_keras 2.21; keras 3.0.5 with jax 0.4.30, in float32; keras 3.15.1 with KERAS_BACKEND=torch. Weights are random, with a
standard deviation of 1/√fan-in, and float64 but for Keras 3.0. Files lie in gzip, since HDF5 is mostly zeros.
"""

from __future__ import annotations

import gzip
import importlib
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parent / "keras_files"
# What each version adds to the others: names of groups, of variables, and the two meanings of hard_sigmoid.
WRITTEN = {
    "2.12": ["names.keras"],
    "2.21": ["names.keras", "names.h5", "names-weights.h5", "shapes.h5", "shapes.weights.h5"],
    "3.0": ["names.keras"],
    "3.15": ["names.keras", "names.h5", "names.weights.h5", "shapes.keras"],
}


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)


def set_weights(layer: Any) -> None:
    arrays = []
    for number, array in enumerate(layer.get_weights()):
        fan_in = np.prod(array.shape[:-1]) if array.ndim > 1 else 4
        arrays.append(draw(f"{layer.name} {number}", array.shape) / fan_in**0.5)
    layer.set_weights(arrays)


def names(keras: Any) -> tuple[Any, list[Any]]:
    """Layers of equal shapes whose names follow neither the alphabet nor the groups: a mix-up shows in values alone."""
    lstm = keras.layers.ConvLSTM2D
    same = {"padding": "same", "return_sequences": True}
    frames = keras.Input((3, 5, 4, 2), name="frames")
    core = keras.Sequential(
        [
            keras.Input((3, 5, 4, 2)),
            lstm(2, 3, name="conv_lstm2d_1", recurrent_activation="hard_sigmoid", **same),
            lstm(2, 3, name="conv_lstm2d", activation="softsign", **same),
        ],
        name="core",
    )
    pair = keras.layers.Bidirectional(lstm(1, (2, 3), name="inner", **same), name="pair")
    zulu = lstm(2, 3, name="zulu", **same)
    model = keras.Model(frames, pair(core(zulu(frames))), name="outer")
    return model, [zulu, *core.layers[-2:], pair]


def shapes(keras: Any) -> tuple[Any, list[Any]]:
    """Every dimension, stride, padding and dilation, even kernels, no bias, backwards."""
    layers = keras.layers
    made = [
        (
            layers.ConvLSTM1D(
                2, 4, strides=2, padding="same", activation="relu", use_bias=False, return_sequences=True, name="line"
            ),
            (3, 9, 2),
        ),
        (
            layers.ConvLSTM2D(
                2,
                (3, 2),
                dilation_rate=(1, 2),
                recurrent_activation="hard_sigmoid",
                unit_forget_bias=False,
                return_sequences=True,
                name="dilated",
            ),
            (3, 5, 6, 2),
        ),
        (
            layers.ConvLSTM2D(
                2,
                (4, 2),
                strides=(2, 3),
                padding="same",
                go_backwards=True,
                dropout=0.25,
                recurrent_dropout=0.5,
                return_sequences=True,
                name="backwards",
            ),
            (3, 7, 8, 1),
        ),
        (
            layers.ConvLSTM3D(1, 2, recurrent_activation="sigmoid", return_sequences=True, name="volume"),
            (2, 3, 4, 5, 1),
        ),
    ]
    inputs = [keras.Input(shape, name=f"frames_{layer.name}") for layer, shape in made]
    outputs = [layer(frames) for (layer, _), frames in zip(made, inputs)]
    return keras.Model(inputs, outputs, name="outer"), [layer for layer, _ in made]


def main() -> None:
    keras = importlib.import_module(sys.argv[1])
    version = ".".join(keras.__version__.split(".")[:2])
    if version != "3.0":
        keras.backend.set_floatx("float64")
    FOLDER.mkdir(exist_ok=True)
    for build in (names, shapes):
        wanted = [name for name in WRITTEN[version] if name.startswith(build.__name__)]
        if not wanted:
            continue
        model, layers = build(keras)
        record = {}
        for layer in layers:
            set_weights(layer)
            shape = layer.input_shape if hasattr(layer, "input_shape") else layer.input.shape
            x = draw(f"{layer.name} x", (1, *tuple(shape)[1:])).astype(keras.backend.floatx())
            record[f"{layer.name}.x"] = x
            record[f"{layer.name}.y"] = np.asarray(keras.ops.convert_to_numpy(layer(x)) if version >= "3" else layer(x))
        np.savez_compressed(FOLDER / f"keras-{version}-{build.__name__}.npz", **record)
        for name in wanted:
            path = FOLDER / f"keras-{version}-{name}"
            if name.endswith((".weights.h5", "-weights.h5")):
                model.save_weights(path)
            elif version == "2.12":
                model.save(path, save_format="keras_v3")
            else:
                model.save(path)
            path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes(), mtime=0))
            path.unlink()


if __name__ == "__main__":
    main()
