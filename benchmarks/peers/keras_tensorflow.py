"""Keras on TensorFlow: the layer inside `tf.function`, as `fit` and `predict` run it. Variant "xla": `jit_compile=True`."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from ..cases import Case
from .keras_net import made
from .last_axis import compared


class KerasTensorFlow:
    """A case as two graphs: forward, and forward with its gradients."""

    def __init__(self, case: Case, *, xla: bool) -> None:
        self.case = case
        net, inputs, d_y = made(case)
        self.inputs, self.d_y = [tf.constant(value) for value in inputs], tf.constant(d_y)
        variables = [variable.value for variable in net.trainable_variables]

        @tf.function(jit_compile=xla)
        def forward(inputs: list[Any]) -> Any:
            return net(inputs)

        @tf.function(jit_compile=xla)
        def train(inputs: list[Any], d_y: Any) -> Any:
            with tf.GradientTape() as tape:
                tape.watch(inputs[0])
                y = net(inputs)
            return y, tape.gradient(y, [inputs[0], *variables], output_gradients=d_y)

        self._forward, self._train = forward, train

    def forward(self) -> Any:
        return self._forward(self.inputs)

    def training_step(self) -> Any:
        y, gradients = self._train(self.inputs, self.d_y)
        gradients[-1].numpy()  # waits, should execution be asynchronous
        return y, gradients

    def numbers(self) -> dict[str, np.ndarray]:
        if self.case.streaming:
            return compared(self.case, self.forward(), None)
        return compared(self.case, *self.training_step())


def build(case: Case, variant: str) -> KerasTensorFlow:
    return KerasTensorFlow(case, xla=variant == "xla")
