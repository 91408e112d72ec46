"""What a forecast has to beat, on the same past: keeping the last frame, moving it along the optical flow, and what pysteps
makes of both with cascades (S-PROG, and the ensembles of STEPS), each as its makers set it.
"""

from __future__ import annotations

import contextlib
import functools
import io
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt

from ..data.axes import Step
from ..errors import InputError
from .climatology import CLIMATOLOGICAL, Climatology
from .motion import THRESHOLD_MM_H, ZERO_DBR, Array, after_blanks, motion_field, pysteps, to_dbr

Baseline = Callable[[Array, int], Array]
MEMBERS = 20
_THRESHOLD_DBR = 10 * math.log10(THRESHOLD_MM_H)
_CASCADE = {"n_cascade_levels": 6, "probmatching_method": "cdf"}
_NOISE = {"noise_method": "nonparametric", "vel_pert_method": "bps", "mask_method": "incremental"}


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
    return _moved("optical-flow", past, steps)[0]


def s_prog(past: Array, steps: int) -> Array:
    """Rain rates (P, Y, X) in mm/h → S-PROG (Seed 2003) of pysteps, (steps, Y, X): what moves also loses its small scales.

    Motion, and what is missing, as in `optical_flow`; missing pixels of the past count as dry. Autoregression of order 2; of 1
    after two frames of rain, or where nothing changes. After a dry frame all is dry; after a single frame of rain there is no
    correlation in time yet, and it is moved unchanged. Raises InputError as `optical_flow`, RuntimeError if pysteps returns
    no finite field.
    """

    def cascade(dbr: npt.NDArray[np.float64], motion: npt.NDArray[np.float64], **how: Any) -> Any:
        from pysteps.nowcasts.sprog import forecast

        return forecast(dbr, motion, steps, precip_thr=_THRESHOLD_DBR, **how)

    return _by_cascade("s-prog", past, steps, cascade)


def steps_ensemble(
    past: Array,
    steps: int,
    *,
    members: int = MEMBERS,
    spacing_km: float = 1.0,
    step_minutes: float = 5.0,
    seed: int = 0,
) -> Array:
    """Rain rates (P, Y, X) in mm/h → an ensemble of STEPS (Bowler et al. 2006) of pysteps, (members, steps, Y, X).

    As `s_prog`, with nonparametric noise, perturbed motion and an incremental mask. A member that is fed from outside the
    frame where the unperturbed motion is not goes on from the edge. The same frames and `seed` make the same members; other
    frames have other noise.
    """

    def cascade(dbr: npt.NDArray[np.float64], motion: npt.NDArray[np.float64], **how: Any) -> Any:
        from pysteps.nowcasts.steps import forecast

        own = zlib.crc32(dbr.tobytes(), seed) % 2**31
        with _numpy_seed_kept():
            return forecast(
                dbr, motion, steps, n_ens_members=members, precip_thr=_THRESHOLD_DBR, kmperpixel=spacing_km,
                timestep=step_minutes, seed=own, **_NOISE, **how,
            )  # fmt: skip

    field = _by_cascade("steps", past, steps, cascade)
    return field if field.ndim == 4 else np.repeat(field[None], members, axis=0)


