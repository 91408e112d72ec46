"""What the axes of frames say: steps in time, spacing and place of the grid, CRS."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import xarray as xr

from ..errors import InputError

MONTH = "month"
Step = float | str  # minutes, or MONTH
TOLERANCE = 0.1  # of a step: radars are seldom late by more, and never by a step
_MONTH_DAYS = (27, 32)
_METRES_A_DEGREE = 111_195  # on the mean sphere


# --- time ---


def time_step(times: npt.NDArray[np.datetime64]) -> Step | None:
    """The step between frames: minutes, "month" for calendar months, None for a single frame.

    With gaps it is the step that occurs most often, the shortest of these.
    """
    if len(times) < 2:
        return None
    steps = np.diff(times).astype("timedelta64[s]").astype(np.int64)
    days = np.median(steps) / 86400
    if _MONTH_DAYS[0] <= days <= _MONTH_DAYS[1]:
        return MONTH
    values, counts = np.unique(steps, return_counts=True)
    return float(values[counts.argmax()]) / 60


def follows(before: np.datetime64, after: np.datetime64, step: Step) -> bool:
    """Whether `after` is the next time after `before`."""
    if step == MONTH:
        return bool(after.astype("M8[M]") - before.astype("M8[M]") == np.timedelta64(1, "M"))
    minutes = float((after - before) / np.timedelta64(1, "s")) / 60
    return abs(minutes - float(step)) <= TOLERANCE * float(step)


def advance(time: np.datetime64, step: Step, count: float) -> np.datetime64:
    """The time `count` steps after `time`."""
    if step == MONTH:
        return (pd.Timestamp(time) + pd.DateOffset(months=int(count))).to_datetime64().astype("datetime64[ns]")
    return time.astype("datetime64[ns]") + np.timedelta64(round(float(step) * 60 * count), "s")


def parse_time(text: str, option: str) -> np.datetime64:
    """A time as people write it, in UTC where it has no zone. Raises InputError naming the option."""
    try:
        time = pd.Timestamp(text)
        if time.tzinfo is not None:
            time = time.tz_convert("UTC").tz_localize(None)
        if not text.strip() or pd.isna(time):
            raise ValueError
        return time.as_unit("ns").to_datetime64()
    except (ValueError, OverflowError, TypeError):  # pandas' out-of-bounds error is a ValueError
        raise InputError(f"{option} {text!r} is not a time of 1678 to 2261; write it as 2016-09-28T14:45") from None


def time_text(time: np.datetime64, unit: str = "m") -> str:
    """A time for people to read, to the minute or to another of numpy's units: 2016-09-28 14:45."""
    return str(time.astype(f"M8[{unit}]")).replace("T", " ")


def step_text(step: Step) -> str:
    return "1 month" if step == MONTH else f"{float(step):g} min"


def length_text(minutes: float) -> str:
    """60 minutes, or 92 days."""
    return f"{minutes:g} minutes" if minutes < 2880 else f"{minutes / 1440:.0f} days"


def lead_text(lead: np.timedelta64 | np.ndarray) -> str:
    """Lead time in words: "+30 min"; hours from 6 h and days from 48 h where they are whole; seconds under a minute."""
    seconds = float(lead / np.timedelta64(1, "s"))
    for unit, length, least in (("d", 86400, 172800), ("h", 3600, 21600), ("min", 60, 60)):
        if abs(seconds) >= least and seconds % length == 0:
            return f"{seconds / length:+.0f} {unit}".replace("-", "−")
    return (f"{seconds / 60:+.1f} min" if abs(seconds) >= 60 else f"{seconds:+g} s").replace("-", "−")


# --- space ---


def grid_spacing(frames: xr.DataArray) -> float | None:
    """Mean grid spacing in metres (degrees are turned into metres at the middle latitude), or None if unknown."""
    if min(frames.sizes["y"], frames.sizes["x"]) < 2 or frames.x.attrs.get("units") not in ("m", "degrees"):
        return None
    dy, dx = (abs(float(frames[a][-1] - frames[a][0])) / (frames.sizes[a] - 1) for a in ("y", "x"))
    if frames.x.attrs["units"] == "degrees":
        middle = float(frames.y.mean())
        dy, dx = dy * _METRES_A_DEGREE, dx * _METRES_A_DEGREE * float(np.cos(np.radians(middle)))
    return float(np.sqrt(dy * dx))


def wraps(frames: xr.DataArray) -> bool:
    """Whether its longitudes go once around the globe, evenly, so that beyond the last column lies the first."""
    if frames.x.attrs.get("units") != "degrees" or frames.sizes["x"] < 2:
        return False
    steps = np.diff(frames.x.values)
    spacing, most = abs(float(steps.mean())), TOLERANCE * abs(float(steps.mean()))
    return abs(spacing * frames.sizes["x"] - 360) <= most and bool((np.abs(np.abs(steps) - spacing) <= most).all())


