"""Windows never cross a gap, parts of a split never touch, and missing pixels reach the network as missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

from stormcell import InputError, open_frames
from stormcell.data.units import Transform
from stormcell.data.windows import (
    Windows,
    common_step,
    count_windows,
    network_input,
    runs_of,
    split_at_gaps,
    split_by_time,
    split_or_advise,
)

from ..conftest import make_frames

MINUTE = np.timedelta64(1, "m")


def run(start: str, count: int, minutes: float = 5, name: str = "run") -> xr.DataArray:
    frames = make_frames(np.zeros((count, 8, 8)), start=start, step_minutes=minutes)
    frames.attrs["source"] = name
    return frames


def starts_and_ends(runs: list[xr.DataArray]) -> list[tuple[np.datetime64, np.datetime64]]:
    return [(r.time.values[0], r.time.values[-1]) for r in runs]


# --- gaps ---


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(2, 6))
def test_windows_never_cross_a_gap(lengths: list[int], length: int) -> None:
    if max(lengths) < 3:
        return  # too few steps of one kind to tell a step from a gap
    times: list[np.datetime64] = []
    now = np.datetime64("2024-01-01T00:00", "ns")
    for count in lengths:
        times += [now + k * 5 * MINUTE for k in range(count)]
        now = times[-1] + (37 + len(times)) * MINUTE
    frames = make_frames(np.zeros((len(times), 2, 2))).assign_coords(time=np.array(times))
    runs = split_at_gaps(frames)
    assert [r.sizes["time"] for r in runs] == lengths
    assert count_windows(runs, length) == sum(max(n - length + 1, 0) for n in lengths)


def test_real_gaps(real_data: Path) -> None:
    frames = open_frames(real_data / "events/meteonet_nw_201608_gaps.nc")
    runs = split_at_gaps(frames)
    assert [r.sizes["time"] for r in runs] == [1, 2, 1, 3, 15, 2, 1, 12, 5, 3]
    assert all((np.diff(r.time.values) == 5 * MINUTE).all() for r in runs)


def test_real_calendar_months_are_no_gap(real_data: Path) -> None:
    assert len(split_at_gaps(open_frames(real_data / "other/ostia_monthly.nc"))) == 1


def test_mixed_steps_are_refused_naming_both_groups() -> None:
    with pytest.raises(InputError, match=r"6 min in bom, 5 min in fmi; give --step-minutes 30"):
        common_step([run("2024-01-01", 5, 6, "bom"), run("2024-01-02", 5, 5, "fmi")])
    assert common_step([run("2024-01-01", 5), run("2024-01-02", 1)]) == 5
    with pytest.raises(InputError, match="the time step is unknown"):
        common_step([run("2024-01-01", 1)])


# --- splits ---


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), min_size=1, max_size=6),
    st.integers(2, 12),
    st.booleans(),
)
def test_parts_of_a_split_lie_a_window_apart(places: list[tuple[int, int]], length: int, aside: bool) -> None:
    origin = np.datetime64("2024-01-01T00:00", "ns")
    runs = [run(str(origin + at * 5 * MINUTE), count) for at, count in places]
    how: dict[str, Any] = {"test_from": origin + 300 * 5 * MINUTE} if aside else {}
    try:
        split = split_by_time(runs, length, **how)
    except InputError:
        return
    assert count_windows(split.train, length) >= 1
    assert count_windows(split.validation, length) >= 1
    parts = [split.train, split.validation, *([split.test] if aside else [])]
    for k, one in enumerate(parts):
        for other in parts[k + 1 :]:
            for a, b in starts_and_ends(one):
                for c, d in starts_and_ends(other):
                    assert c - b >= length * 5 * MINUTE or a - d >= length * 5 * MINUTE
    given_frames = {t for r in runs for t in r.time.values}
    assert all(set(r.time.values) <= given_frames for part in parts for r in part)


def test_whole_runs_of_the_latest_times_validate() -> None:
    runs = [run(f"2024-0{m}-01", 40, name=str(m)) for m in (3, 1, 2, 5, 4)]
    split = split_by_time(runs, 10)
    assert [r.attrs["source"] for r in split.validation] == ["5"]
    assert [r.attrs["source"] for r in split.train] == ["1", "2", "3", "4"]


def test_runs_that_overlap_in_time_stay_on_one_side() -> None:
    pair = [run("2024-05-01T00:00", 40, name="a"), run("2024-05-01T02:00", 40, name="b")]
    split = split_by_time([run("2024-01-01", 200), *pair], 10)
    assert {r.attrs["source"] for r in split.validation} == {"a", "b"}


def test_a_single_run_is_cut_in_time() -> None:
    split = split_by_time([run("2024-01-01", 100)], 10)
    (train,), (validation,) = split.train, split.validation
    assert validation.time.values[0] - train.time.values[-1] == 10 * 5 * MINUTE
    assert validation.time.values[-1] == np.datetime64("2024-01-01") + 99 * 5 * MINUTE
    assert 0.15 < count_windows([validation], 10) / 91 < 0.25


def test_named_parts_are_kept_out_of_the_rest() -> None:
    whole = run("2024-01-01T00:00", 300)
    validation, test = whole.isel(time=slice(100, 140)), whole.isel(time=slice(200, 240))
    split = split_by_time([whole], 10, validation=[validation], test=[test])
    assert starts_and_ends(split.validation) == starts_and_ends([validation])
    assert starts_and_ends(split.test) == starts_and_ends([test])
    assert [len(r.time) for r in split.train] == [91, 42, 51]


def test_validation_by_name_is_cut_by_the_test_time_too() -> None:
    early, late = run("2024-01-01T00:00", 60), run("2024-01-03T00:00", 60)
    cut = np.datetime64("2024-01-03T03:00", "ns")
    split = split_by_time([early], 10, validation=[late], test_from=cut)
    assert split.validation[0].time.values[-1] <= cut - 10 * 5 * MINUTE
    with pytest.raises(InputError, match="no window of --val is left"):
        split_by_time([early], 10, validation=[late], test_from=np.datetime64("2024-01-02", "ns"))


def test_a_test_time_after_the_newest_frame_sets_nothing_aside() -> None:
    with pytest.raises(
        InputError, match="--test-from 2030-01-01T00:00 sets nothing aside: the newest frame is of 2024-01-01"
    ):
        split_by_time([run("2024-01-01", 100)], 10, test_from=np.datetime64("2030-01-01", "ns"))


def test_of_two_runs_the_later_validates() -> None:
    split = split_by_time([run("2024-02-01", 40, name="late"), run("2024-01-01", 40, name="early")], 10)
    assert [r.attrs["source"] for r in split.validation] == ["late"]


def test_too_few_windows_says_what_would_fit() -> None:
    with pytest.raises(
        InputError, match=r"fewer than 3 windows of 10 past and 10 future.*--past \d+ --future \d+ would fit"
    ):
        split_or_advise([run("2024-01-01", 40)], 10, 10)
    with pytest.raises(InputError, match=r"--past \d+ --future [1-9]"):
        split_or_advise([run("2024-01-01", 40)], 100_000, 6)
    with pytest.raises(InputError, match="more frames are needed: the longest run without a gap has 3"):
        split_or_advise([run("2024-01-01", 3)], 10, 10)


@pytest.mark.parametrize("count", range(4, 60))
def test_the_advice_is_true(count: int) -> None:
    import re

    try:
        split_or_advise([run("2024-01-01", count)], 12, 8)
    except InputError as error:
        advice = re.search(r"--past (\d+) --future (\d+) would fit", str(error))
        if advice:
            split_or_advise([run("2024-01-01", count)], int(advice[1]), int(advice[2]))


# --- tensors ---


def test_the_network_is_told_which_pixels_are_missing() -> None:
    x = network_input(np.array([[[[0.5, np.nan], [0.0, 0.1]]]], dtype=np.float32))
    assert x.shape == (1, 2, 2, 2)
    assert torch.equal(x[0, 0], torch.tensor([[0.5, 0.0], [0.0, 0.1]]))
    assert torch.equal(x[0, 1], torch.tensor([[1.0, 0.0], [1.0, 1.0]]))


def windows(frames: xr.DataArray, **how: Any) -> Windows:
    options: dict[str, Any] = {"past": 3, "future": 2, "crop": 16, **how}
    return Windows(split_at_gaps(frames), Transform(units=frames.attrs["units"]), **options)


def test_samples_are_consecutive_frames(rain: xr.DataArray) -> None:
    """Frames numbered by time: past and future follow each other, whatever the crop and the turn."""
    numbered = rain.copy(data=np.broadcast_to(np.arange(rain.sizes["time"])[:, None, None], rain.shape))
    numbered.attrs["units"] = "K"
    made = Windows(split_at_gaps(numbered), Transform("K", 0, 1), past=3, future=2, crop=16)
    for index in range(0, len(made), 17):
        sample = made[index]
        first = sample["x"][0, 0, 0, 0]
        order = torch.cat([sample["x"][:, 0], sample["y"][:, 0]]).amax(dim=(1, 2))
        assert torch.equal(order, first + torch.arange(5.0))
        assert int(first) % 12 <= 12 - 5  # no window reaches into the next storm


def test_missing_future_pixels_are_marked() -> None:
    data = np.ones((12, 16, 16), dtype=np.float32)
    data[:, :, :4] = np.nan
    sample = windows(make_frames(data), fixed=1)[0]
    assert not sample["valid"][..., :4].any()
    assert sample["valid"][..., 4:].all()
    assert torch.isfinite(sample["y"]).all()


def test_a_draw_follows_from_seed_epoch_and_index(rain: xr.DataArray) -> None:
    made, again = windows(rain, seed=5), windows(rain, seed=5)
    assert all(torch.equal(made[7][k], again[7][k]) for k in made[7])
    again.epoch = 1
    assert not torch.equal(made[7]["x"], again[7]["x"])
    fixed = windows(rain, fixed=4)
    before = fixed[2]["x"]
    fixed.epoch = 3
    assert torch.equal(fixed[2]["x"], before)
    assert len(fixed) == 4
    with pytest.raises(IndexError):
        fixed[4]


def test_crops_look_for_rain() -> None:
    data = np.zeros((12, 64, 64), dtype=np.float32)
    data[:, 40:, 40:] = 5
    wet = np.mean([(windows(make_frames(data))[k]["x"][:, 0] > 0).any().item() for k in range(32)])
    assert wet > 0.5  # one blind draw meets it in (24/49)² = 24 % of cases


def test_frames_that_do_not_fit_memory_are_read_window_by_window(
    rain: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_memory = windows(rain, seed=1)
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)
    from_disk = windows(rain, seed=1)
    assert in_memory.in_memory
    assert not from_disk.in_memory
    for index in (0, 11, 40):
        for key, value in in_memory[index].items():
            assert torch.equal(from_disk[index][key], value)


def test_runs_are_coarse_without_gaps_and_in_memory_where_they_fit(
    rain: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_disk = rain.chunk({"time": 1})
    runs = runs_of([on_disk, on_disk.isel(y=slice(0, 20))], coarsen=2)
    assert [run.shape for run in runs] == [(12, 16, 16)] * 30 + [(12, 10, 16)] * 30
    assert all(run.chunks is None for run in runs)
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)
    assert all(run.chunks is not None for run in runs_of([on_disk]))
