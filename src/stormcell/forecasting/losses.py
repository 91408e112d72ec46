"""What training minimises, over valid pixels, with heavy rain, which is rare, weighing more."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from ..data.windows import Sample

Sums = tuple[Tensor, Tensor]
"""Error, and the weight to divide it by: sums over valid pixels, which add up over samples and processes."""

_RAIN_WEIGHT = 4.0  # of two tried and of none the best by validation (docs/log.md)
# Of the levels 0.1 to 20 mm/h: about one over the entropy of how often they are exceeded in rainy crops, up to ten.
_LEVEL_WEIGHTS = (1.5, 1.7, 2.1, 2.9, 7.4, 10.0, 10.0)


def weighted_error(forecast: Tensor, batch: Sample, *, rain: bool) -> tuple[Tensor, Tensor]:
    """Of each pixel, error² + |error| in the encoded range times its weight, and the weight: 0 where it is not valid."""
    error = forecast - batch["y"]
    weight = batch["valid"] * (1 + (_RAIN_WEIGHT if rain else 0.0) * batch["y"].clamp(0, 1))
    return weight * (error**2 + error.abs()), weight


def summed_error(forecast: Tensor, batch: Sample, *, rain: bool) -> Sums:
    """The error of plain models: weighted error and weight, of all valid pixels."""
    error, weight = weighted_error(forecast, batch, rain=rain)
    return error.sum(), weight.sum()


def exceedance_error(logits: Tensor, batch: Sample, levels: Tensor) -> Sums:
    """The error of probabilities of exceedance: weighted cross entropy of the events value ≥ level, and the weight.

    It is a ranked probability score with logarithms: lowest, on average, for the true distribution.
    """
    weight = logits.new_tensor(_LEVEL_WEIGHTS)[: len(levels)].view(-1, 1, 1)
    event = (batch["y"] >= levels.view(-1, 1, 1)).to(logits.dtype)
    each = nnf.binary_cross_entropy_with_logits(logits, event, reduction="none") * weight
    return torch.where(batch["valid"], each, 0).sum(), batch["valid"].sum() * weight.sum()


def mean(error: Tensor, weight: Tensor) -> Tensor:
    """Error over weight; 0 where nothing is valid."""
    return error / weight.clamp(min=1)
