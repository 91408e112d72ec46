"""What frames are, once they are in: the contract that `open_frames` gives and every other part relies on.

Dims (time, y, x), or (time, channel, y, x) as `channels` has it; float32, NaN where missing, `attrs["units"]`; time
strictly increasing, the end of an accumulation; y from north to south, x and y in metres or degrees (pixels where nothing is
known); CRS as CF `spatial_ref`; amounts a step have become rates; rain is never negative; the Z–R pair lies in `attrs["zr"]`,
the origin in `attrs["source"]`. Values stay on disk until they are used, where the format allows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..errors import InputError, reason
from .axes import MONTH, TOLERANCE, follows, step_text, time_step, time_text, with_grid
from .channels import channels_of, stacked
from .units import MARSHALL_PALMER, from_rain_rate, is_rain, to_rain_rate


def check_frames(frames: xr.DataArray) -> xr.DataArray:
    """Hold frames to the contract, for arrays that a caller made. Returns them with float32 values and a Z–R pair.

    Raises InputError naming what does not fit.
    """
    source = frames.attrs.get("source", "frames")
    if set(frames.dims) - {"channel"} != {"time", "y", "x"}:
        raise InputError(f"{source}: expected the axes time, y, x; they have {', '.join(map(str, frames.dims))}")
    if "units" not in frames.attrs:
        raise InputError(f'{source}: attrs["units"] is missing; set "mm/h", "dBZ" or the name of another unit')
    if "time" not in frames.coords or frames.time.dtype.kind != "M":
        raise InputError(f"{source}: expected a time coordinate of datetime64")
    check_order(frames)
    frames = frames.assign_coords(time=frames.time.astype("datetime64[ns]")).transpose("time", ..., "y", "x")
    for axis in ("x", "y"):
        if axis not in frames.coords or "units" not in frames[axis].attrs:
            return with_grid(frames.astype(np.float32))
    return frames.astype(np.float32)


def check_order(frames: xr.DataArray) -> None:
    """Raises InputError if a frame has no time, or times do not strictly ascend."""
    times = frames.time.values
    if np.isnat(times).any():
        raise InputError(f"{frames.attrs.get('source', 'frames')}: some frames have no time")
    wrong = np.flatnonzero(np.diff(times) <= np.timedelta64(0))
    if wrong.size:
        first, second = times[wrong[0]], times[wrong[0] + 1]
        what = "occurs twice" if first == second else f"comes after {time_text(first, 's')}"
        raise InputError(
            f"{frames.attrs.get('source', 'frames')}: times are out of order or doubled: {time_text(second, 's')} {what}. "
            "Sort the frames by time and keep one of each"
        )


def zr_pair(frames: xr.DataArray) -> tuple[float, float]:
    """(a, b) of Z = a·R^b that travels with the frames."""
    a, b = frames.attrs.get("zr", MARSHALL_PALMER)
    return float(a), float(b)


def values(frames: xr.DataArray) -> npt.NDArray[np.float32]:
    """Read the frames into memory. Raises InputError, with the file's name, if one breaks off underway."""
    try:
        return np.asarray(frames.values, dtype=np.float32)
    except InputError:
        raise
    except Exception as error:  # codecs raise what they like
        raise InputError(
            f"{frames.attrs.get('source', 'frames')} breaks off or is damaged ({reason(error)})"
        ) from error


def in_memory(frames: xr.DataArray) -> xr.DataArray:
    """The same frames, read. Raises InputError as `values` does."""
    return frames.copy(data=values(frames))


def cleaned(frames: xr.DataArray) -> xr.DataArray:
    """Without what no value can be: rain below 0, and what is infinite (in dBZ, infinitely little is no echo)."""
    units = frames.attrs["units"]
    if units == "mm/h":
        return frames.where((frames >= 0) & (frames < np.inf))
    return frames.where(frames < np.inf if units == "dBZ" else np.isfinite(frames))


def coarsen(frames: xr.DataArray, n: int) -> xr.DataArray:
    """Means of n×n blocks over their valid pixels, missing where under half are valid.

    Rain is averaged in mm/h, also where frames are in dBZ. Rows and columns that fill no block are left off, below and to
    the right. Raises InputError if n is not positive or larger than the frames.
    """
    if n < 1 or n > min(frames.sizes["y"], frames.sizes["x"]):
        raise InputError(f"frames of {frames.sizes['y']}×{frames.sizes['x']} pixels cannot be coarsened by {n}")
    if n == 1:
        return frames
    if "channel" in frames.dims:
        return stacked([coarsen(channel, n) for channel in channels_of(frames)])
    units, zr, attrs = frames.attrs["units"], zr_pair(frames), frames.attrs
    values = _elementwise(frames, lambda v: to_rain_rate(v, units, zr)) if is_rain(units) else frames
    blocks = values.coarsen(y=n, x=n, boundary="trim")
    share = values.notnull().coarsen(y=n, x=n, boundary="trim").mean()
    mean = (blocks.sum() / blocks.count().clip(min=1)).where(share >= 0.5).astype(np.float32)
    if is_rain(units):
        mean = _elementwise(mean, lambda v: from_rain_rate(v, units, zr))
    mean.attrs = dict(attrs)
    for axis in ("x", "y"):
        mean[axis].attrs = dict(frames[axis].attrs)
    return mean


def _elementwise(frames: xr.DataArray, function: Callable[[Any], Any]) -> xr.DataArray:
    return xr.apply_ufunc(function, frames, dask="parallelized", output_dtypes=[np.float32], keep_attrs=True)


def thinned(frames: xr.DataArray, minutes: float) -> xr.DataArray:
    """Keep frames `minutes` apart, counted back from the newest, anew after each gap."""
    times = frames.time.values
    own = time_step(times)
    if own is None or own == MONTH or abs(float(own) - minutes) <= TOLERANCE * float(own):
        return frames
    ratio = minutes / float(own)
    if ratio < 1 or abs(ratio - round(ratio)) > 0.01:
        raise InputError(
            f"{frames.attrs['source']} has a frame every {step_text(own)}: these cannot be thinned to one every "
            f"{minutes:g} min; --step-minutes must be a multiple of {float(own):g}"
        )
    keep = [len(times) - 1]
    for k in range(len(times) - 2, -1, -1):
        if follows(times[k], times[keep[-1]], minutes) or times[keep[-1]] - times[k] > np.timedelta64(
            round(60 * minutes * (1 + TOLERANCE)), "s"
        ):
            keep.append(k)
    return frames.isel(time=sorted(keep))


def thinned_on(frames: xr.DataArray, minutes: float, after: np.datetime64 | None) -> xr.DataArray:
    """Keep frames `minutes` apart, counted on from `after`, anew after each gap."""
    if frames.sizes["time"] > 1 and thinned(frames, minutes).sizes["time"] == frames.sizes["time"]:
        return frames
    keep, last = [], after
    for k, time in enumerate(frames.time.values):
        late = np.timedelta64(round(60 * minutes * (1 + TOLERANCE)), "s")
        if last is None or follows(last, time, minutes) or time - last > late:
            keep.append(k)
            last = time
    return frames.isel(time=keep)
