"""What peers in torch share: a function run without a graph, or forward and backward with torch.autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


class AutogradRun:
    """A function of one tensor, its parameters, and the gradient of its output. `to_ours` gives (B, T, C, Y, X)."""

    def __init__(
        self,
        compute: Callable[[Tensor], Tensor],
        x: Tensor,
        d_y: Tensor,
        parameters: Sequence[Tensor],
        *,
        streaming: bool,
        to_ours: Callable[[Tensor], Tensor] = lambda values: values,
    ) -> None:
        self.compute, self.d_y, self.streaming, self.to_ours = compute, d_y, streaming, to_ours
        self.plain_x, self.x = x, x.detach().requires_grad_()
        self.wanted = [self.x, *parameters]

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.compute(self.plain_x)

    def training_step(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        y = self.compute(self.x)
        return y, torch.autograd.grad(y, self.wanted, self.d_y)

    def numbers(self) -> dict[str, np.ndarray]:
        if self.streaming:
            return {"y": self.to_ours(self.forward()).float().cpu().numpy()}
        y, gradients = self.training_step()
        return {
            "y": self.to_ours(y.detach()).float().cpu().numpy(),
            "d_x": self.to_ours(gradients[0]).float().cpu().numpy(),
            "gradients": np.array(sum(g.numel() for g in gradients)),
        }
