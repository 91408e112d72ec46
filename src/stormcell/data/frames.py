"""`open_frames`: anything that holds frames → a DataArray under the contract (contract.py), held to it once, here."""

from __future__ import annotations

import bisect
import glob
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import InputError, reason
from . import readers
from .axes import MONTH, advance, parse_time, same_grid, time_step, time_text, with_crs, with_grid
from .channels import readings, stacked, static_file, with_static
from .contract import check_order, cleaned, thinned, thinned_on
from .readers.raw import CompanionFile, forget_copy, time_in_name
from .reading import Reading
from .store import linked
from .units import MARSHALL_PALMER, canonical, is_rain

Paths = str | Path | Sequence[str | Path]
_MEAN_MONTH_MINUTES = 30.44 * 1440


# --- what is there ---


def find_files(paths: Paths) -> list[Path]:
    """Files with frames behind a path, folder, glob or a list of those; in a folder or glob frame2 comes before frame10.

    Raises InputError if there are none.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not given:
        raise InputError("no file was named")
    found: dict[Path, Path] = {}
    for entry in given:
        try:
            inside = _expand(Path(entry).expanduser())
        except (
            OSError,
            RuntimeError,
        ) as error:  # too long a name, a home that is not there, a folder without permission
            raise InputError(f"{entry} cannot be opened ({reason(error)})") from error
        for path in inside:
            found.setdefault(path.resolve(), path)
    return list(found.values())


def _expand(path: Path) -> list[Path]:
    if path.is_dir() and not readers.is_zarr(path):
        inside = [p for p in path.iterdir() if readers.may_hold_frames(p)]
        if not inside:
            raise InputError(f"{path} is a folder without frames; known are {readers.FORMATS}")
    elif path.exists():
        inside = [path]
    else:
        inside = [p for p in map(Path, glob.glob(str(path))) if readers.may_hold_frames(p)]
        if not inside:
            raise InputError(f"{path} does not exist, or no file with frames matches it")
    return sorted(inside, key=lambda p: [int(t) if t.isdigit() else t for t in re.split(r"(\d+)", str(p))])


def _read_all(files: Sequence[Path], reading: Reading) -> list[xr.DataArray]:
    """Files with frames, without the companions that may lie among them."""
    parts, companions = [], {}
    for path in files:
        try:
            parts.append(_read(path, reading))
        except CompanionFile as error:
            companions[path.name] = error
    if not parts and companions:
        raise next(iter(companions.values()))
    for part in parts if companions else []:
        part.attrs["companions"] = ", ".join(companions)
    return parts


def _read(path: Path, reading: Reading) -> xr.DataArray:
    """One file, raw but for its grid. Raises InputError if it cannot be read, whatever its library says."""
    try:
        assert reading.variable is None or isinstance(reading.variable, str)  # of several, one at a time
        part = with_grid(readers.read(path, reading.variable))
    except InputError:
        raise
    except Exception as error:  # each format's library raises what it likes; the user needs the file's name
        raise InputError(f"{path} breaks off, is damaged, or is not what it seems ({reason(error)})") from error
    if 0 in part.shape:
        raise InputError(f"{path} holds no frames: it has the shape {part.shape}")
    for axis in ("x", "y"):
        steps = np.diff(part[axis].values)
        if not np.isfinite(part[axis].values).all() or not ((steps > 0).all() or (steps < 0).all()):
            raise InputError(
                f"{path}: its {axis} neither ascend nor descend, as those of a grid do: is the file damaged?"
            )
    if part.y.attrs["units"] == "degrees" and np.abs(part.y.values).max() > 91:
        raise InputError(f"{path}: its latitudes go to {np.abs(part.y.values).max():.4g}°: is the file damaged?")
    if "time" in part.coords and part.time.dtype.kind != "M":
        raise InputError(f"{path}: its times are no dates of the standard calendar ({part.time.dtype})")
    if "time" in part.coords:
        part = part.assign_coords(time=part.time.values.astype("datetime64[ns]"))
    part.attrs["source"] = str(path)
    return part


# --- the door ---


def open_frames(
    path: Paths,
    *,
    variable: str | Sequence[str] | None = None,
    units: str | None = None,
    start: str | None = None,
    step_minutes: float | None = None,
    missing: float | Sequence[float] | None = None,
    crs: str | None = None,
    zr: tuple[float, float] | None = None,
    gain: float | None = None,
    offset: float | None = None,
    static: Sequence[str] = (),
) -> xr.DataArray:
    """Frames of one grid from a file, folder, glob or list of files, under the contract at the head of contract.py.

    Reads what `readers` recognises: NetCDF, Zarr, radar products as their services write them, arrays, pictures and grey
    videos, packed with gzip or not. The options say what the files do not: `variable` where there are several, or
    a list of them, the first to be forecast, the others channels beside it (`units`, `gain` and `offset` are the first one's);
    `static`, fields that do not change (FILE or FILE:VARIABLE), as further channels; `units`
    ("mm/h", "dBZ", "mm" a step, or any name); `start` (UTC) and `step_minutes` where there are no times; `missing`, the codes
    of missing pixels; `crs`, anything that pyproj takes; `zr`, the pair (a, b) of Z = a·R^b (Marshall–Palmer if nothing is
    known); `gain` and `offset` of pixel values (value = gain · pixel + offset). Frames finer than `step_minutes` are thinned
    to it, counted back from the newest.

    Rain below 0 mm/h can only be a missing code, and becomes missing; so does what is infinite. In dBZ, -32 and less, even
    infinitely less, is no echo.

    Raises InputError for anything that a person has to mend, naming the file.
    """
    reading = Reading(variable, units, start, step_minutes, missing, crs, zr, gain, offset, static)
    channels: list[xr.DataArray] = []
    for one in readings(reading):
        parts = _read_all(find_files(path), one)
        _check_no_forecasts(parts)
        joined = _joined(_with_times(parts, one))
        channels.append(_finish(_named_unit(joined) if channels else joined, one))
    return _with_channels(channels, _static_fields(reading))


def _static_fields(reading: Reading) -> list[xr.DataArray]:
    """Fields (y, x) that do not change, under the contract. Raises InputError as `open_frames` does."""
    fields = []
    for said in reading.static:
        path, name = static_file(said)
        part = _read(path, Reading(variable=name)).isel(time=0, drop=True).expand_dims("time")
        field = cleaned(in_units(_named_unit(part.assign_attrs(precipitation=False)), Reading())).isel(time=0)
        fields.append(field.rename(name or str(field.name or path.stem)))
    return fields


def _named_unit(frames: xr.DataArray) -> xr.DataArray:
    """With 1 for a unit that the file does not say; what is forecast needs to know its own, what lies beside it does not."""
    return frames.assign_attrs(units=frames.attrs.get("units") or "1")


def _with_channels(channels: Sequence[xr.DataArray], static: Sequence[xr.DataArray]) -> xr.DataArray:
    return with_static(channels[0] if len(channels) == 1 else stacked(channels), static)


def open_runs(data: Sequence[str | Path], reading: Reading | None = None) -> list[xr.DataArray]:
    """Open each of `data` as `open_frames` does, and join what continues: series of frames, each of one grid.

    Files that were named one by one are joined where they have the same grid, unit and step and do not overlap in time, so
    that a shell's expansion of `radar/*.nc` is as good as the folder. Series on different grids, or at the same time, stay
    apart; a file that is named twice counts once. Gaps are left in; `windows.split_at_gaps` finds them.

    Raises InputError as `open_frames` does.
    """
    reading = reading or Reading()
    first, *beside = readings(reading)
    opened = [[_finish(frames, first) for frames in raw_series(data, first)]]
    opened += [[_finish(_named_unit(frames), one) for frames in raw_series(data, one)] for one in beside]
    if len({len(series) for series in opened}) > 1:
        counts = ", ".join(f"{len(series)} of {series[0].name}" for series in opened)
        raise InputError(f"the variables do not lie side by side: there are {counts} series of frames")
    static = _static_fields(reading)
    return [_with_channels(channels, static) for channels in zip(*opened)]


def raw_series(data: Sequence[str | Path], reading: Reading) -> list[xr.DataArray]:
    """What `open_runs` opens, with values as the files hold them."""
    entries, known = [], set[Path]()
    for entry in data:
        files = [path for path in find_files(entry) if path.resolve() not in known]
        known.update(path.resolve() for path in files)
        entries.append(_read_all(files, reading) if files else [])
    _check_no_forecasts([part for parts in entries for part in parts])
    timeless = [part for parts in entries for part in parts if "time" not in part.coords]
    opened = [_joined(parts) for parts in entries if parts and all("time" in part.coords for part in parts)]
    opened += [_joined(_with_times(timeless, reading))] if timeless else []
    series: list[list[xr.DataArray]] = []
    for frames in sorted(opened, key=lambda f: f.time.values[0]):
        for members in series:
            if _continues(members[-1], frames):
                members.append(frames)
                break
        else:
            series.append([frames])
    return [_joined(members) for members in series]


def in_turn(
    files: Iterable[Path], reading: Reading, *, after: np.datetime64 | None = None, at_least: int = 1
) -> Iterator[xr.DataArray]:
    """Frames of files in the order given, of some `at_least` at a time, so that an archive need not be opened as a whole; what
    is not newer than `after` is left out. Use what is yielded before you ask for more.

    Thinned to `reading.step_minutes` they are counted on from the first, or from `after`.

    Raises InputError as `open_frames` does, and if a file does not begin after the one before it.
    """
    step = reading.step_minutes
    for parts in _gathered(files, reading, at_least):
        frames = _joined(parts)
        own = time_step(frames.time.values)
        step = own if isinstance(own, float) else step
        frames = _finish(frames, replace(reading, step_minutes=None if own else step))
        if reading.step_minutes is not None:
            frames = thinned_on(frames, reading.step_minutes, after)
        if after is not None:
            frames = frames.isel(time=frames.time.values > after)
        if frames.sizes["time"]:
            after = frames.time.values[-1]
            yield frames
        for part in parts:  # what has been yielded has been used
            forget_copy(Path(part.attrs["source"]))


def _gathered(files: Iterable[Path], reading: Reading, at_least: int) -> Iterator[list[xr.DataArray]]:
    """Files, raw but for their times, as many together as have so many frames."""
    parts: list[xr.DataArray] = []
    before: xr.DataArray | None = None
    for path in files:
        try:
            (part,) = _with_times([_read(path, reading)], reading)
        except CompanionFile:
            continue
        if part.attrs.get("forecast"):
            raise InputError(f"{path} is a forecast: a store is for what was observed")
        if before is not None and part.time.values[0] <= before.time.values[-1]:
            raise InputError(
                f"{path} begins at {time_text(part.time.values[0], 's')}, and {before.attrs['source']}, which comes before it, "
                f"ends at {time_text(before.time.values[-1], 's')}: name files so that they sort by time, or give them in "
                "that order"
            )
        if reading.start is not None and reading.step_minutes is not None:  # files without times are counted on
            reading = replace(reading, start=str(advance(part.time.values[-1], reading.step_minutes, 1)))
        before = part
        parts.append(part)
        if sum(part.sizes["time"] for part in parts) >= at_least:
            yield parts
            parts = []
    if parts:
        yield parts


def newer(files: Sequence[Path], reading: Reading, after: np.datetime64) -> Sequence[Path]:
    """Files from the first one on that ends after a time: found by halving, where they say their times, which ascend."""

    def end(path: Path) -> np.datetime64:
        part = _read(path, reading)
        if "time" not in part.coords:
            raise CompanionFile
        return part.time.values[-1]

    try:
        return files[bisect.bisect_right(files, after, key=end) :]
    except CompanionFile:
        return files


def _continues(before: xr.DataArray, after: xr.DataArray) -> bool:
    return (
        same_grid(before, after)
        and before.attrs.get("units") == after.attrs.get("units")
        and after.time.values[0] > before.time.values[-1]
        and len({time_step(f.time.values) for f in (before, after)} - {None}) <= 1
    )


def _check_no_forecasts(parts: list[xr.DataArray]) -> None:
    """Refuse forecasts of our own, or of pysteps, among other frames: they would be taken for what was observed."""
    forecasts = [part for part in parts if part.attrs.get("forecast")]
    if forecasts and len(forecasts) < len(parts):
        raise InputError(
            f"{forecasts[0].attrs['source']} is a forecast among observed frames: keep forecasts in another folder"
        )


def _with_times(parts: list[xr.DataArray], reading: Reading) -> list[xr.DataArray]:
    """Give times to the parts that have none: counted on from `start`, or from the time in the name of a single file."""
    nameless = next((part for part in parts if "time" not in part.coords), None)
    if nameless is None:
        return parts
    time = time_in_name(Path(nameless.attrs["source"])) if len(parts) == 1 else None
    if reading.start is not None:
        time = parse_time(reading.start, "--start")
    if time is None or reading.step_minutes is None:
        raise InputError(
            f"{nameless.attrs['source']} does not say when its frames were taken: give --start and --step-minutes, or "
            "name single-frame files by their time, such as 20160928_1445.png"
        )
    dated = []
    for part in parts:
        stamps = [advance(time, reading.step_minutes, k) for k in range(part.sizes["time"])]
        dated.append(part.assign_coords(time=np.array(stamps, dtype="datetime64[ns]")))
        time = advance(time, reading.step_minutes, part.sizes["time"])
    return dated


def _joined(parts: list[xr.DataArray]) -> xr.DataArray:
    """One array in order of time. Raises InputError if sizes or units differ, or times overlap."""
    first = parts[0]
    for part in parts:
        check_order(part)
        if part.shape[1:] != first.shape[1:]:
            raise InputError(
                f"{first.attrs['source']} has frames of {first.shape[1]}×{first.shape[2]} pixels and "
                f"{part.attrs['source']} of {part.shape[1]}×{part.shape[2]}: frames of one run must have one size"
            )
        if not same_grid(part, first):
            raise InputError(
                f"{first.attrs['source']} and {part.attrs['source']} lie in different places, or on different grids: "
                "frames of one run must have one grid"
            )
        if part.attrs.get("units") != first.attrs.get("units"):
            raise InputError(
                f"{first.attrs['source']} is in {first.attrs.get('units')} and {part.attrs['source']} in "
                f"{part.attrs.get('units')}: frames of one run must have one unit"
            )
    if len(parts) == 1:
        return first
    parts = sorted(parts, key=lambda part: part.time.values[0])
    for before, after in zip(parts, parts[1:]):
        if after.time.values[0] <= before.time.values[-1]:
            raise InputError(
                f"{before.attrs['source']} and {after.attrs['source']} both have a frame at or before "
                f"{time_text(before.time.values[-1], 's')}: keep one of them"
            )
    aligned = [part.assign_coords(x=first.x, y=first.y) for part in parts]  # grids that differ by rounding
    frames = xr.concat(aligned, "time", combine_attrs="override", coords="minimal", compat="override", join="override")
    frames.attrs["store"] = False
    first_file, last_file = (str(part.attrs["source"]) for part in (parts[0], parts[-1]))
    frames.attrs["source"] = f"{first_file} … {Path(last_file).name} ({len(parts)} files)"
    return frames


def _finish(frames: xr.DataArray, reading: Reading) -> xr.DataArray:
    """Units, missing codes, rates, CRS, step: what is said of the frames becomes what they are."""
    as_stored = frames.attrs.get("store") and not reading.changes_values
    frames = in_units(frames, reading)
    frames = linked(frames, Path(frames.attrs["source"]).resolve()) if as_stored else cleaned(frames)
    return frames if reading.step_minutes is None else thinned(frames, reading.step_minutes)


def in_units(frames: xr.DataArray, reading: Reading) -> xr.DataArray:
    """Values as the files hold them → in their unit, amounts as rates, with missing codes, Z–R pair and CRS; not cleaned yet."""
    source, said = frames.attrs["source"], frames.attrs
    if reading.units is None and not said.get("units"):
        raise InputError(f"{source} does not say in what unit it is: give --units, such as mm/h or dBZ")
    name, factor, amount = canonical(
        reading.units or str(said["units"]),
        precipitation=reading.units is not None or bool(said.get("precipitation")),
    )
    if reading.missing is not None:
        codes = np.atleast_1d(np.asarray(reading.missing, dtype=np.float64))
        known = xr.apply_ufunc(lambda v: ~np.isin(v, codes), frames, dask="parallelized", output_dtypes=[bool])
        frames = frames.where(known)
    if reading.gain is not None or reading.offset is not None:
        gain, offset = reading.gain, reading.offset
        frames = frames * (1.0 if gain is None else gain) + (0.0 if offset is None else offset)
    if amount:
        step = said.get("period_minutes") or time_step(frames.time.values) or reading.step_minutes
        if step is None:
            raise InputError(f"{source} holds one amount, over an unknown time: give --step-minutes")
        factor *= 60 / (_MEAN_MONTH_MINUTES if step == MONTH else float(step))
    frames = (frames * factor if factor != 1 else frames).astype(np.float32)
    pair = reading.zr or (float(said.get("zr_a", MARSHALL_PALMER[0])), float(said.get("zr_b", MARSHALL_PALMER[1])))
    frames.attrs = {"units": name, "source": source, **({"zr": pair} if is_rain(name) else {})}
    if not is_rain(name):
        frames.attrs |= {key: said[key] for key in ("long_name", "standard_name") if key in said}
    return with_crs(frames, reading.crs or said.get("crs"))
