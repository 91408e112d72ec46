"""What a reader hands over: the array as the file holds it, with the names of its axes settled."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

# 20160928_1445, 2016-09-28T14:45, 201609281445, 20160928.144500 … A longer run of digits is no time.
_TIME = re.compile(
    r"(?<!\d)(?P<Y>(?:19|20)\d\d)[-_.]?(?P<m>0[1-9]|1[0-2])[-_.]?(?P<d>0[1-9]|[12]\d|3[01])"
    r"[-_.T ]?(?P<H>[01]\d|2[0-3])[-_.h:]?(?P<M>[0-5]\d)(?:[-_.m:]?(?P<S>[0-5]\d))?(?!\d)"
)


def time_in_name(path: Path) -> np.datetime64 | None:
    """The time that a file's name bears, or None."""
    match = _TIME.search(path.name)
    if match is None:
        return None
    part = match.groupdict(default="00")
    try:
        return np.datetime64(f"{part['Y']}-{part['m']}-{part['d']}T{part['H']}:{part['M']}:{part['S']}", "ns")
    except ValueError:  # 31 February
        return None


def stack(data: Any, path: Path, *, times: Sequence[np.datetime64] | None = None) -> xr.DataArray:
    """(time, y, x) values without coordinates → DataArray; the time of a single frame may stand in the file's name."""
    frames = xr.DataArray(data, dims=("time", "y", "x"))
    if times is None and frames.sizes["time"] == 1:
        named = time_in_name(path)
        times = None if named is None else [named]
    if times is not None:
        frames = frames.assign_coords(time=np.asarray(times, dtype="datetime64[ns]"))
    return frames
