"""Frames of several channels (time, channel, y, x): what is forecast comes first, beside it what a network may see of the past.

A channel has a name, a unit (`channel_units`), and is static or not (`channel_static`): a field that does not change, such as
topography or a land mask, which is repeated for each frame. What the contract says of frames holds for each channel alone;
attributes are those of the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import xarray as xr

from ..errors import InputError
from .axes import same_grid
from .reading import Reading


def channels_of(frames: xr.DataArray) -> list[xr.DataArray]:
    """Each channel as frames (time, y, x) of its own; frames without channels are their only one."""
    if "channel" not in frames.dims:
        return [frames]
    found = []
    for k, (name, units, static) in enumerate(described(frames)):
        one = frames.isel(channel=k).drop_vars(["channel", "channel_units", "channel_static"], errors="ignore")
        others = {
            key: value for key, value in frames.attrs.items() if k == 0 or key not in ("long_name", "standard_name")
        }
        one.attrs = {**others, "units": units, "static": static}
        found.append(one.rename(name))
    return found


def first_channel(frames: xr.DataArray) -> xr.DataArray:
    """What is forecast, as frames (time, y, x)."""
    return channels_of(frames)[0]


def described(frames: xr.DataArray) -> list[tuple[str, str, bool]]:
    """Name, unit and whether it is static, of each channel."""
    if "channel" not in frames.dims:
        return [(str(frames.name or "frames"), str(frames.attrs["units"]), False)]
    count = frames.sizes["channel"]
    names = frames.channel.values if "channel" in frames.coords else range(count)
    units = frames.channel_units.values if "channel_units" in frames.coords else [frames.attrs["units"]] * count
    static = frames.channel_static.values if "channel_static" in frames.coords else [False] * count
    return [(str(a), str(b), bool(c)) for a, b, c in zip(names, units, static)]


def stacked(channels: Sequence[xr.DataArray]) -> xr.DataArray:
    """Channels as one array, at the times that all of them have.

    Raises InputError if they lie on different grids, have a name in common or no time.
    """
    first, names = channels[0], [str(one.name or "frames") for one in channels]
    for one, name in zip(channels[1:], names[1:]):
        if not same_grid(one, first):
            raise InputError(
                f"{name} and {names[0]} lie on different grids ({one.attrs['source']}, {first.attrs['source']}): "
                "channels of one run must have one grid"
            )
        if names.count(name) > 1:
            raise InputError(f"two channels are called {name}: each needs a name of its own")
    here = [one.assign_coords(x=first.x, y=first.y) for one in channels]
    aligned = xr.align(*here, join="inner", exclude=("y", "x"))
    if not aligned[0].sizes["time"]:
        raise InputError(f"{', '.join(names)} have no time in common")
    frames = xr.concat(
        [one.drop_vars("spatial_ref", errors="ignore") for one in aligned],
        "channel",
        coords="minimal",
        compat="override",
        join="override",
        combine_attrs="override",
    ).transpose("time", "channel", "y", "x")
    frames = frames.assign_coords(
        channel=("channel", names),
        channel_units=("channel", [str(one.attrs["units"]) for one in channels]),
        channel_static=("channel", [bool(one.attrs.get("static", False)) for one in channels]),
    )
    if "spatial_ref" in first.coords:
        frames = frames.assign_coords(spatial_ref=first.spatial_ref)
    pair = next((one.attrs["zr"] for one in channels if "zr" in one.attrs), None)
    attrs = {name: value for name, value in first.attrs.items() if name != "static"}
    frames.attrs = attrs if pair is None else {**attrs, "zr": pair}
    return frames.rename(names[0])


def readings(reading: Reading) -> list[Reading]:
    """One for each variable. Unit, gain and offset that a person gives are those of the first."""
    if reading.variable is None or isinstance(reading.variable, str):
        return [reading]
    first, *others = reading.variable
    beside = replace(reading, units=None, gain=None, offset=None)
    return [replace(reading, variable=first), *(replace(beside, variable=name) for name in others)]


def static_file(said: str) -> tuple[Path, str | None]:
    """FILE or FILE:VARIABLE. Raises InputError if there is no such file."""
    path, name = Path(said).expanduser(), None
    if not path.exists() and ":" in said:
        before, _, name = said.rpartition(":")
        path = Path(before).expanduser()
    if not path.exists():
        raise InputError(f"--static {said}: {path} does not exist")
    return path, name


def with_static(frames: xr.DataArray, fields: Sequence[xr.DataArray]) -> xr.DataArray:
    """Frames with fields (y, x) as further channels. Raises InputError if one lies on another grid."""
    repeated = []
    for field in fields:
        plane = field.transpose("y", "x").values.astype(np.float32)
        data = np.broadcast_to(plane, (frames.sizes["time"], *plane.shape))
        coords = {"time": frames.time, "y": field.y, "x": field.x}
        attrs = {**field.attrs, "static": True}
        repeated.append(xr.DataArray(data, coords, ("time", "y", "x"), name=str(field.name), attrs=attrs))
    return stacked([*channels_of(frames), *repeated]) if repeated else frames
