"""What a forecast has to beat, on the same past: keeping the last frame, and moving it along the optical flow."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Array = npt.NDArray[np.float32]

# dBR = 10·log10(rain rate): below 0.1 mm/h the field is set to -15 dBR, as pysteps' own examples do
THRESHOLD_MM_H = 0.1
ZERO_DBR = -15.0


def persistence(past: Array, steps: int) -> Array:
    """The last of `past` (P, Y, X), `steps` times; missing where it is missing."""
    return np.repeat(past[-1:], steps, axis=0)


def optical_flow(past: Array, steps: int) -> Array:
    """Rain rates (P, Y, X) in mm/h → the last one moved along the motion field of all P, (steps, Y, X).

    Motion by Lucas–Kanade on dBR fields, semi-Lagrangian extrapolation of the rain rate, both from pysteps (Pulkkinen et
    al. 2019). Missing pixels make no motion; what comes from outside the frame or from missing pixels is missing. Frames up
    to one that is missing as a whole do not count; with fewer than two left, motion is unknown and all is missing.

    Raises InputError if pysteps or opencv is not installed, or if there is a single past frame.
    """
    if len(past) < 2:
        raise InputError(
            "optical-flow needs two past frames or more: train with --past 2, or leave it out of --against"
        )
    dense_lucaskanade, extrapolate, db_transform = _pysteps()
    blank = np.flatnonzero(~np.isfinite(past).any(axis=(1, 2)))
    past = past[blank[-1] + 1 :] if blank.size else past
    if len(past) < 2:
        return np.full((steps, *past.shape[1:]), np.nan, dtype=np.float32)
    dbr, _ = db_transform(past.astype(np.float64), threshold=THRESHOLD_MM_H, zerovalue=ZERO_DBR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # single features that it could not follow; others remain
        motion = dense_lucaskanade(np.ma.masked_invalid(dbr))
    moved = extrapolate(past[-1].astype(np.float64), motion, steps, outval=np.nan, allow_nonfinite_values=True)
    return np.asarray(moved, dtype=np.float32)


def has_pysteps() -> bool:
    """Whether optical flow can be computed here."""
    try:
        _pysteps()
    except InputError:
        return False
    return True


def _pysteps() -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps announces its configuration file
            import cv2  # noqa: F401  (pysteps imports it late and fails then)
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.lucaskanade import dense_lucaskanade
            from pysteps.utils.transformation import dB_transform
    except ImportError as error:
        raise InputError(
            "optical-flow needs pysteps and OpenCV: pip install 'stormcell[radar]', or --against persistence"
        ) from error
    return dense_lucaskanade, extrapolate, dB_transform


BASELINES: dict[str, Callable[[Array, int], Array]] = {"persistence": persistence, "optical-flow": optical_flow}
RAIN_ONLY = ("optical-flow",)


def check_baselines(names: list[str], *, rain: bool) -> list[str]:
    """The names, once each, if they are baselines that can be computed on such frames. Raises InputError if not."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in BASELINES:
            raise InputError(f"--against knows {', '.join(BASELINES)}, not {name!r}")
        if name in RAIN_ONLY:
            if not rain:
                raise InputError(f"{name} needs rain frames, in mm/h or dBZ; leave it out of --against")
            _pysteps()
    return names
