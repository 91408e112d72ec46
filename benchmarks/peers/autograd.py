"""What peers in torch share: a function run without a graph, or forward and backward with torch.autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor


def autocast(device: str, precision: str, *, cached: bool = True) -> AbstractContextManager[Any]:
    """Autocast to bfloat16 where the precision is that. Without `cached` every call casts the weights anew."""
    if precision != "bfloat16":
        return nullcontext()
    return torch.autocast(torch.device(device).type, torch.bfloat16, cache_enabled=cached)


class AutogradRun:
    """A function of one tensor, its parameters, and the gradient of its output. `to_ours` gives (B, T, C, Y, X).

    The forward runs under the autocast of `precision`, entered for each call as a training loop does; the backward outside.
    With `trees` the function is one that torch.compile runs as CUDA graphs: what a run gave is overwritten by the next.
    """

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        x: Tensor,
        d_y: Tensor,
        parameters: Sequence[Tensor],
        *,
        streaming: bool,
        to_ours: Callable[[Tensor], Tensor] = lambda values: values,
        precision: str = "float32",
        trees: bool = False,
    ) -> None:
        self.compute, self.d_y, self.streaming, self.to_ours = compute, d_y, streaming, to_ours
        self.trees, self.autocast = trees and x.is_cuda, autocast(x.device.type, precision)
        self.plain_x, self.x = x, x.detach().requires_grad_()
        self.wanted = [self.x, *parameters]

    def forward(self) -> Tensor:
        self._begin()
        with torch.no_grad(), self.autocast:
            return self.compute(self.plain_x)

    def training_step(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        self._begin()
        with self.autocast:
            y = self.compute(self.x)
        if self.d_y.dtype != y.dtype:  # in the first step only: the gradient is there before the clock runs
            self.d_y = self.d_y.to(y.dtype)
        return y, torch.autograd.grad(y, self.wanted, self.d_y)

    def _begin(self) -> None:
        if self.trees:
            torch.compiler.cudagraph_mark_step_begin()

    def tensors(self) -> dict[str, Tensor]:
        """What `numbers` gives, where it was computed."""
        if self.streaming:
            return {"y": self.to_ours(self.forward()).float()}
        y, gradients = self.training_step()
        return {
            "y": self.to_ours(y.detach()).float(),
            "d_x": self.to_ours(gradients[0]).float(),
            "gradients": torch.tensor(sum(g.numel() for g in gradients)),
        }

    def numbers(self) -> dict[str, np.ndarray]:
        return {name: value.cpu().numpy() for name, value in self.tensors().items()}
