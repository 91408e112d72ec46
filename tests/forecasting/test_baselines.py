"""Optical flow finds a known motion again, and moves a field along it."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from stormcell import InputError
from stormcell.forecasting.baselines import check_baselines, optical_flow, persistence


def blobs(count: int, velocity: tuple[float, float], size: int = 128) -> np.ndarray:
    """Rain cells on a wavy ground that drift by `velocity` (rows, columns) a frame."""
    y, x = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    rng = np.random.default_rng(0)
    cells = [(*rng.uniform(10, size - 10, 2), rng.uniform(3, 7), rng.uniform(2, 20)) for _ in range(25)]
    frames = np.zeros((count, size, size), dtype=np.float32)
    for t in range(count):
        for cy, cx, width, peak in cells:
            distance = (y - cy - velocity[0] * t) ** 2 + (x - cx - velocity[1] * t) ** 2
            frames[t] += (peak * np.exp(-distance / (2 * width**2))).astype(np.float32)
    frames[frames < 0.1] = 0
    return frames


def test_persistence_keeps_the_last_frame_and_its_missing_pixels() -> None:
    past = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    past[1, 0, 0] = np.nan
    np.testing.assert_array_equal(persistence(past, 3), np.stack([past[1]] * 3))


def test_optical_flow_advects_a_known_field_and_finds_it_again() -> None:
    pytest.importorskip("pysteps", reason="optical flow needs pysteps")
    frames = blobs(8, (2.0, -3.0))
    moved = optical_flow(frames[:4], 4)
    assert moved.shape == (4, 128, 128)
    for lead in range(4):
        valid = np.isfinite(moved[lead])
        truth = frames[4 + lead]
        error = np.mean((moved[lead] - truth)[valid] ** 2)
        still = np.mean((frames[3] - truth)[valid] ** 2)
        assert error < 0.05 * still
        event, found = truth[valid] >= 2, moved[lead][valid] >= 2
        assert (event & found).sum() / (event | found).sum() > 0.85


def test_what_comes_from_outside_is_missing() -> None:
    pytest.importorskip("pysteps", reason="optical flow needs pysteps")
    moved = optical_flow(blobs(4, (0.0, 3.0)), 4)
    assert np.isnan(moved[3, :, :6]).all()  # rain moves right: the left edge is fed from outside
    assert np.isfinite(moved[3, 20:-20, 40:-40]).all()


def test_missing_pixels_are_not_dry() -> None:
    pytest.importorskip("pysteps", reason="optical flow needs pysteps")
    frames = blobs(8, (0.0, 3.0))
    frames[:, :, :20] = np.nan
    moved = optical_flow(frames[:4], 2)
    assert np.isnan(moved[1, :, :20]).all()
    assert np.isnan(moved[1, 40:80, 20:24]).all()  # fed by missing pixels
    valid = np.isfinite(moved[1])
    assert np.mean((moved[1] - frames[5])[valid] ** 2) < 0.1 * np.mean((frames[3] - frames[5])[valid] ** 2)


def test_dry_frames_stay_dry() -> None:
    pytest.importorskip("pysteps", reason="optical flow needs pysteps")
    moved = optical_flow(np.zeros((4, 64, 64), dtype=np.float32), 3)
    assert np.nanmax(moved) == 0


def test_a_frame_that_is_missing_as_a_whole() -> None:
    pytest.importorskip("pysteps", reason="optical flow needs pysteps")
    frames = blobs(6, (0.0, 3.0))
    frames[1] = np.nan
    np.testing.assert_array_equal(optical_flow(frames[:4], 2), optical_flow(frames[2:4], 2))
    frames[3] = np.nan
    assert np.isnan(optical_flow(frames[:4], 2)).all()
    assert np.isnan(optical_flow(frames[:5], 2)).all()  # one frame after the blank one shows no motion


def test_a_baseline_that_cannot_be_computed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--against knows persistence, optical-flow, not 'magic'"):
        check_baselines(["magic"], rain=True)
    with pytest.raises(InputError, match="optical-flow needs rain frames"):
        check_baselines(["optical-flow"], rain=False)
    with pytest.raises(InputError, match="two past frames"):
        optical_flow(np.zeros((1, 8, 8), dtype=np.float32), 1)
    real = builtins.__import__

    def without_pysteps(name: str, *rest: Any) -> Any:
        if name.startswith("pysteps"):
            raise ImportError("No module named 'pysteps'")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_pysteps)
    with pytest.raises(InputError, match=r"pip install 'stormcell\[radar\]'"):
        check_baselines(["optical-flow"], rain=True)
