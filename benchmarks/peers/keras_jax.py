"""Keras on JAX: the layer's stateless call inside `jax.jit`, as `fit` and `predict` run it."""

from __future__ import annotations

from typing import Any

from ..cases import Case
from .jax_run import JaxRun
from .keras_net import made


def build(case: Case, variant: str) -> JaxRun:
    net, inputs, d_y = made(case)
    others = [variable.value for variable in net.non_trainable_variables]

    def compute(parameters: Any, inputs: list[Any]) -> Any:
        return net.stateless_call(parameters, others, inputs)[0]

    return JaxRun(case, compute, [variable.value for variable in net.trainable_variables], inputs, d_y)
