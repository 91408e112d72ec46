"""Steps in time, spacing and place of the grid."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr

from stormcell import InputError
from stormcell.data.axes import (
    MONTH,
    advance,
    area,
    common_grid_spacing,
    follows,
    grid_spacing,
    lead_text,
    parse_time,
    time_step,
)

from ..conftest import make_frames


def times(count: int, minutes: int = 5) -> np.ndarray:
    return np.datetime64("2024-06-01T12:00", "ns") + np.arange(count) * np.timedelta64(minutes, "m")


def test_steps() -> None:
    assert time_step(times(3)) == 5
    assert time_step(times(1)) is None
    gaps = np.concatenate([times(4), times(3) + np.timedelta64(7, "D")])
    assert time_step(gaps) == 5
    months = np.array([f"2024-{m:02d}-16T{12 * (m % 2):02d}:00" for m in range(1, 13)], dtype="datetime64[ns]")
    assert time_step(months) == MONTH
    assert all(follows(a, b, MONTH) for a, b in zip(months, months[1:]))
    assert not follows(months[0], months[2], MONTH)
    assert advance(np.datetime64("2024-01-31T00:00", "ns"), MONTH, 1) == np.datetime64("2024-02-29")
    assert advance(np.datetime64("2024-01-31T23:50", "ns"), 5.0, 3) == np.datetime64("2024-02-01T00:05")


def test_area_and_spacing() -> None:
    frames = make_frames(np.zeros((1, 10, 10)))
    assert area(frames) is None
    degrees = frames.assign_coords(
        y=("y", 60 - 0.01 * np.arange(10), {"units": "degrees"}),
        x=("x", 5 + 0.02 * np.arange(10), {"units": "degrees"}),
    )
    assert area(degrees) == pytest.approx([4.99, 59.905, 5.19, 60.005])
    assert grid_spacing(degrees) == pytest.approx(1112, rel=0.01)  # 0.01° of latitude; 0.02° at 60 °N is as long


def test_common_grid_spacing() -> None:
    def of(spacing: float) -> xr.DataArray:
        return make_frames(np.zeros((1, 4, 4)), spacing=spacing)

    assert common_grid_spacing([of(1000), of(1100)]) == 1050
    assert common_grid_spacing([make_frames(np.zeros((1, 1, 1)))]) is None
    with pytest.raises(InputError, match="grids differ: 1 km in made frames, 2 km in made frames"):
        common_grid_spacing([of(2000), of(1000)])


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2016-09-28T14:45", "2016-09-28T14:45"),
        ("2016-09-28 14:45", "2016-09-28T14:45"),
        ("20160928", "2016-09-28"),
        ("2016-09-28T14:45Z", "2016-09-28T14:45"),
        ("2016-09-28T14:45+02:00", "2016-09-28T12:45"),
    ],
)
def test_times_as_people_write_them(written: str, meant: str) -> None:
    assert parse_time(written, "--start") == np.datetime64(meant, "ns")


@pytest.mark.parametrize("written", ["", "NaT", "noon", "30000-01-01", "2016-13-01"])
def test_what_is_no_time(written: str) -> None:
    with pytest.raises(InputError, match="--start .* is not a time"):
        parse_time(written, "--start")


def test_pixel_numbers_are_no_place_whatever_the_crs() -> None:
    from pyproj import CRS

    frames = make_frames(np.zeros((1, 8, 8)))
    frames = frames.assign_coords(spatial_ref=xr.Variable((), 0, CRS.from_epsg(32633).to_cf()))
    assert area(frames) is not None
    frames.x.attrs["units"] = "1"
    assert area(frames) is None


@pytest.mark.parametrize(
    ("lead", "text"),
    [
        ((5, "m"), "+5 min"),
        ((300, "s"), "+5 min"),
        ((90, "s"), "+1.5 min"),
        ((30, "s"), "+30 s"),
        ((90, "m"), "+90 min"),
        ((6, "h"), "+6 h"),
        ((390, "m"), "+390 min"),
        ((30, "D"), "+30 d"),
        ((0, "m"), "+0 s"),
        ((-10, "m"), "−10 min"),
    ],
)
def test_a_lead_time_in_words(lead: tuple[int, str], text: str) -> None:
    assert lead_text(np.timedelta64(*lead).astype("timedelta64[ns]")) == text
