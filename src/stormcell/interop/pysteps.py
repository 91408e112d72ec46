"""A trained model as a nowcasting method of pysteps: `register()`, and `pysteps.nowcasts.get_method("stormcell")` is `forecast`.

pysteps (1.21) finds importers and postprocessors of other packages by their entry points, but not nowcasting methods. Ours has
the entry point that is proposed for them, `pysteps.plugins.nowcasts`: a pysteps that looks there needs no `register()`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from ..data.axes import advance
from ..errors import InputError
from ..forecasting.bundled import DEFAULT
from ..forecasting.forecast import Forecaster, load
from ..forecasting.lagrangian import LagrangianForecaster
from ..forecasting.motion import THRESHOLD_MM_H, pysteps, to_dbr

__all__ = ["forecast", "register"]


def register() -> None:
    """Add "stormcell" to the nowcasting methods of pysteps. Raises InputError where pysteps or OpenCV is not installed."""
    pysteps()
    from pysteps.nowcasts import interface

    interface._nowcast_methods["stormcell"] = forecast


def forecast(
    precip: npt.ArrayLike,
    velocity: npt.ArrayLike | None,
    timesteps: int | Sequence[float],
    *,
    timestep: float,
    kmperpixel: float | None = None,
    n_ens_members: int | None = None,
    seed: int | None = None,
    transform: str | None = None,
    yorigin: str = "upper",
    model: str | Path | Forecaster | None = None,
) -> npt.NDArray[Any]:
    """Nowcast as `pysteps.nowcasts.steps.forecast` does, with a model of Stormcell.

    Args:
        precip: (frames, Y, X), the newest last, ten minutes and three frames at least for the model that comes along; mm/h, or
            dBR (see `transform`). NaN or masked where missing; a nowcast is missing only where all frames are.
        velocity: (2, Y, X) as the motion methods of pysteps give it, pixels a time step: a lagrangian model moves rain along
            it, a plain one makes no use of it. None: the model finds the motion itself, in the newest frames.
        timesteps: how many, or which: [0.5, 2] is half a time step ahead, and two. Plain models know whole steps only.
        timestep: minutes between frames.
        kmperpixel: None: pixels are taken to be as large as those the model was trained on.
        n_ens_members: None for one field.
        seed: of the ensemble. None: another one at each call.
        transform: as in pysteps' metadata; None for mm/h, "dB" for 10·log10 of it, in which the nowcast comes back too.
            Below 0.1 mm/h it is dry then, and -15 dBR, as `pysteps.utils.dB_transform` has it.
        yorigin: as in pysteps' metadata; "lower" if the first row is the southernmost.
        model: a file, or a forecaster that is loaded already; None: the model that comes with Stormcell.

    Returns (timesteps, Y, X), or (n_ens_members, timesteps, Y, X), rows in the order of `precip`.

    Raises InputError, a ValueError, for anything that does not fit: shapes, values below 0 in mm/h, too few frames, a time step
    or grid that the model does not serve, an ensemble of a model that makes none.
    """
    given: np.ma.MaskedArray[Any, Any] = np.ma.asarray(precip)
    fields = np.ma.filled(given.astype(np.float64), np.nan)
    if fields.ndim != 3:
        raise InputError(
            f"precip must have the axes time, y, x, the newest frame last. Received: the shape {fields.shape}"
        )
    if transform not in (None, "dB"):
        raise InputError(f'transform must be None (mm/h) or "dB" (dBR). Received: {transform!r}')
    if yorigin not in ("upper", "lower"):
        raise InputError(f'yorigin must be "upper" or "lower". Received: {yorigin!r}')
    if n_ens_members is not None and n_ens_members < 1:
        raise InputError(f"n_ens_members must be None, or 1 or more. Received: {n_ens_members}")
    if transform == "dB":
        fields = 10 ** (fields / 10)
        fields[fields < THRESHOLD_MM_H] = 0
    elif (fields < 0).any():
        raise InputError('precip has values below 0, which no rain rate has: is it in dBR? Give transform="dB"')
    forecaster = model if isinstance(model, Forecaster) else load(DEFAULT if model is None else model)
    rows = slice(None, None, -1 if yorigin == "lower" else 1)
    if velocity is not None:
        motion = np.asarray(velocity, dtype=np.float64)
        if motion.shape != (2, *fields.shape[1:]) or not np.isfinite(motion).all():
            raise InputError(
                f"velocity must be finite, of the shape {(2, *fields.shape[1:])}. Received: the shape {motion.shape}"
            )
        if isinstance(forecaster, LagrangianForecaster):
            downwards = np.array([1, rows.step])[:, None, None]
            forecaster = replace(forecaster, motion=motion[:, rows] * downwards)
    frames = _frames(fields[:, rows], timestep, kmperpixel)
    if seed is None:
        seed = int(np.random.default_rng().integers(2**31))
    fcst = forecaster.forecast(frames, timesteps, members=n_ens_members, seed=seed)
    found = fcst.values[..., rows, :]
    return (to_dbr(found) if transform == "dB" else found).astype(np.result_type(given.dtype, np.float32))


def _frames(rain: npt.NDArray[np.float64], minutes: float, kilometres: float | None) -> xr.DataArray:
    """Rain rates (T, Y, X), north above, as frames, at times that are made up."""
    first = np.datetime64("2000-01-01", "ns")
    coords: dict[str, Any] = {"time": [advance(first, minutes, k) for k in range(len(rain))]}
    if kilometres is not None:
        for axis, size, sign in (("y", rain.shape[1], -1), ("x", rain.shape[2], 1)):
            coords[axis] = (axis, sign * 1000 * kilometres * np.arange(size), {"units": "m"})
    return xr.DataArray(rain, coords, ("time", "y", "x"), attrs={"units": "mm/h", "source": "precip"})