def same_grid(a: xr.DataArray, b: xr.DataArray) -> bool:
    """Whether two frames have the same size and, but for a tenth of a pixel, the same x and y."""
    if a.shape[-2:] != b.shape[-2:] or any(a[k].attrs.get("units") != b[k].attrs.get("units") for k in ("x", "y")):
        return False
    spacing = {k: abs(float(a[k][1] - a[k][0])) if a.sizes[k] > 1 else 1.0 for k in ("x", "y")}
    return all(bool(np.allclose(a[k], b[k], rtol=0, atol=TOLERANCE * spacing[k])) for k in ("x", "y"))


def common_grid_spacing(runs: Sequence[xr.DataArray]) -> float | None:
    """The grid spacing of all runs in metres, None if unknown. Raises InputError if two differ by more than a quarter."""
    known = [(spacing, run) for run in runs if (spacing := grid_spacing(run)) is not None]
    if not known:
        return None
    (fine, a), (coarse, b) = min(known, key=lambda k: k[0]), max(known, key=lambda k: k[0])
    if coarse > 1.25 * fine:
        raise InputError(
            f"grids differ: {fine / 1000:.3g} km in {a.attrs.get('source', 'frames')}, {coarse / 1000:.3g} km in "
            f"{b.attrs.get('source', 'frames')}; train on one of them"
        )
    return float(np.mean([spacing for spacing, _ in known]))


def area(frames: xr.DataArray) -> list[float] | None:
    """West, south, east, north in degrees, or None if the grid's place on Earth is unknown."""
    half = [abs(float(frames[a][1] - frames[a][0])) / 2 if frames.sizes[a] > 1 else 0.0 for a in ("x", "y")]
    west, east = float(frames.x.min()) - half[0], float(frames.x.max()) + half[0]
    south, north = float(frames.y.min()) - half[1], float(frames.y.max()) + half[1]
    if frames.x.attrs.get("units") == "degrees":
        return [west, south, east, north]
    if frames.x.attrs.get("units") != "m" or "spatial_ref" not in frames.coords:
        return None
    from pyproj import CRS, Transformer

    crs = CRS.from_cf(frames.spatial_ref.attrs)
    transformer = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    bounds = transformer.transform_bounds(west, south, east, north)
    return [float(b) for b in bounds] if np.isfinite(bounds).all() else None


def with_crs(frames: xr.DataArray, crs: object) -> xr.DataArray:
    """Attach the CRS as a CF `spatial_ref` coordinate. An ellipsoid written in kilometres (KNMI's) is put in metres."""
    if not crs:
        return frames
    from pyproj import CRS
    from pyproj.exceptions import CRSError

    try:
        parsed = CRS.from_cf(crs) if isinstance(crs, dict) else CRS.from_user_input(crs)
        if parsed.ellipsoid is not None and parsed.ellipsoid.semi_major_metre < 10_000:
            cf_attrs = {key: value for key, value in parsed.to_cf().items() if key != "crs_wkt"}
            for key in ("semi_major_axis", "semi_minor_axis", "false_easting", "false_northing"):
                cf_attrs[key] = 1000 * cf_attrs.get(key, 0.0)
            parsed = CRS.from_cf(cf_attrs)
    except (CRSError, KeyError, ValueError) as error:
        if isinstance(crs, dict):
            return frames  # a grid mapping that says nothing of use, such as an empty one
        raise InputError(f"{frames.attrs['source']}: the CRS {crs!r} is not understood ({error})") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # CF's own words cannot say all of it; crs_wkt, beside them, does
        attrs = parsed.to_cf()
    if attrs.get("grid_mapping_name") == "polar_stereographic" and "standard_parallel" in attrs:
        pole = math.copysign(90.0, attrs["standard_parallel"])  # CF asks for it, PROJ leaves it out
        attrs.setdefault("latitude_of_projection_origin", pole)
    return frames.assign_coords(spatial_ref=xr.Variable((), 0, attrs))


def with_grid(frames: xr.DataArray) -> xr.DataArray:
    """x and y in metres, degrees or pixels; rows from north to south."""
    for axis in ("y", "x"):
        if axis not in frames.coords:
            frames = frames.assign_coords(
                {axis: (axis, np.arange(frames.sizes[axis], dtype=np.float64), {"units": "1"})}
            )
            continue
        units = str(frames[axis].attrs.get("units", ""))
        values = frames[axis].values.astype(np.float64)
        if units == "km":
            values, units = values * 1000, "m"
        elif units in ("metre", "meter", "metres", "meters"):
            units = "m"
        elif units.startswith("degree"):
            units = "degrees"
        frames = frames.assign_coords({axis: (axis, values, {"units": units or "1"})})
    if frames.sizes["y"] > 1 and frames.y.attrs["units"] != "1" and frames.y[0] < frames.y[-1]:
        frames = frames.isel(y=slice(None, None, -1))
    return frames
