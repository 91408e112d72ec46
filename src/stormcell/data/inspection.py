"""What files hold, as this program understands them, in ten lines: for a person who wants to know before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..errors import InputError
from .axes import MONTH, area, follows, grid_spacing, step_text, time_step, time_text, wraps
from .channels import readings
from .contract import cleaned, values, zr_pair
from .frames import in_units, raw_series
from .readers.raw import CompanionFile
from .reading import Reading
from .units import is_rain, to_rain_rate

MOST_FRAMES, MOST_PIXELS = 12, 30_000_000  # that are read, spread evenly
WET_MM_H = 0.1
_HARDLY_RAIN_MM_H = 300.0  # more in five minutes was seldom measured (record: 2280 mm/h over a minute, Guadeloupe 1970)

Facts = dict[str, str]


def inspected(data: Sequence[str | Path], reading: Reading | None = None) -> list[tuple[str, Facts]]:
    """Name and facts of each series of frames, and of files that belong to frames but hold none.

    Raises InputError for what cannot be read. What the files do not say is said to be unknown, with the option that says it.
    """
    reading = reading or Reading()
    if len(each := readings(reading)) > 1:
        return [(f"{name}: {one.variable}", facts) for one in each for name, facts in inspected(data, one)]
    dated = True
    try:
        series = raw_series(data, reading)
    except CompanionFile as error:
        return [(str(data[0]), {"companion": str(error)})]
    except InputError:
        if reading.start is not None:
            raise
        series, dated = raw_series(data, replace(reading, start="2000-01-01", step_minutes=5)), False
    return [(str(frames.attrs["source"]), _facts(frames, reading, dated=dated)) for frames in series]


def _facts(raw: xr.DataArray, reading: Reading, *, dated: bool) -> Facts:
    facts = {"format": str(raw.attrs.get("kind", "unknown"))}
    named = reading.units or raw.attrs.get("units")
    frames = in_units(raw, reading if named else replace(reading, units="1"))
    facts["quantity"] = _quantity(raw, frames) if named else "unknown: give --units, such as mm/h or dBZ"
    facts |= _times(frames.time.values) if dated else _undated(frames)
    facts["grid"] = _grid(frames)
    most = min(MOST_FRAMES, max(1, MOST_PIXELS // (frames.sizes["y"] * frames.sizes["x"])))
    picked = np.unique(np.linspace(0, frames.sizes["time"] - 1, most).round().astype(int))
    some = frames.isel(time=picked)
    as_held = values(some)
    clean = values(cleaned(some.copy(data=as_held)))
    facts |= _values(some, as_held, clean)
    if len(picked) < frames.sizes["time"]:
        facts["looked at"] = f"{len(picked)} frames, spread evenly" if len(picked) > 1 else "the first frame"
    if "companions" in raw.attrs:
        facts["companions"] = f"{raw.attrs['companions']}: coordinates or quality, no frames"
    return facts


def _quantity(raw: xr.DataArray, frames: xr.DataArray) -> str:
    units, held = frames.attrs["units"], str(raw.attrs.get("units", ""))
    kind = {"mm/h": "rain rate", "dBZ": "reflectivity"}.get(
        units, str(raw.attrs.get("long_name", raw.name or "values"))
    )
    parts = [f"{kind} in {units}"]
    if held and held != units and is_rain(units):
        parts.append(f"from {held}")
    if "quantity" in raw.attrs:
        parts.append(f"product {raw.attrs['quantity']}")
    if is_rain(units):
        a, b = zr_pair(frames)
        parts.append(f"Z = {a:g} R^{b:g}")
    others = [str(name) for name, coord in frames.coords.items() if coord.ndim == 3]
    return ", ".join(parts + [f"with {name}" for name in others])


def _times(times: npt.NDArray[np.datetime64]) -> Facts:
    step = time_step(times)
    span = f"{time_text(times[0])} to {time_text(times[-1])} UTC" if len(times) > 1 else f"{time_text(times[0])} UTC"
    frames = "1 frame" if len(times) == 1 else f"{len(times)} frames"
    if step is None:
        return {"time": f"{frames}, {span}"}
    gaps = [k for k in range(len(times) - 1) if not follows(times[k], times[k + 1], step)]
    said = {"time": f"{frames}, {span}, a step of {step_text(step)}", "gaps": "none"}
    if gaps:
        longest = max(gaps, key=lambda k: times[k + 1] - times[k])
        minutes = float((times[longest + 1] - times[longest]) / np.timedelta64(1, "m"))
        lost = "" if step == MONTH else f", {_lost(times, gaps, float(step))} frames missing"
        length = f"{minutes:g} min" if minutes < 2880 else f"{minutes / 1440:.1f} days"
        said["gaps"] = f"{len(gaps)}{lost}; the longest, {length}, after {time_text(times[longest])}"
    return said


def _lost(times: npt.NDArray[np.datetime64], gaps: Sequence[int], step: float) -> int:
    return sum(max(round(float((times[k + 1] - times[k]) / np.timedelta64(1, "s")) / 60 / step) - 1, 0) for k in gaps)


def _undated(frames: xr.DataArray) -> Facts:
    return {"time": f"{frames.sizes['time']} frames at unknown times: give --start and --step-minutes"}


def _grid(frames: xr.DataArray) -> str:
    parts = [f"{frames.sizes['y']}×{frames.sizes['x']} pixels (y×x), rows from north to south"]
    spacing = grid_spacing(frames)
    if spacing is None:
        return f"{parts[0]}, of unknown size: no x and y in the file"
    parts.append(f"{spacing / 1000:.3g} km apart")
    if "spatial_ref" in frames.coords:
        parts.append(str(frames.spatial_ref.attrs.get("grid_mapping_name", "a projection")).replace("_", " "))
    if wraps(frames):
        parts.append("around the globe")
    place = area(frames)
    if place is not None:
        west, south, east, north = place
        parts.append(
            f"{_degrees(south, 'SN')} to {_degrees(north, 'SN')}, {_degrees(west, 'WE')} to {_degrees(east, 'WE')}"
        )
    return ", ".join(parts)


def _degrees(value: float, letters: str) -> str:
    return f"{abs(value):.2f}°{letters[value >= 0]}"


def _values(frames: xr.DataArray, held: npt.NDArray[np.float32], clean: npt.NDArray[np.float32]) -> Facts:
    units = frames.attrs["units"]
    gone = np.isnan(clean)
    facts = {
        "missing": f"{gone.mean():.1%}" + (", always the same pixels" if gone.any() and (gone == gone[0]).all() else "")
    }
    known = clean[~gone]
    if not known.size:
        return facts | {"values": "none: every pixel is missing"}
    facts["values"] = f"{known.min():.4g} to {known.max():.4g} {units}, mean {known.mean(dtype=np.float64):.3g}"
    suspicious = []
    if is_rain(units):
        rain = to_rain_rate(clean, units, zr_pair(frames))
        facts["wet"] = f"{(rain[~gone] >= WET_MM_H).mean():.1%} of what is known, at {WET_MM_H:g} mm/h or more"
        negative = int((held < 0).sum()) if units == "mm/h" else 0
        if negative:
            suspicious.append(f"{negative} pixels below 0 mm/h, down to {np.nanmin(held):.4g}: taken as missing")
        heavy = np.nan_to_num(rain) > _HARDLY_RAIN_MM_H
        if heavy.any():
            when = frames.time.values[int(np.nanargmax(np.where(gone, -1, rain)) // rain[0].size)]
            suspicious.append(
                f"{int(heavy.sum())} pixels over {_HARDLY_RAIN_MM_H:g} mm/h, up to {np.nanmax(rain):.0f} at {time_text(when)}"
            )
    infinite = int(np.isinf(held).sum())
    if infinite and units != "dBZ":
        suspicious.append(f"{infinite} infinite values: taken as missing")
    still = sum(bool(np.array_equal(a, b, equal_nan=True)) and bool(np.nanmax(a) > np.nanmin(a)) for a, b in zip(clean, clean[1:])
                if not np.isnan(a).all())  # fmt: skip
    if still:
        suspicious.append(f"{still} frames equal to the one before")
    empty = int(gone.all(axis=(1, 2)).sum())
    if empty:
        suspicious.append(f"{empty} frames without any value")
    return facts | {"suspicious": "; ".join(suspicious) or "nothing"}
