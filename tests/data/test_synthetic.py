"""Made-up rain moves, grows and decays, and keeps the contract."""

from __future__ import annotations

import numpy as np
import xarray as xr

from stormcell.data.contract import check_frames
from stormcell.data.synthetic import advected_rain
from stormcell.data.windows import split_at_gaps


def test_it_is_frames_with_gaps_between_storms() -> None:
    frames = advected_rain(5, 9, size=20, seed=1)
    check_frames(frames)
    assert [run.sizes["time"] for run in split_at_gaps(frames)] == [9] * 5
    assert np.isfinite(frames).all()
    assert frames.min() == 0
    assert not ((frames > 0) & (frames < 0.1)).any()
    xr.testing.assert_identical(frames, advected_rain(5, 9, size=20, seed=1))
    assert not np.array_equal(frames, advected_rain(5, 9, size=20, seed=2))


def test_it_moves_with_one_wind_and_changes_as_it_goes() -> None:
    """The best shift between two frames grows with their distance in time, and explains most but not all of the change."""
    for run in split_at_gaps(advected_rain(6, 9, size=64, seed=4)):
        first, later = run.values[2], run.values[5]
        still = np.mean((first - later) ** 2)
        shifts = {
            (dy, dx): np.mean((np.roll(first, (dy, dx), (0, 1)) - later)[10:-10, 10:-10] ** 2)
            for dy in range(-10, 11)
            for dx in range(-10, 11)
        }
        (dy, dx), moved = min(shifts.items(), key=lambda item: item[1])
        assert np.hypot(dy, dx) > 1.5  # three frames of 0.8 pixels or more
        assert 0 < moved < 0.6 * still
