"""Semi-Lagrangian advection: fields moved along a motion field, forwards or backwards, differentiable.

Motion is steady in time, as in nowcasting since Germann and Zawadzki 2002, so that rotation and shear bend the paths: a path is
followed in small steps of the midpoint rule. A pixel takes what was at the other end of its path, between four pixels by their
valid weights; what comes from outside the frame or from missing pixels is missing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["advect", "paths", "sample"]

_LONGEST_STEP = 4.0  # pixels: motion is smooth over more


def paths(motion: Float[Tensor, "B 2 Y X"], times: Sequence[float]) -> Float[Tensor, "B T 2 Y X"]:
    """Where the air over each pixel is at `times` (before now: negative), as displacements (x, y) in pixels.

    `motion` is (x, y) in pixels a unit of `times`, y counted downwards; beyond the frame it goes on as at the edge.
    """
    fastest = float(motion.detach().abs().amax()) if motion.numel() else 0.0
    found: dict[float, Tensor] = {0.0: torch.zeros_like(motion)}
    for side in (sorted(t for t in times if t > 0), sorted((t for t in times if t < 0), reverse=True)):
        place, now = found[0.0], 0.0
        for time in side:
            count = max(1, math.ceil(abs(time - now) * fastest / _LONGEST_STEP))
            step = (time - now) / count
            for _ in range(count):
                middle = place + (step / 2) * _at(motion, place)
                place = place + step * _at(motion, middle)
            found[time], now = place, time
    return torch.stack([found[float(t)] for t in times], dim=1)


def sample(
    field: Float[Tensor, "B C Y X"],
    displacement: Float[Tensor, "B 2 Y X"],
    *,
    mode: str = "bilinear",
    beyond: str = "zeros",
) -> Float[Tensor, "B C Y X"]:
    """The field at each pixel plus its displacement; NaN where less than half of it is valid.

    `beyond` the frame it is missing ("zeros" of validity) or goes on as at its "border"; `mode` is "bilinear" or "nearest".
    """
    valid = torch.isfinite(field)
    values = _at(torch.where(valid, field, 0.0), displacement, mode=mode, padding=beyond)
    weight = _at(valid.to(field.dtype), displacement, mode=mode, padding=beyond)
    return torch.where(weight >= 0.5, values / weight.clamp(min=0.5), torch.nan)


def advect(
    field: Float[Tensor, "B C Y X"], motion: Float[Tensor, "B 2 Y X"], times: Sequence[float], *, mode: str = "bilinear"
) -> Float[Tensor, "B T C Y X"]:
    """The field moved along the motion to `times`, as in `paths`; negative times move it back.

    `mode` is torch's "bilinear" or "nearest".
    """
    back = paths(motion, [-t for t in times])
    return torch.stack([sample(field, back[:, k], mode=mode) for k in range(len(times))], dim=1)


def _at(field: Tensor, displacement: Tensor, *, mode: str = "bilinear", padding: str = "border") -> Tensor:
    height, width = field.shape[-2:]
    y = torch.arange(height, device=field.device, dtype=field.dtype)[:, None]
    x = torch.arange(width, device=field.device, dtype=field.dtype)
    across = (2 * (x + displacement[:, 0]) + 1) / width - 1
    down = (2 * (y + displacement[:, 1]) + 1) / height - 1
    grid = torch.stack([across, down], dim=-1)
    return nnf.grid_sample(field, grid, mode=mode, padding_mode=padding, align_corners=False)
