"""Keras on torch: the layer called eagerly, as `fit` and `predict` run it there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..cases import Case
from .autograd import AutogradRun
from .keras_net import made


def build(case: Case, variant: str, device: str = "cpu", precision: str = "float32") -> AutogradRun:
    net, inputs, d_y = made(case)
    x, *state = (torch.from_numpy(value).to(device) for value in inputs)

    def compute(x: Tensor) -> Tensor:
        return net([x, *state])

    def to_ours(values: Tensor) -> Tensor:
        values = values.movedim(-1, -3)
        return values[:, 0] if case.streaming else values

    parameters = [variable.value for variable in net.trainable_variables]
    return AutogradRun(
        compute,
        x,
        torch.from_numpy(d_y).to(device),
        parameters,
        streaming=case.streaming,
        to_ours=to_ours,
        precision=precision,
    )
