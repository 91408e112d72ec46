"""Optical flow and the cascades of pysteps find a known motion again; what is dry, missing or at rest."""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from stormcell import InputError
from stormcell.forecasting.baselines import (
    Array,
    baselines_on,
    check_baselines,
    optical_flow,
    persistence,
    s_prog,
    steps_ensemble,
)


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


# --- cascades ---


def members(past: Array, steps: int) -> Array:
    return steps_ensemble(past, steps, members=4)


def squared_error(fcst: Array, truth: Array) -> float:
    return float(np.nanmean((fcst - truth) ** 2))


def test_s_prog_keeps_a_field_that_only_moves() -> None:
    pytest.importorskip("pysteps", reason="S-PROG needs pysteps")
    frames = blobs(8, (2.0, -3.0))
    fcst = s_prog(frames[:4], 4)
    assert fcst.shape == (4, 128, 128)
    for lead in range(4):
        assert squared_error(fcst[lead], frames[4 + lead]) < 0.05 * squared_error(frames[3], frames[4 + lead])


def test_the_members_of_steps_scatter_around_a_field_that_only_moves() -> None:
    pytest.importorskip("pysteps", reason="STEPS needs pysteps")
    frames = blobs(8, (2.0, -3.0))
    fcst = steps_ensemble(frames[:4], 4, members=8)
    assert fcst.shape == (8, 4, 128, 128)
    still = [squared_error(frames[3], truth) for truth in frames[4:]]
    for lead in range(4):
        errors = [squared_error(member, frames[4 + lead]) for member in fcst[:, lead]]
        assert max(errors) < still[lead]
        assert squared_error(fcst[:, lead].mean(axis=0), frames[4 + lead]) < np.mean(errors)  # they err apart
    spread = np.nanmean(fcst.std(axis=0), axis=(1, 2))
    assert 0 < spread[0] < spread[3]


def test_members_depend_on_seed_and_frames_alone(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pysteps", reason="STEPS needs pysteps")
    past = blobs(4, (1.0, 0.0), 64)
    np.random.seed(7)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    first = members(past, 2)
    assert np.random.random() == expected  # noqa: NPY002  (pysteps seeds the global generator)
    np.testing.assert_array_equal(first, members(past, 2))
    assert not np.array_equal(first, steps_ensemble(past, 2, members=4, seed=1), equal_nan=True)
    assert not np.array_equal(first[0], first[1], equal_nan=True)
    assert capsys.readouterr().out == ""
    coarse = baselines_on(["steps"], spacing_m=4000.0, step=10.0)
    assert coarse[1]["steps"]["spacing_km"] == 4
    assert coarse[1]["steps"]["step_minutes"] == 10
    assert coarse[0]["steps"](past, 1).shape == (20, 1, 64, 64)
    with pytest.raises(InputError, match="steps needs frames minutes apart, not a month"):
        baselines_on(["steps"], spacing_m=None, step="month")


@pytest.mark.parametrize("forecast", [s_prog, members])
def test_cascades_are_missing_where_optical_flow_is(forecast: Callable[[Array, int], Array]) -> None:
    pytest.importorskip("pysteps", reason="cascades need pysteps")
    past = blobs(4, (0.0, 3.0))
    past[:, :, :20] = np.nan
    fcst, mask = forecast(past, 3), np.isnan(optical_flow(past, 3))
    assert 0.1 < mask.mean() < 0.5
    np.testing.assert_array_equal(np.isnan(fcst), np.broadcast_to(mask, fcst.shape))
    past[3] = np.nan
    assert np.isnan(forecast(past, 3)).all()


@pytest.mark.parametrize("forecast", [s_prog, members])
def test_cascades_of_little_rain(forecast: Callable[[Array, int], Array]) -> None:
    """What pysteps itself cannot compute: dry frames, frames at rest, rain that has just begun."""
    pytest.importorskip("pysteps", reason="cascades need pysteps")
    frames = blobs(4, (0.0, 1.0), 64)
    dry = np.zeros_like(frames)
    assert np.nanmax(forecast(dry, 2)) == 0
    assert np.nanmax(forecast(np.concatenate([frames[:3], dry[:1]]), 2)) == 0
    begun = np.concatenate([dry[:3], frames[3:]])
    np.testing.assert_array_equal(forecast(begun, 2).reshape(-1, 64, 64)[0], optical_flow(begun, 2)[0])
    speck = np.where(np.arange(64 * 64).reshape(64, 64) == 2000, 1 + frames, 0).astype(np.float32)
    for past in (frames[:2], np.concatenate([dry[:2], frames[2:]]), np.repeat(frames[:1], 4, axis=0), speck):
        moved = optical_flow(past, 1)[0]
        for one in forecast(past, 1).reshape(-1, 64, 64):
            assert squared_error(one, moved) < 0.3 * np.nanvar(moved)
    with pytest.raises(InputError, match="needs two past frames"):
        forecast(frames[:1], 2)


def test_a_baseline_that_cannot_be_computed_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError,
        match="--against knows persistence, optical-flow, s-prog, steps, climatology, damped-persistence, not 'magic'",
    ):
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
