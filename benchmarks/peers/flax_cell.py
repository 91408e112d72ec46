"""Flax: `nn.RNN` over `ConvLSTMCell` (linen), inside `jax.jit`; the cell alone where a case streams.

The cell has two biases, adds 1 to the forget gate's, and cannot run without input: the forecaster's lowest layer is given
frames of one channel that are zero.

In bfloat16 parameters, frames, states, both of the cell included, and the output's gradient are cast to it before the clock
runs, so that Flax computes everything in it: torch's autocast keeps the cell state in float32.
"""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from ..cases import Case, LayerArrays, arrays
from .jax_run import JaxRun
from .last_axis import last


def _parameters(values: LayerArrays) -> dict[str, Any]:
    """(4F, C, k, k) with gates i, f, g, o → (k, k, C, 4F) with i, g, f, o."""
    hidden = values.hh.shape[1]

    def gates(array: np.ndarray) -> np.ndarray:
        i, f, g, o = np.split(array, 4)
        return np.concatenate([i, g, f, o])

    def kernel(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(gates(array).transpose(2, 3, 1, 0))

    ih = np.zeros_like(values.hh[:, :1]) if values.ih is None else values.ih
    bias = gates(values.bias)
    bias[2 * hidden : 3 * hidden] -= 1
    return {
        "ih": {"kernel": kernel(ih), "bias": bias},
        "hh": {"kernel": kernel(values.hh), "bias": np.zeros_like(bias)},
    }


def build(case: Case, variant: str, device: str = "cpu", precision: str = "float32") -> JaxRun:
    numbers = arrays(case)
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32

    def cell(hidden: int) -> nn.ConvLSTMCell:
        return nn.ConvLSTMCell(hidden, (case.kernel, case.kernel), param_dtype=dtype)

    def run(hidden: int, parameters: Any, x: Any, carry: Any = None) -> tuple[Any, Any]:
        layer = nn.RNN(cell(hidden), return_carry=True)
        return layer.apply({"params": {"cell": parameters}}, x, initial_carry=carry)

    def step(parameters: Any, inputs: list[Any]) -> Any:
        x, h, c = inputs
        return cell(case.hidden[0]).apply({"params": parameters["encoder"][0]}, (c, h), x[:, 0])[1][:, None]

    def layer(parameters: Any, inputs: list[Any]) -> Any:
        return run(case.hidden[0], parameters["encoder"][0], inputs[0])[1]

    def net(parameters: Any, inputs: list[Any]) -> Any:
        (x,) = inputs
        carries = []
        for hidden, values in zip(case.hidden, parameters["encoder"]):
            carry, x = run(hidden, values, x)
            carries.append(carry)
        z = jnp.zeros((case.batch, case.future, *case.size, 1), dtype)
        outputs = []
        for hidden, values, carry in zip(case.hidden[::-1], parameters["forecaster"], reversed(carries)):
            _, z = run(hidden, values, z, carry)
            outputs.append(z)
        read = jnp.concatenate(outputs, axis=-1)
        return nn.Conv(case.in_channels, (1, 1)).apply({"params": parameters["output"]}, read)

    parameters: dict[str, Any] = {
        "encoder": [_parameters(values) for values in numbers.encoder],
        "forecaster": [_parameters(values) for values in numbers.forecaster],
    }
    if numbers.output is not None:
        weight, bias = numbers.output
        parameters["output"] = {"kernel": weight.transpose(2, 3, 1, 0), "bias": bias}
    inputs = [last(value) for value in (numbers.x, *(numbers.state or ()))]
    compute = step if case.streaming else net if case.future else layer
    return JaxRun(case, compute, parameters, inputs, last(numbers.d_y), device=device, precision=precision)
