"""What is read of a store is what was put in, chosen by an index that is never that of other frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

from stormcell import InputError, open_frames
from stormcell.data import places, store
from stormcell.data.batches import Batches
from stormcell.data.store import FRAMES, INDEX, index_of, opened, stretch_of
from stormcell.data.synthetic import advected_rain
from stormcell.data.units import Transform
from stormcell.data.windows import Windows, runs_of, split_at_gaps, split_by_time
from stormcell.forecasting.aligned import AlignedWindows
from stormcell.forecasting.archive import Archive

from ..conftest import make_frames

PLAIN: dict[str, Any] = {"past": 3, "future": 2, "crop": 128, "seed": 2}


def stored(frames: xr.DataArray, path: Path) -> xr.DataArray:
    archive = Archive(path)
    archive.add(frames)
    archive.finish()
    return open_frames(path)


@pytest.fixture(scope="module")
def wide() -> xr.DataArray:
    """Four storms of 10 frames of 150×200 pixels, with rain to the left, and nothing seen above and to the right."""
    frames = advected_rain(4, 10, size=200, seed=1).isel(y=slice(50, None))
    frames = frames.where((frames.x < 90e3) | (frames.x > 110e3), 0.0)
    return frames.where((frames.x < 150e3) | (frames.y < 100e3)).assign_attrs(frames.attrs)


@pytest.fixture(scope="module")
def archive(wide: xr.DataArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "wide.zarr"
    stored(wide, path)
    return path


@pytest.fixture
def little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)


# --- stretches ---


def test_runs_of_a_store_are_stretches_of_it_whatever_was_cut_from_them(archive: Path, wide: xr.DataArray) -> None:
    runs = split_at_gaps(open_frames(archive))
    parts = split_by_time(runs, 4, test_from=wide.time.values[34])
    for run in [*runs, *parts.train, *parts.validation, *parts.test]:
        stretch = stretch_of(run)
        assert stretch is not None
        assert opened(archive).time.values[stretch.first] == run.time.values[0]
        read = stretch.read(slice(1, 3), slice(10, 150), slice(120, 131))
        np.testing.assert_array_equal(read, run.values[1:3, 10:150, 120:131])


def test_what_is_computed_from_a_store_is_no_stretch_of_it(archive: Path) -> None:
    frames = open_frames(archive)
    (coarse,) = runs_of([frames.isel(time=slice(0, 10))], coarsen=2)
    others = [
        frames * 2,
        frames.where(frames > 1),
        frames.isel(x=slice(0, 9)),
        frames.isel(time=slice(0, 30, 3)),
        coarse,
    ]
    others += [open_frames(archive, step_minutes=10), open_frames(archive, missing=0), frames.compute()]
    assert [stretch_of(other) for other in others] == [None] * len(others)
    assert stretch_of(frames) is not None


def test_a_damaged_chunk_is_named(archive: Path, wide: xr.DataArray, tmp_path: Path) -> None:
    run = stored(wide, tmp_path / "s.zarr")
    (tmp_path / "s.zarr" / "rain_rate" / "1.0.0").write_bytes(b"nonsense")
    stretch = stretch_of(run)
    assert stretch is not None
    with pytest.raises(InputError, match=r"s.zarr breaks off or is damaged"):
        stretch.read(slice(12, 14), slice(0, 9), slice(0, 9))


# --- the index ---


def test_the_index_counts_wet_and_valid_pixels_of_cells(archive: Path, wide: xr.DataArray) -> None:
    index = index_of(archive)
    assert index["wet"].shape == (40, 3, 4)
    for k in (0, 17):
        for row, column in np.ndindex(3, 4):
            cell = wide.values[k, 64 * row : 64 * (row + 1), 64 * column : 64 * (column + 1)]
            assert abs(index["wet"][k, row, column] / 255 - (cell >= 0.1).mean()) < 1 / 255
            assert abs(index["valid"][k, row, column] / 255 - np.isfinite(cell).mean()) < 1 / 255
    assert (index["wet"][:, :, 0] > 0).any()


def test_what_is_not_rain_is_never_wet(tmp_path: Path) -> None:
    stored(make_frames(np.ones((4, 9, 9)), units="K"), tmp_path / "k.zarr")
    index = index_of(tmp_path / "k.zarr")
    assert (index["valid"] == 255).all()
    assert not index["wet"].any()


@pytest.mark.parametrize("harm", ["gone", "short", "other times", "other values", "half a record"])
def test_an_index_of_other_frames_is_made_anew(harm: str, wide: xr.DataArray, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    stored(wide, path)
    true, file = np.array(index_of(path)), path / INDEX
    content = file.read_bytes()
    if harm == "gone":
        file.unlink()
    elif harm == "short":
        file.write_bytes(content[: 13 * true.itemsize])
    elif harm == "half a record":
        file.write_bytes(content[:-5])
    else:
        wrong = true.copy()
        if harm == "other times":
            wrong["time"] += 60 * 10**9
        else:
            wrong["wet"] = 9
        file.write_bytes(wrong.tobytes())
    np.testing.assert_array_equal(index_of(path), true)
    assert file.read_bytes() == content


# --- crops ---


def test_crops_lie_where_they_touch_few_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    assert places._along(1000, 128) == [0, 128, 256, 384, 512, 640, 768, 872]
    assert places._along(256, 64) == [0, 64, 128, 192]
    assert places._along(300, 160) == [0, 64, 128, 140]  # two chunks each but the last, which is there for the border
    assert places._along(32, 32) == [0]


def test_rain_is_drawn_sixteen_times_as_often(tmp_path: Path, little_memory: None) -> None:
    """One of four places is wet, and one is missing: it is never drawn."""
    data = np.zeros((5, 256, 256), dtype=np.float32)
    data[:, :128, :128] = 3
    data[:, 128:, 128:] = np.nan
    run = stored(make_frames(data), tmp_path / "s.zarr")
    windows = Windows([run], Transform(), **PLAIN)
    assert windows.places is not None
    np.testing.assert_allclose(windows.places.weights, [[[1, 1 / 16, 1 / 16, 0]]])
    drawn = [windows.places.place(0, share) for share in (0.0, 0.88, 0.9, 0.95, 1 - 1e-16)]
    assert drawn == [(0, 0), (0, 0), (0, 128), (128, 0), (128, 0)]
    assert "16 times as much" in str(windows.sampling)


def test_windows_are_drawn_by_their_weight(tmp_path: Path, little_memory: None) -> None:
    data = np.zeros((40, 128, 128), dtype=np.float32)
    data[20:] = 3
    run = stored(make_frames(data), tmp_path / "s.zarr")
    windows = Windows([run], Transform(), **{**PLAIN, "fixed": 36})
    starts = [windows.window(k)[1] for k in range(36)]
    assert starts == sorted(starts)
    assert sum(start < 16 for start in starts) <= 3


def test_windows_from_a_store_are_those_of_the_frames(
    archive: Path, wide: xr.DataArray, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Windows(split_at_gaps(wide), Transform(), **PLAIN)
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)
    made = Windows(split_at_gaps(open_frames(archive)), Transform(), **PLAIN)
    fixed = Windows(split_at_gaps(open_frames(archive)), Transform(), **PLAIN, fixed=9)
    assert made.places is not None
    assert (made.windows, len(made), made.crops_a_window) == (whole.windows, len(whole), whole.crops_a_window)
    for run, start in whole.windows:
        np.testing.assert_array_equal(made.read(run, slice(start, start + 5)), whole.frames(run, start))
    for k in range(9):
        crops = {
            place: whole.frames(*fixed.window(k))[:, 0, place[0] : place[0] + 128, place[1] : place[1] + 128]
            for place in np.ndindex(23, 73)
        }
        sample = torch.cat([fixed[k]["x"][:, 0], fixed[k]["y"][:, 0]]).numpy()
        assert sum(np.array_equal(np.nan_to_num(crop), sample) for crop in crops.values()) == 1
    again = Windows(split_at_gaps(open_frames(archive)), Transform(), **PLAIN)
    assert all(torch.equal(made[7][key], again[7][key]) for key in made[7])
    again.epoch = 1
    assert not torch.equal(made[7]["x"], again[7]["x"])


def test_frames_without_a_valid_pixel_are_read_as_any_others(tmp_path: Path, little_memory: None) -> None:
    run = stored(make_frames(np.full((6, 16, 16), np.nan)), tmp_path / "s.zarr")
    windows = Windows([run], Transform(), **PLAIN)
    assert windows.places is None
    assert not windows[0]["valid"].any()


@pytest.mark.skipif("sys.platform != 'linux'", reason="elsewhere nothing reads ahead")
def test_who_reads_ahead_changes_nothing(archive: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Order and samples follow from seed and epoch, told after an iterator is made, as Lightning does."""
    windows = Windows(split_at_gaps(open_frames(archive)), Transform(), **PLAIN)
    found = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        windows.epoch = 0
        batches = Batches(windows, 4, shuffled=True)
        loader = batches.loader()
        assert loader.num_workers == threads - 1
        iterator = iter(loader)
        windows.epoch, batches.done = 3, 2
        found.append(list(iterator))
    assert len(found[0]) == len(found[1]) == -(-len(windows) // 4) - 2
    for one, other in zip(*found):
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_of_windows_that_are_moved_others_are_drawn_in_each_epoch(
    archive: Path, little_memory: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = split_at_gaps(open_frames(archive))
    one = 150 * 200 * 2 * 6
    monkeypatch.setattr("stormcell.forecasting.aligned.MEMORY_LIMIT", 4 * one)
    how: dict[str, Any] = {"ages": (-10, -5, 0), "leads": (5, 10, 15), "crop": 64}
    made = AlignedWindows(runs, Transform(), **how)
    first = [made.window(k) for k in range(len(made))]
    assert len(set(first)) <= 4
    assert [made.window(k) for k in range(len(made))] == first
    made.epoch = 1
    assert [made.window(k) for k in range(len(made))] != first
    assert "drawn by the weight" in str(made.sampling)
    assert AlignedWindows(runs, Transform(), **how, fixed=2)[1]["x"].shape == (3, 2, 64, 64)


def test_frames_of_a_store_that_fit_memory_are_drawn_as_ever(archive: Path) -> None:
    assert FRAMES == 12
    assert Windows(split_at_gaps(open_frames(archive)), Transform(), **PLAIN).sampling is None
    assert not store.is_store(archive / "rain_rate")