def _moved(name: str, past: Array, steps: int) -> tuple[Array, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The last frame moved (steps, Y, X), the dBR fields that count, and their motion (2, Y, X)."""
    if len(past) < 2:
        raise InputError(f"{name} needs two past frames or more: train with --past 2, or leave it out of --against")
    past = after_blanks(past)
    shape = past.shape[1:]
    if len(past) < 2:
        return np.full((steps, *shape), np.nan, dtype=np.float32), np.empty((0, *shape)), np.zeros((2, *shape))
    motion = motion_field(past)
    last = past[-1].astype(np.float64)
    moved = pysteps().extrapolate(last, motion, steps, outval=np.nan, allow_nonfinite_values=True)
    return np.asarray(moved, dtype=np.float32), to_dbr(past), motion


def _by_cascade(name: str, past: Array, steps: int, cascade: Callable[..., Any]) -> Array:
    """A forecast of `cascade`, in mm/h, under the mask of optical flow."""
    moved, dbr, motion = _moved(name, past, steps)
    dbr = np.where(np.isfinite(dbr), dbr, ZERO_DBR)
    if not len(dbr) or not (dbr[-1] > ZERO_DBR).any():
        return np.where(np.isfinite(moved), np.float32(0), moved)
    beyond = {
        "map_coordinates_mode": "nearest"
    }  # the frame's edge goes on; the mask of optical flow says what is known
    aligned = [pysteps().extrapolate(one, motion, age, **beyond)[-1] for age, one in enumerate(dbr[-2:-4:-1], 1)]
    flat = [np.ptp(one) < 1e-6 for one in (dbr[-1], *aligned)]  # has no cascade: it, and what came before, do not count
    order = (flat.index(True) if any(flat) else len(flat)) - 1
    if order < 1 or (dbr[-1] > ZERO_DBR).sum() < 2:  # a single pixel of rain is out of bounds for pysteps
        return moved
    with contextlib.redirect_stdout(io.StringIO()):  # pysteps tells what it does
        try:
            field = cascade(dbr, motion, ar_order=order, extrap_kwargs=beyond, **_CASCADE)
        except np.linalg.LinAlgError:  # order 2 of frames that do not change
            field = cascade(dbr, motion, ar_order=1, extrap_kwargs=beyond, **_CASCADE)
    if not np.isfinite(field).all():
        raise RuntimeError("pysteps returned values that are not finite")
    rain, _ = pysteps().db_transform(np.asarray(field), threshold=_THRESHOLD_DBR, inverse=True)
    return np.where(np.isfinite(moved), rain, np.nan).astype(np.float32)


@contextlib.contextmanager
def _numpy_seed_kept() -> Iterator[None]:
    """pysteps seeds numpy's global generator; whoever uses it should not notice."""
    state = np.random.get_state()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


BASELINES: dict[str, Baseline] = {
    "persistence": persistence,
    "optical-flow": optical_flow,
    "s-prog": s_prog,
    "steps": steps_ensemble,
}
RAIN_ONLY = ("optical-flow", "s-prog", "steps")


def check_baselines(names: list[str], *, rain: bool, climatology: bool = False) -> list[str]:
    """The names, once each, if they are baselines that can be computed on such frames, where a climatology of them is known
    or not. Raises InputError if not.
    """
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in (*BASELINES, *CLIMATOLOGICAL):
            raise InputError(f"--against knows {', '.join((*BASELINES, *CLIMATOLOGICAL))}, not {name!r}")
        if name in CLIMATOLOGICAL and not climatology:
            raise InputError(
                f"{name} needs the climatology of a model of a plain quantity that was trained on this grid; leave it out of "
                "--against"
            )
        if name in RAIN_ONLY:
            if not rain:
                raise InputError(f"{name} needs rain frames, in mm/h or dBZ; leave it out of --against")
            pysteps()
    return names


def baselines_on(
    names: Sequence[str],
    *,
    spacing_m: float | None,
    step: Step | None,
    seed: int = 0,
    climatology: Climatology | None = None,
) -> tuple[dict[str, Baseline], dict[str, dict[str, Any]]]:
    """Baselines told the grid and the step of the frames, and the settings of those that have any, for the record.

    Where the grid spacing is unknown, 1 km is taken. Those that know a climatology are bound to their times case by case, and
    only have settings here. Raises InputError if steps is asked of frames a month apart.
    """
    chosen = {name: BASELINES[name] for name in names if name in BASELINES}
    settings: dict[str, dict[str, Any]] = {}
    for name in (name for name in names if name in RAIN_ONLY):
        settings[name] = {"pysteps": version("pysteps"), "motion": "lucaskanade", "threshold_mm_h": THRESHOLD_MM_H}
        if name != "optical-flow":
            settings[name] |= {"zero_dbr": ZERO_DBR, **_CASCADE, "ar_order": "2, or 1 after two frames of rain"}
    for name in (name for name in names if name in CLIMATOLOGICAL):
        assert climatology is not None  # `check_baselines`
        settings[name] = {"means": climatology.kind}
        if name == "damped-persistence":
            settings[name] |= {"damping_a_step": climatology.damping}
    if "steps" in chosen:
        if isinstance(step, str):
            raise InputError(f"steps needs frames minutes apart, not a {step}; leave it out of --against")
        own: dict[str, Any] = {
            "members": MEMBERS,
            "spacing_km": (spacing_m or 1000.0) / 1000,
            "step_minutes": step or 5.0,
            "seed": seed,
        }
        chosen["steps"] = functools.partial(steps_ensemble, **own)
        settings["steps"] |= {**_NOISE, **own}
    return chosen, settings
