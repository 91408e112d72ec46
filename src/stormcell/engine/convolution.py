"""A convolution under the padding rules of layers, with its gradients written out: for engines with a backward of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .reference import CONVOLUTIONS, Form, pads


class Convolution:
    """A convolution of n steps at once, (n, B, C, *frame) → (n, B, 4F, *S), and its gradients.

    `seen` is what the kernel runs over, (n·B, G·C, *padded): frames under their masks, G groups of them if there is one for
    each gate. Around them are zeros where torch knows no padding of different widths, and beyond the ends of a periodic axis
    what lies at the other end.
    """

    def __init__(self, weight: Tensor, form: Form, drop: Tensor | None, frame: tuple[int, ...]) -> None:
        self.weight, self.drop, self.frame = weight, drop, frame  # (4F, C, *k), (B, G, C, *frame)
        self.groups = 1 if drop is None else drop.shape[1]
        self.margins = pads(frame, tuple(weight.shape[2:]), form)  # that we write, before and after each axis
        self.padding = [0] * len(frame)  # zeros that torch adds on both sides
        self.around = self.margins[-1] if form.periodic_x else (0, 0)
        for axis, (before, after) in enumerate(self.margins[: -1 if form.periodic_x else None]):
            if before == after:
                self.padding[axis], self.margins[axis] = before, (0, 0)
        self.stride, self.dilation = list(form.stride), list(form.dilation)
        self.is_plain = drop is None and not any(map(any, self.margins))

    def memory(self, like: Tensor) -> Tensor:
        """Memory for what is seen of frames like these."""
        n, batch, channels = like.shape[:3]
        padded = [before + size + after for size, (before, after) in zip(self.frame, self.margins)]
        return like.new_empty((n * batch, self.groups * channels, *padded))

    def _inside(self, seen: Tensor, n: int) -> Tensor:
        """The part of what is seen that is no zero of ours, by groups: (n, B, G, C, *frame)."""
        inside = [slice(before, before + size) for size, (before, _) in zip(self.frame, self.margins)]
        return seen[(slice(None), slice(None), *inside)].unflatten(1, (self.groups, -1)).unflatten(0, (n, -1))

    def see(self, x: Tensor) -> Tensor:
        if self.is_plain:
            return x.flatten(0, 1)
        seen = self.memory(x)
        zeros = self.margins[:-1] if any(self.around) else self.margins
        if any(map(any, zeros)):
            seen.zero_()
        inside = self._inside(seen, x.shape[0])
        if self.drop is None:
            inside.copy_(x.unsqueeze(2))
        else:
            torch.mul(x.unsqueeze(2), self.drop.to(x.dtype), out=inside)
        for margin, end in self._ends(seen):
            margin.copy_(end)
        return seen

    def _ends(self, seen: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Of a periodic axis each margin, and what lies there: the other end."""
        (before, after), width = self.around, self.frame[-1]
        pairs = [(0, width, before), (before + width, before, after)]
        return [(seen.narrow(-1, at, n), seen.narrow(-1, end, n)) for at, end, n in pairs if n]

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        convolve = CONVOLUTIONS[len(self.frame)]
        z = convolve(self.see(x), self.weight, bias, self.stride, self.padding, self.dilation, self.groups)
        return z.unflatten(0, x.shape[:2])

    def _gradients(self, d_z: Tensor, seen: Tensor, by: list[bool]) -> tuple[Any, Any, Any]:
        return torch.ops.aten.convolution_backward.default(
            *(d_z.flatten(0, 1), seen, self.weight, None, self.stride, self.padding, self.dilation),
            *(False, [0] * len(self.frame), self.groups, [*by, False]),
        )

    def by_input(self, d_z: Tensor, seen: Tensor) -> Tensor:
        """d_z (n, B, 4F, *S) → d_x (n, B, C, *frame). Of what was seen the shape alone is used."""
        d_seen, _, _ = self._gradients(d_z, seen, [True, False])
        if self.is_plain:
            return d_seen.unflatten(0, d_z.shape[:2])
        for d_margin, d_end in self._ends(d_seen):
            d_end += d_margin
        d_x = self._inside(d_seen, d_z.shape[0])
        return d_x.squeeze(2) if self.drop is None else (d_x * self.drop.to(d_x.dtype)).sum(2)

    def by_weight(self, d_z: Tensor, seen: Tensor) -> Tensor:
        """d_z (n, B, 4F, *S) → d_weight (4F, C, *k), summed over steps and samples."""
        return self._gradients(d_z, seen, [False, True])[1]
