"""Activations by name, with their derivatives: engines whose backward is written out need both.

Only names on which torch and Keras agree: "leaky_relu", for one, has another slope in each.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor


class Named(NamedTuple):
    """An activation a = φ(z), and φ'(z) from z and a."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor, Tensor], Tensor]


def linear(z: Tensor) -> Tensor:
    """z itself."""
    return z


def keras2_hard_sigmoid(z: Tensor) -> Tensor:
    """clip(0.2 z + 0.5, 0, 1): "hard_sigmoid" of Keras 1 and 2, and of every tf.keras file that says so."""
    return (0.2 * z + 0.5).clamp(0, 1)


def _between(z: Tensor, low: float, high: float, slope: float) -> Tensor:
    """The slope inside an interval, 0 at its ends and beyond."""
    return ((z > low) & (z < high)).to(z.dtype) * slope


def _elu(z: Tensor, alpha: float, scale: float) -> Tensor:
    return torch.where(z > 0, z.new_tensor(scale), scale * alpha * torch.exp(z.clamp(max=0)))


def _gelu(z: Tensor, a: Tensor) -> Tensor:
    return 0.5 * (1 + torch.erf(z * math.sqrt(0.5))) + z * torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)


def _mish(z: Tensor, a: Tensor) -> Tensor:
    t = torch.tanh(nnf.softplus(z))
    return t + z * (1 - t * t) * torch.sigmoid(z)


def _silu(z: Tensor, a: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    return s + a * (1 - s)


_SELU = (1.6732632423543772, 1.0507009873554805)  # α and λ, Klambauer et al. 2017

ACTIVATIONS: dict[str, Named] = {
    "tanh": Named(torch.tanh, lambda z, a: 1 - a * a),
    "sigmoid": Named(torch.sigmoid, lambda z, a: a * (1 - a)),
    "relu": Named(torch.relu, lambda z, a: (z > 0).to(z.dtype)),
    "hard_sigmoid": Named(nnf.hardsigmoid, lambda z, a: _between(z, -3, 3, 1 / 6)),  # Keras 3
    "keras2_hard_sigmoid": Named(keras2_hard_sigmoid, lambda z, a: ((z >= -2.5) & (z <= 2.5)).to(z.dtype) * 0.2),
    "linear": Named(linear, lambda z, a: torch.ones_like(z)),
    "elu": Named(nnf.elu, lambda z, a: _elu(z, 1.0, 1.0)),
    "exponential": Named(torch.exp, lambda z, a: a),
    "gelu": Named(nnf.gelu, _gelu),
    "mish": Named(nnf.mish, _mish),
    "relu6": Named(nnf.relu6, lambda z, a: _between(z, 0, 6, 1.0)),
    "selu": Named(nnf.selu, lambda z, a: _elu(z, *_SELU)),
    "silu": Named(nnf.silu, _silu),
    "softplus": Named(nnf.softplus, lambda z, a: torch.sigmoid(z)),
    "softsign": Named(nnf.softsign, lambda z, a: 1 / (1 + z.abs()).square()),
}
_NAMES = {named.function: name for name, named in ACTIVATIONS.items()}


def name_of(function: Callable[[Tensor], Tensor]) -> str | None:
    """The name under which a function stands here; None for any other."""
    return _NAMES.get(function)
