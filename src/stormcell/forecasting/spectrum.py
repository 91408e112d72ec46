"""How much of a field's variance lies at which wavelengths: blur is power that is missing at the short ones.

Power is |F|²/N of the field's Fourier transform, as in pysteps' `rapsd`, by wavelength in pixels, so that frames of any size
add up. Rain is transformed to dBR first, as pysteps does, since in mm/h a few heavy cells would make the whole spectrum.
Missing pixels are dry in forecast and truth alike, so that the edge of the data has the same power in both.
"""

from __future__ import annotations

import functools

import numpy as np
import numpy.typing as npt

from .baselines import THRESHOLD_MM_H, ZERO_DBR, Array

EDGES = tuple(2 * 2 ** (k / 3) for k in range(28))
"""Edges of the wavelengths' bands in pixels: thirds of an octave from 2 (the shortest there is) to 1024."""
BAND_KM = (4.0, 16.0)
"""Wavelengths of showers and of what nowcasts blur first, on grids of 2 km or finer."""


def for_spectrum(field: Array, valid: npt.NDArray[np.bool_], *, rain: bool, middle: float) -> npt.NDArray[np.float64]:
    """Values (Y, X) as their spectrum is taken: dBR of rain in mm/h above dry, else what differs from `middle`; 0 elsewhere."""
    value = np.where(valid, field, 0).astype(np.float64)
    if not rain:
        return np.where(valid, value - middle, 0)
    wet = value >= np.float32(THRESHOLD_MM_H)
    return np.where(wet, 10 * np.log10(np.where(wet, value, 1)) - ZERO_DBR, 0)


def power_in(field: npt.NDArray[np.float64], edges: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """Power of a field (Y, X) in bands of wavelengths between `edges`, ascending, in pixels: (bands,)."""
    power = np.abs(np.fft.fft2(field)) ** 2 / field.size
    sums = np.bincount(_band(field.shape, edges).ravel(), power.ravel(), minlength=len(edges) + 1)
    return np.asarray(sums[1:-1], dtype=np.float64)


def modes_in(shape: tuple[int, ...], edges: tuple[float, ...]) -> npt.NDArray[np.float64]:
    """How many Fourier modes a field of that shape has in each band."""
    return np.bincount(_band(shape, edges).ravel(), minlength=len(edges) + 1)[1:-1].astype(np.float64)


def band_edges(spacing_m: float | None) -> tuple[float, ...] | None:
    """BAND_KM in pixels; None where the grid spacing is unknown, or too wide for the shortest of them."""
    if spacing_m is None or 2 * spacing_m > 1000 * BAND_KM[0] * 1.01:
        return None
    return tuple(1000 * km / spacing_m for km in BAND_KM)


@functools.lru_cache(maxsize=8)
def _band(shape: tuple[int, ...], edges: tuple[float, ...]) -> npt.NDArray[np.int64]:
    """Number of the band that each mode lies in, from 1; 0 and len(edges) lie outside."""
    frequency = np.hypot(*np.meshgrid(*(np.fft.fftfreq(side) for side in shape), indexing="ij"))
    with np.errstate(divide="ignore"):
        return np.digitize(1 / frequency, edges)
