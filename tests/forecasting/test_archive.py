"""A store holds the frames of its files, whatever ended the program that wrote it, and grows at its end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr

from stormcell import InputError, open_frames
from stormcell.data.reading import Reading
from stormcell.data.store import index_of
from stormcell.data.synthetic import advected_rain
from stormcell.data.windows import runs_of
from stormcell.forecasting.archive import Archive, fill
from stormcell.forecasting.forecast import save_frames
from stormcell.forecasting.plan import plan
from stormcell.forecasting.train import train

from ..conftest import make_frames
from .conftest import RECIPE


@pytest.fixture(scope="module")
def storms() -> xr.DataArray:
    """50 frames of 130×140 pixels with gaps: four whole blocks and a part of one."""
    return advected_rain(5, 10, size=140, seed=4).isel(y=slice(0, 130))


@pytest.fixture(scope="module")
def raw(storms: xr.DataArray, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of seven frames."""
    folder = tmp_path_factory.mktemp("raw")
    for k in range(0, 50, 7):
        save_frames(storms.isel(time=slice(k, k + 7)), folder / f"{k:02}.nc")
    return folder


def store(data: Any, path: Path, reading: Reading | None = None, **how: Any) -> int:
    return fill(Archive(path), [str(d) for d in (data if isinstance(data, list) else [data])], reading, **how)


def assert_holds(path: Path, frames: xr.DataArray) -> None:
    """Values, times, unit and grid as they were; as many for those who do not ask xarray; and an index of these."""
    found = open_frames(path)
    np.testing.assert_array_equal(found.values, frames.values)
    np.testing.assert_array_equal(found.time, frames.time)
    for axis in ("x", "y"):
        np.testing.assert_array_equal(found[axis], frames[axis])
    assert found.attrs["units"] == frames.attrs["units"]
    assert zarr.open_array(path / str(found.name), mode="r").shape == frames.shape
    assert len(index_of(path)) == len(frames)


def test_a_store_holds_what_its_files_do(raw: Path, storms: xr.DataArray, tmp_path: Path) -> None:
    assert store(raw, tmp_path / "s.zarr") == 50
    assert_holds(tmp_path / "s.zarr", storms)
    assert [p.name for p in tmp_path.iterdir()] == ["s.zarr"]
    one = xr.open_zarr(tmp_path / "s.zarr", chunks={})
    assert one.rain_rate.dtype == np.float32
    assert one.rain_rate.chunks[0][0] == 12
    assert one.rain_rate.attrs["standard_name"] == "lwe_precipitation_rate"
    assert one.attrs["Conventions"] == "CF-1.11"


def test_a_single_file_is_stored_block_by_block(storms: xr.DataArray, tmp_path: Path) -> None:
    save_frames(storms, tmp_path / "all.nc")
    seen: list[int] = []

    def progress(items: Any) -> Any:
        for item in items:
            seen.append(item)
            yield item

    assert store(tmp_path / "all.nc", tmp_path / "s.zarr", progress=progress) == 50
    assert seen == [0, 12, 24, 36, 48]
    assert_holds(tmp_path / "s.zarr", storms)


