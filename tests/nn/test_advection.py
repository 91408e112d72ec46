"""Semi-Lagrangian advection: known motion, rotation, both directions, what is missing, gradients, and pysteps."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stormcell.nn.advection import advect, paths, sample


def blob(height: int, width: int, y: float, x: float, radius: float = 4.0) -> Tensor:
    rows = torch.arange(height, dtype=torch.float64)[:, None]
    columns = torch.arange(width, dtype=torch.float64)
    return torch.exp(-((rows - y) ** 2 + (columns - x) ** 2) / radius**2)[None, None]


def uniform(height: int, width: int, x: float, y: float) -> Tensor:
    motion = torch.tensor([x, y], dtype=torch.float64)
    return motion[None, :, None, None].expand(1, 2, height, width)


def spin(side: int, turn: float) -> tuple[Tensor, float]:
    """Rotation by `turn` radians a unit of time about the middle; x to the right, y downwards."""
    middle = (side - 1) / 2
    place = torch.arange(side, dtype=torch.float64) - middle
    return torch.stack([-turn * place[:, None].expand(side, side), turn * place.expand(side, side)])[None], middle


def test_a_known_field_is_found_again_where_known_motion_takes_it() -> None:
    field = blob(40, 50, 12, 15)
    moved = advect(field, uniform(40, 50, 2.0, 1.5), [4.0, 1.0])
    assert moved.shape == (1, 2, 1, 40, 50)
    for k, time in enumerate((4, 1)):
        expected = blob(40, 50, 12 + 1.5 * time, 15 + 2 * time)
        inside = torch.isfinite(moved[:, k])
        assert inside.double().mean() > 0.7
        torch.testing.assert_close(
            moved[:, k][inside], expected[inside], rtol=0, atol=0.03
        )  # of bilinear interpolation


def test_rotation_bends_the_paths() -> None:
    motion, middle = spin(61, math.pi / 12)
    moved = advect(blob(61, 61, middle, middle + 15), motion, [6.0])[:, 0]  # a quarter turn, right to below
    y, x = divmod(int(torch.nan_to_num(moved).argmax()), 61)
    assert (y, x) == (middle + 15, middle)


def test_there_and_back_is_where_it_was() -> None:
    motion, middle = spin(61, 0.1)
    there = paths(motion, [3.0])[:, 0]
    back = sample(paths(motion, [-3.0])[:, 0], there)
    place = torch.arange(61) - middle
    near = torch.hypot(place[:, None].expand(61, 61), place.expand(61, 61)) < 25
    torch.testing.assert_close(back[0, :, near], -there[0, :, near], rtol=0, atol=0.02)


def test_nothing_moves_without_motion_or_time() -> None:
    field = torch.rand(2, 3, 9, 7)
    field[0, 0, 2, 3] = torch.nan
    still = torch.zeros(2, 2, 9, 7)
    torch.testing.assert_close(advect(field, still, [5.0])[:, 0], field, equal_nan=True)
    torch.testing.assert_close(advect(field, still + 3, [0.0])[:, 0], field, equal_nan=True)


def test_what_flows_in_is_missing_or_the_edges() -> None:
    field = torch.arange(5.0).expand(1, 1, 4, 5)
    displacement = uniform(4, 5, -2.0, 0.0).float()
    assert sample(field, displacement)[0, 0, 0].isnan().tolist() == [True, True, False, False, False]
    assert sample(field, displacement, beyond="border")[0, 0, 0].tolist() == [0, 0, 0, 1, 2]


def test_a_missing_pixel_is_no_zero() -> None:
    field = torch.ones(1, 1, 5, 6)
    field[..., 2, 3] = torch.nan
    moved = advect(field, uniform(5, 6, 0.25, 0.0).float(), [1.0])[0, 0, 0]
    assert moved[2, 3].isnan()
    assert (moved[torch.isfinite(moved)] == 1).all()


def test_nearest_keeps_values() -> None:
    field = torch.rand(1, 1, 8, 9)
    moved = advect(field, uniform(8, 9, 0.6, -0.3).float(), [1.0], mode="nearest")
    assert set(moved[torch.isfinite(moved)].tolist()) <= set(field.flatten().tolist())


def test_gradients_of_field_and_motion() -> None:
    generator = torch.Generator().manual_seed(0)
    field = torch.rand(1, 2, 5, 6, dtype=torch.float64, generator=generator, requires_grad=True)
    motion = 0.3 + 0.1 * torch.rand(1, 2, 5, 6, dtype=torch.float64, generator=generator)
    motion.requires_grad_()

    def moved(field: Tensor, motion: Tensor) -> Tensor:
        return sample(field, paths(motion, [-1.0])[:, 0], beyond="border")

    assert torch.autograd.gradcheck(moved, (field, motion))


def test_it_agrees_with_the_extrapolation_of_pysteps() -> None:
    semilagrangian = pytest.importorskip("pysteps.extrapolation.semilagrangian")
    motion, middle = spin(60, 0.05)
    motion = motion + uniform(60, 60, 1.0, -0.5)
    field = blob(60, 60, middle - 8, middle + 10, radius=6.0)
    theirs = semilagrangian.extrapolate(field[0, 0].numpy(), motion[0].numpy(), 5, outval=np.nan)
    ours = advect(field, motion, [1.0, 2.0, 3.0, 4.0, 5.0])[0, :, 0].numpy()
    both = np.isfinite(theirs) & np.isfinite(ours)
    assert both.mean() > 0.8
    assert np.abs(theirs - ours)[both].max() < 0.05
