"""What peers on JAX share: a function under `jax.jit`, forward or with its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ..cases import Case
from .last_axis import compared


class JaxRun:
    """compute(parameters, inputs) → y, with inputs [x] or [x, h, c] in (…, Y, X, C)."""

    def __init__(
        self, case: Case, compute: Callable[[Any, Any], Any], parameters: Any, inputs: list[Any], d_y: np.ndarray
    ) -> None:
        self.case = case
        self.parameters, self.inputs, self.d_y = jax.device_put((parameters, inputs, d_y))
        self._forward = jax.jit(compute)

        @jax.jit
        def train(parameters: Any, inputs: list[Any], d_y: Any) -> Any:
            def of(parameters: Any, x: Any) -> Any:
                return compute(parameters, [x, *inputs[1:]])

            y, backward = jax.vjp(of, parameters, inputs[0])
            return y, backward(d_y)

        self._train = train

    def forward(self) -> Any:
        return jax.block_until_ready(self._forward(self.parameters, self.inputs))

    def training_step(self) -> Any:
        return jax.block_until_ready(self._train(self.parameters, self.inputs, self.d_y))

    def numbers(self) -> dict[str, np.ndarray]:
        if self.case.streaming:
            return compared(self.case, self.forward(), None)
        y, (d_parameters, d_x) = self.training_step()
        return compared(self.case, y, [d_x, *jax.tree.leaves(d_parameters)])
