"""What peers on JAX share: a function under `jax.jit`, forward or with its vector-Jacobian product."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..cases import Case
from . import NotHere
from .last_axis import compared

_PRODUCTS = {"float32": "float32", "tf32": "tensorfloat32"}  # jax.default_matmul_precision, convolutions included


def _device(name: str) -> Any:
    """JAX's name for a device of torch's. Raises NotHere where JAX does not see it."""
    kind, _, index = name.partition(":")
    try:
        return jax.devices("gpu" if kind == "cuda" else kind)[int(index or 0)]
    except RuntimeError as error:
        raise NotHere(f"JAX sees no such device: {error}") from error


class JaxRun:
    """compute(parameters, inputs) → y, with inputs [x] or [x, h, c] in (…, Y, X, C).

    A `precision` says how products of float32 are rounded; in "bfloat16" parameters, inputs and the output's gradient are
    bfloat16 before any clock runs. Without one all is as JAX has it.
    """

    def __init__(
        self,
        case: Case,
        compute: Callable[[Any, Any], Any],
        parameters: Any,
        inputs: list[Any],
        d_y: np.ndarray,
        *,
        device: str = "cpu",
        precision: str | None = None,
    ) -> None:
        self.case = case
        given = (parameters, inputs, d_y)
        if precision == "bfloat16":
            given = jax.tree.map(lambda values: np.asarray(values).astype(jnp.bfloat16), given)
        self.parameters, self.inputs, self.d_y = jax.device_put(given, _device(device))

        def products() -> AbstractContextManager[Any]:
            known = _PRODUCTS.get(precision or "")
            return jax.default_matmul_precision(known) if known else nullcontext()

        @jax.jit
        def forward(parameters: Any, inputs: list[Any]) -> Any:
            with products():
                return compute(parameters, inputs)

        @jax.jit
        def train(parameters: Any, inputs: list[Any], d_y: Any) -> Any:
            def of(parameters: Any, x: Any) -> Any:
                return compute(parameters, [x, *inputs[1:]])

            with products():
                y, backward = jax.vjp(of, parameters, inputs[0])
                return y, backward(d_y)

        self._forward, self._train = forward, train

    def _of(self, kind: str) -> tuple[Any, tuple[Any, ...]]:
        if kind == "forward":
            return self._forward, (self.parameters, self.inputs)
        return self._train, (self.parameters, self.inputs, self.d_y)

    def launch(self, kind: str) -> Any:
        """A forward or a training step ("train"), without waiting for it."""
        function, arguments = self._of(kind)
        return function(*arguments)

    def forward(self) -> Any:
        return jax.block_until_ready(self.launch("forward"))

    def training_step(self) -> Any:
        return jax.block_until_ready(self.launch("train"))

    def peak_mib(self, kind: str) -> float | None:
        """What XLA has planned for a run: arguments, outputs and all between. Torch's allocator sees nothing of it."""
        function, arguments = self._of(kind)
        planned = function.lower(*arguments).compile().memory_analysis()
        if planned is None:
            return None
        parts = (planned.argument_size_in_bytes, planned.output_size_in_bytes, planned.temp_size_in_bytes)
        return (sum(parts) - planned.alias_size_in_bytes) / 2**20

    def numbers(self) -> dict[str, np.ndarray]:
        if self.case.streaming:
            return compared(self.case, self.forward(), None)
        y, (d_parameters, d_x) = self.training_step()
        return compared(self.case, y, [d_x, *jax.tree.leaves(d_parameters)])
