"""Power by wavelength: of a wave, against pysteps' spectrum, and of what is blurred."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from stormcell.forecasting.spectrum import EDGES, band_edges, for_spectrum, modes_in, power_in


def test_a_wave_has_its_power_at_its_length() -> None:
    x = np.arange(96)
    wave = np.cos(2 * np.pi * x / 8) * np.ones((64, 1))
    power = power_in(wave, (2, 7, 9, 1000))
    np.testing.assert_allclose(power, [0, 64 * 96 / 2, 0], atol=1e-6)  # Σ cos² of all pixels
    np.testing.assert_allclose(power_in(wave.T, (2, 7, 9, 1000)), power, atol=1e-6)
    assert modes_in((4, 4), (2, 3, 4.5)).tolist() == [6, 4]  # (0, 2), (2, 0), (±1, ±1); (0, ±1), (±1, 0)


@pytest.mark.parametrize("side", [32, 45])
def test_power_agrees_with_pysteps(side: int) -> None:
    pytest.importorskip("pysteps", reason="the cross-check needs pysteps")
    from pysteps.utils.spectral import rapsd

    field = np.random.default_rng(0).gamma(0.4, 4, (side, side))
    rings = np.arange(1, side // 2)
    edges = tuple(side / (np.append(rings, side // 2)[::-1] - 0.5))  # a band a ring
    ours = power_in(field, edges) / modes_in(field.shape, edges)
    np.testing.assert_allclose(ours[::-1], rapsd(field, fft_method=np.fft)[rings], rtol=1e-9)


def test_blur_takes_the_power_of_short_waves() -> None:
    field = np.random.default_rng(0).gamma(0.4, 4, (64, 64))
    ratio = power_in(gaussian_filter(field, 2, mode="wrap"), EDGES) / np.maximum(power_in(field, EDGES), 1e-12)
    some = ratio[modes_in(field.shape, EDGES) > 0]
    assert some[0] < 1e-3
    assert some[-1] > 0.9
    assert (np.diff(some) > 0).all()


def test_rain_is_taken_in_dbr_and_missing_is_dry() -> None:
    field = np.array([[0.0, 0.09, 0.1, 1.0, 100.0, 5.0]], dtype=np.float32)
    valid = np.array([[True, True, True, True, True, False]])
    taken = for_spectrum(field, valid, rain=True, middle=1.0)
    np.testing.assert_allclose(taken, [[0, 0, 5, 15, 35, 0]], atol=1e-6)
    np.testing.assert_allclose(for_spectrum(field, valid, rain=False, middle=1.0)[0, 3:], [0, 99, 0])


def test_the_band_needs_a_grid_that_resolves_it() -> None:
    assert band_edges(1000.0) == (4, 16)
    assert band_edges(2000.0) == (2, 8)
    assert band_edges(2500.0) is None
    assert band_edges(None) is None