def test_newer_frames_are_added_and_older_files_not_opened(
    raw: Path, storms: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted(raw.iterdir())
    assert store(files[:3], tmp_path / "s.zarr") == 21
    assert_holds(tmp_path / "s.zarr", storms.isel(time=slice(0, 21)))
    assert store(files[:5], tmp_path / "s.zarr") == 14
    opened: list[str] = []
    from stormcell.data import frames

    read = frames._read
    monkeypatch.setattr(frames, "_read", lambda path, reading: opened.append(path.name) or read(path, reading))
    assert store(raw, tmp_path / "s.zarr") == 15
    assert opened.count("00.nc") + opened.count("07.nc") <= 1
    assert_holds(tmp_path / "s.zarr", storms)
    assert store(raw, tmp_path / "s.zarr") == 0
    assert_holds(tmp_path / "s.zarr", storms)


@pytest.mark.parametrize("moves", [0, 1, 3, 4, 5, 6, 7, 8, 11, 13, 15])
def test_what_ends_the_program_leaves_whole_frames(
    moves: int, storms: xr.DataArray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after so many of the files that the second block moves into the store; the first was a part of one."""
    path = tmp_path / "s.zarr"
    archive = Archive(path)
    archive.add(storms.isel(time=slice(0, 5)))
    archive.finish()
    count = 0

    def stopped(source: Path, target: Path) -> None:
        nonlocal count
        count += 1
        if count > moves:
            raise KeyboardInterrupt
        source.replace(target)

    monkeypatch.setattr("stormcell.forecasting.archive._move", stopped)
    with pytest.raises(KeyboardInterrupt):
        archive.add(storms.isel(time=slice(5, 24)))
    monkeypatch.undo()
    found = open_frames(path)
    assert found.sizes["time"] in (5, 12, 24)
    np.testing.assert_array_equal(found, storms.isel(time=slice(0, found.sizes["time"])))
    (path / ".block").mkdir()
    (path / ".block" / ".zattrs").write_text("{")
    archive = Archive(path)
    archive.add(storms.isel(time=slice(len(archive.times), None)))
    archive.finish()
    assert_holds(path, storms)
    assert not (path / ".block").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="a test cannot kill so on Windows")
def test_a_killed_store_goes_on(storms: xr.DataArray, tmp_path: Path) -> None:
    """Whenever it is killed."""
    frames = xr.concat([storms.assign_coords(time=storms.time + k * np.timedelta64(9, "D")) for k in range(8)], "time")
    for k in range(0, 400, 5):
        save_frames(frames.isel(time=slice(k, k + 5)), tmp_path / f"{k:03}.nc")
    path = tmp_path / "s.zarr"
    command = [sys.executable, "-m", "stormcell", "store", str(tmp_path / "*.nc"), "-o", str(path)]
    said, rng = "", np.random.default_rng(0)
    for _ in range(6):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        before = path.stat().st_mtime if path.exists() else 0.0
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if path.exists() and path.stat().st_mtime > before:
                time.sleep(rng.uniform(0, 0.5))
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        said = process.communicate()[1]
        found = open_frames(path)
        np.testing.assert_array_equal(found, frames.isel(time=slice(0, found.sizes["time"])))
        if found.sizes["time"] == 400:
            break
    assert "frames up to" in said
    assert "going on from there" in said
    store(tmp_path / "*.nc", path)
    assert_holds(path, frames)


def test_frames_are_read_as_the_options_say(raw: Path, storms: xr.DataArray, tmp_path: Path) -> None:
    """Coarse means and every other frame, in two goes as in one."""
    how = Reading(step_minutes=10)
    store(sorted(raw.iterdir())[:3], tmp_path / "s.zarr", how, coarsen=2)
    store(raw, tmp_path / "s.zarr", how, coarsen=2)
    (whole,) = (xr.concat(runs_of([storms.isel(time=slice(None, None, 2))], coarsen=2), "time"),)
    found = open_frames(tmp_path / "s.zarr")
    np.testing.assert_array_equal(found.time, whole.time)
    np.testing.assert_array_equal(found, whole)


def test_files_without_times_are_counted_on(tmp_path: Path) -> None:
    data = np.random.default_rng(0).random((40, 9, 9)).astype(np.float32)
    for k in range(0, 40, 8):
        np.save(tmp_path / f"{k:02}.npy", data[k : k + 8])
    how = Reading(units="mm/h", start="2024-01-01T00:00", step_minutes=5)
    store(sorted(tmp_path.glob("*.npy"))[:3], tmp_path / "s.zarr", how)
    store(tmp_path / "*.npy", tmp_path / "s.zarr", how)
    found = open_frames(tmp_path / "s.zarr")
    np.testing.assert_array_equal(found, data)
    assert (np.diff(found.time) == np.timedelta64(5, "m")).all()


def test_amounts_in_files_of_one_frame_become_rates(tmp_path: Path) -> None:
    for k in range(14):
        np.save(tmp_path / f"20240101_00{k:02}.npy", np.full((1, 9, 9), 0.25, dtype=np.float32))
    fill(Archive(tmp_path / "s.zarr"), [str(tmp_path / "*.npy")], Reading(units="mm", step_minutes=1))
    np.testing.assert_array_equal(open_frames(tmp_path / "s.zarr"), np.full((14, 9, 9), 15.0))


def test_what_does_not_go_together_is_refused(storms: xr.DataArray, tmp_path: Path) -> None:
    path = tmp_path / "s.zarr"
    day = np.timedelta64(30, "D")
    save_frames(storms, tmp_path / "b.nc")
    store(tmp_path / "b.nc", path)
    later = storms.assign_coords(time=storms.time + day).isel(time=slice(0, 3))
    others = {
        r"other.nc has another grid \(130×139 pixels\) than .*s.zarr \(130×140\)": later.isel(x=slice(1, None)),
        "or lies elsewhere": later.assign_coords(x=later.x.copy(data=later.x.values + 5000)),
        "other.nc is in dBZ .*a store has one unit": later.assign_attrs(units="dBZ"),
        r"Z–R pair \(300.0, 1.4\)": later.assign_attrs(zr=(300.0, 1.4)),
    }
    for message, frames in others.items():
        save_frames(frames, tmp_path / "other.nc")
        with pytest.raises(InputError, match=message):
            store(tmp_path / "other.nc", path)
    assert_holds(path, storms)
    save_frames(later, tmp_path / "a.nc")
    with pytest.raises(InputError, match=r"b.nc begins at .*, and .*a.nc, which comes before it, ends at"):
        store([tmp_path / "a.nc", tmp_path / "b.nc"], tmp_path / "t.zarr")
    save_frames(make_frames(np.zeros((2, 4, 4))), tmp_path / "other.zarr")
    with pytest.raises(InputError, match=r"other.zarr is there already, and `stormcell store` has not made it"):
        Archive(tmp_path / "other.zarr")
    with pytest.raises(InputError, match="ends in .zarr"):
        Archive(tmp_path / "s.nc")


def test_a_forecast_is_not_stored(tmp_path: Path) -> None:
    from stormcell.forecasting.forecast import as_forecast

    past = make_frames(np.zeros((2, 9, 9)))
    save_frames(as_forecast(np.zeros((3, 9, 9), np.float32), past, 5.0), tmp_path / "f.nc")
    with pytest.raises(InputError, match=r"f.nc is a forecast: a store is for what was observed"):
        store(tmp_path / "f.nc", tmp_path / "s.zarr")


def test_a_training_from_a_store_is_resumed_as_it_would_have_gone_on(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)
    store(raw, tmp_path / "s.zarr")
    runs = runs_of([open_frames(tmp_path / "s.zarr")])
    recipe = replace(RECIPE, crop=128, epochs=2, batch=3)
    whole = train(plan(runs, recipe), tmp_path / "whole.safetensors", progress=False)
    assert "weighs 16 times as much" in whole.card["sampling"]
    assert whole.card["updates"] > 4
    losses = []

    def interrupted(self: Any, *_: Any) -> None:
        losses.append(None)
        if len(losses) == whole.card["updates"] - 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("stormcell.forecasting.train._Reporter.on_train_batch_end", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(plan(runs, recipe), tmp_path / "m.safetensors", progress=False)
    resumed = train(plan(runs, recipe), tmp_path / "m.safetensors", resume=True, progress=False)
    for name, weight in whole.network.state_dict().items():
        np.testing.assert_array_equal(weight, resumed.network.state_dict()[name])


def test_runs_of_a_store_are_counted_while_they_are_read(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a year of frames it takes minutes; what is in memory has no need of it."""
    store(raw, tmp_path / "s.zarr")
    seen: list[int] = []

    def counted(runs: Sequence[int]) -> Iterator[int]:
        for run in runs:
            seen.append(run)
            yield run

    plain = plan(runs_of([open_frames(tmp_path / "s.zarr")]), RECIPE, progress=counted)
    assert not seen
    monkeypatch.setattr("stormcell.data.windows.MEMORY_LIMIT", 0)
    read = plan(runs_of([open_frames(tmp_path / "s.zarr")]), RECIPE, progress=counted)
    assert seen == [*range(len(read.training.runs)), *range(len(read.validation.runs))]
    assert len(plain.training.runs) == len(read.training.runs)


def test_packed_files_leave_no_copies(tmp_path: Path) -> None:
    import gzip

    from stormcell.data.readers import raw

    for k in range(30):
        np.save(tmp_path / "one.npy", np.full((1, 9, 9), k, dtype=np.float32))
        content = (tmp_path / "one.npy").read_bytes()
        (tmp_path / f"20240101_00{k:02}.npy.gz").write_bytes(gzip.compress(content))
    before = dict(raw._copies)
    fill(Archive(tmp_path / "s.zarr"), [str(tmp_path / "*.gz")], Reading(units="mm/h", step_minutes=1))
    assert raw._copies == before
    np.testing.assert_array_equal(open_frames(tmp_path / "s.zarr")[:, 0, 0], np.arange(30))
