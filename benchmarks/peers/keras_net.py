"""The same Keras layers for its three backends: `ConvLSTM2D` with its defaults, channels_last, as Keras' users have it.

`ConvLSTM2D` cannot run without input: the forecaster's lowest layer is given frames of one channel that are zero.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from ..cases import Case, LayerArrays, arrays
from .last_axis import last


def _weights(values: LayerArrays) -> list[np.ndarray]:
    """(4F, C, k, k) → (k, k, C, 4F); Keras' gates lie as ours."""
    ih = np.zeros_like(values.hh[:, :1]) if values.ih is None else values.ih
    return [ih.transpose(2, 3, 1, 0), values.hh.transpose(2, 3, 1, 0), values.bias]


class Net(keras.layers.Layer):
    """A case. Called with [x], or for a streaming case with [x, h, c]; x (B, T, Y, X, C)."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

        def layer(hidden: int) -> Any:
            return keras.layers.ConvLSTM2D(
                hidden, case.kernel, padding="same", return_sequences=True, return_state=bool(case.future)
            )

        self.encoder = [layer(hidden) for hidden in case.hidden]
        self.forecaster = [layer(hidden) for hidden in case.hidden[::-1]] if case.future else []
        self.last_conv = keras.layers.Conv2D(case.in_channels, 1) if case.future else None

    def call(self, inputs: list[Any]) -> Any:
        x = inputs[0]
        if self.case.streaming:
            return self.encoder[0](x, initial_state=inputs[1:])
        if not self.case.future:
            return self.encoder[0](x)
        states = []
        for layer in self.encoder:
            x, *state = layer(x)
            states.append(state)
        batch, future, size = x.shape[0], self.case.future, self.case.size
        z = keras.ops.zeros((batch, future, *size, 1))
        outputs = []
        for layer, state in zip(self.forecaster, reversed(states)):
            z, *_ = layer(z, initial_state=state)
            outputs.append(z)
        read = keras.ops.concatenate(outputs, axis=-1)
        y = self.last_conv(keras.ops.reshape(read, (batch * future, *size, read.shape[-1])))
        return keras.ops.reshape(y, (batch, future, *size, self.case.in_channels))


def made(case: Case) -> tuple[Net, list[np.ndarray], np.ndarray]:
    """The net with the case's weights, its inputs, and its output's gradient, in Keras' layout."""
    numbers = arrays(case)
    inputs = [last(value) for value in (numbers.x, *(numbers.state or ()))]
    net = Net(case)
    net([keras.ops.convert_to_tensor(value[:1, :1] if value.ndim == 5 else value[:1]) for value in inputs])  # builds it
    for layer, values in zip([*net.encoder, *net.forecaster], [*numbers.encoder, *numbers.forecaster]):
        layer.set_weights(_weights(values))
    if numbers.output is not None:
        weight, bias = numbers.output
        net.last_conv.set_weights([weight.transpose(2, 3, 1, 0), bias])
    return net, inputs, last(numbers.d_y)
