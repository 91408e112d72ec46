"""The motion of rain: Lucas–Kanade of pysteps (Pulkkinen et al. 2019) on dBR fields."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError

Array = npt.NDArray[np.float32]

# dBR = 10·log10(rain rate): below 0.1 mm/h the field is set to -15 dBR, as pysteps' own examples do
THRESHOLD_MM_H = 0.1
ZERO_DBR = -15.0


class Pysteps(NamedTuple):
    """What we take of it."""

    dense_lucaskanade: Callable[..., Any]
    extrapolate: Callable[..., Any]
    db_transform: Callable[..., Any]


def pysteps() -> Pysteps:
    """Raises InputError where it, or OpenCV, is not installed."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # pysteps announces its configuration file
            import cv2  # noqa: F401  (pysteps imports it late and fails then)
            from pysteps.extrapolation.semilagrangian import extrapolate
            from pysteps.motion.lucaskanade import dense_lucaskanade
            from pysteps.utils.transformation import dB_transform
    except ImportError as error:
        raise InputError(
            "the motion of rain (optical-flow, s-prog, steps, lagrangian models) needs pysteps and OpenCV: "
            "pip install 'stormcell[radar]'"
        ) from error
    return Pysteps(dense_lucaskanade, extrapolate, dB_transform)


def has_pysteps() -> bool:
    """Whether the motion of rain can be computed here."""
    try:
        pysteps()
    except InputError:
        return False
    return True


def to_dbr(rain: Array) -> npt.NDArray[np.float64]:
    """Rain rates, mm/h → dBR."""
    field, _ = pysteps().db_transform(rain.astype(np.float64), threshold=THRESHOLD_MM_H, zerovalue=ZERO_DBR)
    return np.asarray(field)


def after_blanks(past: Array) -> Array:
    """The frames after the last one that is missing as a whole."""
    blank = np.flatnonzero(~np.isfinite(past).any(axis=(1, 2)))
    return past[blank[-1] + 1 :] if blank.size else past


def motion_field(past: Array) -> npt.NDArray[np.float64]:
    """Rain rates (P, Y, X) in mm/h → motion (x, y) in pixels a step, (2, Y, X), y counted downwards.

    Missing pixels make no motion, nor do frames before one that is missing as a whole. Where nothing can be followed, in
    dry frames or fewer than two, nothing moves. Raises InputError if pysteps or OpenCV is not installed.
    """
    past = after_blanks(past)
    still = np.zeros((2, *past.shape[1:]))
    if len(past) < 2:
        return still
    with warnings.catch_warnings():
        for kind in (UserWarning, RuntimeWarning):  # single features that it could not follow or judge; others remain
            warnings.simplefilter("ignore", kind)
        motion = np.asarray(pysteps().dense_lucaskanade(np.ma.masked_invalid(to_dbr(past))))
    return motion if np.isfinite(motion).all() else still
